"""The host of a sweep whose chunks run on the workers of an executor."""

import contextlib
import dataclasses
import pickle
import sys
from functools import partial
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np

from lossopt.sweeps._cells import word
from lossopt.sweeps._executor import AHEAD, Given, Job, Workers
from lossopt.sweeps._form import Form
from lossopt.sweeps._host import Host, Part, passed, settled_before
from lossopt.sweeps._memory import shown
from lossopt.sweeps._resting import keyed, raw, raw_like
from lossopt.sweeps._rungs import Stretch
from lossopt.sweeps._sending import Kind, Sent, sent
from lossopt.sweeps._settled import SIDE_BY_SIDE
from lossopt.sweeps._task import Task
from lossopt.sweeps._watch import Watch
from lossopt.sweeps._worker import Best, Came, Chunk, Failed, ran, settles

AIM = 2.0  # seconds of a chunk, where the caller does not say how many trials it has
BLINK = 0.1  # seconds between two looks at who asks to end
TOLD = 8  # trials that a message tells of


def far_of(
    given: Given, run: Any, parts: list[Part], key: Any, mesh: Any, shown: bool | Literal["auto"]
) -> "Far":
    """What runs the trials of a sweep on workers; refuses what cannot be sent, or not so.

    Args:
      given: an executor, or a function that makes one.
      run: of the sweep.
      parts: the groups of its trials.
      key: of the sweep.
      mesh: that was given, or None.
      shown: whether it is told how the sweep goes.
    """
    if mesh is not None:
        raise ValueError(
            "Expected either mesh, devices of this process, or executor, whose workers take the "
            "devices that they have, got both. Leave one of them out."
        )
    if isinstance(run, Task):
        run = dataclasses.replace(run, check=None)  # it looks at the first trials here
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    kinds = [Kind(part.trial.statics, jax.tree.map(shape, part.first)) for part in parts]
    return Far(Workers(given), sent(run, kinds, key), shown)


