"""What of a training step lies where on a mesh."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from lossopt import _checks, _jax, _mesh, _paths, _processes, _shardings
from lossopt._on_mesh import Auto, Specs
from lossopt._place import Here
from lossopt._typing import Axis, PyTree
from lossopt.training._step import State

Partition = Literal["data", "zero1", "fsdp"]
Lowering = Literal["auto", "shard_map"]


class Layout(NamedTuple):
    """How a step lies on a mesh; see `train_step`.

    Attributes:
      lying: in place of rules, where each parameter is to lie that has a place of its own.
    """

    mesh: Mesh | AbstractMesh
    axes: _mesh.Axes
    partition: Partition
    lowering: Lowering
    rules: _shardings.Rules
    gather: bool | str
    lying: tuple[P | None, ...] | None = None

    def of_params(self, params: PyTree) -> Specs:
        """Where each parameter lies, in the order of leaves."""
        rows, fsdp = self.axes
        given = self.lying or _shardings.by_rules(params, self.mesh, self.rules)
        free = [P() if spec is None else spec for spec in given]
        apart = self._apart(params)
        spread = lambda over, specs: [
            _shardings.spread(x, self.mesh, over, spec, ahead)
            for x, spec, ahead in zip(jax.tree.leaves(params), specs, apart)
        ]
        if self.partition == "fsdp":
            shared = zip(given, spread(fsdp, free))
            rest = own = [spec if rule is None else rule for rule, spec in shared]
        else:
            rest, own = free, spread(rows, free) if self.partition == "zero1" else free
        whole = [x if left else _shardings.without(x, rows) for x, left in zip(rest, apart)]
        return Specs(rest, whole, own)

    @property
    def devices(self) -> int:
        """Over how many rows lie."""
        return _mesh.size(self.mesh, self.axes.rows)

    def place(self, params: PyTree, shards: int = 1) -> Auto:
        """Where a step computes, on Auto axes and in one program."""
        return Auto(self.mesh, self.axes.rows, self.of_params(params), shards)

    def of_state(self, state: State) -> Any:
        """The spec of each leaf of a state, in a tree like it."""
        specs = self.of_params(state.params)
        over = {"data": (), "zero1": self.axes.rows, "fsdp": self.axes.fsdp}[self.partition]
        like = lambda tree, specs: jax.tree.structure(tree).unflatten(specs)
        opt = _shardings.like_params(state.opt_state, state.params, specs.own, self.mesh, over)
        parts: Any = (
            like(state.params, specs.rest),
            jax.tree.map(lambda _: P(), state.model_state),
            like(state.opt_state, opt),
            P(),
        )
        return State(*parts)

    def laid(self, state: State) -> State:
        """A traced state, which lies as it is to lie."""
        lie = jax.lax.with_sharding_constraint
        return jax.tree.map(lie, state, _mesh.placed(self.mesh, self.of_state(state)))

    def _apart(self, params):
        """Which parameters the model gathers by itself."""
        if isinstance(self.gather, bool):
            return [not self.gather] * len(jax.tree.leaves(params))
        paths = _paths.paths(params)
        (numbers,) = _paths.places([self.gather], paths)
        return [i in numbers for i in range(len(paths))]


def layout(
    mesh: Mesh | AbstractMesh,
    partition: Partition,
    lowering: Lowering,
    axes: Mapping[str, str | Sequence[str]] | None,
    rules: _shardings.Rules,
    gather: bool | str,
) -> Layout:
    """A layout; raises where the mesh does not have what it needs."""
    _checks.one_of(partition=(partition, Partition), lowering=(lowering, Lowering))
    if not isinstance(gather, bool | str):
        raise TypeError(
            f"Expected gather as True, False or one pattern, got {gather!r}. Name several leaves "
            "by 'attention|mlp'."
        )
    found = _mesh.axes_of(mesh, axes)
    if partition == "zero1" and not found.rows and mesh.size > 1:
        raise ValueError(
            "Expected a mesh whose rows lie over several devices for partition='zero1', got "
            f"{dict(mesh.shape)}. Make one with lossopt.parallel.mesh(), or name an axis of yours, "
            "axes={'data': ...}."
        )
    if partition == "fsdp" and not found.fsdp and mesh.size > 1:
        raise ValueError(
            f"Expected a mesh with an axis fsdp for partition='fsdp', got {dict(mesh.shape)}. Make "
            "one with lossopt.parallel.mesh(data=1, fsdp=-1), or name an axis of yours, "
            "axes={'fsdp': ...}."
        )
    others = {name for name in mesh.axis_names if mesh.shape[name] > 1} - set(found.rows)
    if lowering == "shard_map" and others:
        raise ValueError(
            f"lowering='shard_map' maps over the axes of rows alone, {found.rows}, and mesh has "
            f"{sorted(others)} beside. Use lowering='auto', which leaves them to the model."
        )
    return Layout(mesh, found, partition, lowering, rules, gather)


def layout_of(
    mesh: Mesh | None,
    partition: Partition = "data",
    axes: Mapping[str, str | Sequence[str]] | None = None,
    rules: _shardings.Rules = (),
    gather: bool | str = True,
) -> Layout | None:
    """The layout of a whole run, on Auto axes; None without a mesh."""
    options = {"axes": axes is not None, "rules": bool(rules), "gather": gather is not True}
    if mesh is None:
        nowhere(partition=partition != "data", **options)
        return None
    if isinstance(mesh, AbstractMesh):
        raise TypeError(
            f"Expected mesh as a jax.sharding.Mesh of devices, got {mesh!r}. Make one with "
            "lossopt.parallel.mesh()."
        )
    found = layout(mesh, partition, "auto", axes, rules, gather)
    return found._replace(mesh=auto_mesh(mesh), rules=tuple(rules))


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices along Auto axes."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def joint(layout: Layout | None) -> bool:
    """Whether several processes take each step together; raises where one is left out."""
    return layout is not None and _processes.several() and bool(_held(layout))


def own_rows(layout: Layout | None) -> None:
    """Raises where a process has no rows of its own, or not as many as others."""
    if layout is None:
        return
    counts = {process: len(part) for process, part in _held(layout).items()}
    if sum(counts.values()) != layout.devices or len(set(counts.values())) > 1:
        raise ValueError(
            "Expected a mesh on whose axes of rows each process has as many devices of its own, "
            f"because each reads its own part of every batch, got {dict(layout.mesh.shape)} with "
            f"{counts} places for rows by process. Put the axis of the rows first, over the "
            "processes."
        )


def _held(layout):
    return _mesh.held(layout.mesh, layout.axes.rows)


def place_of(layout: Layout | None, params: PyTree, shards: int) -> Here | Auto:
    """Where an objective is measured: on the mesh, or here; each shard gives its part."""
    return Here((), shards) if layout is None else layout.place(params, shards)


def within(layout: Layout | None) -> AbstractContextManager[None]:
    """Where programs are compiled and run."""
    return nullcontext() if layout is None else _jax.within(layout.mesh)


def outside(layout: Layout | None) -> AbstractContextManager[Any]:
    """Where a host computes with what lies on the mesh, whatever the caller's mesh is."""
    return nullcontext() if layout is None else _jax.nowhere()


def nowhere(**given: bool) -> None:
    """Raises where there is no mesh, and something is given that is about one."""
    for name in (name for name, is_given in given.items() if is_given):
        raise ValueError(
            f"Expected a mesh beside {name}=, got none: it says where arrays lie on one. Give "
            f"mesh=lossopt.parallel.mesh() too, or leave {name} out."
        )


def alone(axis_name: Axis) -> None:
    """Raises where a step that a mesh places is to be in a map as well."""
    if _checks.axes(axis_name):
        raise ValueError(
            f"Expected mesh or axis_name, got both, axis_name={axis_name!r}. With a mesh the step "
            "cuts the batch itself: leave axis_name out. In a map of your own, such as jax.pmap, "
            "leave mesh out."
        )
