"""What every schedule must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt.testing import check_schedule
from tests import cases
from tests.schedule_cases import FORMS

ROWS = cases.SCHEDULES | FORMS


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
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
