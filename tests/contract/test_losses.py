"""What every loss must do whose examples stand alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests.contract.laws import Loss, name, wide


@pytest.mark.parametrize("row", cases.ALONE.values(), ids=name)
class TestLoss(Loss):
    pass


@pytest.mark.parametrize("row", cases.DECISIONS.values(), ids=name)
class TestDecision:
    def test_equals_its_reference(self, row):
        np.testing.assert_array_equal(row.fn(*row.inputs), row.reference(*wide(row)))

    def test_equals_its_reference_in_float64(self, row):
        with jax.enable_x64(True):
            got = jax.jit(row.fn)(*wide(row))
            assert got.dtype == jnp.int32
            np.testing.assert_array_equal(got, row.reference(*wide(row)))
