"""Trees of arrays that users give: what holds no numbers is refused."""

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._typing import PyTree
from lossopt.training._inputs import numbers
from lossopt.training._stream import is_stream


def on_device(**trees: PyTree) -> list[PyTree]:
    """Trees of jax arrays; raises where a leaf holds no numbers, or such as would not fit."""
    usable(**trees)
    return [jax.tree.map(jnp.asarray, tree) for tree in trees.values()]


def on_host(**trees: PyTree) -> list[PyTree]:
    """The same, of the same dtypes, but what no device holds is of numpy and stays on the host.

    Numbers of Python are arrays of jax as there, which others do not follow in their dtype.
    """
    usable(**trees)
    return [jax.tree.map(_own, tree) for tree in trees.values()]


def _own(x):
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, bool | int | float | complex) and not isinstance(x, np.generic):
        return jnp.asarray(x)
    return np.asarray(x, jnp.result_type(x))


def usable(**trees: PyTree) -> None:
    """Raises where a leaf of the trees holds no numbers, or such as would not fit."""
    for name, tree in trees.items():
        if is_stream(tree):
            raise TypeError(
                f"Expected arrays in {name}, got an iterable, {type(tree).__name__}: fit and "
                "evaluate read one batch by batch. Else put its batches together, np.concatenate."
            )
        numbers(name, tree)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            _checks.fits(**{name + jax.tree_util.keystr(path): leaf})
