import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lossopt import schedules
from lossopt.regularizers import L1
from lossopt.transforms._clipping import clip_by_global_norm, global_norm

pytestmark = pytest.mark.usefixtures("optimized")

RANDOM = np.random.default_rng(0)
GRADS = {
    "kernel": RANDOM.normal(size=(5, 7)).astype(np.float32),
    "bias": RANDOM.normal(size=7).astype(np.float32),
}


def _clip(grads, max_norm):
    clip = clip_by_global_norm(max_norm)
    return clip.update(grads, clip.init(grads))


def _norm(tree):
    return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 6.0])
def test_equals_optax(max_norm):
    got, state = _clip(GRADS, max_norm)
    want, _ = optax.clip_by_global_norm(max_norm).update(GRADS, optax.EmptyState())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got, want)
    np.testing.assert_allclose(state.norm, _norm(GRADS), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1.0, 1e18, 1e19, 1e30, 1e37])
def test_squares_neither_overflow_nor_vanish(size):
    grads = jax.tree.map(lambda x: np.float32(size) * x, GRADS)
    clipped, state = jax.jit(_clip)(grads, np.float32(size))
    np.testing.assert_allclose(state.norm, _norm(grads), rtol=1e-6)
    want = jax.tree.map(lambda x: size * np.float64(x) / _norm(grads), grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6), clipped, want)


def test_optax_turns_large_gradients_into_zeros():
    grads = jnp.array([3e30, 4e30])
    assert not optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())[0].any()
    np.testing.assert_allclose(_clip(grads, 1.0)[0], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_visible(bad):
    clipped, state = _clip({"a": jnp.array([1.0, bad]), "b": jnp.ones(2)}, 1.0)
    assert np.isnan(clipped["a"][1])
    np.testing.assert_equal(float(state.norm), abs(bad))


def test_zeros_stay_zeros_and_have_a_derivative():
    zeros = {"a": jnp.zeros(3), "empty": jnp.zeros((0, 2))}
    clipped, state = _clip(zeros, 1.0)
    assert state.norm == 0
    assert not clipped["a"].any()
    slope = jax.jit(jax.grad(lambda x: _clip(zeros | {"a": x}, 1.0)[0]["a"][0]))
    np.testing.assert_array_equal(slope(jnp.zeros(3)), [1, 0, 0])
    assert _clip({}, 1.0)[1].norm == 0


def test_its_derivative_is_that_of_the_formula():
    x = jnp.array([3.0, -4.0])
    across = np.eye(2) - np.outer(x, x) / 25
    slope = jax.jit(jax.jacrev(lambda x: _clip(x, 1.0)[0]))(x)
    np.testing.assert_allclose(slope, across / 5, rtol=1e-5, atol=1e-7)


def test_infinity_clips_nothing():
    clipped, _ = _clip(GRADS, np.inf)
    jax.tree.map(np.testing.assert_array_equal, clipped, GRADS)


def test_low_precision_is_summed_in_float32():
    grads = {"low": jnp.ones(90_000, jnp.bfloat16), "half": jnp.full(10, 3e4, jnp.float16)}
    clipped, state = _clip(grads, 1.0)
    assert state.norm.dtype == jnp.float32
    np.testing.assert_allclose(state.norm, _norm(grads), rtol=1e-6)
    factor = 1 / _norm(grads)
    assert clipped["low"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(clipped["low"], jnp.full(90_000, factor, jnp.bfloat16))
    np.testing.assert_array_equal(clipped["half"], jnp.full(10, 3e4 * factor, jnp.float16))


def test_float64_is_kept():
    with jax.enable_x64(True):
        grads = jnp.array([3e200, 4e200])
        clipped, state = _clip(grads, 1.0)
        assert clipped.dtype == state.norm.dtype == jnp.float64
        np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-15)


def test_a_schedule_counts_its_own_steps():
    clip = clip_by_global_norm(schedules.linear(4.0, 1.0, 3))
    grads = jnp.array([6.0, 8.0])
    state, norms = clip.init(grads), []
    for _ in range(5):
        clipped, state = clip.update(grads, state)
        norms.append(float(jnp.linalg.norm(clipped)))
    np.testing.assert_allclose(norms, [4, 3, 2, 1, 1], rtol=1e-6)
    assert state.count == 5


def test_the_norm_of_a_sharded_leaf():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole = RANDOM.normal(size=(16, 4)).astype(np.float32)
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))
    clipped, state = jax.jit(lambda x: _clip(x, 1.0))(split)
    np.testing.assert_allclose(state.norm, _norm(whole), rtol=1e-6)
    np.testing.assert_allclose(clipped, whole / _norm(whole), rtol=1e-5)


def _temporary_bytes(clip):
    optimizer = optax.chain(clip, optax.adamw(1e-3))
    params = [jnp.ones((256, 256)) for _ in range(4)]
    state = optimizer.init(params)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_clipped_gradients_are_never_stored():
    one_leaf = 4 * 256 * 256
    assert _temporary_bytes(clip_by_global_norm(1.0)) < one_leaf / 10
    assert _temporary_bytes(optax.clip_by_global_norm(1.0)) >= 4 * one_leaf


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.float32(-2)])
def test_a_norm_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"Expected max_norm > 0, got {bad}"):
        clip_by_global_norm(bad)


def test_what_is_no_number_or_not_real_is_refused():
    with pytest.raises(ValueError, match="max_norm as a number or a schedule"):
        clip_by_global_norm(L1(1.0))
    with pytest.raises(TypeError, match="Expected real gradients, got complex64"):
        global_norm(jnp.ones(2, complex))


def test_without_a_state_it_begins_anew():
    clip = clip_by_global_norm(1.0)
    clipped, state = clip.update(GRADS, None)
    want, wanted = clip.update(GRADS, clip.init(GRADS))
    jax.tree.map(np.testing.assert_array_equal, (clipped, state), (want, wanted))
    with pytest.raises(ValueError, match=r"schedule.*needs its state.*init\(params\)"):
        clip_by_global_norm(schedules.linear(4.0, 1.0, 3)).update(GRADS, None)
