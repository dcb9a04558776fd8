"""Derivatives against finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._typing import PyTree

STEP = 1e-4


def check_gradient(
    fn: Callable[..., PyTree], *inputs: PyTree, rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    """Asserts that reverse-mode derivatives agree with central finite differences, in float64.

    Args:
      fn: function of trees of arrays; every output is checked along a random direction.
      *inputs: where to differentiate. Floating leaves are taken to float64, others are kept fixed.
        Keep away from kinks: a difference across one is no derivative.
      rtol: allowed relative error.
      atol: allowed absolute error.

    Raises:
      AssertionError: if a derivative is wrong; the message shows both.

    Examples:
      >>> lo.testing.check_gradient(lambda w: jnp.sum(w**2), jnp.array([1.6]))
      >>> wrong = jax.custom_vjp(lambda w: w**2)
      >>> wrong.defvjp(lambda w: (w**2, w), lambda w, g: (g * w,))
      >>> lo.testing.check_gradient(wrong, jnp.array(1.6))  # doctest: +IGNORE_EXCEPTION_DETAIL
      Traceback (most recent call last):
      AssertionError: the factor 2 is missing
    """
    agree(seen(fn, *inputs), rtol, atol)


def seen(fn, *inputs):
    """Values, and their derivative and difference along a random direction, in float64."""
    with jax.enable_x64(True):
        leaves, structure = jax.tree.flatten(jax.tree.map(_widest, inputs))
        moving = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def of_floats(floats):
            rest = iter(floats)
            merged = [next(rest) if moves else x for x, moves in zip(leaves, moving)]
            return fn(*structure.unflatten(merged))

        return _measured(of_floats, [x for x, moves in zip(leaves, moving) if moves])


def agree(seen, rtol=1e-5, atol=1e-7):
    """Holds what was seen to the law."""
    law = "derivatives must agree with finite differences"
    np.testing.assert_allclose(seen["derivative"], seen["difference"], rtol, atol, err_msg=law)
    law = "what is differentiated must have the value of the function"
    for got, want in zip(seen["values"], seen["differentiated"]):
        np.testing.assert_allclose(got, want, rtol, atol, err_msg=law)


def _measured(fn, floats):
    """Both derivatives of the outputs, weighed at random, along a random direction."""
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(x.dtype)
    dot = lambda xs, ys: sum(map(jnp.vdot, jax.tree.leaves(xs), jax.tree.leaves(ys)))

    @jax.jit
    def measure(floats, direction):
        moved = lambda h: fn([x + h * d for x, d in zip(floats, direction)])
        values, pull = jax.vjp(fn, floats)
        weights = jax.tree.map(draw, values)
        (slopes,) = pull(weights)
        places = jax.lax.map(moved, jnp.array([-STEP, 0.0, STEP]))
        rise = jax.tree.map(lambda x: x[2] - x[0], places)
        return {
            "derivative": dot(slopes, direction),
            "difference": dot(rise, weights) / (2 * STEP),
            "values": [x[1] for x in jax.tree.leaves(places)],
            "differentiated": jax.tree.leaves(values),
        }

    return measure(floats, list(map(draw, floats)))


def _widest(x):
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
