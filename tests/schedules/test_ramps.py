"""What the room promises of numbers, over every schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.schedule_cases import SCHEDULES

ARGUMENTS = [(name, argument) for name, case in SCHEDULES.items() for argument in case.arguments]


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def case(request):
    return request.param


def _of(name, argument):
    """A schedule's values over its first counts as a function of one argument."""
    case = SCHEDULES[name]
    counts = jnp.arange(30)
    return lambda x: jax.vmap(case.make(**{**case.arguments, argument: x}))(counts)


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
    assert jnp.isfinite(jax.jit(_of(name, argument))(0.0)).all()


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_derivatives_are_finite(name, argument):
    value = float(SCHEDULES[name].arguments[argument])
    total = lambda x: jnp.sum(_of(name, argument)(x))
    assert jnp.isfinite(jax.jit(jax.grad(total))(value))
