"""A box of one pair of bounds, of one for each coordinate, or of a tree of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

Box = lo.regularizers.Box
X = np.float32([[-3.0, 0.5, 2.0], [0.1, -0.2, 9.0]])
LOW = np.float32([[-1.0, 0.6, -np.inf], [0.0, -0.5, 1.0]])
HIGH = np.float32([[1.0, 0.6, np.inf], [0.05, 0.0, 3.0]])


def test_bounds_for_each_coordinate():
    want = np.minimum(np.maximum(X, LOW), HIGH)
    for step in (0.3, np.full_like(X, 0.3)):
        np.testing.assert_array_equal(Box(LOW, HIGH).prox(X, step), want)
        np.testing.assert_array_equal(Box(LOW, 1.0).prox(X, step), np.clip(X, LOW, 1.0))
        np.testing.assert_array_equal(Box(-1, HIGH).prox(X, step), np.clip(X, -1, HIGH))
    assert Box(LOW, HIGH)(X) == 0


def test_bounds_in_a_tree():
    params = {"kernel": X, "rest": {"bias": X[0], "scale": np.float32(7)}}
    box = Box({"kernel": LOW, "rest": 0.0}, {"kernel": 1.5, "rest": {"bias": HIGH[0], "scale": 2}})
    moved = jax.jit(lambda box, x: (box.prox(x, 0.1), box(x)))(box, params)[0]
    np.testing.assert_array_equal(moved["kernel"], np.clip(X, LOW, 1.5))
    np.testing.assert_array_equal(moved["rest"]["bias"], np.clip(X[0], 0, HIGH[0]))
    assert moved["rest"]["scale"] == 2


def test_bounds_in_sums_and_on_parts():
    box = Box(LOW, HIGH)
    soft = np.sign(X) * np.maximum(np.abs(X) - 0.2, 0)
    both = lo.regularizers.by_path({"kernel": lo.regularizers.L1(0.4) + box})
    moved = both.prox({"kernel": X, "bias": X[0]}, 0.5)
    np.testing.assert_allclose(moved["kernel"], np.clip(soft, LOW, HIGH), rtol=1e-6)
    np.testing.assert_array_equal(moved["bias"], X[0])


def test_bounds_keep_the_dtype_and_are_swept():
    narrow = Box(LOW, HIGH).prox(jnp.asarray(X, jnp.bfloat16), 0.1)
    assert narrow.dtype == jnp.bfloat16
    lows = np.stack([LOW, LOW - 1])
    swept = jax.vmap(lambda low: Box(low, HIGH).prox(X, 0.1))(lows)
    np.testing.assert_array_equal(swept, [np.clip(X, low, HIGH) for low in lows])
    slope = jax.grad(lambda box: jnp.sum(box.prox(X, 0.1)))(Box(LOW, HIGH + 1))
    np.testing.assert_array_equal(slope.low, X < LOW)


def test_steps_of_adam_stay_between_the_bounds():
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}
    box = Box({"a": LOW, "b": -1.0}, {"a": HIGH, "b": 1.0})
    optimizer = lo.transforms.adam(0.7, regularizer=box)
    gradients = {"a": -jnp.ones((2, 3)), "b": jnp.ones(())}

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    params, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=9)[0]
    np.testing.assert_allclose(params["a"], np.minimum(HIGH, 6.3), rtol=1e-4)
    assert params["b"] == -1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(LOW, LOW - 1), r"low <= high, got -1.0 and -2.0"),
        (Box(LOW, np.where(X > 8, 0, HIGH)), r"low <= high, got 1.0 and 0.0"),
        (Box(LOW[0], 1.0), r"low of shape \(2, 3\), got \(3,\)"),
        (Box(0, HIGH[:, :1]), r"high of shape \(2, 3\), got \(2, 1\)"),
        (Box({"a": 0.0}, 1.0), r"low as one number or array, or a tree like params.*got .*'a'"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(box, message):
    for use in (box, lambda x: box.prox(x, 0.1)):
        with pytest.raises(ValueError, match=message):
            use(X)


def test_a_step_size_that_is_another_tree_is_refused():
    with pytest.raises(ValueError, match=r"step_size as one number or array.*got .*'a'"):
        Box(0, 1).prox({"b": X}, {"a": 0.1})


def test_a_bound_that_no_int32_holds_is_refused():
    box = lo.regularizers.Box(np.int64(-(2**32)), 1)
    with pytest.raises(ValueError, match="Expected low within 32 bits, got -4294967296"):
        box.prox(np.zeros(2, np.float32), 0.1)
