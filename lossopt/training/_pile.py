"""Batches on their way to the device, many in one piece."""

from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt._place import Parted
from lossopt._typing import Array, ArrayLike, Batch, Key
from lossopt.training._laid import laid_batch
from lossopt.training._layout import Layout
from lossopt.training._stream import NEVER

BYTES, MOST = 2**23, 1024  # of a stack, and its batches


def capacity(batch: Batch, known: int | None) -> int:
    """How many batches a stack holds; what is on a device already is not stacked."""
    leaves = jax.tree.leaves(batch)
    if any(isinstance(x, jax.Array) for x in leaves):
        return 1
    size = sum(np.asarray(x).nbytes for x in leaves)
    return max(1, min(BYTES // max(size, 1), MOST, known or MOST))


class Stack(NamedTuple):
    """Batches of one shape that follow each other, on the device.

    Attributes:
      batches: their leaves `[batches, rows, ...]`; behind the last one may be anything.
      epoch: the pass over the stream.
      number: of the first of them within that.
      step: of the first of them within the run.
    """

    batches: Batch | Parted
    epoch: ArrayLike
    number: Any
    step: Any


class Stacks(NamedTuple):
    """A source that reads a `Stack`.

    Attributes:
      batch_size: rows of a batch.
      shards: equal parts in which they lie.
    """

    batch_size: int
    shards: int

    @property
    def rest(self) -> int:
        """A ragged batch has a stack of its own."""
        return 0

    @property
    def full(self) -> int:
        """As many as there may be: nobody knows when a pass ends."""
        return NEVER

    @property
    def steps(self) -> int:
        """Likewise."""
        return NEVER

    def place(self, data: Stack, step: Any) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """The epoch of a step, its number within that, and how many steps are left there."""
        return data.epoch, data.number + step - data.step, NEVER - step

    def batch(self, data: Stack, key: Key[Array, ""], number: Any) -> Batch:
        """The batch of this number within the epoch, wherever it comes from."""
        at = number - data.number
        take = lambda x: jax.lax.dynamic_index_in_dim(x, at, keepdims=False)
        return jax.tree.map(take, data.batches)

    def last(self, data: Stack, key: Key[Array, ""]) -> Batch:
        """There is none apart from the others."""
        raise NotImplementedError


class Pile:
    """Batches of one shape, put one behind the other; those that a device holds stand alone.

    Args:
      capacity: how many there may be.

    Attributes:
      count: how many there are.
    """

    def __init__(self, capacity: int):
        self.count, self._capacity = 0, capacity
        self._leaves: list[Any] = []
        self._structure: Any = None

    def put(self, batch: Batch) -> None:
        """Copies one more."""
        leaves, self._structure = jax.tree.flatten(batch)
        self._leaves = self._leaves or [self._room(x) for x in leaves]
        for place, x in zip(self._leaves, leaves):
            if isinstance(place, np.ndarray):
                place[self.count] = x
        self.count += 1

    def laid(self, layout: Layout | None) -> Batch | Parted:
        """All of them on devices; behind the last there are zeros."""
        return laid_batch(layout, jax.tree.unflatten(self._structure, self._leaves), ahead=1)

    def _room(self, x):
        if isinstance(x, jax.Array) and self._capacity == 1:
            return x[None]
        x = np.asarray(x)
        return np.zeros((self._capacity, *x.shape), x.dtype)
