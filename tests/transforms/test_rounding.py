"""Parameters in bfloat16 follow those in float32, and land on the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.transforms._codes import nearest_bfloat16, to_bfloat16
from lossopt.transforms._noise import noise
from lossopt.transforms._rounding import kahan, stochastic_rounding

pytestmark = pytest.mark.usefixtures("optimized")

KEY = jax.random.key(0)
LOW = jnp.bfloat16
WRAPPERS = {"stochastic_rounding": lambda rule: stochastic_rounding(rule, KEY), "kahan": kahan}
both = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def _step_by(updates):
    """A rule whose updates are given, whatever the gradient."""
    return optax.GradientTransformation(lambda p: (), lambda g, state, p=None: (updates, state))


def _starts_and_steps():
    """Parameters and steps of all relative sizes, a third of them nearly opposite."""
    random, size = np.random.default_rng(0), 1 << 18
    start = random.normal(size=size) * np.exp2(random.integers(-100, 100, size))
    start = np.asarray(jnp.asarray(start, jnp.float32).astype(LOW).astype(jnp.float32))
    step = start * np.exp2(random.uniform(-30, 10, size)) * random.choice([-1, 1], size)
    opposite = -start * (1 - np.exp2(random.uniform(-24, -1, size)))
    step = np.where(random.random(size) < 1 / 3, opposite, step)
    return jnp.asarray(start).astype(LOW), jnp.asarray(step, jnp.float32)


@both
def test_lands_on_the_rounded_value_bit_by_bit(wrap):
    start, step = _starts_and_steps()
    optimizer = wrap(_step_by(step))
    state = optimizer.init(start)
    updates, _ = jax.jit(optimizer.update)(start, state, start)
    assert updates.dtype == jnp.float32
    target = start.astype(jnp.float32) + step
    if hasattr(state, "words"):
        want = to_bfloat16(target, noise(state.words, 0, state.count, start.shape))
    else:
        want = nearest_bfloat16(target)
    landed = optax.apply_updates(start, updates)
    assert landed.dtype == LOW
    np.testing.assert_array_equal(landed.astype(jnp.float32), want)
    assert jnp.mean(want != target) > 0.5


def test_updates_in_bfloat16_would_miss():
    start, step = _starts_and_steps()
    target = nearest_bfloat16(start.astype(jnp.float32) + step)
    narrow = (target - start.astype(jnp.float32)).astype(LOW)
    missed = (start + narrow).astype(jnp.float32) != target
    assert jnp.mean(missed) > 0.02


@both
def test_exact_zeros_survive(wrap):
    weights = jnp.array([0.3, -0.002, 1e-20, 0.7], LOW)
    rule = lo.transforms.sgd(0.1, regularizer=lo.regularizers.L1(0.5))
    optimizer = wrap(rule)
    state = optimizer.init(weights)
    for _ in range(20):
        updates, state = optimizer.update(jnp.zeros(4, LOW), state, weights)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_array_equal(weights, 0)


@both
def test_what_is_not_finite_stays(wrap):
    large = float(jnp.finfo(LOW).max)
    start = jnp.array([jnp.inf, -jnp.inf, 1.0, 1.0, large, -large, jnp.nan], LOW)
    step = jnp.array([1.0, 1.0, jnp.inf, jnp.nan, large * 2.0**-10, -large * 2.0**-10, 0.0])
    optimizer = wrap(_step_by(step))
    updates, state = optimizer.update(start, optimizer.init(start), start)
    want = [jnp.inf, -jnp.inf, jnp.inf, jnp.nan, large, -large, jnp.nan]
    np.testing.assert_array_equal(optax.apply_updates(start, updates).astype(jnp.float32), want)
    if hasattr(state, "compensation"):
        assert jnp.isfinite(state.compensation).all()


@both
def test_the_rule_sees_float32_and_wide_leaves_pass(wrap):
    seen = []

    def update(gradients, state, params=None):
        seen.append(jax.tree.map(lambda x: x.dtype, (gradients, params)))
        return jax.tree.map(lambda g: 0.1 * g, gradients), state

    optimizer = wrap(optax.GradientTransformation(lambda p: p, update))
    params = {"low": jnp.ones(3, LOW), "wide": jnp.ones(2), "whole": jnp.arange(2)}
    grads = {"low": jnp.ones(3, LOW), "wide": jnp.full(2, 1e-3), "whole": jnp.zeros(2, int)}
    state = optimizer.init(params)
    assert state.inner["low"].dtype == jnp.float32
    updates, _ = optimizer.update(grads, state, params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(updates["wide"], np.float32(0.1) * np.float32(1e-3))
    assert {tree["low"] for tree in seen[0]} == {jnp.dtype("float32")}


def test_kahan_adds_up_what_rounding_takes():
    optimizer = kahan(_step_by(jnp.full(3, 1e-3)))
    start = jnp.array([1.0, 2.0, 8.0], LOW)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    (end, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=500)
    off = np.float64(end) + np.float64(state.compensation) - np.float64(start) - 0.5
    # What is left over is below 2^-8 of the power of two in the parameter, and has 8 bits itself.
    assert (np.abs(off) <= 500 * 2.0**-17 * np.float64(start)).all()
    assert (np.abs(np.float64(end) - np.float64(start) - 0.5) < 0.05).all()
    nearest = start
    for _ in range(5):
        nearest = (nearest.astype(jnp.float32) + 1e-3).astype(LOW)
    np.testing.assert_array_equal(nearest, start)  # rounded to nearest it never moves


def test_chance_is_right_on_average_over_steps_places_and_leaves():
    optimizer = stochastic_rounding(_step_by([jnp.full(512, 1e-3), jnp.full((16, 32), 1e-3)]), KEY)
    start = [jnp.ones(512, LOW), jnp.ones((16, 32), LOW)]

    def step(state, _):
        updates, state = optimizer.update(start, state, start)
        return state, [u.reshape(-1) for u in updates]

    moved = jax.lax.scan(step, optimizer.init(start), length=1024)[1]
    share, gap = 1e-3 / 2**-7, 2.0**-7  # the spacing above 1
    assert not np.array_equal(*moved)
    for draws in np.asarray(moved):
        ups = draws / gap
        assert set(np.unique(ups)) == {0, 1}
        deviation = np.sqrt(share * (1 - share))
        assert abs(ups.mean() - share) < 4.5 * deviation / np.sqrt(ups.size)
        for axis in (0, 1):
            assert np.abs(ups.mean(axis) - share).max() < 4.8 * deviation / np.sqrt(ups.shape[axis])


def _regression():
    """Rows and targets of a linear model, and its gradient in float32."""
    random = np.random.default_rng(3)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    x = normal(256, 32)
    y = x @ (0.3 * normal(32)) + normal(256)
    loss = lambda w: jnp.mean((x @ w.astype(jnp.float32) - y) ** 2)
    return loss, jnp.asarray(0.3 * normal(32)).astype(LOW)


def _train(optimizer, loss, start, steps):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = start, optimizer.init(start)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)
    return params


def test_small_steps_of_adamw_arrive():
    loss, start = _regression()
    start = jnp.where(jnp.abs(start) < 0.25, jnp.asarray(0.25, LOW), start)
    rule = optax.adamw(1e-4)
    assert (_train(rule, loss, start, 100) == start).all()  # plain: not one of them has moved
    exact = _train(rule, loss, start.astype(jnp.float32), 100)
    for wrap in WRAPPERS.values():
        moved = _train(wrap(rule), loss, start, 100)
        assert jnp.mean(moved != start) > 0.5
        total = lambda end: jnp.vdot(end.astype(jnp.float32) - start, exact - start)
        np.testing.assert_allclose(total(moved) / total(exact), 1, atol=0.25)


def test_the_final_loss_is_that_of_float32():
    loss, start = _regression()
    rule = optax.adamw(optax.cosine_decay_schedule(2e-3, 3000))
    exact = float(loss(_train(rule, loss, start.astype(jnp.float32), 3000)))
    plain = float(loss(_train(rule, loss, start, 3000)))
    assert plain - exact > 0.02
    for wrap in WRAPPERS.values():
        assert abs(float(loss(_train(wrap(rule), loss, start, 3000))) - exact) < 0.001


def test_keys_may_be_vmapped():
    start, gradient = jnp.ones(64, LOW), jnp.ones(64, LOW)

    def run(key):
        optimizer = stochastic_rounding(optax.sgd(1e-3), key)
        return optimizer.update(gradient, optimizer.init(start), start)[0]

    keys = jax.random.split(KEY, 3)
    got = jax.vmap(run)(keys)
    np.testing.assert_array_equal(got, [run(key) for key in keys])
    assert not np.array_equal(got[0], got[1])


@both
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e4m3fn])
def test_other_formats_are_refused(wrap, dtype):
    with pytest.raises(ValueError, match=r"bfloat16 or float32, got float.*astype"):
        wrap(optax.sgd(0.1)).init({"w": jnp.ones(2, dtype)})


@both
def test_a_missing_point_is_refused(wrap):
    optimizer = wrap(optax.sgd(0.1))
    params = jnp.ones(2, LOW)
    with pytest.raises(ValueError, match=r"update\(grads, state, params\)"):
        optimizer.update(params, optimizer.init(params))


def test_raw_keys_are_refused():
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        stochastic_rounding(optax.sgd(0.1), jax.random.PRNGKey(0)).init(jnp.ones(2))
