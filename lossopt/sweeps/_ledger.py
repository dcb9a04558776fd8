"""What has come of the trials so far, and the states that may still be the best."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps import _cells
from lossopt.sweeps._cells import DIVERGED, FINISHED, WAITING
from lossopt.sweeps._table import Table
from lossopt.sweeps._trials import Trials


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
      keeps: whether trials have states.
    """

    def __init__(
        self, trials: Trials, dtypes: Mapping[str, Any], score: str, maximize: bool, keeps: bool
    ):
        self.trials, self.score, self.maximize, self.keeps = trials, score, maximize, keeps
        count = len(trials)
        self.scores = {name: np.full(count, np.nan, _real(x)) for name, x in dtypes.items()}
        self.seconds = np.full(count, np.nan)
        self.ran = np.zeros(count, bool)
        self.kept: dict[int, Kept] = {}
        self._ids, self._settings = np.asarray(trials.id), np.asarray(trials.setting)
        order = np.argsort(self._settings, kind="stable")
        kinds, first = np.unique(self._settings[order], return_index=True)
        self._rows = dict(zip(kinds.tolist(), np.split(order, first[1:])))
        self._repeated = len(kinds) < count

    def put(
        self,
        rows: np.ndarray,
        scores: dict[str, np.ndarray],
        seconds: Any,
        state_of: Callable[[int], PyTree],
    ) -> None:
        """Writes the results of some rows; `state_of(place)` is the state of one of them."""
        for name, values in scores.items():
            self.scores[name][rows] = values
        self.seconds[rows], self.ran[rows] = seconds, True
        if self.keeps:
            self._look(rows, state_of)

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
        )

    def row(self, row: int) -> dict[str, Any]:
        """One row, as the table has it, without the hyperparameters that it has not."""
        columns = self._columns(slice(row, row + 1))
        lacks = {name for name in self.trials.names if _cells.missing(columns[name])[0]}
        return {name: _cells.plain(x[0]) for name, x in columns.items() if name not in lacks}

    @property
    def best(self) -> float:
        """The best score so far, NaN where none is finite."""
        values = self.scores[self.score]
        values = values[np.isfinite(values)]
        if not values.size:
            return np.nan
        return float(values.max() if self.maximize else values.min())

    def _columns(self, rows):
        """Those of the table, of some rows."""
        trials, ran = self.trials[rows], self.ran[rows]
        scores = {name: x[rows] for name, x in self.scores.items()}
        status = np.where(np.isfinite(scores[self.score]), FINISHED, DIVERGED).astype(object)
        status[~ran] = WAITING
        columns = {"id": np.asarray(trials.id)}
        if self._repeated:
            columns["setting"] = self._settings[rows]
        columns |= {name: trials[name] for name in trials.names}
        return columns | scores | {"status": status, "seconds": self.seconds[rows]}

    def _value(self, rows):
        """What ranks, lowest first, infinite where it is not finite."""
        values = np.asarray(self.scores[self.score][rows], float)
        return np.where(np.isfinite(values), -values if self.maximize else values, np.inf)

    def _whole(self, setting):
        """Whether all repetitions of a setting have run."""
        return self.ran[self._rows[setting]].all()

    def _best(self):
        """The best setting, among those of which all repetitions have run."""
        whole = filter(self._whole, self.kept)
        means = {setting: np.mean(self._value(self._rows[setting])) for setting in whole}
        finite = [setting for setting in means if np.isfinite(means[setting])]
        return min(finite, key=lambda setting: (means[setting], setting), default=None)

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
