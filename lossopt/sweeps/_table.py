"""What came of a sweep: a row for each trial."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from lossopt.sweeps import _cells, _settings
from lossopt.sweeps._importance import importance
from lossopt.sweeps._interval import Interval, interval
from lossopt.sweeps._told import told
from lossopt.training import _report

FINISHED, DIVERGED, WAITING = STATUSES = "finished", "diverged", "waiting"
FIXED = "id", "setting", "repeats", "status", "seconds"
Scale = Literal["log", "linear", "options"]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Table:
    """What came of the trials of a sweep, a row for each, in the order of the trials.

    Attributes:
      columns: numpy arrays by name, each with one entry a row: `"id"`; `"setting"` where settings
        were repeated; the hyperparameters, those of `Static` as objects, NaN or None where a trial
        has no such name; the scores, NaN where a trial did not run; `"status"`; and `"seconds"`,
        its share of the time of the chunk it ran in. Hyperparameters that are arrays keep their
        axes.
      score: the column that ranks.
      names: the columns that are hyperparameters.
      scores: the columns that `run` returned.
      maximize: whether the highest score is the best.
      scales: of each name `"log"`, `"linear"` or `"options"`, for pictures. Without them they are
        guessed: logarithmic where all values are above 0 and span a factor of 100 or more, or
        stand in a geometric series.
      state: what `best_state` gives; None where `run` was a plain function.

    A status is `"finished"`, `"diverged"` where the score that ranks is not finite, or `"waiting"`
    where the trial has not run. `print(table)` tells the best rows.
    """

    columns: Mapping[str, np.ndarray]
    score: str
    names: tuple[str, ...]
    scores: tuple[str, ...]
    maximize: bool = False
    scales: Mapping[str, Scale] = dataclasses.field(default_factory=dict)
    state: Any = None

    def __post_init__(self):
        _cells.check(self, FIXED)
        guessed = {name: _cells.scale(self.columns[name]) for name in self.names}
        object.__setattr__(self, "scales", guessed | dict(self.scales))

    @overload
    def __getitem__(self, at: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice | np.ndarray) -> "Table": ...
    def __getitem__(self, at: Any) -> Any:
        """A column by its name, a row by its number, or a table of some rows."""
        if isinstance(at, str):
            if at not in self.columns:
                raise KeyError(f"no column {at!r}; there are {', '.join(self.columns)}")
            return self.columns[at]
        if isinstance(at, int | np.integer):
            return {name: _cells.plain(x[at]) for name, x in self.columns.items()}
        columns = {name: x[at] for name, x in self.columns.items()}
        return dataclasses.replace(self, columns=columns)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __repr__(self) -> str:
        return told(self)

    @property
    def best(self) -> dict[str, Any]:
        """The best row, a dict by column; of repeated settings the best row of `mean()`.

        Raises:
          ValueError: if no trial finished with a finite score, of repeated settings no setting.
        """
        table = self.mean() if self.repeated else self
        first = table.rank()[:1]
        if not first.size or table["status"][first[0]] != FINISHED:
            counts = {status: int(np.sum(table["status"] == status)) for status in STATUSES}
            raise ValueError(
                f"Expected a {'setting' if self.repeated else 'trial'} that finished with a finite "
                f"{self.score}, got {counts[DIVERGED]} diverged and {counts[WAITING]} waiting. "
                "Widen the space towards smaller steps, or let the sweep go on."
            )
        return table[int(first[0])]

    @property
    def best_state(self) -> Any:
        """The state at the end of the trial that is best.

        Raises:
          ValueError: where there is none, as after a sweep of a plain function.
        """
        if self.state is None:
            raise ValueError(
                "Expected a sweep of a lossopt.sweeps.Task, got the table of one that kept no "
                "state. A plain function returns scores alone: write it as a Task, or run the "
                "best row again."
            )
        return self.state

    @property
    def repeated(self) -> bool:
        """Whether several rows share a setting."""
        settings = self.columns.get("setting")
        return settings is not None and len(np.unique(settings)) < len(settings)

    def rank(self) -> np.ndarray:
        """The numbers of the rows, the best first; equal scores by id.

        Scores that are not finite come last, whether low or high is best, and behind them the rows
        that wait.
        """
        values = np.asarray(self[self.score], float)
        values = -values if self.maximize else values
        level = np.where(self["status"] == WAITING, 2, np.where(np.isfinite(values), 0, 1))
        keys = np.where(level == 0, values, 0)
        return np.lexsort((self["id"], keys, level))

    def sort(self) -> "Table":
        """The rows with the best first, as `rank` has them."""
        return self[self.rank()]

    def mean(self) -> "Table":
        """One row for each setting: the mean of each score over the repetitions that ran.

        Beside a score stands its standard error, `"loss/error"` (NaN of one repetition), and
        `"repeats"` says how many ran. Ids are those of the settings, seconds are summed. A setting
        of which one repetition diverged has diverged; one of which a repetition waits is waiting,
        and ranks behind those that finished. Hyperparameters that differ among the repetitions of
        a setting, such as folds, are left out.
        """
        return _settings.mean(self)

    def interval(self, name: str, *, within: float = 0.1, limit: float | None = None) -> Interval:
        """Between which values of a hyperparameter the good settings lie."""
        return interval(self, name, within, limit)

    def importance(
        self, score: str | None = None, *, repeats: int = 30, key: int = 0
    ) -> dict[str, tuple[float, float]]:
        """How much each hyperparameter matters to a model of the scores."""
        return importance(self, score, repeats, key)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes a line of names and one for each row, without hyperparameters that are arrays.

        Args:
          path: of the file, which is replaced; `~` is your home.
        """
        _report.to_csv(_cells.flat(self.columns), path)

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`, without hyperparameters that are arrays.

        Raises:
          ImportError: where pandas is not installed.
        """
        return _report.to_pandas({name: x for name, x in self.columns.items() if x.ndim == 1})
