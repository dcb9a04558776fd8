"""What every transformation must do."""

import pytest

from lossopt.testing import check_transform
from tests import cases


@pytest.mark.parametrize("row", cases.TRANSFORMS.values(), ids=cases.TRANSFORMS)
def test_transform(row):
    check_transform(row.make, row.numbers, extra=row.extra, wide=row.wide)
