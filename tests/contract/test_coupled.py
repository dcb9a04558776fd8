"""What every loss must do that couples examples or the items of a list."""

from functools import cache

import jax
import numpy as np
import pytest

import lossopt as lo
from lossopt.testing._losses import _measured
from tests import cases
from tests.contract.laws import Loss, name


@pytest.mark.parametrize("row", cases.COUPLED.values(), ids=name)
class TestLoss(Loss):
    pass


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


@pytest.mark.parametrize("row", cases.LISTS.values(), ids=name)
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
