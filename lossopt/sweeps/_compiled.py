"""Programs compiled ahead, and what is known of them then."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps._form import Form
from lossopt.sweeps._trial import Trial

_KNOWN = 1024

_compiled: OrderedDict[bytes, "Compiled"] = OrderedDict()
_flops: OrderedDict[bytes, float] = OrderedDict()


class Compiled(NamedTuple):
    """What compiled programs say.

    Attributes:
      seconds: to compile them, the first time.
      memory: bytes of a device at the peak of a call.
    """

    seconds: float
    memory: int


def compiled(
    trial: Trial, form: Form, values: PyTree, clock: Callable[[], float] = time.perf_counter
) -> Compiled:
    """Compiles the programs of a call, once in a process, so that the next call only runs."""
    found = [_known(*program, clock) for program in trial.programs(form, values)]
    return Compiled(sum(one.seconds for one in found), max(one.memory for one in found))


def flops(trial: Trial, form: Form, values: PyTree) -> float:
    """Of a step, the loops of which count once; infinite where nobody says."""
    program, shapes = trial.programs(form, values)[-2 if trial.steps else 0]
    if program.digest not in _flops:
        found = program.run.lower(program.arrays, *shapes).cost_analysis() or {}
        remember(_flops, program.digest, found.get("flops", np.inf))
    return _flops[program.digest]


def remember(known: OrderedDict, key: Any, value: Any) -> None:
    """Writes what is known, and forgets what is oldest."""
    known[key] = value
    while len(known) > _KNOWN:
        known.popitem(last=False)


def _known(program, shapes, clock):
    if program.digest not in _compiled:
        begun = clock()
        stats = program.run.lower(program.arrays, *shapes).compile().memory_analysis()
        around = stats.argument_size_in_bytes + stats.output_size_in_bytes
        peak = around - stats.alias_size_in_bytes + stats.temp_size_in_bytes
        remember(_compiled, program.digest, Compiled(clock() - begun, peak))
    return _compiled[program.digest]
