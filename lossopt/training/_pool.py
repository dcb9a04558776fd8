"""Sums over the steps of a row of history."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lossopt._typing import Means


class Pool(NamedTuple):
    """Sums over the steps of a row, and what rounding took from them."""

    sums: tuple[Means, Means]
    lost: tuple[Means, Means]


def empty(like: tuple[Means, Means]) -> Pool:
    """Before the first step of a row; also for shapes."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return Pool(zeros, zeros)


def emptied(pool: Pool) -> Pool:
    """As before the first step; devices that had sums of their own have zeros of their own."""
    return jax.tree.map(jnp.zeros_like, pool)


def pooled(pool: Pool, summand: tuple[Means, Means]) -> Pool:
    """The sums with one summand more, as if they had twice the digits.

    References:
      Kahan, "Further Remarks on Reducing Truncation Errors", 1965.
    """
    small = jax.tree.map(jnp.subtract, summand, pool.lost)
    sums = jax.tree.map(jnp.add, pool.sums, small)
    return Pool(sums, jax.tree.map(_lost, sums, pool.sums, small))


def _lost(new, old, x):
    return jnp.where(jnp.isfinite(new), (new - old) - x, 0)
