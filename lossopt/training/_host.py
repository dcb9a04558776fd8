"""The host of a compiled run: one call after another, and what happens between them."""

import dataclasses
import math
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._processes import several
from lossopt._typing import Array
from lossopt.training._bar import bar
from lossopt.training._feed import Feed
from lossopt.training._history import close, new_rows
from lossopt.training._loop import advance
from lossopt.training._peers import Peers
from lossopt.training._plan import Data, Plan, Pooled, Progress
from lossopt.training._pool import Pool
from lossopt.training._report import as_json
from lossopt.training._resume import Identity
from lossopt.training._run import BROKEN, Run, finish
from lossopt.training._saves import Saves
from lossopt.training._signals import noted
from lossopt.training._step import State
from lossopt.training._stop import Stopped
from lossopt.training._stream import NEVER

STOP = Stopped.ASKED
"""What `on_epoch` returns to end the run, which is then `Stopped.ASKED`."""

Row = dict[str, Any]


class Host(NamedTuple):
    """What stays the same from one call to the next.

    Attributes:
      plan: of the run.
      data: what it reads, beside `feed`.
      feed: where batches come from.
      saves: where it is saved.
      identity: what makes it the same run, JSON.
      held: the rows that validate, where they were split off.
      validate: measures a validation set that is a stream; or None.
      on_epoch: the user's, at each row; or None.
      shown: whether to show how it goes.
      limit: when it has to end, on the clock.
      clock: gives seconds.
    """

    plan: Plan
    data: Data
    feed: Feed
    saves: Saves
    identity: Identity
    held: Array | None = None
    validate: Callable[[State], Pooled] | None = None
    on_epoch: Callable[[Row, State], Any] | None = None
    shown: bool | Literal["auto"] = False
    limit: float = math.inf
    clock: Callable[[], float] = time.perf_counter

    @property
    def peers(self) -> Peers:
        """The processes of the run."""
        return Peers(self.plan.layout is not None and several())

    def told(self, row: Row, state: State) -> bool:
        """Whether the user, who sees a row, asks to end the run."""
        see = partial(self.on_epoch, row, state) if self.on_epoch else lambda: None
        return any(self.peers.agreed(0, self.peers.alike(see) is STOP)[1:])


class Reached(NamedTuple):
    """How far a run has come.

    Attributes:
      progress: of the loop.
      history: its rows.
      stopped: why it ended; `FINISHED` to go on.
      pool: what was measured last, also where `progress` is what was before it.
    """

    progress: Progress
    history: list[Row]
    stopped: Stopped
    pool: Pool

    @property
    def steps(self) -> int:
        """How many were taken."""
        return int(self.progress.state.count)


def hosted(host: Host, reached: Reached) -> Run:
    """Calls the program until the run ends; each call takes a fraction of a second."""
    with noted() as asked:
        try:
            with bar(host.feed.unit, host.feed.total, host.peers.first and host.shown) as show:
                for turn in _turns(host, reached, asked, show):
                    reached = turn
                    host.saves.due(partial(run_of, host, reached), host.limit < math.inf)
        except Exception as error:
            if host.peers.alone(error):
                raise  # the others are elsewhere, or gone: nothing can be saved with them
            asked.signal = host.peers.heard(asked.signal)
            if asked.signal is None:
                host.saves.now(partial(run_of, host, reached))
                raise
            # It may be the loader's answer to the same Ctrl-C.
            warnings.warn(f"The run is interrupted; then came {error!r}.", stacklevel=3)
            reached = _ended(reached, Stopped.INTERRUPTED)
        if host.feed.exhausted:
            reached = _ended(reached, Stopped.EXHAUSTED)
        host.saves.now(partial(run_of, host, reached))
        host.saves.wait()
        asked.signal = host.peers.heard(asked.signal) or asked.signal
    if asked.signal == signal.SIGTERM:
        signal.raise_signal(asked.signal)
    if asked.signal is not None:
        reached = _ended(reached, Stopped.INTERRUPTED)
    return run_of(host, reached)


