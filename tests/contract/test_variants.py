"""Further forms of some losses: other labels, numbers or masks."""

import pytest

from tests import cases
from tests.contract.laws import Values, name


@pytest.mark.parametrize("row", cases.VARIANTS.values(), ids=name)
class TestVariant(Values):
    pass
