"""Typed PRNG keys, folded so that pieces and devices draw their own numbers.

A raw key, `uint32` of shape `[..., 2]` or `[..., 4]`, looks like data: it cannot be folded, and all
would draw the same. What might be one is refused where there is something to fold.
"""

from collections.abc import Hashable
from functools import partial

import jax
import jax.numpy as jnp

from lossopt._typing import ArrayLike, PyTree


def folded(tree: PyTree, number: ArrayLike | None) -> PyTree:
    """Typed keys among the leaves folded with a number, if any; other leaves as they are."""
    if number is None:
        return tree
    _refuse_raw(tree)
    fold = jax.vmap(partial(jax.random.fold_in, data=number))
    return jax.tree.map(lambda x: fold(x.reshape(-1)).reshape(x.shape) if is_key(x) else x, tree)


def of_device(tree: PyTree, axes: tuple[Hashable, ...]) -> PyTree:
    """Typed keys among the leaves folded with the number of the device along each axis."""
    for axis in axes:
        tree = folded(tree, jax.lax.axis_index(axis))
    return tree


def is_key(x: object) -> bool:
    """Whether `x` is an array of typed keys."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _refuse_raw(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if getattr(leaf, "dtype", None) == jnp.uint32 and leaf.shape[-1:] in ((2,), (4,)):
            raise TypeError(
                f"Expected no raw PRNG key beside the batch, got uint32 of shape {leaf.shape} at "
                f"{jax.tree_util.keystr(path, simple=True, separator='/')!r}: all pieces and "
                "devices would draw the same from it. Make it with jax.random.key(seed). Data of "
                "such a shape belongs into the batch, or is viewed as int32: x.view(jnp.int32)."
            )
