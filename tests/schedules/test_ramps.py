"""What the room promises of numbers, over every schedule."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt import schedules
from tests import schedule_cases

SCHEDULES = schedule_cases.SCHEDULES | schedule_cases.FORMS
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


def test_jax_may_be_told_to_promote_nothing(case):
    kinds = lambda x: (x, np.asarray(x), jnp.asarray(x), jnp.bfloat16(x))
    with jax.numpy_dtype_promotion("strict"):
        for i in range(4):
            numbers = {name: kinds(x)[i] for name, x in case.arguments.items()}
            assert jax.eval_shape(case.make(**numbers), jnp.int32(3)).dtype == jnp.float32
            of_traced = lambda count, numbers: case.make(**numbers)(count)
            assert jax.eval_shape(of_traced, jnp.int32(3), numbers).dtype == jnp.float32


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


WHOLE = [int, np.int64]
LARGE = 2**31, 10**10  # that no int32 holds


def _enlarged(case):
    """All lengths by a factor that no int32 holds; then one level after the other."""
    whole = {name: x * 2**31 for name, x in case.arguments.items() if isinstance(x, int)}
    levels = [{name: 10**10} for name, x in case.arguments.items() if isinstance(x, float)]
    return [whole, *levels]


def test_whole_numbers_that_no_int32_holds_are_themselves(case):
    def values(kind):
        changed = [{name: kind(x) for name, x in change.items()} for change in _enlarged(case)]
        schedules = [case.make(**(case.arguments | change)) for change in changed]
        counts = jnp.int32([0, 1, 10**9]), jnp.float32([1e10, 1e11])
        plain = case.make(**case.arguments)
        return [s(c) for s in schedules for c in counts], [plain(kind(x)) for x in LARGE]

    got = jax.jit(lambda: {kind.__name__: values(kind) for kind in (float, *WHOLE)})()
    for kind in WHOLE:
        jax.tree.map(np.testing.assert_array_equal, got[kind.__name__], got["float"])


def test_small_whole_numbers_never_wrap_either(case):
    """As differences of lengths in unsigned bytes would."""
    counts = np.arange(30)
    bytes_ = {name: np.uint8(x) if isinstance(x, int) else x for name, x in case.arguments.items()}
    got, want = jax.jit(lambda: [case.make(**a)(counts) for a in (bytes_, case.arguments)])()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [float, *WHOLE])
@pytest.mark.parametrize(
    ("make", "count", "want"),
    [
        (lambda n: schedules.linear(1000.0, 0.0, n(2**31)), 10**9, 1000 * (1 - 10**9 / 2**31)),
        (
            lambda n: schedules.cosine(1000.0, n(10**10)),
            10**9,
            500 * (1 + np.cos(np.pi / 10)),
        ),
        (lambda n: schedules.step(1.0, n(2**31), factor=0.1), 10, 1),
        (lambda n: schedules.trapezoid(1.0, n(3 * 10**9), warmup=10, decay=100), 1000, 1),
        (lambda n: schedules.warmup(lambda t: 1.0, n(2**32)), 2**31 - 1, 0.5),
        (lambda n: schedules.join([lambda t: 1.0, lambda t: 2.0], [n(2**31)]), 10**9, 1),
        (lambda n: schedules.join([lambda t: 1.0, lambda t: t], [n(7)]), 10**10, 1e10),
        (lambda n: schedules.scale(lambda t: 0.5, n(10**10)), 3, 5e9),
    ],
)
def test_large_lengths_by_hand(kind, make, count, want):
    np.testing.assert_allclose(make(kind)(count), want, rtol=1e-6)


def test_unsigned_lengths_are_refused_as_others_are():
    byte = np.uint8
    with pytest.raises(ValueError, match=r"steps - warmup - decay >= 0, got -1"):
        schedules.trapezoid(1.0, byte(10), warmup=byte(6), decay=byte(5))
    with pytest.raises(ValueError, match=r"boundaries >= 0, got -2"):
        schedules.join([jnp.sqrt] * 3, np.uint32([5, 3]))


# Periods, and lengths that hold others.
NEVER_ZERO = {
    *[("step", "every"), ("step/end", "every"), ("per_epoch", "steps_per_epoch")],
    *[("inverse_sqrt", "steps"), ("triangular", "steps"), ("cosine_restarts", "steps")],
    *[("trapezoid", "steps"), ("one_cycle", "steps"), ("join", "second")],
}
LENGTHS = {"steps", "warmup", "decay", "every", "first", "second", "steps_per_epoch", "epochs"}


@pytest.mark.parametrize(
    ("name", "length"), [(name, length) for name, length in ARGUMENTS if length in LENGTHS]
)
def test_a_length_of_zero_is_over_at_once_traced_or_not(name, length):
    case = SCHEDULES[name]
    for zero in (0, 0.0, np.int64(0)):
        make = lambda zero=zero: case.make(**{**case.arguments, length: zero})
        if (name, length) in NEVER_ZERO:
            with pytest.raises(ValueError, match=r"^Expected (steps|every)"):
                make()
        else:
            got = jax.jit(jax.vmap(make()))(jnp.arange(30))
            np.testing.assert_allclose(got, _looked_at(name)[length][0], rtol=1e-6, atol=1e-7)
