"""What has come of the trials so far, and the states that may still be the best."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps import _cells
from lossopt.sweeps._cells import DIVERGED, FINISHED, STOPPED, WAITING
from lossopt.sweeps._lineage import passed, used
from lossopt.sweeps._resting import Resting
from lossopt.sweeps._table import Table
from lossopt.sweeps._trials import Trials
from lossopt.sweeps._work import Work


class Kept(NamedTuple):
    """The best repetition of a setting so far, and its state on the host."""

    row: int
    state: PyTree


class Ledger:
    """Scores by row, `[trials]`, NaN where a trial has not run.

    Args:
      trials: of the sweep.
      dtypes: of the scores, by name.
      score: the one that ranks.
      maximize: whether the highest is the best.
      steps: of a trial; 0 where it cannot be cut, and has no state.
      levels: the steps of all rungs, in their order; none without rungs.

    Attributes:
      scores: the last ones of each trial, by name.
      at: those at each rung, by name, `[levels, trials]`.
      steps: that each trial has taken up to its last score.
      seconds: of each trial.
      ran: which trials have come to their end, or were stopped.
      stopped: which of them were stopped at a rung.
      kept: by setting, what may still be the best.
      resting: states of trials that wait at a rung.
      repeated: whether settings have several trials.
      lineage: of a population, by hyperparameter, the values up to each level, `[levels, trials]`;
        and the ids whose states trials went on from after it, but for the last.
      executed: steps of all trials of all calls, copies that fill a call among them.
    """

    def __init__(
        self,
        trials: Trials,
        dtypes: Mapping[str, Any],
        score: str,
        maximize: bool,
        steps: int,
        levels: tuple[int, ...] = (),
    ):
        self.trials, self.score, self.maximize = trials, score, maximize
        self._end, self.levels = steps, levels
        if levels:
            _cells.refuse_rungs(tuple(trials.names), tuple(dtypes))
        count = len(trials)
        empty = lambda dtype, *ahead: np.full((*ahead, count), np.nan, _real(dtype))
        self.scores = {name: empty(x) for name, x in dtypes.items()}
        self.at = {name: empty(x, len(levels)) for name, x in dtypes.items()}
        self.steps, self.seconds = np.zeros(count, np.int64), np.full(count, np.nan)
        self.ran, self.stopped = np.zeros(count, bool), np.zeros(count, bool)
        self.kept: dict[int, Kept] = {}
        self.lineage: dict[str, np.ndarray] = {}
        self.executed, self.resting = 0, Resting()
        self._ids, self._settings = np.asarray(trials.id), np.asarray(trials.setting)
        order = np.argsort(self._settings, kind="stable")
        kinds, first = np.unique(self._settings[order], return_index=True)
        self._rows = dict(zip(kinds.tolist(), np.split(order, first[1:])))
        self.repeated = len(kinds) < count

    def grow(self, trials: Trials, dtypes: Mapping[str, Any]) -> None:
        """Takes further trials behind those that there are, of a sweep without rungs."""
        made = Ledger(trials, dtypes, self.score, self.maximize, self._end)
        for name, x in self.scores.items():
            made.scores[name][: len(x)] = x
        for name in ("steps", "seconds", "ran"):
            getattr(made, name)[: len(self.ran)] = getattr(self, name)
        made.kept, made.executed = self.kept, self.executed
        vars(self).update(vars(made))

    def put(
        self,
        rows: np.ndarray,
        steps: int,
        scores: dict[str, np.ndarray],
        seconds: Any,
        state_of: Callable[[int], PyTree],
        width: int,
    ) -> None:
        """Writes the results of some rows.

        Args:
          rows: of the trials of a call.
          steps: that they have taken now.
          scores: by name, `[rows]`.
          seconds: of each, of this call.
          state_of: gives the state of one of them, by its place in the call.
          width: trials of the call, with copies that fill it.
        """
        self.executed += width * int(steps - self.steps[rows[0]])
        for name, values in scores.items():
            self.scores[name][rows] = values
            if steps in self.levels:
                self.at[name][self.levels.index(steps), rows] = values
        self.steps[rows] = steps
        self.seconds[rows] = np.nan_to_num(self.seconds[rows]) + seconds
        self.ran[rows] = ended = steps == self._end
        if self._end and ended:
            self._look(rows, state_of)

    def stop(self, rows: np.ndarray) -> None:
        """Takes note of trials that do not go on."""
        self.stopped[rows] = self.ran[rows] = True

    def left(self, rows: np.ndarray, steps: int) -> np.ndarray:
        """Those of some rows that have not taken so many steps."""
        return rows[~self.ran[rows] & ((self.steps[rows] < steps) | (steps == 0))]

    def rows_of(self, first: int, end: int) -> np.ndarray:
        """The rows of settings, by their places in the order in which settings appear."""
        _, begin, which = np.unique(self._settings, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(begin))[which]
        return np.flatnonzero((place >= first) & (place < end))

    def best_rows(self, rows: np.ndarray, steps: int, count: int) -> np.ndarray:
        """The rows of the best settings at a rung: of lowest means, of equals the lower ids.

        With them come settings of which not all repetitions are there yet.

        Args:
          rows: of all settings that compete, with all of their repetitions.
          steps: of the rung.
          count: settings, at most; those that are not finite do not count.
        """
        settings, which = np.unique(self._settings[rows], return_inverse=True)
        sizes = np.bincount(which)
        values = self._ranking(self.at[self.score][self.levels.index(steps), rows])
        there = np.bincount(which, self.steps[rows] >= steps) == sizes
        means = np.where(there, np.bincount(which, values) / sizes, np.inf)
        best = np.lexsort((settings, means))[:count]
        on = np.zeros(len(settings), bool)
        on[best[np.isfinite(means[best])]] = True
        return rows[(on | ~there)[which]]

    def table(self) -> Table:
        """The table so far."""
        trials, best = self.trials, self._best()
        return Table(
            self._columns(slice(None)),
            self.score,
            tuple(trials.names),
            tuple(self.scores),
            self.maximize,
            dict(trials.scales),
            state=None if best is None else self.kept[best].state,
            state_id=None if best is None else int(self._ids[self.kept[best].row]),
            work=self._work() if self._end else None,
        )

    def row(self, row: int) -> dict[str, Any]:
        """One row, as the table has it, without the hyperparameters that it has not."""
        columns = self._columns(slice(row, row + 1))
        lacks = {name for name in self.trials.names if _cells.missing(columns[name])[0]}
        return {name: _cells.plain(x[0]) for name, x in columns.items() if name not in lacks}

    @property
    def done(self) -> int:
        """How many trials have run; of a population, how many would have in as many steps."""
        return int(self.steps.sum()) // self._end if self.lineage else int(self.ran.sum())

    @property
    def best(self) -> float:
        """The best score so far, NaN where none is finite."""
        values = self.scores[self.score]
        values = values[np.isfinite(values)]
        if not values.size:
            return np.nan
        return float(values.max() if self.maximize else values.min())

    def _work(self):
        return Work(len(self.ran) * self._end, int(self.steps.sum()), self.executed)

    def _columns(self, rows):
        """Those of the table, of some rows."""
        trials, ran = self.trials[rows], self.ran[rows]
        scores = {name: x[rows] for name, x in self.scores.items()}
        finite = np.isfinite(scores[self.score])
        status = np.where(self.stopped[rows], STOPPED, FINISHED).astype(object)
        status[~finite], status[~ran] = DIVERGED, WAITING
        columns = {"id": np.asarray(trials.id)}
        if self.repeated:
            columns["setting"] = self._settings[rows]
        columns |= {name: trials[name] for name in trials.names}
        line = self.lineage, self.levels, self.steps
        columns |= {name: x[rows] for name, x in used(*line).items()} | scores
        for name in self.scores if self.levels else ():
            columns |= {_cells.rung(name, at): x[rows] for at, x in zip(self.levels, self.at[name])}
        columns |= {name: x[rows] for name, x in passed(*line).items()}
        if self.levels:
            columns["steps"] = self.steps[rows]
        return columns | {"status": status, "seconds": self.seconds[rows]}

    def _ranking(self, scores):
        """What ranks, lowest first, infinite where it is not finite."""
        values = np.asarray(scores, float)
        return np.where(np.isfinite(values), -values if self.maximize else values, np.inf)

    def _value(self, rows):
        return self._ranking(self.scores[self.score][rows])

    def _whole(self, setting):
        """Whether all repetitions of a setting have run."""
        return self.ran[self._rows[setting]].all()

    def _best(self):
        """The best setting, among those of which all repetitions have run."""
        whole = filter(self._whole, self.kept)
        means = {setting: np.mean(self._value(self._rows[setting])) for setting in whole}
        return min(means, key=lambda setting: (means[setting], setting), default=None)

    def _look(self, rows, state_of):
        """Keeps states of settings that have not all run, and of the best one that has."""
        new = {}
        for place, row in enumerate(rows):
            setting = int(self._settings[row])
            had = self.kept.get(setting)
            if np.isfinite(self._value(row)) and (had is None or self._before(row, had.row)):
                self.kept[setting] = Kept(int(row), None)
                new[setting] = place
        best = self._best()
        for setting in list(self.kept):
            if setting != best and self._whole(setting):
                del self.kept[setting]
        for setting in new.keys() & self.kept.keys():
            self.kept[setting] = self.kept[setting]._replace(state=state_of(new[setting]))

    def _before(self, row, other):
        """Whether a row ranks before another; of equals the lower id does."""
        return (self._value(row), self._ids[row]) < (self._value(other), self._ids[other])


def _real(dtype):
    """A dtype of numpy that holds such numbers, and NaN."""
    return np.result_type(dtype, np.float32) if jnp.issubdtype(dtype, jnp.floating) else float
