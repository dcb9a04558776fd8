"""A rule that runs only when it may."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lossopt._typing import Bool, Params, PyTree, Scalar


def run_if(
    opens: Bool[Scalar, ""], run: Callable[[], tuple[Params, PyTree]], state: PyTree
) -> tuple[Params, PyTree]:
    """The updates and the state that `run` gives; or zeros like them, and `state` as it is."""
    shapes, _ = jax.eval_shape(run)
    stay = lambda: (jax.tree.map(jnp.zeros_like, shapes), state)
    return jax.lax.cond(opens, run, stay)
