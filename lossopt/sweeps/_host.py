"""The host of a sweep: group by group, chunk by chunk, until all have run or somebody asks."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps._calls import Calls, Result, Within, state_of
from lossopt.sweeps._compiled import compiled
from lossopt.sweeps._form import Form
from lossopt.sweeps._identity import same_facts
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._rungs import Rungs, Stretch, stretches
from lossopt.sweeps._saves import Saves
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._table import Table
from lossopt.sweeps._trial import Trial
from lossopt.sweeps._watch import Watch
from lossopt.training._bar import bar
from lossopt.training._signals import noted


@dataclasses.dataclass(frozen=True)
class Part:
    """Trials that share a program.

    Attributes:
      trial: what they have in common.
      rows: theirs, in the table.
      values: theirs, a tree of arrays `[rows, ...]`.
      shapes: of the state of one; None without steps.
      label: the group in words.
      calls: of its programs, with rows of the group.
    """

    trial: Trial
    rows: np.ndarray
    values: PyTree
    shapes: PyTree
    label: str

    calls: Calls

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
      rungs: at which trials are stopped, or None.
      runs: what has not run, until all have or somebody asks.
      limit: when it has to end, on the clock.
      on_row: called with each row, or None.
      shown: whether there is a bar.
      count: how many trials there are to be; 0 where they are there.
      least: for how many trials of a group a form is settled, at least.
    """

    parts: list[Part]
    ledger: Ledger
    saves: Saves
    wanted: Wanted
    rungs: Rungs | None
    runs: Callable[["Host", Watch], Any]
    limit: float
    on_row: Callable[[dict[str, Any]], Any] | None
    shown: bool | Literal["auto"]
    count: int = 0
    least: int = 0
    clock: Callable[[], float] = time.perf_counter


class Engine(NamedTuple):
    """What runs trials.

    Attributes:
      stretched: whether all trials of the groups ran, before somebody asked to end.
      form_of: settles the form of a group, of which some rows are left.
    """

    stretched: Callable[[Host, Watch], bool]
    form_of: Callable[[Host, Part, np.ndarray, Watch], Any]


def hosted(host: Host) -> Table:
    """Runs what has not run, and gives the table."""
    for part in host.parts:
        settled_before(host, part)
    count = host.count or len(host.ledger.ran)
    with host.saves, noted("sweep") as asked, bar("trials", count, host.shown) as show:
        watch = Watch(host.ledger, host.saves, host.limit, asked, show, host.clock)
        host.runs(host, watch)
        watch.end()
    if asked.signal == signal.SIGTERM:
        signal.raise_signal(asked.signal)
    return host.ledger.table()


def stretched(host: Host, watch: Watch) -> bool:
    """Whether all trials of the groups ran, stretch after stretch, before somebody asked to end."""
    found = stretches_of(host)
    return all(_ran(host, part, stretch, watch) for stretch in found for part in host.parts)


def stretches_of(host: Host) -> Iterator[Stretch]:
    """What is to run, one after the other; tells the rows that are stopped after one that ran."""
    ledger, ran = host.ledger, False
    before = ledger.stopped.copy()
    for stretch in stretches(host.rungs, ledger, host.parts[0].trial.steps):
        if ran:
            tell(host, np.flatnonzero(ledger.stopped & ~before))
        before, ran = ledger.stopped.copy(), ledger.left(stretch.rows, stretch.steps).size > 0
        yield stretch


def _ran(host: Host, part: Part, stretch: Stretch, watch: Watch) -> bool:
    """Whether all trials of a group ran, as far as they are to."""
    ledger, wanted = host.ledger, host.wanted
    left = ledger.left(np.intersect1d(part.rows, stretch.rows), stretch.steps)
    if not left.size or watch.over:
        return not left.size
    begun, within = _under_way(host, left)
    if within is not None:
        left = np.concatenate([within.rows, np.setdiff1d(left, within.rows)])
    found = form_of(host, part, left, watch)
    within = within if found == begun else None
    compiled(part.trial, found, part.first)
    at, every = 0, found.width if wanted.chunk == "auto" else max(wanted.chunk, found.width)
    while at < len(left):
        if watch.over:
            return False
        end = min(at + (found.width if within is None else len(within.rows)), len(left))
        if not _called(host, part, found, stretch, left[at:end], within, watch):
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


def _called(host, part, form, stretch, rows, within, watch):
    """Whether the trials of a call came as far as they are to."""

    def goes_on(under):
        under = under._replace(rows=part.rows[under.rows])
        if watch.asked or watch.long:
            watch.save((form, under))
        return not watch.asked

    if within is None:
        within = _waiting(host.ledger, part, form, rows)
    own = np.searchsorted(part.rows, rows)
    result = part.calls.run(form, own, within, stretch.steps, goes_on)
    if result is None:
        return False
    took(host, form, stretch, rows, result)
    watch.came()
    return True


def _waiting(ledger, part, form, rows):
    """Where trials that wait at a rung go on; None of such as have not begun."""
    done = int(ledger.steps[rows[0]])
    if not done:
        return None
    return Within(rows, done, ledger.resting.state(rows, form, part.shapes))


def took(host: Host, form: Form, stretch: Stretch, rows: np.ndarray, result: Result) -> None:
    """Writes what came of the trials of a call."""
    ledger, mine = host.ledger, partial(state_of, form, result)
    ledger.put(rows, stretch.steps, result.scores, result.seconds, mine, form.width)
    if not stretch.ends:
        ledger.resting.put(rows, result.state, form, np.concatenate(stretch.on(ledger)))
    passed(host, stretch, rows)


def passed(host: Host, stretch: Stretch, rows: np.ndarray) -> None:
    """Forgets states of trials at their end, and tells rows that are written."""
    ledger = host.ledger
    if stretch.ends:
        ledger.resting.drop(rows)
    tell(host, rows)


def tell(host: Host, rows: np.ndarray) -> None:
    """Calls `on_row` with some rows."""
    if host.on_row is not None:
        for row in rows.tolist():
            host.on_row(host.ledger.row(row))


def form_of(host: Host, part: Part, left: np.ndarray, watch: Watch) -> Form:
    """The form of a group: the one that it had, or the one that is settled now, and saved."""
    if had := settled_before(host, part):
        return had
    count = narrowed(host, max(len(left), host.least))
    tried = partial(part.calls.tried, rows=np.searchsorted(part.rows, left))
    found = settled(host.wanted, part.trial, part.first, count, tried)
    host.saves.settled[part.label] = found.mode, found.chunk
    if watch.due and not host.wanted.fixed:
        watch.save()
    return found


def narrowed(host: Host, count: int) -> int:
    """So many trials of a group, or with rungs no more than calls can be filled with at most."""
    if host.rungs is None:
        return count
    repeats = len(host.ledger.ran) // host.rungs.settings
    devices = Form("vmap", 1, host.wanted.mesh).width
    most = host.rungs.at_most(repeats, len(host.parts))
    return min(count, max(1, most // devices) * devices)


def settled_before(host: Host, part: Part) -> Form | None:
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
