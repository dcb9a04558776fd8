"""Arrays on the host that have one row for each trial, and their names."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lossopt import _checks
from lossopt._keys import is_key
from lossopt._paths import paths
from lossopt._typing import PyTree


def columns(values: PyTree) -> dict[str, Any]:
    """The arrays by name: those of a flat dict as they are, those of other trees by path."""
    if is_flat(values):
        return values
    return dict(zip([path or "hyperparameters" for path in paths(values)], jax.tree.leaves(values)))


def is_flat(values: PyTree) -> bool:
    """Whether a tree is a dict from names to arrays."""
    if not isinstance(values, dict) or not jax.tree_util.all_leaves(values.values()):
        return False
    return all(isinstance(name, str) for name in values)


def mapped(function: Callable[[str, Any], Any], values: PyTree) -> PyTree:
    """A function of the name and the array of each column; the names keep their order."""
    made = {name: function(name, x) for name, x in columns(values).items()}
    if is_flat(values):
        return made
    return jax.tree.structure(values).unflatten(made.values())


def numbers(name: str, values: Any) -> Any:
    """An array on the host, in a dtype of jax; typed keys stay as they are."""
    if is_key(values):
        return values
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"Expected {name} of one shape, got {values!r}. Pad them.") from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(
            f"Expected {name} as numbers, got {values!r}. What is none goes into "
            "lossopt.sweeps.Static, which takes anything hashable."
        )
    _checks.fits(**{name: array})
    return np.asarray(array, jnp.result_type(array))


def taken(values: PyTree, rows: Any) -> PyTree:
    """The rows of every array of a tree: of NumPy, but for typed keys and what is traced."""
    stays = lambda x: is_key(x) or isinstance(x, Tracer)
    return mapped(lambda _, x: (x if stays(x) else np.asarray(x))[rows], values)


def place(options: Sequence[Hashable], option: Hashable) -> int:
    """Where an option stands among others, or else their number; 1, 1.0 and True are three."""
    same = lambda x: x is option or (type(x) is type(option) and x == option)
    return next((i for i, x in enumerate(options) if same(x)), len(options))
