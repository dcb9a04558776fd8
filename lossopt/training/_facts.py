"""What tells arrays from others, in words: for runs that go on, and processes that run alike."""

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt import _processes
from lossopt._jax import undisturbed
from lossopt._paths import paths
from lossopt._processes import gathered
from lossopt._typing import Batch, PyTree
from lossopt.training._step import maker
from lossopt.training._stream import is_stream

ENDS = 8  # rows at either end of the data whose bytes tell them from others
MANY = 100  # leaves of data, which are told as one then
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, in each process another
ALIKE = (
    "All processes call fit with the same arguments and the same arrays, whole: make parameters "
    "from one key, and read all rows. Of rows that each process has read for itself make one array "
    "by lossopt.parallel.global_batch, or give an iterable of batches."
)


def of_rows(name: str, tree: Batch) -> dict[str, str]:
    """Of each leaf dtype, shape and a digest of its ends, by path."""
    told = dict(_leaves(tree))
    if len(told) > MANY:
        told = {"": f"{len(told)} leaves, {_digest(repr(told).encode())}"}
    return {f"{name}/{path}".rstrip("/"): x for path, x in told.items()}


def of_all(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of which some are of parts that each process reads: the same on all, of all."""
    parts = _processes.told(dict(facts))
    joined: dict[str, Any] = {"processes": len(parts)}
    for name, fact in parts[0].items():
        own = [part.get(name) for part in parts]
        others = "" if own == own[:1] * len(own) else f" and others, {_digest(repr(own).encode())}"
        joined[name] = f"{fact}{others}" if others else fact
    return joined


def same(
    trees: dict[str, PyTree], kinds: Mapping[str, Any] = MappingProxyType({}), **others: Any
) -> None:
    """Raises where processes are given other things, before one of them waits for the others.

    Args:
      trees: trees that are the same to the bit, or functions that make them, by name.
      kinds: what each process has of its own, or what is compared later, if it is given at all.
      **others: what is the same in words.
    """
    facts = {name: str(x) for name, x in others.items()} | {
        name: "nothing" if x is None else "an iterable" if is_stream(x) else "given"
        for name, x in kinds.items()
    }
    for name, tree in trees.items():
        tree = tree if maker(tree) is None else jax.eval_shape(tree)
        leaves = zip(paths(tree), jax.tree.leaves(tree))
        facts |= {f"{name}/{path}".rstrip("/"): _whole(x) for path, x in leaves}
        facts[f"the structure of {name}"] = str(jax.tree.structure(tree))
    _processes.same({name: ADDRESS.sub("", x) for name, x in facts.items()}, ALIKE)


def seen(on_epoch: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The user's, also where only other processes have one: then all of them stop at each row."""
    asked = gathered([on_epoch is not None]).any()
    return on_epoch or ((lambda row, state: None) if asked else None)


def same_rows(streamed: bool, **data: Batch) -> None:
    """The same, of rows; those of streams are each process's own, which share dtypes and shapes."""
    facts = {}
    for name, tree in data.items():
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
        facts |= of_rows(f"{name}, each row" if streamed else name, shapes if streamed else tree)
    _processes.same(facts, ALIKE)


def _leaves(tree):
    for path, x in zip(paths(tree), jax.tree.leaves(tree)):
        told = f"{x.dtype}{list(x.shape)}"
        if isinstance(x, jax.Array | np.ndarray):
            told += f", {_digest(b''.join(part.tobytes() for part in _ends(x)))}"
        yield path, told


def _ends(x):
    last = max(0, len(x) - ENDS)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        where: Any = x.sharding
        everywhere = NamedSharding(where.mesh, P())
        ends = jax.jit(lambda x: (x[:ENDS], x[last:]), out_shardings=everywhere)(x)
        return [np.asarray(part) for part in ends]
    return [_rows(x, 0, min(ENDS, len(x))), _rows(x, last, len(x))]


def _rows(x, low, high):
    """The rows from low to before high, wherever they lie."""
    if isinstance(x, np.ndarray):
        return x[low:high]
    rows = np.zeros((high - low, *x.shape[1:]), x.dtype)
    with undisturbed():
        for shard in x.addressable_shards:
            first, end, _ = shard.index[0].indices(len(x))
            start, stop = max(first, low), min(end, high)
            if start < stop:
                near = shard.device.platform == "cpu"  # no copy is made, and no program for a slice
                data = np.asarray(shard.data) if near else shard.data
                rows[start - low : stop - low, *shard.index[1:]] = data[
                    start - first : stop - first
                ]
    return rows


def _whole(x):
    """A leaf that each process has for itself, told by all of its bytes."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"{jax.random.key_impl(x)} {np.asarray(jax.random.key_data(x)).tolist()}"
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return f"{x.dtype}{list(x.shape)}, on all"
    array = np.asarray(x)
    if array.size == 1:
        return f"{array.dtype}{list(array.shape)} {array.item()}"
    return f"{array.dtype}{list(array.shape)}, {zlib.crc32(array.tobytes()):08x}"


def _digest(text):
    return hashlib.sha256(text).hexdigest()[:16]