class Far:
    """Runs the trials of a stretch on workers.

    Args:
      workers: of an executor.
      sent: the program.
      shown: whether it is told how the sweep goes.
    """

    def __init__(self, workers: Workers, sent: Sent, shown: bool | Literal["auto"]):
        self._workers, self._sent, self._silent = workers, sent, shown is False
        self._paces: dict[int, float] = {}

    def __enter__(self) -> "Far":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._workers.end(now=kind is not None or self._workers.busy)

    def ran(self, host: Host, stretch: Stretch, watch: Watch) -> bool:
        """Whether all trials of a stretch ran as far as they are to."""
        lots = [_Lot(host, stretch, number) for number in range(len(host.parts))]
        self._say(host, stretch)
        try:
            self._run(host, stretch, watch, [lot for lot in lots if lot.rows.size])
        except Exception:
            self._take(watch, self._workers.finished())
            watch.end()
            raise
        return not host.ledger.left(stretch.rows, stretch.steps).size

    def _run(self, host, stretch, watch, lots):
        """Sends and takes until nothing is under way, or somebody asks to end."""
        while not watch.asked:
            if watch.over:
                self._workers.withdraw()
            elif self._workers.room and (job := self._next(host, stretch, lots)):
                self._workers.send(job)
                continue
            if not self._workers.busy:
                return
            for job, came in self._take(watch, self._workers.came(BLINK)):
                raise _of_run(host, job, came)
        self._take(watch, self._workers.finished())
        self._workers.end(now=True)

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
        if stretch.following is None or self._silent:
            return
        self._silent = True
        sizes = [sum(_size(x) for x in raw_like(part.shapes)) for part in host.parts]
        count = stretch.following * len(host.ledger.ran) // host.rungs.settings
        told = f"{shown(max(sizes))} each, {shown(count * max(sizes))} together"
        print(f"States of {count} trials come here at a rung: {told}.", file=sys.stderr)

    def _next(self, host, stretch, lots):
        """The next call of a worker; None where none can be made now."""
        for lot in lots:
            if lot.form is None and not lot.asked:
                return self._settling(host, lot)
            if lot.form is not None and lot.rows.size:
                return self._chunk(host, stretch, lot)
        return None

    def _settling(self, host, lot):
        """A call that settles mode and width of a group."""
        wanted, lot.asked = host.wanted, True
        count = -(-len(lot.rows) // self._workers.count)
        if host.rungs is not None:
            count = min(count, host.rungs.at_most(len(host.ledger.ran) // host.rungs.settings))
        most = SIDE_BY_SIDE if wanted.chunk == "auto" else max(wanted.chunk, SIDE_BY_SIDE)
        chunk = _chunk(host, lot, lot.rows[:most], lot.part.trial.steps, 1)
        given = self._sent, wanted.mode, wanted.chunk, wanted.memory, chunk, count
        told = partial(_told, host.ledger.trials, lot.rows[:most])
        return Job(settles, given, told, partial(_settled, host, lot))

    def _chunk(self, host, stretch, lot):
        """A call that runs trials."""
        steps = max(1, stretch.steps - int(host.ledger.steps[lot.rows[0]]))
        rows, lot.rows = np.split(lot.rows, [self._size(host, lot, steps)])
        count = stretch.following or 1
        if host.ledger.repeated:
            count = stretch.following and len(rows)
        chunk = _chunk(host, lot, rows, stretch.steps, count)
        took = partial(self._took, host, stretch, lot, rows, steps)
        told = partial(_told, host.ledger.trials, rows)
        return Job(ran, (self._sent, lot.form.mode, lot.form.chunk, chunk), told, took)

    def _size(self, host, lot, steps):
        """Trials of the next chunk: as the caller says, or as many as take some seconds."""
        width, chunk = lot.form.width, host.wanted.chunk
        if chunk != "auto":
            return max(chunk, width)
        pace = self._paces.get(lot.number)
        calls = 1 if pace is None else int(AIM / (pace * steps))
        share = -(-len(lot.rows) // (width * AHEAD * self._workers.count))
        return width * max(1, min(calls, share))

    def _took(self, host, stretch, lot, rows, steps, came):
        """Writes what came of a chunk."""
        calls = -(-len(rows) // lot.form.width)
        width = calls * lot.form.width
        self._paces[lot.number] = max(float(came.seconds.sum()) / (calls * steps), 1e-9)
        state_of = lambda place: keyed(came.states[place], lot.part.shapes)
        host.ledger.put(rows, stretch.steps, came.scores, came.seconds, state_of, width)
        if came.states and stretch.following is not None:
            leaves = [np.stack(some) for some in zip(*came.states.values())]
            host.ledger.resting.take_up(rows[list(came.states)], leaves)
        passed(host, stretch, rows)


def _size(x):
    return int(np.prod(x.shape)) * x.dtype.itemsize


class _Lot:
    """Trials of a group that are to run in a stretch, and their form as soon as it is known."""

    def __init__(self, host: Host, stretch: Stretch, number: int):
        self.number, self.part = number, host.parts[number]
        mine = np.intersect1d(self.part.rows, stretch.rows)
        self.rows = host.ledger.left(mine, stretch.steps)
        self.form, self.asked = settled_before(host, self.part), False
        wanted = host.wanted
        if self.form is None and wanted.fixed and wanted.memory is None:
            _settled(host, self, (wanted.mode, 1 if wanted.mode == "sequential" else wanted.chunk))


def _settled(host, lot, found):
    host.saves.settled[lot.part.label] = found
    lot.form = Form(*found)


def _chunk(host, lot, rows, until, count):
    ledger, part = host.ledger, lot.part
    own, done = np.searchsorted(part.rows, rows), int(ledger.steps[rows[0]])
    ids, settings = (np.asarray(x)[rows] for x in (ledger.trials.id, ledger.trials.setting))
    values = raw(jax.tree.map(lambda x: x[own], part.values))
    state = ledger.resting.stacked(rows) if done else None
    best = Best(ledger.score, ledger.maximize, settings, count)
    return Chunk(lot.number, ids, values, done, until, state, best)


def _told(trials, rows):
    """Trials by their ids and settings."""
    ids = np.asarray(trials.id)[rows]
    named = lambda row: ", ".join(f"{name} {word(x)}" for name, x in row.items() if not np.ndim(x))
    each = [f"{id}: {named(trials[int(row)])}" for id, row in zip(ids[:TOLD], rows)]
    more = f"; and {len(ids) - TOLD} more" if len(ids) > TOLD else ""
    return f"trials {', '.join(map(str, ids))} ({'; '.join(each)}{more})"


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
