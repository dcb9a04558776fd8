"""One training step, placed in every way: the ways, and what each of them holds."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

import lossopt as lo
from lossopt._place import parted
from lossopt.training._layout import layout
from lossopt.training._placed import placed
from lossopt.training._step import Recipe

DEVICES = 8
MAP = "devices"  # the axis of pmap and of vmap


class Stepping(NamedTuple):
    """A step on devices.

    Attributes:
      init: the first state, of parameters.
      step: the next state and what was measured, of a state and a batch in memory.
      lowered: of a state and a batch, what XLA compiles.
      place: puts a batch where `step` wants it.
      one: of what lies on all devices, that of one.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any], tuple]
    lowered: Callable[[Any, Any], Any]
    place: Callable[[Any], Any]
    one: Callable[[Any], Any] = lambda tree: tree


@dataclasses.dataclass(frozen=True)
class Where:
    """A mesh, and which of its axes are which."""

    name: str
    mesh: Mesh
    axes: Any = None


def meshes() -> list[Where]:
    """Of 8 devices: one axis and two, Auto and Explicit, and with names of the caller's."""
    make = lambda sizes, names, kind: jax.make_mesh(sizes, names, (kind,) * len(names))
    both, auto, explicit = ("data", "fsdp"), AxisType.Auto, AxisType.Explicit
    other = {"data": "hosts", "fsdp": "chips"}
    return [
        Where("Auto 8", lo.parallel.mesh(data=1, fsdp=8)),
        Where("Auto 2x4", lo.parallel.mesh(data=2, fsdp=4)),
        Where("Explicit 8", make((8,), (MAP,), explicit)),
        Where("Explicit 2x4", make((2, 4), both, explicit)),
        Where("own names 2x4", make((2, 4), tuple(other.values()), auto), other),
    ]


def alone(objective, optimizer, microbatches=1) -> Stepping:
    """On one device."""
    init, step = lo.train_step(objective, optimizer, microbatches=microbatches, check=False)
    compiled = jax.jit(step, donate_argnums=0)
    return Stepping(jax.jit(init), compiled, compiled.lower, jax.device_put)


def on_mesh(
    objective, optimizer, where, partition, lowering, microbatches=1, gather: bool | str = True
) -> Stepping:
    """On a mesh, as `train_step(..., mesh=)` does it."""
    lies = layout(where.mesh, partition, lowering, where.axes, (), gather)
    recipe = Recipe(objective, optimizer, microbatches)
    made = placed(recipe, lies, False)

    def lowered(state, batch):
        with jax.set_mesh(where.mesh):
            return made.program(state).lower(state, parted(batch, DEVICES), None, None)

    return Stepping(made.init, made.step, lowered, lambda batch: batch)


def mapped(objective, optimizer, transform, microbatches=1) -> Stepping:
    """By `pmap`, or by `vmap` with the name of an axis, on one device."""
    options = {"microbatches": microbatches, "axis_name": MAP, "check": False}
    init, step = lo.train_step(objective, optimizer, **options)
    first = partial(jax.tree.map, lambda x: x[0])
    if transform == "pmap":
        run = jax.pmap(step, axis_name=MAP, donate_argnums=0)
        begin = lambda params: lo.parallel.replicate(init(params))
        return Stepping(begin, run, run.lower, lo.parallel.split, first)
    run = jax.jit(jax.vmap(step, axis_name=MAP), donate_argnums=0)
    copies = partial(jax.tree.map, lambda x: jnp.stack([x] * DEVICES))
    cut = partial(jax.tree.map, lambda x: np.reshape(x, (DEVICES, -1, *np.shape(x)[1:])))
    return Stepping(lambda params: copies(init(params)), run, run.lower, cut, first)


def here(tree) -> int:
    """Bytes on the first device."""
    shards = [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
    return sum(x.nbytes for x in shards)


def peak(compiled) -> int:
    """Bytes of a device that a program plans: what it is given, makes and holds in between."""
    plan = compiled.memory_analysis()
    made = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + made + plan.temp_size_in_bytes
