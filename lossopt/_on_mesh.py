"""The places on a mesh: one program that the compiler cuts, or one for each device."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from lossopt import _mesh, _place, _shardings
from lossopt._pieces import Pieces, rows, strided
from lossopt._place import Alike, Lie, Parted, parted, sized, striped
from lossopt._typing import Array, Batch, PyTree


class Specs(NamedTuple):
    """For each parameter, the axes of the mesh over which it lies; see `_place.Lie`."""

    rest: list[P]
    whole: list[P]
    own: list[P]


@dataclasses.dataclass(frozen=True, eq=False)
class Auto:
    """All devices in one program of global arrays, which the compiler cuts.

    Attributes:
      mesh: of Auto axes.
      rows: those of its axes over which rows lie.
      specs: where parameters lie.
      shards: of the run, whose pieces are the same on all devices that divide them.
    """

    mesh: Mesh | AbstractMesh
    rows: tuple[str, ...]
    specs: Specs
    shards: int = 1

    axes = ()

    @property
    def devices(self) -> int:
        """How many have rows of their own."""
        return _mesh.size(self.mesh, self.rows)

    @property
    def parts(self) -> int:
        """The shards, where devices divide them; else the devices."""
        return self.devices if self.shards % self.devices else self.shards

    def cut(self, batch: Batch | Parted, count: int) -> Pieces:
        parts = self._laid(batch, self.parts)
        pieces = striped(Parted(parts.even, ()), count, self.parts)
        last = (*map(self._over, pieces.last), *parts.rest)
        return Pieces(tuple(self._over(x, 1) for x in pieces.stacked), last)

    def sized(self, batch: Batch | Parted, size: int | None, shards: int) -> Pieces:
        parts = self._laid(batch, self.devices)
        whole = all(shards % self.devices == rows(x) % shards == 0 for x in parts.even)
        pieces = sized(parts, size, shards if whole else self.devices)
        return Pieces(tuple(self._over(x, 1) for x in pieces.stacked), pieces.last)

    def moved(self, params: PyTree, start: Lie, end: Lie) -> PyTree:
        return _each(self._lie, getattr(self.specs, end), params)

    def apart(self, grads: PyTree) -> PyTree:
        """Whole before it is cut, or devices would share its products in another way."""
        whole = _each(self._lie, self.specs.whole, grads)
        return _each(self._lie, self.specs.own, whole)

    def summed(self, grads: PyTree) -> PyTree:
        return grads

    def layer(self, spec: P, x: Array) -> Array:
        """A part of a parameter that lies as `spec` says, gathered."""
        return self._lie(_shardings.without(spec, self.rows), x)

    def _laid(self, batch, count):
        """Its rows over the devices, and those that so many do not divide on all."""
        parts = parted(batch, count)
        alike = jax.tree.map(partial(self._lie, P()), parts.rest)
        return Parted(tuple(map(self._over, parts.even)), alike)

    def _over(self, tree, ahead=0):
        return jax.tree.map(partial(self._lie, _mesh.spec(self.rows, ahead)), tree)

    def _lie(self, spec, x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


@dataclasses.dataclass(frozen=True, eq=False)
class Manual:
    """Each device in a program of its own, within `shard_map`.

    Attributes:
      axes: of the mesh, over which rows lie.
      mesh: whose axes they are.
      specs: where parameters lie.
    """

    axes: tuple[str, ...]
    mesh: Mesh | AbstractMesh
    specs: Specs

    parts = 1

    def cut(self, batch: Parted, count: int) -> Pieces:
        cut = [strided(x, min(count, rows(x))) for x in batch.even]
        stacked = [x for pieces in cut for x in pieces.stacked]
        last = [x for pieces in cut for x in pieces.last]
        return Pieces(tuple(stacked), (*last, *map(Alike, batch.rest)))

    def moved(self, params: PyTree, start: Lie, end: Lie) -> PyTree:
        given, wanted = getattr(self.specs, start), getattr(self.specs, end)
        move = lambda there, here, x: self._sliced(here, there, _gathered(there, here, x))
        return _each(move, given, wanted, params)

    def apart(self, grads: PyTree) -> PyTree:
        return grads

    def summed(self, grads: PyTree) -> PyTree:
        """Those of layers that the model gathers are summed over these axes already."""
        leaves, structure = jax.tree.flatten(grads)
        leaves = [*map(_scattered, self.specs.own, self.specs.whole, leaves)]
        left = [_others(self.axes, spec) for spec in self.specs.own]
        for axes in dict.fromkeys(left):
            numbers = [i for i, names in enumerate(left) if names == axes]
            for i, x in zip(numbers, jax.lax.psum([leaves[i] for i in numbers], axes)):
                leaves[i] = x
        return structure.unflatten(leaves)

    def layer(self, spec: P, x: Array) -> Array:
        """A part of a parameter that lies as `spec` says, gathered."""
        return _gathered(spec, _shardings.without(spec, self.axes), x)

    def _sliced(self, spec, start, x):
        for axis, names in _moves(spec, start):
            each = x.shape[axis] // _mesh.size(self.mesh, names)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(names) * each, each, axis)
        return x


def gathered(layer: PyTree) -> PyTree:
    """One layer of parameters that `train_step` left where they lie, whole on each device.

    For a model that scans over stacked layers: in the scan's body, under `jax.checkpoint`, it holds
    one layer at a time, also in the backward pass. Name the stack by `train_step(..., gather=)`.
    Without a mesh it is the layer itself.

    Args:
      layer: a slice of the stack, or leaves of the parameters, with the names that they have there.

    Returns:
      The same, gathered.

    Raises:
      ValueError: if a leaf is no part of the parameters.

    Examples:
      >>> layers = {"kernel": jnp.ones((3, 2, 2))}
      >>> @jax.checkpoint
      ... def block(x, layer):
      ...     return x @ lo.parallel.gathered(layer)["kernel"], None
      >>> jax.lax.scan(block, jnp.ones(2), layers)[0]
      Array([8., 8.], dtype=float32)
    """
    place, params = _place.current()
    if not isinstance(place, (Auto, Manual)):
        return layer
    named = [(*x, spec) for x, spec in zip(tree_leaves_with_path(params), place.specs.whole)]
    return tree_map_with_path(partial(_layer, place, named), layer)


def shards_of_step() -> int | None:
    """Over how many devices rows lie within the objective of `train_step`; None outside of it."""
    place, _ = _place.current()
    return _mesh.size(place.mesh, place.rows) if isinstance(place, Auto) else None


def _layer(place, params, path, leaf):
    lies = {
        P(*spec[ahead:])
        for own, x, spec in params
        for ahead in (0, 1)  # in a stack
        if own[len(own) - len(path) :] == path and np.shape(x)[ahead:] == np.shape(leaf)
    }
    if len(lies) != 1:
        raise ValueError(
            f"Expected {keystr(path) or 'a layer'} of shape {np.shape(leaf)} as a part of one "
            f"of the parameters, or of a stack of layers, got {len(lies)} that lie differently. "
            "Give gathered the layer with the names that it has there, before all else."
        )
    return place.layer(lies.pop(), leaf)


def _each(fn, *args):
    *specs, tree = args
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([fn(*each) for each in zip(*specs, leaves)])


def _gathered(spec, to, x):
    for axis, names in _moves(spec, to):
        x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
    return x


def _scattered(spec, whole, x):
    for axis, names in _moves(spec, whole):
        x = jax.lax.psum_scatter(x, names, scatter_dimension=axis, tiled=True)
    return x


def _others(axes, spec):
    return tuple(name for name in axes if name not in _shardings.names(spec))


def _moves(spec, to):
    """The axes of an array along which it lies over axes of the mesh in `spec` and not in `to`."""
    there = set(_shardings.names(to))
    entries = [(axis, _shardings.names(P(entry))) for axis, entry in enumerate(spec)]
    moves = [(axis, tuple(n for n in names if n not in there)) for axis, names in entries]
    return [(axis, names) for axis, names in moves if names]
