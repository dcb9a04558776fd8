import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt import schedules
from lossopt.transforms._plateau import reduce_on_plateau


def _scales(plateau, values):
    """The scale of each update and the last state."""
    state = plateau.init(jnp.zeros(1))

    def step(state, value):
        updates, state = plateau.update(jnp.ones(1), state, value=value)
        return state, updates[0]

    state, scales = jax.lax.scan(step, state, jnp.asarray(values, jnp.float32))
    return scales, state


@pytest.mark.parametrize(
    ("patience", "cooldown", "size", "min_scale"),
    [(1, 0, 1, 0.0), (3, 2, 1, 0.03), (2, 1, 3, 0.0), (5, 0, 2, 0.2)],
)
def test_equals_optax_on_positive_values(patience, cooldown, size, min_scale):
    common = {"cooldown": cooldown, "accumulation_size": size, "min_scale": min_scale}
    ours = reduce_on_plateau(0.5, patience, threshold=0.02, **common)
    theirs = optax.contrib.reduce_on_plateau(0.5, patience, rtol=0.0, atol=0.02, **common)
    noise = np.random.default_rng(patience).normal(size=(64, 80))
    curves = jnp.float32(1 + np.exp(-np.arange(80) / 20) + 0.1 * noise)
    got, state = jax.jit(jax.vmap(lambda curve: _scales(ours, curve)))(curves)
    want, their_state = jax.jit(jax.vmap(lambda curve: _scales(theirs, curve)))(curves)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(state.best, their_state.best_value, rtol=1e-6)
    np.testing.assert_array_equal(state.waited, their_state.plateau_count)
    np.testing.assert_array_equal(state.cooldown, their_state.cooldown_count)
    assert jnp.min(got) < 0.6


def test_negative_values_that_stand_still_are_a_plateau():
    still = np.full(30, -2.0)
    scales, _ = _scales(reduce_on_plateau(0.1, patience=10), still)
    np.testing.assert_allclose(scales, [1.0] * 10 + [0.1] * 10 + [0.01] * 10, rtol=1e-6)
    theirs, _ = _scales(optax.contrib.reduce_on_plateau(0.1, patience=10), still)
    assert (theirs == 1).all()


def test_negative_values_that_fall_are_none():
    scales, state = _scales(reduce_on_plateau(0.1, patience=1, threshold=0.5), -np.arange(30.0))
    assert (scales == 1).all()
    assert state.best == -29


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 2])
def test_what_is_not_finite_is_no_improvement(bad, size):
    values = np.repeat([3.0, bad, bad, 2.0, 2.0], size)
    plateau = reduce_on_plateau(0.5, patience=2, accumulation_size=size)
    scales, state = _scales(plateau, values)
    np.testing.assert_allclose(scales[size - 1 :: size], [1, 1, 0.5, 0.5, 0.5])
    assert state.best == 2
    assert state.waited == 1


def test_an_improvement_must_exceed_the_threshold():
    scales, state = _scales(reduce_on_plateau(0.5, patience=2, threshold=0.25), [1.0, 0.75, 0.75])
    np.testing.assert_allclose(scales, [1, 1, 0.5])
    assert state.best == 1
    scales, _ = _scales(reduce_on_plateau(0.5, patience=2, threshold=0.25), [1.0, 0.75, 0.74])
    np.testing.assert_allclose(scales, [1, 1, 1])


def test_a_schedule_counts_updates():
    patience = schedules.step(1.0, 6, factor=3.0)
    scales, state = _scales(reduce_on_plateau(0.5, patience), np.ones(12))
    # The first value improves on inf; then one that does not is enough, and from update 6 on three.
    falls = [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 7]
    np.testing.assert_allclose(scales, 0.5 ** np.array(falls), rtol=1e-6)
    assert state.count == 12


def test_low_precision_parameters_are_scaled_in_float32():
    params = jnp.ones(1, jnp.bfloat16)
    plateau = reduce_on_plateau(0.1, patience=1)
    state = plateau.init(params)
    for _ in range(3):
        updates, state = plateau.update(3 * params, state, value=jnp.bfloat16(1.0))
    assert state.scale.dtype == jnp.float32
    np.testing.assert_allclose(state.scale, 0.01, rtol=1e-6)
    assert updates.dtype == jnp.bfloat16
    assert updates[0] == jnp.bfloat16(0.03)


def test_fit_passes_the_value():
    objective = lambda w, x: {"fit": lo.mean(0 * w - x)}
    optimizer = optax.chain(optax.sgd(0.1), reduce_on_plateau(0.5, patience=2))
    data, key = jnp.ones(4), jax.random.key(0)
    run = lo.fit(objective, 0.0, data, optimizer, batch_size=4, epochs=5, key=key)
    assert run.opt_state[1].best == -1
    assert run.opt_state[1].scale == 0.25


def test_without_a_value_it_says_how_to_pass_it():
    plateau = reduce_on_plateau()
    with pytest.raises(ValueError, match=r"watches a value, got none. .*value=loss"):
        plateau.update(jnp.ones(1), plateau.init(jnp.ones(1)))
    with pytest.raises(ValueError, match=r"Expected value of shape \(\), got \(3,\)"):
        plateau.update(jnp.ones(1), plateau.init(jnp.ones(1)), value=jnp.ones(3))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"factor": 0.0}, "factor > 0, got 0.0"),
        ({"factor": 1}, "factor < 1, got 1"),
        ({"patience": 0}, "patience >= 1, got 0"),
        ({"accumulation_size": 0}, "accumulation_size >= 1, got 0"),
        ({"threshold": -1e-4}, "threshold >= 0, got -0.0001"),
        ({"cooldown": -1}, "cooldown >= 0, got -1"),
        ({"min_scale": -0.1}, "min_scale >= 0, got -0.1"),
        ({"min_scale": 2}, "min_scale <= 1, got 2"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        reduce_on_plateau(**numbers)
