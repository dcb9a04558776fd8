"""Derivatives are right, or said to be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

check_gradient = lo.testing.check_gradient
X = jnp.array([0.3, -1.2, 2.0])


def _with_slope(slope):
    """The sum of squares, whose derivative is said to be `slope(x)`."""
    fn = jax.custom_vjp(lambda x: jnp.sum(x**2))
    fn.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, g: (slope(x) * g,))
    return fn


def test_a_right_derivative_passes():
    check_gradient(_with_slope(lambda x: 2 * x), X)
    check_gradient(lambda x: jnp.sum(jnp.sin(x) * jnp.exp(x)), X)


@pytest.mark.parametrize(
    "slope",
    [
        lambda x: x,
        lambda x: -2 * x,
        lambda x: 2.001 * x,
        lambda x: jnp.zeros_like(x),
        lambda x: 2 * x * jnp.array([1, 1, 0]),
        lambda x: 2 * x + 1e-3,
        lambda x: 2 * x[::-1],
        lambda x: x * jnp.nan,
    ],
)
def test_a_wrong_derivative_is_caught(slope):
    with pytest.raises(AssertionError):
        check_gradient(_with_slope(slope), X)


def test_a_value_that_only_differentiation_sees_is_caught():
    fn = jax.custom_vjp(lambda x: jnp.sum(x**2))
    fn.defvjp(lambda x: (jnp.sum(x**2) + 1, x), lambda x, g: (2 * x * g,))
    with pytest.raises(AssertionError, match="the value of the function"):
        check_gradient(fn, X)


def test_a_stopped_gradient_is_caught():
    with pytest.raises(AssertionError):
        check_gradient(lambda x: jnp.sum(x * jax.lax.stop_gradient(x)), X)


def test_tolerances_are_taken():
    nearly = _with_slope(lambda x: 2.001 * x)
    check_gradient(nearly, X, rtol=1e-2)
    check_gradient(nearly, X, atol=1e-1)
    with pytest.raises(AssertionError):
        check_gradient(nearly, X, rtol=1e-6)


def test_tolerances_do_not_grow_with_the_inputs():
    fn = jax.custom_vjp(lambda x: 1e-6 * jnp.sum(x))
    fn.defvjp(lambda x: (1e-6 * jnp.sum(x), x), lambda x, g: (jnp.zeros_like(x),))
    with pytest.raises(AssertionError):
        check_gradient(fn, jnp.ones(1000), rtol=1e-5, atol=1e-7)


def test_it_is_measured_in_float64():
    seen = []

    def fn(x, narrow):
        seen.extend([x.dtype, narrow.dtype])
        return jnp.sum(x**2) * jnp.sum(narrow)

    check_gradient(fn, X, jnp.ones(2, jnp.bfloat16))
    assert set(seen) == {jnp.dtype("float64")}
    assert not jax.config.jax_enable_x64
    check_gradient(lambda x: 1e6 * jnp.sum(x) + jnp.sum(x**2), X, rtol=1e-8)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
def test_every_input_and_leaf_is_moved(wrong):
    @jax.custom_vjp
    def fn(x, tree):
        return jnp.sum(x) * jnp.sum(tree["a"]) ** 2 + tree["b"][0]

    def backward(slopes, g):
        x, a, b = (0.9 * s if i == wrong else s for i, s in enumerate(slopes))
        return g * x, {"a": g * a, "b": [g * b]}

    def forward(x, tree):
        ones, a = jnp.ones(3), jnp.sum(tree["a"])
        return fn(x, tree), (a**2 * ones, 2 * a * jnp.sum(x) * ones, jnp.ones_like(tree["b"][0]))

    fn.defvjp(forward, backward)
    inputs = X, {"a": X, "b": [jnp.array(2.0)]}
    if wrong is None:
        check_gradient(fn, *inputs)
    else:
        with pytest.raises(AssertionError):
            check_gradient(fn, *inputs)


def test_every_output_is_checked():
    right, wrong = _with_slope(lambda x: 2 * x), _with_slope(lambda x: x)
    check_gradient(lambda x: {"a": right(x), "b": [jnp.sin(x)]}, X)
    with pytest.raises(AssertionError):
        check_gradient(lambda x: {"a": right(x), "b": [wrong(x)]}, X)


def test_other_leaves_stay_fixed():
    def fn(x, labels, mask):
        assert labels.dtype == jnp.int32
        assert mask.dtype == bool
        return jnp.sum(jnp.where(mask, x[labels] ** 2, 0.0))

    check_gradient(fn, X, jnp.array([0, 2, 2]), np.array([True, False, True]))


def test_python_numbers_are_inputs():
    check_gradient(lambda x, y: x**2 * y, 1.5, np.float32(2.0))
