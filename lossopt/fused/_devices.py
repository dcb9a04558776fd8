"""Rows and columns that are spread over devices."""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lossopt._on_mesh import shards_of_step
from lossopt._typing import Array, PyTree
from lossopt.fused._walk import Facts, Operands, Walk


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Each device's rows walked on their own, so that gradients of columns are added up once.

    Attributes:
      walk: over the rows of one device.
      shards: groups of consecutive rows, one per device, that advance side by side.
      together: as of `Walk`.
    """

    walk: Walk
    shards: int
    together: int

    @property
    def one_pass(self) -> bool:
        """As of `Walk`."""
        return self.walk.one_pass

    def forward(self, operands: Operands, facts: Facts) -> tuple[PyTree, PyTree]:
        """As of `Walk`."""
        return self._join(*self._each(self.walk.forward, operands, facts))

    def backward(
        self, operands: Operands, facts: Facts, residuals: PyTree, cotangents: PyTree
    ) -> tuple[Operands, PyTree]:
        """As of `Walk`."""
        gradient, values = self._each(self.walk.backward, operands, facts, residuals, cotangents)
        left, values = self._join(gradient.left, values)
        pooled = jax.tree.map(lambda x: jnp.sum(x, axis=0), gradient._replace(left=()))
        return pooled._replace(left=left), values

    def _each(self, way, operands, facts, *more):
        """What each group gives."""

        def of_group(left, rows, *more):
            return way(operands._replace(left=left), facts._replace(rows=rows), *more)

        split = lambda x: x.reshape(self.shards, -1, *x.shape[1:])
        return jax.vmap(of_group)(*jax.tree.map(split, (operands.left, facts.rows, *more)))

    def _join(self, *trees):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trees)


def shards(features: Array, rows: int, given: int | None) -> int:
    """Over how many devices rows are spread: given, or as a type, a step or an only axis says."""
    if given is None:
        count = _read(features)
        return 1 if rows % count else count
    given = operator.index(given)
    if given < 1 or rows % given:
        raise ValueError(
            f"Expected token_shards that divide {rows} rows, got {given}. Give the number of "
            "devices over which the rows are spread, or 1."
        )
    return given


def parts(kernel: Array, axis: int, features: Array) -> int:
    """Over how many devices an axis of the kernel is spread, and stays, as its type says."""
    sharding = jax.typeof(kernel).sharding
    kept = _without(_taken(features), sharding.spec)
    return math.prod(sharding.mesh.shape[name] for name in _names(kept[axis]))


def automatic(
    fn: Callable[..., Any],
    rows: dict[str, Array],
    columns: dict[str, Array],
    numbers: PyTree,
    token_shards: int,
) -> Any:
    """`fn(rows, columns, numbers)`, with axes of Explicit types left to the compiler.

    Columns give up the axes that `rows["features"]` are spread over, once, before all else. The
    result is one number, or has the axes of rows but their last.
    """
    features = rows["features"]
    sharding = jax.typeof(features).sharding
    explicit = tuple(_axes(sharding.mesh, AxisType.Explicit))
    if not explicit:
        mesh, sizes = _only_axis(features)
        if sizes == [token_shards]:
            whole = NamedSharding(mesh, PartitionSpec())
            columns = jax.lax.with_sharding_constraint(columns, whole)
        return fn(rows, columns, numbers)

    @jax.jit
    def on_mesh(rows, columns, numbers):
        with jax.sharding.use_abstract_mesh(sharding.mesh):
            kept = lambda x: _without(_taken(features), jax.typeof(x).sharding.spec)
            columns = jax.tree.map(lambda x: jax.sharding.reshard(x, kept(x)), columns)
            plain = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
            shapes = jax.eval_shape(fn, *(jax.tree.map(plain, x) for x in (rows, columns, numbers)))
            out = jax.tree.map(lambda x: PartitionSpec(*sharding.spec[: x.ndim]), shapes)
            wrapped: Callable = jax.sharding.auto_axes(fn, axes=explicit, out_sharding=out)
            return wrapped(rows, columns, numbers)

    return on_mesh(rows, columns, numbers)


def gathered(tree: PyTree) -> PyTree:
    """The arrays, whole on each device where their types say that they are spread."""

    def whole(x):
        mesh = jax.typeof(x).sharding.mesh
        if not _axes(mesh, AxisType.Explicit):
            return x
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(whole, tree)


def _read(features):
    sharding = jax.typeof(features).sharding
    if _axes(sharding.mesh, AxisType.Explicit):
        return math.prod(sharding.mesh.shape[name] for name in _names(sharding.spec[0]))
    _, sizes = _only_axis(features)
    return shards_of_step() or (sizes[0] if sizes else 1)


def _only_axis(features):
    """The mesh, and the size of its Auto axis where there is one only."""
    mesh = jax.typeof(features).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    sizes = [size for size in _axes(mesh, AxisType.Auto).values() if size > 1]
    return mesh, sizes if len(sizes) == 1 else []


def _axes(mesh, kind):
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, each in types if each == kind}


def _taken(features):
    """The mesh axes that the rows are spread over, as their type says."""
    return {name for names in jax.typeof(features).sharding.spec[:-1] for name in _names(names)}


def _names(entry):
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _without(taken, spec):
    kept = [tuple(name for name in _names(entry) if name not in taken) for entry in spec]
    return PartitionSpec(*(names or None for names in kept))
