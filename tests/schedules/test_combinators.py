import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt import schedules

COUNTS = jnp.arange(30)


def test_warmup_equals_optax():
    ours = schedules.warmup(schedules.cosine(0.5, 20), 5)
    theirs = optax.join_schedules(
        [optax.linear_schedule(0.1, 0.5, 4), optax.cosine_decay_schedule(0.5, 20)], [5]
    )
    np.testing.assert_allclose(jax.jit(ours)(COUNTS), jax.jit(theirs)(COUNTS), rtol=1e-5, atol=1e-7)


def test_warmup_lengths_may_be_swept():
    of = lambda steps: jax.jit(schedules.warmup(schedules.cosine(0.5, 20), steps))(COUNTS)
    want = [schedules.cosine(0.5, 20)(COUNTS), of(1), of(4), of(9)]
    for dtype in (jnp.int32, jnp.float32):
        swept = jax.jit(jax.vmap(of))(jnp.array([0, 1, 4, 9], dtype))
        np.testing.assert_allclose(swept, want, rtol=1e-6, atol=1e-7)


def test_a_fraction_of_an_epoch_does_not_overshoot_the_peak():
    schedule = schedules.warmup(schedules.constant(1.0), 5)
    np.testing.assert_allclose(schedule(jnp.array([3.5, 4.5, 5.0])), [0.9, 1.0, 1.0], rtol=1e-6)


def test_optax_takes_ours_and_ours_take_optax():
    ours, theirs = schedules.cosine(0.5, 10), optax.cosine_decay_schedule(0.5, 10)
    joined = optax.join_schedules([ours, schedules.exponential(0.1, 0.1)], [12])
    again = schedules.join([theirs, optax.exponential_decay(0.1, 1, np.exp(-0.1))], [12])
    np.testing.assert_allclose(joined(COUNTS), again(COUNTS), rtol=1e-5, atol=1e-7)


def test_a_sweep_over_lengths_inside_an_optimizer():
    def last(steps):
        schedule = schedules.warmup(schedules.linear(1.0, 0.0, 4), steps)
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
        state = optimizer.init(jnp.zeros(()))
        for _ in range(4):
            updates, state = optimizer.update(jnp.ones(()), state)
        return updates

    np.testing.assert_allclose(jax.jit(jax.vmap(last))(jnp.array([0, 2, 8])), [-0.25, -0.75, -0.5])


def test_joined_boundaries_may_be_swept():
    parts = schedules.constant(1.0), schedules.linear(0.5, 0.0, 10), optax.constant_schedule(0.1)
    of = lambda boundaries: jax.jit(schedules.join(parts, boundaries))(COUNTS)
    swept = jax.jit(jax.vmap(of))(jnp.array([[3, 9], [5, 20]]))
    np.testing.assert_allclose(swept, [of([3, 9]), of((5, 20))], rtol=1e-6)


def test_what_is_joined_is_read_once():
    parts, boundaries = [schedules.constant(1.0), schedules.constant(0.5)], [3]
    schedule = schedules.join(parts, boundaries)
    parts[1], boundaries[0] = parts[0], 9
    assert (schedule(2), schedule(3)) == (1.0, 0.5)


def test_whole_counts_stay_whole_and_are_never_negative():
    table = jnp.array([0.1, 0.2, 0.3, 0.4])
    tabled = lambda count: table.at[count].get(mode="fill", wrap_negative_indices=False)
    warmed = jax.jit(schedules.warmup(tabled, 2))
    joined = jax.jit(schedules.join([schedules.constant(1.0), tabled], [2]))
    for t in range(2, 6):
        assert warmed(t) == joined(t) == table[t - 2]
    assert warmed(0) == table[0] / 2
    largest = schedules.join([schedules.constant(1.0), lambda count: count], [2**31 - 3])
    assert largest(jnp.int32(2**31 - 1)) == 2


def test_a_boundary_of_low_precision_rounds_no_count():
    """1001 is 1000 in bfloat16, and 300 is 44 in 8 bits."""
    parts = [schedules.constant(0.0), lambda count: count]
    for boundary in (jnp.bfloat16(4), np.uint8(4), jnp.int8(4)):
        assert schedules.join(parts, [boundary])(jnp.int32(1001)) == 997
        assert schedules.warmup(parts[1], boundary)(300) == 296
    assert schedules.join(parts, [4])(jnp.uint8(250)) == 246
    assert schedules.join(parts, [300])(jnp.uint8(250)) == 0
    assert schedules.join(parts, [4])(jnp.uint32(2**32 - 4)) == 2.0**32


