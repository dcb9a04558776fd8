"""Calls of a group's programs: trials begun, moved on, scored."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt import _jax, _keys
from lossopt._typing import PyTree
from lossopt.sweeps._form import Form
from lossopt.sweeps._trial import Bound, Trial

AIM = 5.0  # seconds of a call that steps


class Within(NamedTuple):
    """Trials that have begun: their rows, the steps they have taken, their states."""

    rows: np.ndarray
    done: int
    state: PyTree


class Result(NamedTuple):
    """What came of the trials of a call.

    Attributes:
      scores: by name, `[rows]`.
      seconds: of a trial, its share.
      state: of all trials of the call; None without steps.
    """

    scores: dict[str, np.ndarray]
    seconds: float
    state: PyTree


class Calls:
    """The calls of one group of trials.

    Args:
      trial: of the group.
      values: of its trials by row, a tree of arrays `[rows, ...]`.
      ids: of its trials.
      clock: gives seconds.
    """

    def __init__(
        self,
        trial: Trial,
        values: PyTree,
        ids: np.ndarray,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.trial, self.values, self.ids, self.clock = trial, values, ids, clock
        self._tried: dict[Form, tuple[np.ndarray, Result]] = {}
        self._bound: dict[Form, Bound] = {}
        self._pace: float | None = None

    def others(self, values: PyTree, ids: np.ndarray) -> "Calls":
        """The calls of other trials of the group, with what is known of its programs."""
        calls = Calls(self.trial, values, ids, self.clock)
        calls._bound, calls._pace = self._bound, self._pace
        return calls

    def tried(self, form: Form, rows: np.ndarray) -> float:
        """Seconds of a call of the first of some trials, which have not begun.

        What they came to is kept where it is whole.
        """
        rows = rows[: form.width]
        begun, bound = self.clock(), self._of(form)
        if not self.trial.steps:
            self._tried.pop(form, None)
            result = self.run(form, rows, None, 0, lambda within: True)
            if result is not None:
                self._tried[form] = rows, result
            return self.clock() - begun
        state = jax.block_until_ready(bound.begin(*self._given(form, rows)))
        steps, between = max(1, self.trial.steps // 8), self.clock()
        state = jax.block_until_ready(bound.advance(state, steps))
        moved = self.clock()
        jax.block_until_ready(bound.score(state))
        slope = (moved - between) / steps
        self._pace = slope
        return self.clock() - begun + slope * (self.trial.steps - steps)

    def run(
        self,
        form: Form,
        rows: np.ndarray,
        within: Within | None,
        until: int,
        goes_on: Callable[[Within], bool],
    ) -> Result | None:
        """The trials of a call; None where they are left before their end.

        Args:
          form: of the group.
          rows: of its trials, at most its width.
          within: where they go on, or None.
          until: the steps that they have taken at the end of the call.
          goes_on: asked between two calls of a program.
        """
        if form in self._tried and np.array_equal(rows, self._tried[form][0]):
            return self._tried.pop(form)[1]
        begun, trial, bound = self.clock(), self.trial, self._of(form)
        done, state = (0, None) if within is None else (within.done, within.state)
        if state is None:
            state = bound.begin(*self._given(form, rows))
        while done < until:
            began, count = self.clock(), self._count(until - done)
            state = jax.block_until_ready(bound.advance(state, count))
            done += count
            self._learn(count, self.clock() - began)
            if done < until and not goes_on(Within(rows, done, state)):
                return None
        scores = jax.device_get(bound.score(state))
        mine = slice(None, len(rows))
        table = {name: np.atleast_1d(x)[mine] for name, x in scores.items()}
        seconds = (self.clock() - begun) / len(rows)
        return Result(table, seconds, state if trial.steps else None)

    def _of(self, form):
        if form not in self._bound:
            self._bound[form] = self.trial.bound(form)
        return self._bound[form]

    def _given(self, form, rows):
        """Values and ids of a call; missing trials are copies of the first."""
        if form.alone:
            row = int(rows[0])
            return jax.tree.map(lambda x: x[row], self.values), np.int32(self.ids[row])
        filled = np.concatenate([rows, np.repeat(rows[:1], form.width - len(rows))])
        values = jax.tree.map(lambda x: x[filled], self.values)
        return form.place((values, self.ids[filled].astype(np.int32)))

    def _count(self, left):
        """Steps of the next call: a few at first, then as many as take some seconds."""
        return min(left, 1 if self._pace is None else max(1, int(AIM / self._pace)))

    def _learn(self, steps, seconds):
        """Seconds of a step; the first call compiles, and says little."""
        known = AIM / 8 if self._pace is None else seconds / steps
        self._pace = max(known, 1e-9)


def state_of(form: Form, result: Result, place: int) -> Any:
    """The state of one of the trials of a call, on the host."""
    with _jax.undisturbed():
        one = result.state if form.alone else jax.tree.map(lambda x: _row(x, place), result.state)
    return jax.tree.map(lambda x: x if _keys.is_key(x) else np.asarray(x), one)


def _row(x, place):
    """A row, from the device that holds it."""
    for shard in x.addressable_shards:
        first, end, _ = shard.index[0].indices(len(x))
        if first <= place < end:
            return jax.lax.dynamic_index_in_dim(shard.data, place - first, keepdims=False)
    raise AssertionError("no device of this process holds the row")
