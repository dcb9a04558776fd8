"""Random bits from a counter: each is a hash of where and when it is used, and none is stored."""

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._numerics import ROUNDS, mixed
from lossopt._typing import Array, Int, Key, Number

_ODD = 0x9E3779B9  # 2^32 over the golden ratio


def words(seed: Number) -> Array:
    """The two words of a seed that is a whole number of 32 bits, perhaps traced."""
    if not jnp.issubdtype(jnp.result_type(seed), jnp.integer):
        raise ValueError(f"Expected seed as a whole number, got {seed}. Round it.")
    exact = seed if isinstance(seed, jax.Array) else np.asarray(seed, float)  # beyond int32
    _checks.at_least(0, seed=exact)
    _checks.at_most(2**32 - 1.0, seed=exact)
    word = jnp.asarray(seed, jnp.uint32)
    return jnp.stack([word, mixed(word ^ jnp.uint32(_ODD))])


def key_words(key: Key[Array, ""]) -> Array:
    """The two words of a key."""
    _checks.typed_key(key)
    _checks.exact_shape((), key=key)
    return jax.random.bits(key, (2,), jnp.uint32)


def noise(words: Array, leaf: int, step: Int[Array, ""], shape: tuple[int, ...]) -> Array:
    """32 random bits for each element.

    Args:
      words: the two of the seed, `uint32`.
      leaf: which leaf it is, so that two leaves differ.
      step: which step it is, so that two steps differ.
      shape: of the result. Bits belong to the place in the flattened array.

    Returns:
      `uint32`, uniform, without a trace of element, leaf, step and seed.

    References:
      Wellons, "Prospecting for Hash Functions", 2018.
    """
    count, number = step.astype(jnp.uint32), jnp.uint32(leaf)
    begin, middle = (mixed(mixed(word ^ number) + count) for word in words)
    (shift, factor), (next_shift, next_factor) = ROUNDS
    # A sum at the beginning and an exclusive or in the middle: no leaf or step is another's shift.
    bits = _places(shape) + begin
    bits = (bits ^ (bits >> shift)) * jnp.uint32(factor) ^ middle
    bits = (bits ^ (bits >> next_shift)) * jnp.uint32(next_factor)
    return bits ^ (bits >> 16)


def _places(shape):
    """The place in the flattened array, of arithmetic alone: nothing is reshaped or gathered."""
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        place, stride = place + along * jnp.uint32(stride % 2**32), stride * shape[axis]
    return place
