"""Batches on their way to the device, many in one piece."""

from typing import Any

import jax
import numpy as np

from lossopt._typing import Batch
from lossopt.training._evaluation import on_device

BYTES, MOST = 2**23, 1024  # of a stack, and its batches


def capacity(batch: Batch, known: int | None) -> int:
    """How many batches a stack holds; what is on a device already is not stacked."""
    leaves = jax.tree.leaves(batch)
    if any(isinstance(x, jax.Array) for x in leaves):
        return 1
    size = sum(np.asarray(x).nbytes for x in leaves)
    return max(1, min(BYTES // max(size, 1), MOST, known or MOST))


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

    def on_device(self) -> Batch:
        """All of them; behind the last there are zeros."""
        return on_device(train=jax.tree.unflatten(self._structure, self._leaves))[0]

    def _room(self, x):
        if isinstance(x, jax.Array) and self._capacity == 1:
            return x[None]
        x = np.asarray(x)
        return np.zeros((self._capacity, *x.shape), x.dtype)
