"""Where a step computes: how its batch is cut, where parameters move, how gradients are summed."""

import dataclasses
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from lossopt import _jax
from lossopt._pieces import Pieces, by_shard, rows, strided
from lossopt._typing import Batch, PyTree

# Parameters rest between steps, are whole while the objective reads them, and are each device's own
# while the optimizer updates them.
Lie = Literal["rest", "whole", "own"]


@partial(jax.tree_util.register_dataclass, data_fields=["even", "rest"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Parted:
    """A batch on devices.

    Attributes:
      even: rows of which each device has as many; or none.
      rest: fewer rows than devices, which each device has; or none.
    """

    even: tuple[Batch, ...]
    rest: tuple[Batch, ...]

    def joined(self) -> Batch:
        """All rows; whoever computes with them moves them."""
        join = lambda *xs: xs[0] if len(xs) == 1 else jnp.concatenate(xs)
        return jax.tree.map(join, *self.even, *self.rest)


def joined(batch: Batch | Parted) -> Batch:
    """All rows of a batch, in one tree."""
    return batch.joined() if isinstance(batch, Parted) else batch


def parted(batch: Batch | Parted, devices: int) -> Parted:
    """Cuts off the rows that devices do not divide."""
    if isinstance(batch, Parted):
        if all(rows(even) % devices == 0 for even in batch.even if jax.tree.leaves(even)):
            return batch
        batch = batch.joined()
    if not jax.tree.leaves(batch):
        return Parted((batch,), ())
    total = rows(batch)
    even = total - total % devices
    if even == total:
        return Parted((batch,), ())
    cut = lambda part: jax.tree.map(lambda x: x[part], batch)
    return Parted((cut(slice(even)),) if even else (), (cut(slice(even, total)),))


def striped(batch: Parted, count: int, shards: int) -> Pieces:
    """At most `count` pieces of the even rows, which go round within each shard, and the rest."""
    most = lambda even: min(count, rows(even)) if jax.tree.leaves(even) else count
    cut = [strided(even, most(even), shards) for even in batch.even]
    stacked = [x for pieces in cut for x in pieces.stacked]
    return Pieces((*stacked,), (*(x for pieces in cut for x in pieces.last), *batch.rest))


def sized(batch: Parted, size: int | None, shards: int) -> Pieces:
    """Pieces of about `size` rows of the even ones, of each shard equally many, and the rest."""
    cut = [by_shard(even, size or rows(even), shards) for even in batch.even]
    stacked = [x for pieces in cut for x in pieces.stacked]
    return Pieces((*stacked,), (*(x for pieces in cut for x in pieces.last), *batch.rest))


class Place(Protocol):
    """One device, one of those of an enclosing map, or all of a mesh."""

    @property
    def axes(self) -> tuple[Hashable, ...]:
        """Of an enclosing map, over which sums go."""
        ...

    @property
    def parts(self) -> int:
        """Into how many, seen from here, rows are cut, of which each gives a piece as many."""
        ...

    def cut(self, batch: Batch, count: int) -> Pieces:
        """At most `count` pieces of the rows of a device, and perhaps one more that all have."""
        ...

    def moved(self, params: PyTree, start: Lie, end: Lie) -> PyTree:
        """The parameters, or what is like them, from where they lie to where they are to lie."""
        ...

    def apart(self, grads: PyTree) -> PyTree:
        """The gradient of a piece as it is accumulated."""
        ...

    def summed(self, grads: PyTree) -> PyTree:
        """The gradient of all devices, of each its own part."""
        ...


@dataclasses.dataclass(frozen=True)
class Here:
    """One device, or one of those of an enclosing map.

    Attributes:
      axes: of the map.
      parts: the shards of a run, so that its pieces are those that several devices take.
    """

    axes: tuple[Hashable, ...] = ()
    parts: int = 1

    def cut(self, batch: Batch | Parted, count: int) -> Pieces:
        if self.parts == 1:
            return strided(joined(batch), count)
        return striped(parted(batch, self.parts), count, self.parts)

    def sized(self, batch: Batch | Parted, size: int | None, shards: int) -> Pieces:
        """Pieces of about `size` rows, from each shard alike, and those that these do not divide.

        None are all at once.
        """
        return sized(parted(batch, shards), size, shards)

    def moved(self, params: PyTree, start: Lie, end: Lie) -> PyTree:
        return _jax.varying(params, self.axes) if end == "whole" else params

    def apart(self, grads: PyTree) -> PyTree:
        return grads

    def summed(self, grads: PyTree) -> PyTree:
        return jax.lax.psum(grads, self.axes)


HERE = Here()
_entered: ContextVar[tuple[Any, PyTree]] = ContextVar("entered", default=(None, None))


@contextmanager
def entered(place: Place, params: PyTree) -> Iterator[None]:
    """Where an objective is called, with these parameters."""
    token = _entered.set((place, params))
    try:
        yield
    finally:
        _entered.reset(token)


def current() -> tuple[Any, PyTree]:
    """The place in which the objective is called that calls this, and its parameters; or None."""
    return _entered.get()


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Alike:
    """A piece that all devices hold, which counts once."""

    rows: Batch


def once(axes: tuple[Hashable, ...], tree: PyTree) -> PyTree:
    """What all devices hold alike, kept on the first and 0 elsewhere, before it is summed."""
    first = jax.lax.axis_index(axes) == 0
    return jax.tree.map(lambda x: jnp.where(first, x, 0), tree)
