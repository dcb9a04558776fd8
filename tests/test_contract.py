"""What every member of a family must do. New members are covered by their row in `cases`."""

import dataclasses
import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.testing import check_schedule, check_transform
from lossopt.testing._losses import (
    LAWS,
    _measured,
    gradient_is_right,
    large_predictions_are_survived,
    padding_is_never_read,
)
from lossopt.testing._regularizers import LAWS as LAWS_OF_REGULARIZERS
from tests import cases

FAMILIES = {
    lo.losses: cases.LOSSES | cases.DECISIONS,
    lo.regularizers: cases.REGULARIZERS,
    lo.schedules: cases.SCHEDULES,
    lo.transforms: cases.TRANSFORMS,
}
NO_MEMBERS = {"Regularizer"}  # a protocol


@pytest.mark.parametrize("room", FAMILIES, ids=lambda room: room.__name__)
def test_every_member_has_a_case(room):
    public = {name for name, thing in vars(room).items() if name[0] != "_" and callable(thing)}
    members = {name for name in public - NO_MEMBERS if not name.endswith(("State", "_metric"))}
    assert members == set(FAMILIES[room])


@pytest.mark.parametrize("room", FAMILIES, ids=lambda room: room.__name__)
def test_every_member_has_the_anatomy(room):
    for name in FAMILIES[room]:
        member = getattr(room, name)
        wanted = ["Args:", "Returns:"] if inspect.isfunction(member) else ["Attributes:"]
        if dataclasses.is_dataclass(member) and not dataclasses.fields(member):
            wanted = []
        for section in [*wanted, "Examples:"]:
            assert section in inspect.getdoc(member), f"{name} has no {section}"


LOSSES = cases.LOSSES | cases.VARIANTS
LAWS_OF_VARIANTS = (gradient_is_right, padding_is_never_read)  # the branches are in the values
LAWS_OF_ROWS = [(law, row) for law in LAWS for row in cases.LOSSES.values()]
LAWS_OF_ROWS += [(law, row) for law in LAWS_OF_VARIANTS for row in cases.VARIANTS.values()]


def _name(parameter):
    return getattr(parameter, "name", None) or parameter.__name__


@pytest.mark.parametrize("row", (LOSSES | cases.DECISIONS).values(), ids=_name)
class TestReference:
    def test_equals_its_reference(self, row):
        wide = [np.asarray(x, np.float64) if x.dtype.kind == "f" else x for x in row.inputs]
        want = row.reference(*wide)
        if row.name in LOSSES:  # a program that the laws need, too
            got, _ = _measured(row.fn, np.ones(len(row.inputs[0]), bool), *row.inputs)
        else:
            got = row.fn(*row.inputs)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)

    def test_equals_its_reference_in_float64(self, row):
        wide = [np.asarray(x, np.float64) if x.dtype.kind == "f" else x for x in row.inputs]
        with jax.enable_x64(True):
            got = jax.jit(row.fn)(*wide)
            assert got.dtype in (jnp.float64, jnp.int32)
            np.testing.assert_allclose(got, row.reference(*wide), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("law", "row"), LAWS_OF_ROWS, ids=_name)
def test_loss(law, row):
    law(row.fn, *row.inputs)


@pytest.mark.parametrize("row", cases.LOSSES.values(), ids=_name)
def test_loss_survives_large_predictions(row):
    size = 0.5 if row.name.startswith("squared_log_error") else 1e4  # defined above -1
    large_predictions_are_survived(row.fn, *row.inputs, size=size)


@cache
def _of_items(fn):
    """Losses and slopes of those that are read."""

    @jax.jit
    def both(first, rest, items):
        def total(first):
            out = fn(first, *rest, items=items)
            return lo.mean(out, items if out.ndim > 1 else None).total, out

        slope, out = jax.grad(total, has_aux=True)(first)
        return out, slope

    return lambda inputs, items: jax.tree.map(np.asarray, both(inputs[0], inputs[1:], items))


