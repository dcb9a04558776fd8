from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt.transforms._clipping import clip_by_global_norm
from lossopt.transforms._spikes import skip_spikes

pytestmark = pytest.mark.usefixtures("optimized")

NAN, INF = float("nan"), float("inf")


@partial(jax.jit, static_argnums=0, static_argnames=("deviations", "horizon", "warmup", "floor"))
def _walk(rule, norms, **numbers):
    """Updates, all states and the last one, for gradients of these norms."""
    optimizer = skip_spikes(rule, **numbers)
    grads = jnp.float32(norms)[:, None] * jnp.array([[0.6, -0.8]], jnp.float32)

    def step(state, grads):
        updates, state = optimizer.update(grads, state, jnp.ones(2))
        return state, (updates, state)

    return jax.lax.scan(step, optimizer.init(jnp.ones(2)), grads)[1]


def _by_hand(norms, deviations, horizon, warmup, floor):
    """Which are skipped, and the history after each, in float64."""
    mean, variance, seen, skipped, history = 0.0, 0.0, 0, [], []
    for norm in norms:
        if not np.isfinite(norm):
            skipped.append(True)
        elif norm == 0:
            skipped.append(False)
        else:
            log = np.log(norm)
            reach = deviations * max(np.sqrt(variance), floor) if seen >= warmup else np.inf
            skipped.append(log > mean + reach)
            log = np.clip(log, mean - reach, mean + reach)
            seen += 1
            rate = max(1 / horizon, 1 / seen)
            before, mean = mean, mean + rate * (log - mean)
            variance = (1 - rate) * (variance + rate * (log - before) ** 2)
        history.append((mean, variance))
    return np.array(skipped), np.array(history)


@pytest.mark.parametrize("numbers", [(6.0, 100, 20, 0.1), (2.5, 10, 5, 0.01), (3.0, 1, 1, 0.2)])
def test_the_history_is_the_formula(numbers):
    random = np.random.default_rng(0)
    norms = np.exp(0.3 * random.normal(size=300) + np.linspace(1, -3, 300))
    norms[[40, 41, 150, 250]] *= [1e3, 1e5, 30, 1e12]
    norms[[3, 60, 61, 200]] = [NAN, INF, 0, 1e-30]
    norms = np.float32(norms)
    names = "deviations", "horizon", "warmup", "floor"
    _, states = _walk(optax.identity(), norms, **dict(zip(names, numbers)))
    skipped, history = _by_hand(np.float64(norms), *numbers)
    np.testing.assert_array_equal(states.skipped, np.cumsum(skipped))
    np.testing.assert_allclose(states.mean, history[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states.variance, history[:, 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states.norm, norms, rtol=1e-6)


def test_without_spikes_it_is_the_rule():
    norms = np.exp(0.3 * np.random.default_rng(1).normal(size=60))
    updates, states = _walk(optax.adam(0.1), norms)
    adam = optax.adam(0.1)
    grads = jnp.float32(norms)[:, None] * jnp.array([[0.6, -0.8]])
    step = lambda state, grads: adam.update(grads, state)[::-1]
    want = jax.jit(lambda: jax.lax.scan(step, adam.init(jnp.ones(2)), grads)[1])()
    np.testing.assert_allclose(updates, want, rtol=1e-6)
    assert states.skipped[-1] == 0


@pytest.mark.parametrize("spike", [50.0, 1e30, INF, NAN])
def test_a_spike_is_as_if_it_had_not_been(spike):
    steady = np.ones(30)
    adam = optax.adam(0.1)
    with_spike, states = _walk(adam, [*steady, spike, *steady])
    without, _ = _walk(adam, [*steady, *steady])
    assert not with_spike[30].any()
    np.testing.assert_array_equal(np.delete(with_spike, 30, axis=0), without)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[29], x[30]), states.inner)
    assert (states.skipped[-1], states.count[-1]) == (1, 61)


def test_the_rule_does_not_run_on_a_spike():
    runs = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda size: runs.append(size), jnp.linalg.norm(updates))
        return updates, state

    rule = optax.GradientTransformation(lambda params: (), update)
    jax.block_until_ready(_walk(rule, [1.0, 1.0, 90.0, NAN, 1.0], warmup=2))
    jax.effects_barrier()
    np.testing.assert_allclose(runs, [1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(("factor", "steps"), [(1.8, 0), (1.9, 4), (10.0, 12), (1000.0, 19)])
def test_a_lasting_change_of_level_is_accepted(factor, steps):
    norms = np.concatenate([np.ones(100), np.full(100, factor)])
    updates, states = _walk(optax.identity(), norms)
    assert states.skipped[-1] == steps
    skipped = np.flatnonzero(~np.any(updates, axis=1))
    np.testing.assert_array_equal(skipped, 100 + np.arange(steps))


def test_a_fall_is_never_skipped_and_does_not_blind():
    updates, states = _walk(optax.identity(), [*np.ones(100), 1e-30, *np.ones(5), 10.0])
    assert states.skipped[-1] == 1
    assert not updates[-1].any()
    assert updates[100].any()


def test_what_is_not_finite_is_skipped_from_the_first_step_on():
    updates, states = _walk(optax.identity(), [NAN, 1.0, INF, 2.0])
    np.testing.assert_array_equal(states.skipped, [1, 1, 2, 2])
    np.testing.assert_allclose(states.mean[-1], np.log(2) / 2, rtol=1e-6)
    assert np.isfinite(updates).all()


def test_zeros_are_no_history():
    updates, states = _walk(optax.identity(), [*np.zeros(50), 1.0, 5.0])
    assert updates[-1].any()
    assert states.seen[-1] == 2
    assert np.isfinite(states.mean).all()


def test_a_clip_inside_leaves_the_norm_to_be_judged():
    chain = optax.chain(clip_by_global_norm(1.0), optax.sgd(1.0))
    updates, states = _walk(chain, [*np.full(30, 3.0), 300.0])
    np.testing.assert_allclose(updates[29], [-0.6, 0.8], rtol=1e-6)
    assert not updates[30].any()
    assert states.norm[-1] == 300


def test_low_precision_is_judged_in_float32():
    optimizer = skip_spikes(optax.sgd(1.0), warmup=1)
    params = jnp.ones(90_000, jnp.bfloat16)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state)
    assert updates.dtype == jnp.bfloat16
    assert state.mean.dtype == jnp.float32
    np.testing.assert_allclose(state.norm, 300, rtol=1e-6)


def test_extra_arguments_reach_the_rule():
    seen = lambda updates, state, params=None, *, value, **extra: (updates * value, state)
    rule = optax.GradientTransformationExtraArgs(lambda params: (), seen)
    optimizer = skip_spikes(rule)
    updates, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)), value=3.0)
    assert updates == 3


def test_the_first_state_may_be_donated():
    optimizer = skip_spikes(optax.adam(0.1))
    params = jnp.ones(4)
    state = jax.jit(optimizer.update, donate_argnums=1)(params, optimizer.init(params))[1]
    assert state.seen == 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"deviations": 0}, "deviations > 0, got 0"),
        ({"horizon": 0.5}, "horizon >= 1, got 0.5"),
        ({"warmup": 0}, "warmup >= 1, got 0"),
        ({"floor": -0.1}, "floor >= 0, got -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        skip_spikes(optax.sgd(1.0), **numbers)
