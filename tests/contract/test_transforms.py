"""What every transformation must do."""

import inspect
from functools import partial

import optax
import pytest

from lossopt.testing import check_transform
from tests import cases
from tests.transform_cases import FORMS, GUARDS, RULES

ALL = cases.TRANSFORMS | FORMS


@pytest.mark.parametrize("row", ALL.values(), ids=ALL)
def test_transform(row):
    check_transform(row.make, row.numbers, extra=row.extra, wide=row.wide)


@pytest.mark.parametrize("row", (RULES | GUARDS).values(), ids=RULES | GUARDS)
def test_a_row_has_all_of_its_numbers(row):
    parameters = inspect.signature(_function(row)).parameters.values()
    numbers = optax.ScalarOrSchedule, optax.ScalarOrSchedule | None
    forms = [form for form in ALL.values() if _function(form) is _function(row)]
    assert {p.name for p in parameters if p.annotation in numbers} == {
        name for form in forms for name in form.numbers
    }


def _function(row):
    make = inspect.unwrap(row.make)
    return make.func if isinstance(make, partial) else make
