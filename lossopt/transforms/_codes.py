"""Arrays in one or two bytes an element: the top bits of their float32 pattern."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._numerics import wide
from lossopt._typing import Array, Params, PyTree

Bits = Callable[[tuple[int, ...]], Array]  # from a shape to 32 random bits for each element


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales"],
    meta_fields=["second", "dtype", "block", "stream"],
)
@dataclasses.dataclass(frozen=True)
class Code:
    """An array in few bytes.

    Attributes:
      codes: of the array's shape, `uint8` or `bfloat16`.
      scales: the largest magnitude of each block along the flattened array; None for `bfloat16`.
      second: whether it is a second moment, which is never negative.
      dtype: of the array.
      block: how many elements share a scale; None for `bfloat16`.
      stream: number of its noise. A first and a second moment of one number share a hash.
    """

    codes: Any
    scales: Any
    second: bool
    dtype: np.dtype
    block: int | None
    stream: int


def is_code(x: PyTree) -> bool:
    """Whether a node is an encoded array."""
    return isinstance(x, Code)


def encode(x: Array, like: Code, bits: Bits) -> Code:
    """The array in the form of `like`, whose own values are not read."""
    if like.block is None:
        narrow = x.astype(jnp.float32)
        codes = to_bfloat16(narrow, bits(x.shape)) if like.second else nearest_bfloat16(narrow)
        return dataclasses.replace(like, codes=codes.astype(jnp.bfloat16))
    blocks = _blocks(x, like.block)
    scales = _largest(blocks, like.second)
    shares = (blocks / jnp.where(scales == 0, 1, scales)[..., None]).astype(jnp.float32)
    write = _second if like.second else _signed
    codes = write(shares, bits(shares.shape))
    if like.second:  # a root of zero in a denominator would make the largest step of all
        codes = jnp.where(blocks > 0, jnp.maximum(codes, 1), 0)
    return dataclasses.replace(like, codes=_joined(codes, x.shape).astype(jnp.uint8), scales=scales)


def decode(code: Code) -> Array:
    """The array of a code, in its own dtype."""
    if code.block is None:
        return code.codes.astype(code.dtype)
    codes = _blocks(code.codes, code.block).astype(jnp.uint32)
    shares = (_read_second if code.second else _read_signed)(codes)
    numbers = shares.astype(code.dtype) * code.scales[..., None]
    if code.second:  # the product may underflow
        numbers = jnp.where(codes > 0, jnp.maximum(numbers, jnp.finfo(code.dtype).tiny), numbers)
    return _joined(numbers, code.codes.shape)


def to_bfloat16(x: Array, bits: Array) -> Array:
    """Float32 rounded up or down to a bfloat16, right on average; it stays float32.

    Args:
      x: float32.
      bits: random, of which the upper 16 are used.

    Returns:
      Float32 whose lower 16 bits are zero. What is finite stays finite, all else stays as it is.
    """
    pattern = _pattern(x)
    size = pattern & 0x7FFFFFFF
    upper = jnp.minimum((size + (bits >> 16)) >> 16, 0x7F7F)  # the largest bfloat16
    rounded = upper << 16 | (pattern ^ size)
    return jnp.where(jnp.isfinite(x), _number(rounded), x)


def nearest_bfloat16(x: Array) -> Array:
    """Float32 rounded to the nearest bfloat16; it stays float32, and what is finite stays finite.

    A compiler may delete a cast there and back, but not this.
    """
    largest = float(jnp.finfo(jnp.bfloat16).max)
    rounded = jnp.clip(jax.lax.reduce_precision(x, 8, 7), -largest, largest)
    return jnp.where(jnp.isfinite(x), rounded, x)


def widen(tree: Params) -> Params:
    """Low precision in float32; all else as it is."""

    def leaf(x):
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, wide(jnp.result_type(x))) if floating else x

    return jax.tree.map(leaf, tree)


def together(updates: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """Both widened; the updates in the dtypes of the parameters, if there are any."""
    updates, params = widen(updates), widen(params)
    if params is None:
        return updates, params
    same = lambda u, p: u.astype(p.dtype) if hasattr(u, "dtype") else u
    return jax.tree.map(same, updates, params), params


# A share of the block's maximum is at most 1, whose pattern begins with the 12 bits 127 << 3: sign,
# exponent, 3 bits of mantissa. Codes count down from there, and 0 is exactly zero: 127 codes and a
# sign reach 2^-15.7, 255 codes without one reach 2^-31.7.
_CUT, _ONE = 20, 127 << 3


def _signed(shares, bits):
    pattern = _pattern(shares)
    sign = (pattern >> 31) << 7
    return _rounded(pattern & 0x7FFFFFFF, ((bits & 0xFFF) << 8) | 0x80, 127) | sign


def _second(shares, bits):
    return _rounded(_pattern(shares), bits >> 12, 255)


def _rounded(pattern, offset, top):
    codes = ((pattern + offset) >> _CUT).astype(jnp.int32) - (_ONE - top)
    return jnp.clip(codes, 0, top).astype(jnp.uint32)


def _read_signed(codes):
    size = codes & 127
    pattern = (size + (_ONE - 127)) << _CUT | (codes >> 7) << 31
    return _number(jnp.where(size == 0, 0, pattern))


def _read_second(codes):
    return _number(jnp.where(codes == 0, 0, (codes + (_ONE - 255)) << _CUT))


def _largest(blocks, second):
    """The largest magnitude of each block, or NaN.

    Integers are compared, which vectorizes, and in two parts, which XLA fuses with what makes the
    array; it would write all of it to memory for one reduction over a whole block.
    """
    # Without a sign a negative number would pass for another: it becomes NaN, as any NaN does.
    sizes = jnp.where(blocks < 0, jnp.nan, blocks) if second else blocks
    kind = jnp.int64 if blocks.dtype == jnp.float64 else jnp.int32
    pattern = jax.lax.bitcast_convert_type(jnp.abs(sizes), kind)
    lanes = math.gcd(blocks.shape[-1], 16)
    pattern = pattern.reshape(*blocks.shape[:-1], -1, lanes)
    return jnp.max(jax.lax.bitcast_convert_type(jnp.max(pattern, axis=-2), blocks.dtype), axis=-1)


def _pattern(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _number(pattern):
    return jax.lax.bitcast_convert_type(pattern, jnp.float32)


def _blocks(x, block):
    """Blocks along a new last axis; rows of whole blocks keep their axes, as a sharding needs."""
    if x.ndim and x.shape[-1] % block == 0:
        return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    return jnp.pad(x.reshape(-1), (0, -x.size % block)).reshape(-1, block)


def _joined(blocks, shape):
    if blocks.size == np.prod(shape):
        return blocks.reshape(shape)
    return blocks.reshape(-1)[: np.prod(shape)].reshape(shape)
