"""The laws of a loss as tests; a file for each group of rows lets workers share them."""

from functools import cache
from itertools import chain, combinations

import jax.numpy as jnp
import numpy as np
import pytest

from lossopt.testing import _losses
from lossopt.testing._gradients import agree, seen
from tests import cases

LOSSES = cases.LOSSES | cases.VARIANTS
LAWS = [
    law
    for law in _losses.LAWS
    if law not in (_losses.gradient_is_right, _losses.padding_is_never_read)
]


def name(parameter):
    return getattr(parameter, "name", None) or parameter.__name__


def wide(row):
    return [np.asarray(x, np.float64) if x.dtype.kind == "f" else x for x in row.inputs]


@cache
def _in_float64(name):
    """One program: the values, their derivative and the difference."""
    row = LOSSES[name]
    first, *rest = wide(row)
    return seen(lambda x: row.fn(x, *rest), first)


class Values:
    """What the branches of a loss are in."""

    def test_equals_its_reference(self, row):
        got, _ = _losses._measured(row.fn, np.ones(len(row.inputs[0]), bool), *row.inputs)
        np.testing.assert_allclose(got, row.reference(*wide(row)), rtol=2e-6, atol=1e-6)

    def test_equals_its_reference_in_float64(self, row):
        (got,) = _in_float64(row.name)["values"]
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, row.reference(*wide(row)), rtol=1e-11, atol=1e-12)

    def test_gradient_is_right(self, row):
        agree(_in_float64(row.name))

    def test_padding_is_never_read(self, row):
        _losses.padding_is_never_read(row.fn, *row.inputs)

    def test_impossible_padding_has_no_slope(self, row):
        padding = np.arange(len(row.inputs[0])) % 3 == 2
        floats = [i for i, x in enumerate(row.inputs) if x.dtype.kind == "f"]
        some = (combinations(floats, count + 1) for count in range(len(floats)))
        for places in chain.from_iterable(some):
            padded = [x.copy() for x in row.inputs]
            for i in places:
                padded[i][padding] = -np.inf
            _, slope = _losses._measured(row.fn, ~padding, *padded)
            assert np.isfinite(slope).all(), places
            assert not slope[padding].any(), places


class Loss(Values):
    """All that a loss must do."""

    @pytest.mark.parametrize("law", LAWS, ids=name)
    def test_law(self, law, row):
        law(row.fn, *row.inputs)

    def test_survives_large_predictions(self, row):
        size = 0.5 if row.name.startswith("squared_log_error") else 1e4  # defined above -1
        _losses.large_predictions_are_survived(row.fn, *row.inputs, size=size)
