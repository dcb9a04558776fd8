"""Derivatives against finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

from lossopt._typing import PyTree


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
    with jax.enable_x64(True):
        leaves, structure = jax.tree.flatten(jax.tree.map(_widest, inputs))
        moving = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        @jax.jit
        def of_floats(*floats):
            rest = iter(floats)
            merged = [next(rest) if moves else x for x, moves in zip(leaves, moving)]
            return fn(*structure.unflatten(merged))

        floats = [x for x, moves in zip(leaves, moving) if moves]
        check_grads(of_floats, floats, 1, atol=atol, rtol=rtol, modes=("rev",))


def _widest(x):
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
