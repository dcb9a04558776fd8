"""The host of a sweep whose chunks run on the workers of an executor."""

import contextlib
import dataclasses
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from lossopt.sweeps._engines import Given
from lossopt.sweeps._executor import Workers
from lossopt.sweeps._host import Host, Part, stretches_of
from lossopt.sweeps._identity import program
from lossopt.sweeps._lots import Lot
from lossopt.sweeps._memory import shown
from lossopt.sweeps._resting import raw_like
from lossopt.sweeps._rungs import Rungs, Stretch
from lossopt.sweeps._sending import Kind, Sent, sent, warned
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
            "Expected rungs of halving or hyperband with executor, got a population, whose trials "
            "stand side by side in one program and go on from each other. Leave executor out."
        )
    if isinstance(run, Task):
        run = dataclasses.replace(run, check=None)  # it looks at the first trials here
    far = Far(Workers(given), run, key, shown)
    warned(far.program(parts)[0])
    return far


class Far:
    """Runs the trials of a sweep on workers.

    Args:
      workers: of an executor.
      run: of the sweep.
      key: likewise.
      shown: whether it is told how the sweep goes.
    """

    def __init__(self, workers: Workers, run: Any, key: Any, shown: bool | Literal["auto"]):
        self._workers, self._run_of, self._key = workers, run, key
        self._silent = shown is False
        self._kinds: dict[str, Kind] = {}
        self._sent: Sent | None = None

    def program(self, parts: list[Part]) -> tuple[Sent, list[int]]:
        """The program of all groups so far, and the numbers of some of them there."""
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        new = {part.label: part for part in parts if part.label not in self._kinds}
        for label, part in new.items():
            first = jax.tree.map(shape, part.first)
            self._kinds[label] = Kind(part.trial.statics, first, program(part.trial, part.first))
        if new or self._sent is None:
            self._sent = sent(self._run_of, list(self._kinds.values()), self._key)
        labels = list(self._kinds)
        return self._sent, [labels.index(part.label) for part in parts]

    def ended(self, runs: Callable[[Host, Watch], Any]) -> Callable[[Host, Watch], None]:
        """The same, after which an executor is ended that a function made."""

        def within(host, watch):
            whole = False
            try:
                runs(host, watch)
                whole = not self._workers.busy
            finally:
                self._workers.end(now=not whole)

        return within

    def stretched(self, host: Host, watch: Watch) -> bool:
        """Whether all trials of the groups ran, stretch after stretch, before somebody asked."""
        return all(self._ran(host, stretch, watch) for stretch in stretches_of(host))

    def form_of(self, host: Host, part: Part, left: np.ndarray, watch: Watch) -> None:
        """Settles the form of a group on a worker, if it has none."""
        one = dataclasses.replace(host, parts=[part])
        stretch = Stretch(left, part.trial.steps, ())
        lots = self._lots(one, stretch)
        self._run(one, [lot.settles for lot in lots], watch)

    def _lots(self, host, stretch):
        found, numbers = self.program(host.parts)
        return [Lot(host, stretch, *x, found) for x in zip(host.parts, numbers)]

    def _ran(self, host: Host, stretch: Stretch, watch: Watch) -> bool:
        """Whether all trials of a stretch ran as far as they are to."""
        if not host.ledger.left(stretch.rows, stretch.steps).size:
            return True
        lots = self._lots(host, stretch)
        if not stretch.ends and not self._silent:
            self._say(host, stretch)
        try:
            self._run(host, [lot.next for lot in lots], watch)
        except Exception:
            with contextlib.suppress(Exception):
                self._take(watch, self._workers.finished())
            watch.end()
            raise
        return not host.ledger.left(stretch.rows, stretch.steps).size

    def _run(self, host, makers, watch):
        """Sends and takes until nothing is under way, or somebody asks to end."""
        while not watch.asked:
            if watch.over:
                self._workers.withdraw()
            elif self._workers.room and (job := self._next(makers)):
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

    def _next(self, makers):
        """The next call of a worker; None where none can be made now."""
        found = (make(self._workers.count) for make in makers)
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
        repeats = len(host.ledger.ran) // host.rungs.settings
        of = lambda rows, count: len(rows) if count is None else min(len(rows), count * repeats)
        count = sum(of(*bracket) for bracket in stretch.brackets)
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
    elif failed.at == "traced":
        return RuntimeError(f"A worker refused {job.told()}. {failed.said}")
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
