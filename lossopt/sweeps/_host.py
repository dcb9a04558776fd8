"""The host of a sweep: group by group, chunk by chunk, until all have run or somebody asks."""

import dataclasses
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps._calls import Calls, state_of
from lossopt.sweeps._form import Form
from lossopt.sweeps._identity import same_facts
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._saves import Saves
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._table import Table
from lossopt.sweeps._trial import Trial
from lossopt.training._bar import bar
from lossopt.training._signals import noted

EVERY = 2.0  # seconds between two saves, where the caller does not say which trials
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
        host.saves.now()
    if asked.signal == signal.SIGTERM:
        signal.raise_signal(asked.signal)
    return host.ledger.table()


class _Watch:
    """When to save, when to end, and what is shown meanwhile."""

    def __init__(self, host, asked, show):
        self._host, self._asked, self._show = host, asked, show
        self._begun = self._saved = host.clock()

    @property
    def asked(self) -> bool:
        """Whether somebody asks to end."""
        return self._asked.signal is not None

    @property
    def over(self) -> bool:
        """Whether no further trial begins."""
        return self.asked or self._host.clock() >= self._host.limit

    def passed(self) -> float:
        """Seconds since the last save."""
        return self._host.clock() - self._saved

    def save(self, under: Any = None) -> None:
        """Saves now."""
        self._host.saves.now(under)
        self._saved = self._host.clock()

    def show(self) -> None:
        """Tells how far the sweep is."""
        ledger = self._host.ledger
        seconds = self._host.clock() - self._begun
        self._show(int(ledger.ran.sum()), {"best/value": ledger.best}, seconds)


def _ran(host: Host, part: Part, watch: _Watch) -> bool:
    """Whether all trials of a group ran."""
    ledger, saves, wanted = host.ledger, host.saves, host.wanted
    left = part.rows[~ledger.ran[part.rows]]
    if not left.size or watch.over:
        return not left.size
    form, within = saves.within or (None, None)
    if within is not None and within.rows[0] in left:
        left = np.concatenate([within.rows, np.setdiff1d(left, within.rows)])
    own = np.searchsorted(part.rows, left)
    ids = np.asarray(ledger.trials.id)[left]
    calls = Calls(part.trial, jax.tree.map(lambda x: x[own], part.values), ids, host.clock)
    found = _form(host, part, len(left), calls)
    within = within if found == form else None
    saves.settled[part.label] = found.mode, found.chunk
    watch.save()
    every = wanted.chunk if found.mode == "sequential" and wanted.chunk != "auto" else found.width
    for at in range(0, len(left), found.width):
        if watch.over:
            return False
        rows = np.arange(at, min(at + found.width, len(left)))
        if not _called(host, calls, found, rows, left, within, watch):
            return False
        within = None
        due = found.mode == "vmap" or (
            wanted.chunk != "auto" and (rows[-1] + 1) % every < found.width
        )
        if due or watch.passed() > EVERY:
            watch.save()
    return True


def _called(host, calls, form, rows, left, within, watch):
    """Whether the trials of a call came to their end."""

    def goes_on(under):
        under = under._replace(rows=left[under.rows])
        if watch.asked or watch.passed() > UNDER_WAY:
            watch.save((form, under))
        return not watch.asked

    result = calls.run(form, rows, within, goes_on)
    if result is None:
        return False
    mine = partial(state_of, form, result)
    host.ledger.put(left[rows], result.scores, result.seconds, mine)
    for row in left[rows] if host.on_row else ():
        host.on_row(host.ledger.row(row))
    watch.show()
    return True


def _form(host: Host, part: Part, count: int, calls: Calls) -> Form:
    """The form of a group: the one that it had, or the one that is settled now."""
    had = _settled_before(host, part)
    return had or settled(host.wanted, part.trial, part.first, count, calls.tried)


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