def test_values_are_floats():
    whole = lambda count: 2
    for schedule in (
        schedules.warmup(whole, 2),
        schedules.join([whole, whole], [2]),
        schedules.scale(whole, 3),
        schedules.per_epoch(whole, 3),
    ):
        assert schedule(jnp.int32(1)).dtype == jnp.float32


def test_scale_by_minus_one_descends():
    optimizer = optax.scale_by_schedule(schedules.scale(schedules.step(0.5, 1, factor=0.5), -1))
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
    np.testing.assert_allclose(updates, [-0.5, -0.5])


@pytest.mark.parametrize("steps_per_epoch", [41, 47, 55, 61, 781])
def test_epochs_begin_on_time_in_a_compiled_program(steps_per_epoch):
    epoch = jax.jit(jax.vmap(schedules.per_epoch(jnp.floor, steps_per_epoch)))
    begin = steps_per_epoch * jnp.arange(1, 100)
    np.testing.assert_array_equal(epoch(begin), np.arange(1, 100))
    np.testing.assert_array_equal(epoch(begin - 1), np.arange(99))


def test_an_epoch_may_be_a_fraction_of_steps():
    schedule = schedules.per_epoch(lambda epochs: epochs, 2.5)
    np.testing.assert_allclose(schedule(jnp.array([1, 5, 7])), [0.4, 2.0, 2.8], rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.warmup(0.1, 10),
        lambda: schedules.join([schedules.constant(1.0), 0.1], [10]),
        lambda: schedules.scale(0.1, 0.5),
        lambda: schedules.per_epoch(0.1, 10),
    ],
)
def test_numbers_are_refused_where_schedules_are_due(make):
    with pytest.raises(TypeError, match=r"got 0\.1\. For a level write .*constant\(0\.1\)"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.warmup(schedules.constant(1.0), -1), "steps >= 0, got -1"),
        (lambda: schedules.per_epoch(schedules.constant(1.0), 0), "steps_per_epoch > 0, got 0"),
        (lambda: schedules.join([], []), "schedules >= 1, got 0"),
        (lambda: schedules.join([jnp.sqrt], [3]), "0 boundaries, .* got 1"),
        (lambda: schedules.join([jnp.sqrt] * 3, [3]), "2 boundaries, .* got 1"),
        (lambda: schedules.join([jnp.sqrt] * 3, [5, 3]), "boundaries >= 0, got -2"),
        (lambda: schedules.join([jnp.sqrt] * 2, [-1]), "boundaries >= 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        make()


def test_no_warmup_is_the_schedule_itself():
    schedule = schedules.linear(1.0, 0.0, 4)
    counts = np.arange(6)
    np.testing.assert_array_equal(schedules.warmup(schedule, 0)(counts), schedule(counts))


def test_a_warmup_from_a_level_equals_optax():
    ours = schedules.warmup(schedules.cosine(0.5, 20, end=0.1), 5, start=0.2)
    theirs = optax.warmup_cosine_decay_schedule(0.2, 0.5, 5, 25, 0.1)
    np.testing.assert_allclose(jax.jit(ours)(COUNTS), jax.jit(theirs)(COUNTS), rtol=1e-5)


def test_a_warmup_from_a_level_that_takes_no_time():
    for zero in (0, jnp.int32(0)):
        schedule = schedules.warmup(schedules.linear(1.0, 0.0, 4), zero, start=0.5)
        np.testing.assert_array_equal(schedule(COUNTS), schedules.linear(1.0, 0.0, 4)(COUNTS))


def test_a_part_that_takes_no_time_is_left_out():
    parts = [schedules.constant(x) for x in (1.0, 2.0, 3.0)]
    counts = jnp.arange(-2, 6)
    np.testing.assert_array_equal(schedules.join(parts, [0, 3])(counts), [2] * 5 + [3] * 3)
    np.testing.assert_array_equal(schedules.join(parts, [3, 3])(counts), [1] * 5 + [3] * 3)
    np.testing.assert_array_equal(schedules.join(parts, [0, 0])(counts), [3] * 8)
