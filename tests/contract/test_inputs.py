"""What every loss makes of inputs that are no arrays, too large, or of several dtypes."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests import cases
from tests.contract.laws import name

ROWS = cases.LOSSES | cases.VARIANTS | cases.DECISIONS
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=name)


def _names(row):
    return inspect.signature(getattr(lo.losses, row.name.split("/")[0])).parameters


@each_row
def test_a_list_is_refused_by_its_name(row):
    names = "|".join(_names(row))
    for i, x in enumerate(row.inputs):
        inputs = [*row.inputs[:i], x.tolist(), *row.inputs[i + 1 :]]
        with pytest.raises(TypeError, match=f"^Expected ({names}) as an array .* got list"):
            jax.eval_shape(lambda inputs=inputs: row.fn(*inputs))


def _mixed(row):
    """The inputs in as many dtypes as there may be: nothing but the loss promotes them."""
    dtypes = {"f": jnp.bfloat16, "i": np.int8, "b": bool}
    first, *rest = (x.astype(dtypes[x.dtype.kind]) for x in row.inputs)
    return first.astype(jnp.float16), *rest


@each_row
def test_jax_may_be_told_to_promote_nothing(row):
    sums = lambda first, *rest: jnp.sum(row.fn(first, *rest))
    with jax.numpy_dtype_promotion("strict"):
        want = jax.eval_shape(row.fn, *row.inputs).dtype
        assert jax.eval_shape(row.fn, *_mixed(row)).dtype == want
        if want == jnp.float32:  # a decision has no slope
            assert jax.eval_shape(jax.grad(sums), *_mixed(row)).dtype == jnp.float16


def _numbers(row):
    """The names of the numbers of a loss that are not within a fixed range."""
    within = {"level", "power", "alpha", "label_smoothing", "clip_range"}
    keywords = getattr(row.fn, "keywords", {})
    return [key for key, x in keywords.items() if type(x) in (int, float) and key not in within]


@pytest.mark.parametrize(
    ("row", "number"), [(row, number) for row in ROWS.values() for number in _numbers(row)]
)
def test_a_whole_number_that_no_int32_holds_is_refused_by_its_name(row, number):
    for large in (2**31, np.int64(2**32), 10**10):
        with pytest.raises(ValueError, match=f"^Expected {number} within 32 bits, got {large}"):
            jax.eval_shape(partial(row.fn, **{number: large}), *row.inputs)


def _refusal(call):
    try:
        jax.eval_shape(call)
    except ValueError as error:
        return str(error)
    return None


@each_row
def test_integers_that_no_int32_holds_are_themselves_or_refused_by_their_name(row):
    """A label of 2^32 would wrap to class 0."""
    for i, x in enumerate(row.inputs):
        if x.dtype.kind == "i":
            large = x + np.int64(2**32) * (x == x.max())
            of = lambda x, i=i: row.fn(*row.inputs[:i], x, *row.inputs[i + 1 :])
            both = lambda of=of, large=large: (of(large), of(large.astype(np.float32)))
            if refusal := _refusal(both):
                assert re.match(r"Expected \w+ within 32 bits, got 42949\d+", refusal)
            else:
                np.testing.assert_array_equal(*jax.jit(both)())
