"""Whether a step fits on devices, by compiling it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from lossopt import _jax
from lossopt._shardings import Rules
from lossopt._typing import Batch, PyTree
from lossopt.parallel import _hlo
from lossopt.parallel._collectives import Collective, collectives
from lossopt.parallel._describe import columns, in_words
from lossopt.training._layout import Lowering, Partition, layout
from lossopt.training._lowered import lowered
from lossopt.training._step import Optimizer, Recipe

_UNITS = ("flop", "kflop", "Mflop", "Gflop", "Tflop", "Pflop")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes of each device, in bytes.

    Attributes:
      mesh: the axes of the mesh and how many devices lie along each.
      partition: as planned.
      lowering: as planned.
      platform: what it was compiled for. `"simulated cpu"` where there are fewer devices than in
        the mesh: temporaries and collectives are then those of the compiler for CPUs, which
        computes low precision in float32 and, with `"auto"`, reduces where others scatter.
      parameters: of the state.
      model_state: of the state.
      optimizer: of the state: what the optimizer keeps.
      batch: the rows of the device.
      temporaries: all else that the step holds, gathered parameters, gradients and activations.
      peak: all of it, as the compiler laid it out: the largest that the step takes.
      operations: multiplications and additions of matrix products and convolutions, where the
        compiler left them such: a product with one row may be none.
      collectives: what devices send each other.
    """

    mesh: dict[str, int]
    partition: Partition
    lowering: Lowering
    platform: str
    parameters: int
    model_state: int
    optimizer: int
    batch: int
    temporaries: int
    peak: int
    operations: int
    collectives: tuple[Collective, ...]

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())

    @property
    def at_rest(self) -> int:
        """Bytes of the state, which stay between steps."""
        return self.parameters + self.model_state + self.optimizer

    @property
    def moved(self) -> int:
        """Bytes that a device sends in a step, on a ring."""
        return sum(x.moved for x in self.collectives)

    def __str__(self) -> str:
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        held = {
            "parameters": self.parameters,
            "model state": self.model_state,
            "optimizer": self.optimizer,
            "at rest": self.at_rest,
            "batch": self.batch,
            "temporaries": self.temporaries,
            "peak": self.peak,
        }
        rows = [["", "each"], *([name, in_words(size)] for name, size in held.items())]
        rows += [["products", _flops(self.operations)], ["", "", "moved"]]
        for kind in dict.fromkeys(x.kind for x in self.collectives):
            those = [x for x in self.collectives if x.kind == kind]
            size = sum(x.times * x.bytes for x in those)
            name = f"{kind} of {sum(x.times for x in those)}"
            rows.append([name, in_words(size), in_words(sum(x.moved for x in those))])
        rows = rows if self.collectives else rows[:-1]
        title = f"{devices}, {axes}: {self.partition}, {self.lowering}, for {self.platform}"
        return "\n".join([title, *columns(rows, "<>>")])


def plan(
    objective: Callable,
    optimizer: Optimizer,
    params: PyTree,
    batch: Batch,
    mesh: Mesh | AbstractMesh,
    *,
    partition: Partition = "data",
    lowering: Lowering = "auto",
    microbatches: int = 1,
    axes: Mapping[str, str | Sequence[str]] | None = None,
    rules: Rules = (),
    gather: bool | str = True,
    has_aux: bool = False,
    check: bool = True,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
) -> Plan:
    """Says what a step of `train_step` takes of each device, by compiling it: does it fit?

    Nothing is computed and no array is built. It takes seconds, as long as compiling does.

    Args:
      objective: as in `train_step`; so are all that are not named here.
      optimizer: likewise.
      params: arrays, or `jax.ShapeDtypeStruct` in their place, or a function without arguments
        that makes them.
      batch: all rows of a step, likewise.
      mesh: from `parallel.mesh`, or one of your own; or a `jax.sharding.AbstractMesh`, which may be
        of more devices than there are. For these CPUs are simulated.
      partition: what devices share beside the batch.
      lowering: who cuts the program.
      microbatches: pieces a batch is cut into.
      axes: which axes of the mesh are `"data"` and `"fsdp"`.
      rules: for parameters that are to lie in a way of their own.
      gather: which parameters the model gathers by itself.
      has_aux: whether the objective returns `(means, aux)`.
      check: whether a regularizer that the objective does not hold is refused.
      model_state: as `params`.
      hyperparameters: numbers, or arrays.

    Returns:
      A `Plan`, which prints as a table.

    Raises:
      ValueError: as `train_step` and its functions raise.
      TypeError: likewise.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((x @ w) ** 2)}
      >>> shapes = [jax.ShapeDtypeStruct((256, 256), "float32")] * 2  # of w and x
      >>> mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
      >>> plan = lo.parallel.plan(objective, optax.adam(1e-3), *shapes, mesh, partition="fsdp")
      >>> plan.parameters, plan.optimizer  # a quarter of them, and twice as much, and two counts
      (65536, 131080)
    """
    place = _of_devices(mesh) if isinstance(mesh, AbstractMesh) else mesh
    recipe = Recipe(objective, optimizer, microbatches, has_aux)
    where = layout(place, partition, lowering, axes, rules, gather)
    given = params, batch, model_state, hyperparameters
    program, state, rows = lowered(recipe, where, check, *given)
    with _jax.unkept(place):
        compiled = program.compile()
    memory: Any = compiled.memory_analysis()
    text: Any = compiled.as_text()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Plan(
        mesh=dict(mesh.shape),
        partition=partition,
        lowering=lowering,
        platform=_platform(place),
        parameters=_bytes(state.params),
        model_state=_bytes(state.model_state),
        optimizer=_bytes((state.opt_state, state.count)),
        batch=_bytes(rows),
        temporaries=memory.temp_size_in_bytes,
        peak=held + memory.temp_size_in_bytes,
        operations=_hlo.products(text),
        collectives=collectives(text),
    )


def _of_devices(mesh):
    """A mesh of those that there are; of simulated ones where they are too few."""
    few = mesh.size > len(jax.devices())
    devices = _jax.simulated(mesh.size) if few else jax.devices()[: mesh.size]
    devices = np.array(devices, object).reshape(mesh.axis_sizes)
    return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def _platform(mesh):
    device = mesh.devices.flat[0]
    return device.device_kind if device in jax.devices() else f"simulated {device.platform}"


def _flops(operations):
    power = min(int(math.log10(max(operations, 1))) // 3, len(_UNITS) - 1)
    return f"{operations / 1000**power:.4g} {_UNITS[power]}"


def _bytes(tree):
    """Of one device."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(size, jax.tree.leaves(tree)))
