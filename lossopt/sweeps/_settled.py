"""In which form a group of trials runs: read from its programs, and measured where it matters."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import jax

from lossopt._typing import PyTree
from lossopt.sweeps._compiled import compiled, flops, remember
from lossopt.sweeps._form import Form, Mode
from lossopt.sweeps._memory import free, shown
from lossopt.sweeps._trial import Trial

CROSSOVER = 3e6  # flops of a step, up to which trials side by side may be faster on a CPU
SIDE_BY_SIDE = 32  # trials on a CPU, from where more are not faster
SHORT = 1.0  # seconds, below which a time is taken twice

_timed: OrderedDict[Any, float] = OrderedDict()


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the caller asks for.

    Attributes:
      mode: of the trials.
      chunk: trials side by side on a device, or, one after the other, between two saves.
      memory: bytes that a call may take on a device; None takes what is free.
      mesh: the devices, or None.
    """

    mode: Mode | Literal["auto"]
    chunk: int | Literal["auto"]
    memory: int | None
    mesh: jax.sharding.Mesh | None

    @property
    def fixed(self) -> bool:
        """Whether nothing is left to settle."""
        return self.mode == "sequential" or (self.mode == "vmap" and self.chunk != "auto")

    @property
    def limit(self) -> int | None:
        """Bytes of a device, or None where nobody says."""
        if self.memory is not None:
            return self.memory
        return free(jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0])


def settled(
    wanted: Wanted, trial: Trial, values: PyTree, count: int, timed: Callable[[Form], float]
) -> Form:
    """The form of a group; raises where not even one trial fits.

    Args:
      wanted: what the caller asks for.
      trial: of the group.
      values: of one of its trials.
      count: trials that are to run.
      timed: seconds that a call takes in a form, by trying.
    """
    alone = Form("sequential", 1, wanted.mesh)
    if wanted.mode == "sequential":
        return _fitting(wanted, trial, values, alone)
    on_cpu = _platform(wanted.mesh) == "cpu"
    if wanted.mode == "auto" and on_cpu:
        if count <= alone.width or flops(trial, alone, values) > CROSSOVER:
            return _fitting(wanted, trial, values, alone)
        return _faster(wanted, trial, values, count, timed, alone)
    return _side_by_side(wanted, trial, values, count)


def _faster(wanted, trial, values, count, timed, alone):
    """The faster of the two forms; what was timed once in a process is not timed again."""
    each = _each(trial, values, timed, alone, alone)
    compiling = compiled(trial, alone, values).seconds
    most = _at_most(wanted, count)
    if each * count > 2 * compiling or trial.ready(most, values):
        beside = _side_by_side(wanted, trial, values, count)
        if _each(trial, values, timed, beside, alone) < each:
            return beside
    return _fitting(wanted, trial, values, alone)


def _each(trial, values, timed, form, alone):
    """Seconds of a trial in a form, without compiling."""
    programs = tuple(program.digest for program, _ in trial.programs(alone, values))
    known = programs, trial.steps, form
    if known not in _timed:
        compiled(trial, form, values)
        seconds = timed(form)
        if seconds < SHORT:
            seconds = min(seconds, timed(form))
        remember(_timed, known, seconds / form.width)
    return _timed[known]


def _at_most(wanted, count):
    """As many trials beside each other as there are, in chunks of equal size, if memory allows."""
    if wanted.chunk != "auto":
        return Form("vmap", wanted.chunk, wanted.mesh)
    count = -(-count // (1 if wanted.mesh is None else wanted.mesh.size))
    most = min(count, SIDE_BY_SIDE) if _platform(wanted.mesh) == "cpu" else count
    return Form("vmap", _share(count, most), wanted.mesh)


def _share(count, most):
    """The size of as few equal chunks as there can be."""
    return -(-count // -(-count // most))


def _side_by_side(wanted, trial, values, count):
    """As many trials beside each other as fit."""
    form, limit = _at_most(wanted, count), wanted.limit
    if wanted.chunk != "auto":
        return _fitting(wanted, trial, values, form)
    if limit is None or (large := compiled(trial, form, values).memory) <= limit:
        return form
    of = lambda chunk: Form("vmap", chunk, wanted.mesh)
    small = compiled(trial, of(1), values).memory
    each = (large - small) / (form.chunk - 1) if form.chunk > 1 else large
    chunk = max(1, int(1 + (limit - small) / each))
    while chunk > 1 and compiled(trial, of(chunk), values).memory > limit:
        chunk -= -(-chunk // 16)
    devices = form.width // form.chunk
    return _fitting(wanted, trial, values, of(_share(-(-count // devices), chunk)))


def _fitting(wanted, trial, values, form):
    """The form; raises where it takes more memory than there is."""
    if wanted.memory is None:
        return form
    if (size := compiled(trial, form, values).memory) <= wanted.memory:
        return form
    trials = "one trial needs" if form.chunk == 1 else f"{form.chunk} trials need"
    raise ValueError(
        f"Expected memory to hold a call, got {shown(wanted.memory)}: {trials} {shown(size)}. "
        f"Give at least {size} bytes" + (", or a smaller chunk." if form.chunk > 1 else ".")
    )


def _platform(mesh):
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