@pytest.mark.parametrize("row", cases.LISTS.values(), ids=_name)
class TestList:
    """Losses that couple the items of a list, with a structural mask."""

    def _masked(self, row):
        items = np.arange(row.inputs[0].shape[1]) % 3 != 1
        items = np.broadcast_to(items, row.inputs[0].shape[:2])
        return items, [x[:, items[0]] for x in row.inputs]

    def _poison(self, x, items):
        spread = items.reshape(items.shape + (1,) * (x.ndim - 2))
        return np.where(spread, x, np.nan if x.dtype.kind == "f" else x.max() + 7).astype(x.dtype)

    def test_masked_items_are_never_read(self, row):
        items, kept = self._masked(row)
        poisoned = [self._poison(x, items) for x in row.inputs]
        got, _ = _of_items(row.fn)(poisoned, items)
        want, _ = _of_items(row.fn)(kept, None)
        if got.ndim > 1:
            assert np.isnan(got[~items]).all()
            got = got[items].reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)

    def test_gradients_are_clean(self, row):
        items, kept = self._masked(row)
        poisoned = [self._poison(x, items) for x in row.inputs]
        _, got = _of_items(row.fn)(poisoned, items)
        _, want = _of_items(row.fn)(kept, None)
        assert not got[~items].any()
        np.testing.assert_allclose(got[items].reshape(want.shape), want, rtol=1e-5, atol=1e-6)

    def test_the_order_of_items_does_not_matter(self, row):
        order = np.random.default_rng(0).permutation(row.inputs[0].shape[1])
        rows = np.ones(len(row.inputs[0]), bool)
        got, _ = _measured(row.fn, rows, *(x[:, order] for x in row.inputs))
        want, _ = _measured(row.fn, rows, *row.inputs)
        want = want[:, order] if want.ndim > 1 else want
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

    def test_a_wrong_mask_is_refused(self, row):
        items, _ = self._masked(row)
        for wrong in (items[:, :-1], items[..., None], items.astype(float)):
            with pytest.raises((ValueError, TypeError), match="items"):
                row.fn(*row.inputs, items=wrong)


@pytest.mark.parametrize("row", cases.SCHEDULES.values(), ids=cases.SCHEDULES)
class TestSchedule:
    def test_laws(self, row):
        schedule = row.make(**row.arguments)
        check_schedule(schedule, row.steps or 12, start=row.start, end=row.end)

    def test_equals_its_reference(self, row):
        counts = np.arange((row.steps or 30) + 4)
        got = jax.vmap(row.make(**row.arguments))(counts)
        want = np.array([row.reference(count) for count in counts], np.float64)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)

    def test_every_argument_may_be_traced(self, row):
        counts = jnp.arange((row.steps or 30) + 4)
        values = lambda **arguments: jax.vmap(row.make(**(row.arguments | arguments)))(counts)
        pairs = {name: np.stack([x, x + 1]) for name, x in row.arguments.items()}

        @jax.jit
        def traced(pairs):
            return {n: jax.vmap(lambda x, n=n: values(**{n: x}))(x) for n, x in pairs.items()}

        got = traced(pairs)
        for name, number in row.arguments.items():
            want = np.stack([values(**{name: number}), values(**{name: number + 1})])
            np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-7, err_msg=name)


class TestRegularizer:
    @pytest.mark.parametrize("row", cases.REGULARIZERS.values(), ids=cases.REGULARIZERS)
    def test_equals_its_reference(self, row):
        member, params, reference = row
        want = reference(jax.tree.map(np.float64, params))
        np.testing.assert_allclose(member(params), want, rtol=1e-6)

    @pytest.mark.parametrize("name", cases.REGULARIZERS)
    @pytest.mark.parametrize("law", LAWS_OF_REGULARIZERS, ids=_name)
    def test_laws(self, law, name):
        member, params, _ = cases.REGULARIZERS[name]
        law(member, params, 0.5)


@pytest.mark.parametrize("row", cases.TRANSFORMS.values(), ids=cases.TRANSFORMS)
def test_transform(row):
    check_transform(row.make, row.numbers, extra=row.extra, wide=row.wide)
