"""How long a gradient is, and how far its step went: columns of history."""

import operator
import re

import jax
import jax.numpy as jnp

from lossopt._numerics import root, wide
from lossopt._paths import paths
from lossopt._typing import Array, PyTree, Scalar


def norms(watch: str | None, trail: tuple[PyTree, PyTree], after: PyTree) -> dict[str, Scalar]:
    """The columns of one step, of all leaves together and of each that is watched.

    The update is what the parameters moved by, so that one which is lost to rounding is 0. There
    is no derivative.

    Args:
      watch: regular expression on the paths of leaves.
      trail: the gradient of the objective, and the parameters before the step.
      after: those after it.
    """
    leaves = [jax.tree.leaves(tree) for tree in (*trail, after)]
    groups = {"": range(len(leaves[0]))} | {f"/{name}": [i] for name, i in _named(watch, after)}
    columns = {}
    for suffix, group in groups.items():
        slopes, old, new = ([_still(tree[i]) for i in group] for tree in leaves)
        moved = _norm(list(map(operator.sub, new, old)))
        columns[f"gradient_norm{suffix}"] = _norm(slopes)
        columns[f"update_ratio{suffix}"] = jnp.where(moved == 0, 0, moved / _norm(new))
    return columns


def learning_rate(opt_state: PyTree, hyperparameters: PyTree) -> dict[str, Array]:
    """The column of the one number of this name; of the optimizer's state before others."""
    for tree in (opt_state, hyperparameters):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found = [x for path, x in leaves if _last(path) == "learning_rate" and jnp.ndim(x) == 0]
        if len(found) == 1:
            return {"learning_rate": jnp.asarray(found[0], wide(found[0]))}
    return {}


def _named(watch, params):
    if watch is None:
        return []
    if not isinstance(watch, str):
        raise TypeError(
            f"Expected watch as a regular expression on the paths of leaves, got {watch!r}. Write "
            "it as a string, such as 'kernel$'."
        )
    names = paths(params)
    if not (found := [(name, i) for i, name in enumerate(names) if re.search(watch, name)]):
        raise ValueError(f"watch={watch!r} takes no leaf of {names}.")
    return found


def _last(path):
    return path and jax.tree_util.keystr(path[-1:], simple=True)


def _still(x):
    return jax.lax.stop_gradient(jnp.asarray(x, wide(x)))


def _norm(leaves):
    """The norm of all numbers together, measured in units of the largest, without overflow."""
    peak = jnp.max(jnp.array([jnp.max(jnp.abs(x), initial=0) for x in leaves]), initial=0)
    unit = jnp.where((peak > 0) & (peak < jnp.inf), peak, 1)
    squares = (jnp.sum(jnp.square(jnp.abs(x) / unit)) for x in leaves)
    return unit * root(sum(squares, start=jnp.zeros((), peak.dtype)))
