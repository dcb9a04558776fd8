"""Typed PRNG keys, folded so that pieces and devices draw their own numbers."""

from collections.abc import Hashable
from functools import partial

import jax
import jax.numpy as jnp

from lossopt._typing import ArrayLike, PyTree


def folded(tree: PyTree, number: ArrayLike | None) -> PyTree:
    """Typed keys among the leaves folded with a number, if any; other leaves as they are."""
    if number is None:
        return tree
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
