import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt import schedules

COUNTS = jnp.arange(30)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.constant(0.3), lambda count: jnp.full(count.shape, 0.3)),
        (schedules.linear(1.0, 0.1, 20), optax.linear_schedule(1.0, 0.1, 20)),
        (
            schedules.polynomial(1.0, 0.1, 20, power=0.5),
            optax.polynomial_schedule(1.0, 0.1, 0.5, 20),
        ),
        (schedules.exponential(1.0, -np.log(0.5) / 8), optax.exponential_decay(1.0, 8, 0.5)),
        (
            schedules.step(1.0, 8, factor=0.5),
            optax.exponential_decay(1.0, 8, 0.5, staircase=True),
        ),
        (schedules.cosine(0.5, 20, end=0.05), optax.cosine_decay_schedule(0.5, 20, alpha=0.1)),
    ],
    ids=["constant", "linear", "polynomial", "exponential", "step", "cosine"],
)
def test_equals_optax(ours, theirs):
    np.testing.assert_allclose(jax.vmap(ours)(COUNTS), theirs(COUNTS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: schedules.linear(1.0, 0.0, -1), "steps"),
        (lambda: schedules.polynomial(1.0, 0.0, -1, power=1), "steps"),
        (lambda: schedules.polynomial(1.0, 0.0, 10, power=-1), "power"),
        (lambda: schedules.step(1.0, 0, factor=0.1), "every"),
        (lambda: schedules.step(1.0, 10, factor=0.0), "factor"),
        (lambda: schedules.cosine(1.0, -1), "steps"),
        (lambda: schedules.inverse_sqrt(1.0, 0), "steps"),
    ],
)
def test_numbers_out_of_range_are_refused(make, name):
    with pytest.raises(ValueError, match=f"Expected {name} >"):
        make()


def test_power_zero_ends_too():
    schedule = schedules.polynomial(1.0, 0.1, 3, power=0)
    np.testing.assert_allclose([schedule(t) for t in range(5)], [1, 1, 1, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("every", [41, 47, 55, 61, 781])
def test_stairs_are_exact_in_a_compiled_program(every):
    schedule = jax.jit(jax.vmap(schedules.step(1.0, every, factor=0.5)))
    edges = every * jnp.arange(1, 100)
    np.testing.assert_allclose(schedule(edges), 0.5 ** np.arange(1, 100), rtol=1e-6)
    np.testing.assert_allclose(schedule(edges - 1), 0.5 ** np.arange(99), rtol=1e-6)


def test_cosine_is_precise_near_its_end():
    value = schedules.cosine(1.0, 100_000)(99_999)
    np.testing.assert_allclose(value, np.sin(np.pi / 200_000) ** 2, rtol=1e-5)


@pytest.mark.parametrize("count", [2**24 + 1, 2**30 + 1, 2**31 - 1])
def test_large_counts_lose_only_what_float32_loses(count):
    value = jax.jit(schedules.inverse_sqrt(1.0, 1000))(jnp.int32(count))
    np.testing.assert_allclose(value, np.sqrt(1000 / (1000 + count)), rtol=3e-7)
    value = jax.jit(schedules.linear(0.0, 1.0, 2**31 - 1))(jnp.int32(count))
    np.testing.assert_allclose(value, count / (2**31 - 1), rtol=3e-7, atol=1e-7)


def test_inverse_sqrt_behind_a_warmup_is_the_one_of_the_paper():
    schedule = schedules.warmup(schedules.inverse_sqrt(0.3, 40), 40)
    counts = np.arange(40, 400)
    np.testing.assert_allclose(schedule(counts), 0.3 * np.sqrt(40 / counts), rtol=1e-6)


class TestEnd:
    """What has an end holds it from where it is reached."""

    @pytest.mark.parametrize("rate", [0.5, 0.9, 1.1, 2.0])
    @pytest.mark.parametrize("staircase", [False, True])
    def test_equals_optax(self, rate, staircase):
        end = 0.3 if rate < 1 else 5.0
        make = schedules.step if staircase else schedules.exponential
        how = (4,) if staircase else (-np.log(rate) / 4,)
        ours = make(1.0, *how, **({"factor": rate} if staircase else {}), end=end)
        theirs = optax.exponential_decay(1.0, 4, rate, staircase=staircase, end_value=end)
        np.testing.assert_allclose(jax.vmap(ours)(COUNTS), theirs(COUNTS), rtol=1e-5)
        assert ours(1000) == np.float32(end)

    def test_of_negative_levels(self):
        """optax takes the larger of the two, which is the end from the beginning."""
        schedule = schedules.exponential(-1.0, np.log(2), end=-0.2)
        np.testing.assert_allclose([schedule(t) for t in range(4)], [-1, -0.5, -0.25, -0.2])

    @pytest.mark.parametrize(("end", "want"), [(2.0, 0.5), (1.0, 1.0), (0.7, 0.7), (-1.0, 0.5)])
    def test_is_never_reached_from_the_other_side(self, end, want):
        np.testing.assert_allclose(schedules.exponential(1.0, np.log(2), end=end)(1), want)
        np.testing.assert_allclose(schedules.step(1.0, 1, factor=0.5, end=end)(1), want)

    def test_may_be_swept(self):
        ends = jnp.array([0.1, 0.3])
        swept = jax.vmap(lambda end: schedules.exponential(1.0, 0.5, end=end)(COUNTS))(ends)
        want = np.maximum(np.exp(-0.5 * np.arange(30)), np.asarray(ends)[:, None])
        np.testing.assert_allclose(swept, want, rtol=1e-6)
