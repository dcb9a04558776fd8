from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossopt as lo
from lossopt import regularizers, schedules
from lossopt.transforms._accumulation import accumulate
from lossopt.transforms._plateau import reduce_on_plateau

pytestmark = pytest.mark.usefixtures("optimized")

LENGTH = 9
NAN, INF = float("nan"), float("inf")
IDENTITY = optax.identity()
SGD = optax.sgd(1.0)


@partial(jax.jit, static_argnums=0)
def _walk(rule, every, grads, weights, flush):
    """Updates of all microsteps, each by itself, and the last state."""
    optimizer = accumulate(rule, every)
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)

    def step(state, now):
        gradient, weight, flush = now
        updates, state = optimizer.update(gradient, state, params, weight=weight, flush=flush)
        return state, updates

    return jax.lax.scan(step, optimizer.init(params), (grads, weights, flush))[::-1]


def _counting():
    """A rule that returns what it gets and counts how often it ran, in its state and here."""
    runs = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: runs.append(1))
        return updates, state + 1

    return runs, optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _by_hand(every, grads, weights, flush):
    """Weighted means of all windows where they end, in float64, and how many were dropped."""
    out, dropped, window = np.zeros(len(grads)), 0, []
    for i, (g, w, last) in enumerate(zip(grads, weights, flush)):
        good = np.isfinite(g) and np.isfinite(w) and w >= 0
        dropped += bool(w != 0 and not good)
        window.append((g, w) if good and w > 0 else (0.0, 0.0))
        if len(window) == every or last:
            total, weight = sum(g * w for g, w in window), sum(w for _, w in window)
            out[i] = total / weight if weight else 0.0
            window = []
    return out, dropped, len(window)


_weights = st.floats(1e-3, 1e3) | st.integers(0, 9) | st.sampled_from([NAN, INF, -1.0])
_gradients = st.floats(-10, 10) | st.sampled_from([NAN, INF, -INF])


@settings(max_examples=150, deadline=None)
@given(
    every=st.integers(1, LENGTH + 1),
    grads=st.lists(_gradients, min_size=LENGTH, max_size=LENGTH),
    weights=st.lists(_weights, min_size=LENGTH, max_size=LENGTH),
    flush=st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
)
def test_any_weights_and_windows(every, grads, weights, flush):
    grads, weights = np.float32(grads), np.float32(weights)
    got, state = _walk(IDENTITY, every, grads, weights, np.array(flush))
    want, dropped, left = _by_hand(every, np.float64(grads), np.float64(weights), flush)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert (state.dropped, state.microsteps) == (dropped, left)


def test_ragged_microbatches_give_the_gradient_of_the_full_batch():
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(3, 2)), "bias": random.normal(size=2)}
    batch = {"x": random.normal(size=(12, 3)), "y": random.normal(size=(12, 2))}
    params, batch = jax.tree.map(np.float32, (params, batch))
    batch["mask"] = np.array([1, 0, 0, 0.5, 1, 1, 1, 2, 0, 0, 0, 0], np.float32)

    def objective(params, batch):
        errors = (batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]) ** 2
        penalty = regularizers.L2(0.1)(params)
        fit = lo.mean(jnp.sum(errors, axis=1), batch["mask"])
        return {"fit": fit, "penalty": lo.constant(penalty)}

    differentiate = jax.jit(lo.value_and_grad(objective))
    optimizer = accumulate(SGD, 4)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(4):
        piece = {name: x[3 * i : 3 * i + 3] for name, x in batch.items()}
        (_, means), grads = differentiate(params, piece)
        updates, state = update(grads, state, params, weight=means["fit"].weight)
        assert i == 3 or not any(u.any() for u in jax.tree.leaves(updates))
    _, want = differentiate(params, batch)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=2e-6), updates, want)


