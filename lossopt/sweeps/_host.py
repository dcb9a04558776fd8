"""The host of a sweep: group by group, chunk by chunk, until all have run or somebody asks."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps._calls import Calls, state_of
from lossopt.sweeps._compiled import compiled
from lossopt.sweeps._form import Form
from lossopt.sweeps._identity import same_facts
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._saves import Saves
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._table import Table
from lossopt.sweeps._trial import Trial
from lossopt.training._bar import bar
from lossopt.training._signals import noted

EVERY = 2.0  # seconds between two saves, at least: one takes a part of it
BLINK = 0.1  # seconds in which nobody sees the bar move
UNDER_WAY = 60.0  # seconds between two saves of the same trials


@dataclasses.dataclass(frozen=True)
class Part:
    """Trials that share a program.

    Attributes:
      trial: what they have in common.
      rows: theirs, in the table.
      values: theirs, a tree of arrays `[rows, ...]`.
      shapes: of the state of one; None without steps.
      label: the group in words.
    """

    trial: Trial
    rows: np.ndarray
    values: PyTree
    shapes: PyTree
    label: str

    @property
    def first(self) -> PyTree:
        """The values of the first trial."""
        return jax.tree.map(lambda x: x[0], self.values)


@dataclasses.dataclass(frozen=True)
class Host:
    """What does not change while a sweep runs.

    Attributes:
      parts: the groups of trials.
      ledger: what comes of them.
      saves: its checkpoint.
      wanted: the form that the caller asks for.
      limit: when it has to end, on the clock.
      on_row: called with each row, or None.
      shown: whether there is a bar.
    """

    parts: list[Part]
    ledger: Ledger
    saves: Saves
    wanted: Wanted
    limit: float
    on_row: Callable[[dict[str, Any]], Any] | None
    shown: bool | Literal["auto"]
    clock: Callable[[], float] = time.perf_counter


def hosted(host: Host) -> Table:
    """Runs what has not run, and gives the table."""
    for part in host.parts:
        _settled_before(host, part)
    count = len(host.ledger.ran)
    with host.saves, noted("sweep") as asked, bar("trials", count, host.shown) as show:
        watch = _Watch(host, asked, show)
        for part in host.parts:
            if not _ran(host, part, watch):
                break
        watch.end()
    if asked.signal == signal.SIGTERM:
        signal.raise_signal(asked.signal)
    return host.ledger.table()


class _Watch:
    """When to save, when to end, and what is shown meanwhile."""

    def __init__(self, host, asked, show):
        self._host, self._asked, self._show = host, asked, show
        self._begun, self._shown = host.clock(), -math.inf
        self._saved: float | None = None
        self._new = False

    @property
    def asked(self) -> bool:
        """Whether somebody asks to end."""
        return self._asked.signal is not None

    @property
    def over(self) -> bool:
        """Whether no further trial begins."""
        return self.asked or self._host.clock() >= self._host.limit

    @property
    def due(self) -> bool:
        """Whether it is time to save at the end of a chunk."""
        return self._saved is None or self._host.clock() - self._saved > EVERY

    @property
    def long(self) -> bool:
        """Whether it is time to save within a chunk."""
        since = self._begun if self._saved is None else self._saved
        return self._host.clock() - since > UNDER_WAY

    def save(self, under: Any = None) -> None:
        """Saves now."""
        self._host.saves.now(under)
        self._saved, self._new = self._host.clock(), False

    def came(self) -> None:
        """Takes note of new results."""
        self._new = True
        if self._host.clock() - self._shown > BLINK:
            self._tell()

    def end(self) -> None:
        """Saves what was not, and tells how far the sweep came."""
        if self._new:
            self.save()
        self._tell()

    def _tell(self):
        ledger, self._shown = self._host.ledger, self._host.clock()
        row = {"best/value": ledger.best}
        self._show(int(ledger.ran.sum()), row, self._shown - self._begun)


def _ran(host: Host, part: Part, watch: _Watch) -> bool:
    """Whether all trials of a group ran."""
    ledger, wanted = host.ledger, host.wanted
    left = part.rows[~ledger.ran[part.rows]]
    if not left.size or watch.over:
        return not left.size
    begun, within = _under_way(host, left)
    if within is not None:
        left = np.concatenate([within.rows, np.setdiff1d(left, within.rows)])
    own = np.searchsorted(part.rows, left)
    ids = np.asarray(ledger.trials.id)[left]
    calls = Calls(part.trial, jax.tree.map(lambda x: x[own], part.values), ids, host.clock)
    found = _form(host, part, len(left), calls, watch)
    within = within if found == begun else None
    compiled(part.trial, found, part.first)
    at, every = 0, found.width if wanted.chunk == "auto" else max(wanted.chunk, found.width)
    while at < len(left):
        if watch.over:
            return False
        end = min(at + (found.width if within is None else len(within.rows)), len(left))
        if not _called(host, calls, found, np.arange(at, end), left, within, watch):
            return False
        if end // every > at // every and watch.due:
            watch.save()
        at, within = end, None
    return True


def _under_way(host, left):
    """The form and the trials that an earlier call began and saved, if they are of these."""
    if host.saves.within is None or host.saves.within[1].rows[0] not in left:
        return None, None
    return host.saves.within


def _called(host, calls, form, rows, left, within, watch):
    """Whether the trials of a call came to their end."""

    def goes_on(under):
        under = under._replace(rows=left[under.rows])
        if watch.asked or watch.long:
            watch.save((form, under))
        return not watch.asked

    result = calls.run(form, rows, within, goes_on)
    if result is None:
        return False
    mine = partial(state_of, form, result)
    host.ledger.put(left[rows], result.scores, result.seconds, mine)
    for row in left[rows] if host.on_row else ():
        host.on_row(host.ledger.row(row))
    watch.came()
    return True


def _form(host, part, count, calls, watch):
    """The form of a group: the one that it had, or the one that is settled now, and saved."""
    if had := _settled_before(host, part):
        return had
    found = settled(host.wanted, part.trial, part.first, count, calls.tried)
    host.saves.settled[part.label] = found.mode, found.chunk
    if watch.due and not host.wanted.fixed:
        watch.save()
    return found


def _settled_before(host, part):
    """The form that a group has in the checkpoint, if any; raises where another is asked for."""
    wanted, saves = host.wanted, host.saves
    if part.label not in saves.settled:
        return None
    mode, chunk = saves.settled[part.label]
    had = {"mode": mode} | ({"chunk": chunk} if mode == "vmap" else {})
    now = {name: getattr(wanted, name) for name in had}
    asked = {name: had[name] if x == "auto" else x for name, x in now.items()}
    same_facts(had, asked, str(saves))
    return Form(mode, chunk, wanted.mesh)