def run_of(host: Host, reached: Reached) -> Run:
    """What the user keeps, and what is saved."""
    progress, steps = reached.progress, reached.steps
    pool = reached.pool if reached.stopped is Stopped.NONFINITE_LOSS else progress.pool
    status = jnp.int32(reached.stopped.code)
    columns = {
        name: np.array([row[name] for row in reached.history], column.dtype)
        for name, column in progress.window.items()
    } | {"seconds": np.array([row["seconds"] for row in reached.history], float)}
    origin = {
        "identity": host.identity,
        "place": host.feed.place(steps),
        "epochs": host.feed.epochs(steps),
        "hyperparameters": as_json(host.data.hyperparameters),
    }
    run = finish(host.plan, progress, status, pool, host.feed.epoch(steps))
    return dataclasses.replace(run, history=columns, validation_rows=host.held, origin=origin)


def _turns(host, reached, asked, show):
    """How far the run comes with each call, and why it ends, if not at its end."""
    past = reached.history[-1]["seconds"] if reached.history else 0.0
    now, count, spent = host.clock(), 1, None
    origin = now - past
    while reached.stopped is Stopped.FINISHED and (piece := host.feed.piece(reached.steps)):
        called = host.clock()
        late = host.limit - called < 2 * (spent or 0) + host.saves.took
        count, late, heard = host.peers.agreed(count, late, asked.signal or 0)
        if heard or late:
            asked.signal = heard or None
            yield _ended(reached, Stopped.INTERRUPTED if heard else Stopped.TIME)
            return
        begun, before = reached.steps, reached.progress
        end = _end(host, piece, begun, count)
        after = _called(host, piece, reached, end)
        began, now = now, host.clock()
        if spent is not None:
            fast = _adapted(end - begun, now - called)
            count = max(count, fast) if end - begun <= min(fast, count - 1) else fast
        spent = 0 if spent is None else now - began  # the first call compiles
        rows = new_rows(after.progress, before, began - origin, now - origin)
        reached = after._replace(history=[*reached.history, *rows])
        last = reached.history[-1] if reached.history else {}
        done = reached.steps if host.feed.unit == "steps" else host.feed.epochs(reached.steps)
        show(done, last, now - origin)
        for row in rows if host.on_epoch else ():
            numbers = {name: x.item() for name, x in row.items()}
            seen = jax.tree.map(lambda x: x, reached.progress.state)  # its dicts are not the run's
            if host.told(numbers, seen):
                reached = _ended(reached, STOP)
        yield reached


def _ended(reached, why):
    """It ends here, for this reason if there is none yet."""
    return reached if reached.stopped is not Stopped.FINISHED else reached._replace(stopped=why)


def _end(host, piece, step, count):
    """The step before which a call ends; at a row, where the host has to do with it."""
    end = min(step + count, piece.end, step + (host.plan.window - 1) * piece.every)
    by_rows = host.on_epoch or host.validate
    return min(end, piece.row(step)) if by_rows else end


def _called(host, piece, reached, end):
    """One call; where numbers are not finite any more, what was before."""
    data = host.data._replace(train=piece.train)
    rows = (piece.every, piece.last) if host.validate is None else (NEVER, NEVER)
    given = tuple(map(np.int32, rows))

    def call(progress, first, end):
        ends = np.int32(first), np.int32(end), *given
        return piece.plan.laid(piece.plan.call(advance, data, progress, *ends))

    begun, before = reached.steps, reached.progress
    progress = call(before, begun, end)
    host.feed.read_ahead()
    stopped, pool = Stopped(int(progress.status)), progress.pool
    if stopped in BROKEN:
        progress, stopped = _last_finite(call, before, progress, stopped)
    elif host.validate and end == piece.row(begun):
        data = data._replace(validation=host.validate(progress.state))
        progress = piece.plan.laid(piece.plan.call(close, data, progress))
        stopped = Stopped(int(progress.status))
    return reached._replace(progress=progress, stopped=stopped, pool=pool)


def _last_finite(call, before, after, stopped):
    """The last progress whose numbers are finite, by taking steps of the last call again.

    It is sought between `before`, whose numbers are, and `after`, whose are not.
    """
    first = low = int(before.state.count)
    high, last = int(after.state.count), before
    trial = high - 1
    while high - low > 1:
        tried = call(before, first, trial)
        if int(tried.status) == Stopped.FINISHED.code:
            low, last = trial, tried
        else:
            high, stopped = trial, Stopped.NONFINITE_PARAMETERS
        trial = (low + high) // 2
    return last, stopped


def _adapted(count, seconds, aim=0.25):
    """How many steps take so long, approached without leaps."""
    return max(1, int(count * min(16, max(0.25, aim / max(seconds, 1e-9)))))
