"""What the room promises of numbers, over every schedule."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.schedule_cases import SCHEDULES

ARGUMENTS = [(name, argument) for name, case in SCHEDULES.items() for argument in case.arguments]


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def case(request):
    return request.param


@cache
def _looked_at(name):
    """For each argument, first values where it is a traced zero, and the slope of their sum."""
    case, counts = SCHEDULES[name], jnp.arange(30)
    values = lambda argument, x: jax.vmap(case.make(**{**case.arguments, argument: x}))(counts)
    total = lambda argument: lambda x: jnp.sum(values(argument, x))

    @jax.jit
    def look(zero, numbers):
        return {a: (values(a, zero), jax.grad(total(a))(x)) for a, x in numbers.items()}

    return jax.tree.map(np.asarray, look(0.0, {a: float(x) for a, x in case.arguments.items()}))


def test_the_largest_count_does_not_overflow(case):
    schedule = case.make(**case.arguments)
    for value in (schedule(2**31 - 1), jax.jit(schedule)(jnp.int32(2**31 - 1))):
        assert jnp.isfinite(value)
        if case.end is not None:
            np.testing.assert_allclose(value, case.end, rtol=1e-6)


def test_before_the_start_it_holds_the_start(case):
    np.testing.assert_allclose(case.make(**case.arguments)(-1_000_000), case.start, rtol=1e-6)


def test_float64_stays_float64(case):
    with jax.enable_x64(True):
        schedule = case.make(**{k: np.float64(v) for k, v in case.arguments.items()})
        for count in (jnp.int32(7), jnp.float64(7)):
            value = schedule(count)
            assert value.dtype == jnp.float64
            np.testing.assert_allclose(value, case.reference(7), rtol=1e-14)


def test_bfloat16_is_widened(case):
    narrow = {k: jnp.bfloat16(v) for k, v in case.arguments.items()}
    wide = {k: jnp.float32(v) for k, v in narrow.items()}
    value = case.make(**narrow)(jnp.bfloat16(7))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, case.make(**wide)(7), rtol=1e-5)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_traced_zero_is_not_nan(name, argument):
    assert np.isfinite(_looked_at(name)[argument][0]).all()


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_derivatives_are_finite(name, argument):
    assert np.isfinite(_looked_at(name)[argument][1])