def test_equal_weights_are_optax_multi_steps():
    grads = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    params, theirs = jnp.ones(5), optax.MultiSteps(optax.adamw(0.1), 3)
    ours = accumulate(optax.adamw(0.1), 3)

    def walk(optimizer):
        def step(carry, grads):
            updates, state = optimizer.update(grads, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    got, want = jax.jit(lambda: (walk(ours), walk(theirs)))()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert len(np.unique(got[:, 0])) == 5  # the start, and one more after each window


def test_the_rule_runs_once_a_window():
    runs, rule = _counting()
    grads, flush = np.ones(10, np.float32), np.arange(10) == 4
    _, state = jax.block_until_ready(_walk(rule, 3, grads, np.ones(10, np.float32), flush))
    jax.effects_barrier()
    assert len(runs) == state.inner == 3  # after 3, 5 (the flush) and 8 microsteps
    assert (state.count, state.microsteps) == (3, 2)


def test_a_dropped_microbatch_is_one_of_its_window():
    grads = {"a": np.float32([1, NAN, 3, 4]), "b": np.float32([[1], [1], [INF], [5]])}
    updates, state = _walk(IDENTITY, 4, grads, np.ones(4, np.float32), np.zeros(4, bool))
    assert updates["a"][3] == 2.5
    assert updates["b"][3] == 3
    assert (state.dropped, state.weight) == (2, 2)
    grads = np.float32([1, 1e38, 1])  # finite, but not times its weight
    updates, state = _walk(IDENTITY, 3, grads, np.float32([1, 100, 1]), np.zeros(3, bool))
    assert updates[2] == 1
    assert state.dropped == 1


def test_at_weight_0_a_gradient_is_not_read():
    grads, weights = np.float32([NAN, 2.0, INF]), np.float32([0, 3, 0])
    updates, state = _walk(IDENTITY, 3, grads, weights, np.zeros(3, bool))
    assert updates[2] == 2
    assert state.dropped == 0


@pytest.mark.parametrize("grads", [[1.0, 1.0], [NAN, 1.0]])
def test_a_window_without_weight_leaves_the_rule_as_it_was(grads):
    runs, rule = _counting()
    weights = np.float32([NAN if np.isfinite(grads[0]) else 1, 0])
    updates, state = _walk(rule, 2, np.float32(grads), weights, np.zeros(2, bool))
    jax.effects_barrier()
    assert not updates.any()
    assert not runs
    assert (state.inner, state.count, state.microsteps, state.dropped) == (0, 1, 0, 1)


def test_a_flush_applies_what_is_there_or_nothing():
    grads, weights = np.float32([1, 5, 0, 0, 7]), np.float32([3, 1, 0, 0, 1])
    flush = np.array([False, False, True, True, True])
    updates, state = _walk(SGD, 10, grads, weights, flush)
    np.testing.assert_allclose(updates, [0, 0, -2, 0, -7])
    assert (state.microsteps, state.count) == (0, 3)
    optimizer = accumulate(SGD, 10)  # a Python boolean, outside of jit
    updates, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)), weight=2, flush=True)
    assert updates == -1


def test_bfloat16_is_summed_in_float32():
    grads = jnp.full(300, 1.0, jnp.bfloat16)  # in bfloat16 the sum would end at 256
    weights, flush = np.ones(300, np.float32), np.zeros(300, bool)
    updates, state = _walk(SGD, 300, grads, weights, flush)
    assert updates.dtype == jnp.bfloat16
    assert state.total.dtype == jnp.float32
    assert updates[-1] == -1
    assert state.total == 300


def test_updates_may_be_wider_than_the_parameters():
    wide = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.astype(jnp.float32), g))
    updates, _ = _walk(
        wide, 2, jnp.ones(2, jnp.bfloat16), np.ones(2, np.float32), np.zeros(2, bool)
    )
    assert updates.dtype == jnp.float32
    np.testing.assert_array_equal(updates, [0, 1])


def test_extra_arguments_reach_the_rule_at_the_end_of_a_window():
    optimizer = accumulate(optax.chain(optax.sgd(1.0), reduce_on_plateau(0.5, patience=1)), 2)
    state, update = optimizer.init(jnp.ones(1)), jax.jit(optimizer.update)
    for value in (9.0, 3.0, 1.0, 3.0):
        updates, state = update(jnp.ones(1), state, jnp.ones(1), value=value)
    assert updates == -0.5  # 3 and 3 were seen: no improvement
    assert state.inner[1].best == 3


def test_a_proximal_rule_keeps_its_zeros():
    lasso = lo.transforms.sgd(0.1, regularizer=regularizers.L1(1.0))
    params, grads = jnp.array([1.0, 0.05]), jnp.array([[4.0, 0.5], [2.0, -0.1]])
    optimizer = accumulate(lasso, 2)
    state = optimizer.init(params)
    for gradient, weight in zip(grads, (1, 3)):
        updates, state = optimizer.update(gradient, state, params, weight=weight)
    want, _ = lasso.update(jnp.array([2.5, 0.05]), lasso.init(params), params)
    np.testing.assert_allclose(updates, want, rtol=1e-6)
    assert optax.apply_updates(params, updates)[1] == 0


def test_a_schedule_counts_windows():
    optimizer = accumulate(SGD, schedules.join([lambda count: 1 + count], []))
    state, ends = optimizer.init(jnp.zeros(())), []
    update = jax.jit(optimizer.update)
    for _ in range(10):
        updates, state = update(jnp.ones(()), state)
        ends.append(bool(updates != 0))
    assert np.flatnonzero(ends).tolist() == [0, 2, 5, 9]


def test_the_first_state_may_be_donated():
    optimizer = accumulate(optax.adam(0.1), 2)
    params = {"a": jnp.ones(4), "b": jnp.ones(2)}
    state = jax.jit(optimizer.update, donate_argnums=1)(params, optimizer.init(params), params)[1]
    assert state.microsteps == 1


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="Expected every >= 1, got 0"):
        accumulate(SGD, 0)
    optimizer = accumulate(SGD, 2)
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"Expected weight >= 0, got -1\. It is the sum"):
        optimizer.update(jnp.ones(2), state, weight=-1)
    with pytest.raises(ValueError, match=r"Expected weight of shape \(\), got \(2,\)"):
        optimizer.update(jnp.ones(2), state, weight=jnp.ones(2))
