"""What every regularizer must do."""

import jax
import numpy as np
import pytest

from lossopt.testing._nan import nan_stays_nan
from lossopt.testing._regularizers import LAWS
from tests import cases
from tests.contract.laws import name as _name


class TestRegularizer:
    @pytest.mark.parametrize("row", cases.REGULARIZERS.values(), ids=cases.REGULARIZERS)
    def test_equals_its_reference(self, row):
        member, params, reference = row
        want = reference(jax.tree.map(np.float64, params))
        np.testing.assert_allclose(member(params), want, rtol=1e-6)

    @pytest.mark.parametrize("name", cases.REGULARIZERS)
    @pytest.mark.parametrize("law", LAWS, ids=_name)
    def test_laws(self, law, name):
        member, params, _ = cases.REGULARIZERS[name]
        law(member, params, 0.5)

    @pytest.mark.parametrize("member", cases.SUMS.values(), ids=cases.SUMS)
    def test_nan_stays_nan_in_a_sum(self, member):
        nan_stays_nan(member, cases.REGULARIZERS["L1"][1], 0.5)
