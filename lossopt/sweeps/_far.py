"""The host of a sweep whose chunks run on the workers of an executor."""

import contextlib
import dataclasses
import math
import pickle
import sys
from typing import Any, Literal

import jax

from lossopt.sweeps._executor import Given, Workers
from lossopt.sweeps._host import Host, Part
from lossopt.sweeps._lots import Lot
from lossopt.sweeps._memory import shown
from lossopt.sweeps._resting import raw_like
from lossopt.sweeps._rungs import Rungs, Stretch, stretches
from lossopt.sweeps._sending import Kind, Sent, sent
from lossopt.sweeps._task import Task
from lossopt.sweeps._watch import Watch
from lossopt.sweeps._worker import Came, Failed, settles

BLINK = 0.1  # seconds between two looks at who asks to end


def far_of(
    given: Given,
    run: Any,
    parts: list[Part],
    key: Any,
    mesh: Any,
    rungs: Any,
    shown: bool | Literal["auto"],
) -> "Far":
    """What runs the trials of a sweep on workers; refuses what cannot be sent, or not so.

    Args:
      given: an executor, or a function that makes one.
      run: of the sweep.
      parts: the groups of its trials.
      key: of the sweep.
      mesh: that was given, or None.
      rungs: likewise.
      shown: whether it is told how the sweep goes.
    """
    if mesh is not None:
        raise ValueError(
            "Expected either mesh, devices of this process, or executor, whose workers take the "
            "devices that they have, got both. Leave one of them out."
        )
    if not isinstance(rungs, Rungs | None):
        raise ValueError(
            "Expected rungs of halving or hyperband with executor, and trials drawn before, got "
            "a population or suggested trials, which go on from each other. Leave executor out."
        )
    if isinstance(run, Task):
        run = dataclasses.replace(run, check=None)  # it looks at the first trials here
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    kinds = [Kind(part.trial.statics, jax.tree.map(shape, part.first)) for part in parts]
    return Far(Workers(given), sent(run, kinds, key), shown)


class Far:
    """Runs the trials of a sweep on workers.

    Args:
      workers: of an executor.
      sent: the program.
      shown: whether it is told how the sweep goes.
    """

    def __init__(self, workers: Workers, sent: Sent, shown: bool | Literal["auto"]):
        self._workers, self._sent, self._silent = workers, sent, shown is False

    def runs(self, host: Host, watch: Watch) -> None:
        """Runs stretch after stretch, until all have run or somebody asks."""
        whole = False
        try:
            for stretch in stretches(host.rungs, host.ledger, host.parts[0].trial.steps):
                if not self._ran(host, stretch, watch):
                    break
            whole = not self._workers.busy
        finally:
            self._workers.end(now=not whole)

    def _ran(self, host: Host, stretch: Stretch, watch: Watch) -> bool:
        """Whether all trials of a stretch ran as far as they are to."""
        if not host.ledger.left(stretch.rows, stretch.steps).size:
            return True
        lots = [Lot(host, stretch, number, self._sent) for number in range(len(host.parts))]
        if stretch.following is not None and not self._silent:
            self._say(host, stretch)
        try:
            self._run(host, lots, watch)
        except Exception:
            with contextlib.suppress(Exception):
                self._take(watch, self._workers.finished())
            watch.end()
            raise
        return not host.ledger.left(stretch.rows, stretch.steps).size

    def _run(self, host, lots, watch):
        """Sends and takes until nothing is under way, or somebody asks to end."""
        while not watch.asked:
            if watch.over:
                self._workers.withdraw()
            elif self._workers.room and (job := self._next(lots)):
                self._workers.send(job)
                continue
            if not self._workers.busy:
                return
            try:
                for job, failed in self._take(watch, self._workers.came(BLINK)):
                    raise _of_run(host, job, failed)
            except Exception:
                if not watch.asked:  # Ctrl-C on a terminal ends workers that wait, too
                    raise
        self._take(watch, self._workers.finished())

    def _next(self, lots):
        """The next call of a worker; None where none can be made now."""
        found = (lot.next(self._workers.count) for lot in lots)
        return next((job for job in found if job is not None), None)

    def _take(self, watch, calls):
        """Writes what came; gives the calls that failed."""
        failed = []
        for job, came in calls:
            if isinstance(came, Failed):
                failed.append((job, came))
                continue
            job.took(came)
            if isinstance(came, Came):
                watch.came()
            if watch.due:
                watch.save()
        return failed

    def _say(self, host, stretch):
        """Says once how much is to come here."""
        self._silent = True
        bytes_of = lambda x: math.prod(x.shape) * x.dtype.itemsize
        size = max(sum(map(bytes_of, raw_like(part.shapes))) for part in host.parts)
        count = stretch.following * len(host.ledger.ran) // host.rungs.settings
        told = f"{shown(size)} each, {shown(count * size)} together"
        print(f"States of {count} trials come here at a rung: {told}.", file=sys.stderr)


def _of_run(host, job, failed):
    """What is raised of an exception that a worker came upon."""
    original = _original(failed)
    if job.work is settles and host.wanted.memory is not None and isinstance(original, ValueError):
        return original  # not one trial fits
    if failed.at == "read":
        said = (
            f"A worker could not read the program, for {job.told()}. What run imports by name has "
            "to be installed there, in the same version; cloudpickle.register_pickle_by_value("
            "module) sends a module along."
        )
    else:
        said = f"run failed on a worker, with {job.told()}."
    error = RuntimeError(f"{said} There it said:\n{failed.told}")
    error.__cause__ = original
    return error


def _original(failed):
    """The exception itself, or what it said where it does not travel."""
    with contextlib.suppress(Exception):
        return pickle.loads(failed.error)
    return RuntimeError(failed.said)
