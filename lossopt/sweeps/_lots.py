"""Trials of a group that run on workers: in which form, in which chunks, what came of them."""

from functools import partial

import jax
import numpy as np

from lossopt.sweeps._cells import word
from lossopt.sweeps._executor import AHEAD, Job
from lossopt.sweeps._form import Form
from lossopt.sweeps._host import Host, Part, narrowed, passed, settled_before
from lossopt.sweeps._resting import keyed, raw
from lossopt.sweeps._rungs import Stretch
from lossopt.sweeps._sending import Sent
from lossopt.sweeps._settled import SIDE_BY_SIDE
from lossopt.sweeps._worker import Best, Came, Chunk, ran, settles

AIM = 2.0  # seconds of a chunk, where the caller does not say how many trials it has
TOLD = 8  # trials whose settings a message tells


class Lot:
    """Trials of a group that are to run in a stretch.

    Args:
      host: of the sweep.
      stretch: up to where they run.
      part: their group.
      number: of their group, in the program.
      sent: the program.
    """

    def __init__(self, host: Host, stretch: Stretch, part: Part, number: int, sent: Sent):
        self._host, self._stretch, self._number, self._sent = host, stretch, number, sent
        self._part, wanted = part, host.wanted
        mine = np.intersect1d(self._part.rows, stretch.rows)
        self._rows = host.ledger.left(mine, stretch.steps)
        self._form, self._asked = settled_before(host, self._part), False
        self._pace: float | None = None  # seconds of a call
        if self._form is None and wanted.fixed and wanted.memory is None:
            self._settle((wanted.mode, 1 if wanted.mode == "sequential" else wanted.chunk))

    def next(self, workers: int) -> Job | None:
        """The next call of one of so many workers; None where none can be made now."""
        if self._form is None:
            return self.settles(workers)
        return self._running(self._form, workers) if self._rows.size else None

    def settles(self, workers: int) -> Job | None:
        """A call that settles mode and width, by trying trials that do not count; None after it."""
        if self._form is not None or self._asked or not self._rows.size:
            return None
        host, wanted, self._asked = self._host, self._host.wanted, True
        count = narrowed(host, -(-max(len(self._rows), host.least) // workers))
        most = SIDE_BY_SIDE if wanted.chunk == "auto" else max(wanted.chunk, SIDE_BY_SIDE)
        rows = self._rows[:most]
        given = self._sent, wanted.mode, wanted.chunk, wanted.memory, self._chunk(rows, []), count
        return Job(settles, given, partial(_told, host.ledger.trials, rows), self._settle)

    def _settle(self, found):
        self._host.saves.settled[self._part.label] = found
        self._form = Form(*found)

    def _running(self, form, workers):
        """A call that runs trials."""
        ledger = self._host.ledger
        rows, self._rows = np.split(self._rows, [self._size(form, workers)])
        given = self._sent, form.mode, form.chunk, self._chunk(rows, self._groups(rows))
        told = partial(_told, ledger.trials, rows)
        return Job(ran, given, told, partial(self._took, form.width, rows))

    def _groups(self, rows):
        """Of which trials of a chunk states may be needed: see `Best`."""
        ledger, places = self._host.ledger, np.arange(len(rows))
        if self._stretch.ends:
            settings = np.asarray(ledger.trials.setting)[rows]
            own = [places[settings == x] for x in np.unique(settings)]
            return [(x, 1) for x in own] if ledger.repeated else [(places, 1)]
        pairs = [(places[np.isin(rows, x)], count) for x, count in self._stretch.brackets]
        if ledger.repeated:  # of repetitions the mean decides
            pairs = [(x, None if count is None else len(x)) for x, count in pairs]
        return pairs

    def _size(self, form, workers):
        """Trials of the next chunk: as the caller says, or as many as take some seconds."""
        width, chunk = form.width, self._host.wanted.chunk
        if chunk != "auto":
            return max(chunk, width)
        calls = 1 if self._pace is None else int(AIM / self._pace)
        share = -(-len(self._rows) // (width * AHEAD * workers))
        return width * max(1, min(calls, share))

    def _chunk(self, rows, groups):
        ledger, part = self._host.ledger, self._part
        own, done = np.searchsorted(part.rows, rows), int(ledger.steps[rows[0]])
        ids, settings = (np.asarray(x)[rows] for x in (ledger.trials.id, ledger.trials.setting))
        values = raw(jax.tree.map(lambda x: x[own], part.values))
        state = ledger.resting.stacked(rows) if done else None
        best = Best(ledger.score, ledger.maximize, settings, groups)
        return Chunk(self._number, ids, values, done, self._stretch.steps, state, best)

    def _took(self, width: int, rows: np.ndarray, came: Came):
        """Writes what came of a chunk."""
        host, stretch, calls = self._host, self._stretch, -(-len(rows) // width)
        self._pace = max(float(came.seconds.sum()) / calls, 1e-9)
        state_of = lambda place: keyed(came.states[place], self._part.shapes)
        given = came.scores, came.seconds, state_of, calls * width
        host.ledger.put(rows, stretch.steps, *given)
        if not stretch.ends:
            new = {int(rows[place]): leaves for place, leaves in came.states.items()}
            host.ledger.resting.keep(new, np.concatenate(stretch.on(host.ledger)))
        passed(host, stretch, rows)


def _told(trials, rows):
    """Trials by their ids and settings."""
    ids = np.asarray(trials.id)[rows]
    named = lambda row: ", ".join(f"{name} {word(x)}" for name, x in row.items() if not np.ndim(x))
    each = [f"{id}: {named(trials[int(row)])}" for id, row in zip(ids[:TOLD], rows)]
    more = f"; and {len(ids) - TOLD} more" if len(ids) > TOLD else ""
    return f"trials {', '.join(map(str, ids))} ({'; '.join(each)}{more})"
