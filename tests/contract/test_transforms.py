"""What every transformation must do."""

import inspect
from functools import partial

import optax
import pytest

from lossopt.testing import check_transform
from tests import cases
from tests.transform_cases import GUARDS, RULES


@pytest.mark.parametrize("row", cases.TRANSFORMS.values(), ids=cases.TRANSFORMS)
def test_transform(row):
    check_transform(row.make, row.numbers, extra=row.extra, wide=row.wide)


@pytest.mark.parametrize("row", (RULES | GUARDS).values(), ids=RULES | GUARDS)
def test_a_row_has_all_of_its_numbers(row):
    make = row.make.func if isinstance(row.make, partial) else row.make
    parameters = inspect.signature(make).parameters.values()
    numbers = optax.ScalarOrSchedule, optax.ScalarOrSchedule | None
    assert {p.name for p in parameters if p.annotation in numbers} == set(row.numbers)
