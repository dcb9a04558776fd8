from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt import schedules

COUNTS = jnp.arange(40)


def test_one_cycle_equals_optax():
    ours = schedules.one_cycle(0.1, 1.0, 30, warmup=9, decay=12, end=0.01)
    theirs = optax.linear_onecycle_schedule(
        30, 1.0, pct_start=0.3, pct_final=0.7, div_factor=10.0, final_div_factor=10.0
    )
    np.testing.assert_allclose(ours(COUNTS), jax.jit(jax.vmap(theirs))(COUNTS), rtol=1e-5)


def test_one_cycle_without_a_rest_jumps_to_its_end():
    schedule = schedules.one_cycle(0.1, 1.0, 8, warmup=4, decay=4)
    np.testing.assert_allclose([schedule(t) for t in (4, 7, 8)], [1.0, 0.325, 0.0], rtol=1e-6)


def test_trapezoid_without_a_plateau():
    schedule = schedules.trapezoid(1.0, 4, warmup=2, decay=2)
    np.testing.assert_allclose(schedule(jnp.arange(5)), [0.5, 1.0, 1.0, 0.5, 0.0])


def test_triangles_do_not_drift():
    schedule = jax.jit(schedules.triangular(0.0, 1.0, 41))
    turns = 82 * 100_000 + jnp.array([0, 41, 82])
    np.testing.assert_allclose(schedule(turns), [0, 1, 0], atol=1e-6)


def test_restarts_equal_optax():
    ours = schedules.cosine_restarts(1.0, 5, factor=2, end=0.1)
    cosine = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "end_value": 0.1}
    theirs = optax.sgdr_schedule([{**cosine, "decay_steps": steps} for steps in (5, 10, 20, 40)])
    np.testing.assert_allclose(jax.jit(ours)(COUNTS), jax.jit(theirs)(COUNTS), rtol=1e-5)


@jax.jit
def _restarts(steps, factor, counts):
    return schedules.cosine_restarts(1.0, steps, factor=factor)(counts)


@pytest.mark.parametrize("steps", [1, 7, 41, 58, 1000])
@pytest.mark.parametrize("factor", [1, 2, 3, 10])
def test_restarts_happen_on_time(steps, factor):
    lengths = [steps * factor**n for n in range(20)]
    known = [pair for pair in zip(accumulate(lengths), lengths) if pair[0] <= 1_000_000]
    restarts, lengths = np.resize(known, (20, 2)).T  # of one shape, so that it compiles once
    np.testing.assert_allclose(_restarts(steps, factor, restarts), 1, rtol=1e-6)
    just_before = np.sin(np.pi / 2 / lengths) ** 2
    np.testing.assert_allclose(_restarts(steps, factor, restarts - 1), just_before, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "factor", "starts"),
    [
        (1000, 1.1, [1000, 2100, 3310, 4641]),
        (16, 1.5, [16, 40, 76, 130, 211]),
        (64, 3.5, [64, 288, 1072, 3816, 13420, 47034, 164683]),  # 4 eps would miss the last
    ],
)
def test_decimal_factors_miss_no_restart(steps, factor, starts):
    schedule = jax.jit(schedules.cosine_restarts(1.0, steps, factor=factor))
    starts = np.array(starts)
    np.testing.assert_allclose(schedule(starts), 1, rtol=1e-6)
    assert (schedule(starts - 1) < 0.02).all()


def test_restarts_are_continuous_in_the_factor():
    regular = _restarts(7, 1.0, COUNTS + 0.5)
    for factor in (1.0 + 1e-6, 1.0 + 1e-5):
        np.testing.assert_allclose(_restarts(7, factor, COUNTS + 0.5), regular, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: schedules.trapezoid(1.0, 10, warmup=-1, decay=1), "warmup"),
        (lambda: schedules.trapezoid(1.0, 10, warmup=6, decay=5), "steps - warmup - decay"),
        (lambda: schedules.one_cycle(0.1, 1.0, 10, warmup=1, decay=-1), "decay"),
        (lambda: schedules.one_cycle(0.1, 1.0, 10, warmup=6, decay=5), "steps - warmup - decay"),
        (lambda: schedules.triangular(0.1, 1.0, 0), "steps"),
        (lambda: schedules.cosine_restarts(1.0, 0), "steps"),
        (lambda: schedules.cosine_restarts(1.0, 10, factor=0.5), "factor"),
    ],
)
def test_numbers_out_of_range_are_refused(make, name):
    with pytest.raises(ValueError, match=f"Expected {name} >"):
        make()


@pytest.mark.parametrize("part", [0.1, 0.45])
def test_parts_of_the_steps_may_add_up_to_them_but_for_rounding(part):
    lengths = [(steps, steps * part, steps * (1 - part)) for steps in range(1, 200)]
    over = [(s, w, d) for s, w, d in lengths if s - w - d < 0][:8]
    for steps, warmup, decay in over:
        made = [
            schedules.trapezoid(1.0, steps, warmup=warmup, decay=decay),
            schedules.one_cycle(0.1, 1.0, steps, warmup=warmup, decay=decay),
        ]
        assert jax.jit(lambda steps=steps, made=made: [s(steps) for s in made])() == [0, 0]
    assert over


def test_more_than_rounding_is_refused():
    with pytest.raises(ValueError, match=r"steps - warmup - decay >= 0, got -0.00"):
        schedules.trapezoid(1.0, 100, warmup=40, decay=60.001)


def test_a_cycle_without_a_rise_begins_at_its_peak():
    schedule = schedules.one_cycle(0.1, 1.0, 8, warmup=0, decay=4)
    np.testing.assert_allclose([schedule(t) for t in (0, 2, 4, 8)], [1.0, 0.55, 0.1, 0.0])


def test_a_plateau_may_have_no_flanks():
    schedule = schedules.trapezoid(2.0, 4, warmup=0, decay=0)
    np.testing.assert_allclose([schedule(t) for t in (0, 3, 4)], [2, 2, 0])
