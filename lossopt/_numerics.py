"""Where numbers end: the dtype of sums, infinity, the root at 0, bits without a trace."""

import operator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lossopt._typing import Array, ArrayLike, Number

ROUNDS = (16, 0x7FEB352D), (15, 0x846CA68B)
SUMS = jnp.dtype("float32"), jnp.dtype("float64")

NO_LOGIT = {dtype: float(jnp.finfo(dtype).min) / 2 for dtype in SUMS}
"""As minus infinity, but finite: differences of two are 0, those of one and a logit finite.

It is below every logit less the highest, as long as these are within a quarter of the range.
"""


def common(*xs: DTypeLike | ArrayLike) -> np.dtype:
    """The dtype that arrays or dtypes have together, also where jax is told to promote nothing."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*xs)


def wide(*xs: DTypeLike | ArrayLike) -> np.dtype:
    """The dtype of sums over arrays or dtypes: float32 or wider."""
    return common(jnp.float32, common(*xs))


def zeros(x: ArrayLike) -> Array:
    """Zeros of its shape for sums, in float32 or wider."""
    return jnp.zeros_like(x, dtype=wide(x))


def still(*arrays: Array) -> list[Array]:
    """The arrays, of one shape, constants where one of them is the log of 0.

    A slope there would be infinite, or none, and NaN when multiplied by a weight of 0.
    """
    impossible = reduce(operator.or_, map(jnp.isneginf, arrays))
    return [jnp.where(impossible, jax.lax.stop_gradient(x), x) for x in arrays]


def share(weight: Number, x: Array) -> Array:
    """The product, 0 where the weight is 0, of an infinite number, too: 0 log 0 is 0."""
    return jnp.multiply(weight, jnp.where(jnp.equal(weight, 0) & jnp.isinf(x), 0, x))


def root(x: Array) -> Array:
    """The square root, whose slope at 0 is taken as 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def mixed(word: Array) -> Array:
    """A bijection of 32 bits: each of the input flips each of the output half of the time.

    References:
      Wellons, "Prospecting for Hash Functions", 2018.
    """
    for shift, factor in ROUNDS:
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    return word ^ (word >> 16)
