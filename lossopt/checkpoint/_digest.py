"""The digest of an array: 64 bits that no layout changes and every damage does.

Each 32-bit word goes with its index through a full avalanche mix before it is summed modulo 2³²,
so that the words of all devices may be summed in any order. Two sums, of different mixes, make
the digest. Elements of one or two bytes are a word each, those of eight bytes two words.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt._jax import host_device, undisturbed
from lossopt._numerics import mixed
from lossopt._processes import summed
from lossopt._typing import Array

MIXES = (0x9E3779B1, 0x243F6A88), (0x85EBCA77, 0xB7E15162)  # an odd factor of the index, a seed
BLOCK = 1 << 20  # words of the host that are digested at once


def of_host(array: np.ndarray) -> list[int]:
    """The two sums of an array of numpy, on a CPU if jax has one: the devices are training."""
    words = np.ascontiguousarray(array).reshape(-1)
    if words.dtype == np.bool_:
        words = words.view(np.uint8)
    words = words.view(f"u{min(words.dtype.itemsize, 4)}")
    sums = []
    with undisturbed():
        for start in range(0, words.size, BLOCK):
            block = words[start : start + BLOCK]
            sums.append(_of_words(_padded(block), np.uint32(start % 2**32), block.size))
        sums = np.asarray([np.asarray(x) for x in sums], np.uint64).reshape(-1, 2)
    return (sums.sum(axis=0) % 2**32).tolist()


def of_arrays(arrays: Sequence[np.ndarray | Array]) -> np.ndarray:
    """Of each array its two sums, and how many replicas differ from the first: uint32[arrays, 3].

    Every process must call it with the same arrays. The devices work side by side.
    """
    with undisturbed():
        begun = [x if isinstance(x, np.ndarray) else _of_shards(_near(x)) for x in arrays]
        here = np.asarray(list(map(_finished, begun)), np.uint32).reshape(-1, 3)
    spread = [isinstance(x, jax.Array) and not x.is_fully_addressable for x in arrays]
    return np.where(np.asarray(spread, bool)[:, None], summed(here), here)


def _finished(array):
    if isinstance(array, np.ndarray):
        return [*of_host(array), 0]
    total, differ = np.zeros(2, np.uint64), 0
    for owned, replicas in array:
        sums = np.reshape(replicas, (-1, 2))
        total += sums[0] * np.uint64(owned)
        differ += np.any(sums != sums[:1], axis=1).sum()
    return [*(total % 2**32), differ]


def _near(array):
    """In the memory where its devices compute, which optimizer states may have left."""
    kind = next(iter(array.sharding.device_set)).default_memory().kind
    if array.sharding.memory_kind in (None, kind):
        return array
    return jax.device_put(array, array.sharding.with_memory_kind(kind))


def _of_shards(array):
    """Of each distinct shard here: whether this process owns it, and the sums of each replica."""
    shape = array.shape
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    starts = {  # the place in the whole array of the first element of each device
        device: sum(
            axis.indices(size)[0] * stride for axis, size, stride in zip(index, shape, strides)
        )
        for device, index in array.sharding.devices_indices_map(shape).items()
    }
    sums = _of_devices(array, starts, _wrapped(strides))
    shards: dict[int, tuple[bool, list[Array]]] = {}
    for shard in sorted(array.addressable_shards, key=lambda shard: shard.replica_id):
        replicas = shards.setdefault(starts[shard.device], (shard.replica_id == 0, []))[1]
        replicas.append(sums[shard.device])
    return list(shards.values())


def _of_devices(array, starts, strides):
    """The sums of each device here; on a mesh by one program, which is compiled once."""
    place = array.sharding
    if not isinstance(place, NamedSharding) or place.mesh.size == 1:
        shards = {shard.device: shard.data for shard in array.addressable_shards}
        return {d: _of_block(x, _wrapped(starts[d]), strides) for d, x in shards.items()}
    devices = NamedSharding(place.mesh, P(place.mesh.axis_names))
    in_order = np.zeros(place.mesh.size, np.uint32)
    for device, index in devices.devices_indices_map(in_order.shape).items():
        in_order[index] = _wrapped(starts[device])
    split = jax.make_array_from_callback(in_order.shape, devices, lambda index: in_order[index])
    sums = _of_mesh(array, split, strides, place, devices)
    return {shard.device: shard.data for shard in sums.addressable_shards}


@functools.partial(jax.jit, static_argnums=(3, 4))
def _of_mesh(array, starts, strides, place, devices):
    of_block = lambda block, start, strides: _of_block(block, start[0], strides)[None]
    specs = (place.spec, devices.spec, P())
    each = jax.shard_map(
        of_block, mesh=place.mesh, in_specs=specs, out_specs=devices.spec, check_vma=False
    )
    return each(array, starts, strides)


@jax.jit
def _of_block(block, start, strides):
    words = _words(block)
    per_element = words.shape[-1]
    indices = jnp.full(words.shape, start)
    for axis, stride in enumerate(strides):
        indices += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    indices *= np.uint32(per_element)
    indices += lax.broadcasted_iota(jnp.uint32, words.shape, words.ndim - 1)
    return _sums(*_terms(words, indices))


@jax.jit
def _of_words(words, start, count):
    """Of the first words of a block: a few sizes of blocks are a few programs to compile."""
    indices = lax.iota(jnp.uint32, words.size)
    terms = _terms(words.astype(jnp.uint32), start + indices)
    return _sums(*(jnp.where(indices < count, x, np.uint32(0)) for x in terms))


def _terms(words, indices):
    """What each of the two sums is of."""
    return [mixed(indices * np.uint32(odd) + np.uint32(seed) ^ words) for odd, seed in MIXES]


def _sums(*terms):
    """In one pass over both."""
    add = lambda sums, more: tuple(a + b for a, b in zip(sums, more))
    zeros = (np.uint32(0), np.uint32(0))
    return jnp.stack(lax.reduce(terms, zeros, add, range(terms[0].ndim)))


def _padded(block):
    """On the CPU, to the next power of two."""
    size = 1 << max(10, (block.size - 1).bit_length())
    if size > block.size:
        block = np.concatenate([block, np.zeros(size - block.size, block.dtype)])
    return jax.device_put(block, host_device())


def _wrapped(integers):
    """Modulo 2³²."""
    return np.asarray(integers, np.uint64).astype(np.uint32)


def _words(block):
    """The bits as uint32[..., words of an element], in the order of little-endian memory."""
    if jnp.issubdtype(block.dtype, jnp.complexfloating):
        parts = _words(jnp.stack([block.real, block.imag], -1))
        return parts.reshape(*block.shape, -1)
    if block.dtype == jnp.bool_:
        return block.astype(jnp.uint32)[..., None]
    if block.dtype.itemsize < 4:
        narrow = jnp.dtype(f"u{block.dtype.itemsize}")
        return lax.bitcast_convert_type(block, narrow).astype(jnp.uint32)[..., None]
    words = lax.bitcast_convert_type(block, jnp.uint32)
    return words.reshape(*block.shape, -1)
