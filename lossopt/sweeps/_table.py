"""What came of a sweep: a row for each trial."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from lossopt.sweeps import _cells, _settings
from lossopt.sweeps._cells import FINISHED
from lossopt.sweeps._importance import importance
from lossopt.sweeps._interval import Interval, interval
from lossopt.sweeps._rulers import ruler
from lossopt.sweeps._told import told
from lossopt.sweeps._work import Work
from lossopt.training import _report

Scale = Literal["log", "linear", "options"]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Table:
    """What came of the trials of a sweep: a row for each, in the order of the trials.

    `lossopt.sweep` returns one. From the columns of a search of your own it can be made, too, for
    its pictures: ids, statuses and seconds may be left out.

    Attributes:
      columns: numpy arrays by name, each with one entry for each trial: `"id"`; `"setting"` where
        settings were repeated; the hyperparameters, options of `Static` as they are, NaN where a
        trial has no such name, and those that are arrays with their axes; the scores, NaN where a
        trial did not run; `"status"`; and `"seconds"`, its share of the time of its chunk. With
        rungs a score is the last that a trial reached, `"loss@100"` that after 100 steps, NaN where
        it did not come so far; and `"steps"` are those it took. Of a population, `"rate"` is what a
        trial used last, `"rate@100"` what it used up to 100 steps, and `"parent@100"` the id of
        that whose state it went on from then; -1 where it did not come so far.
      score: the column that ranks.
      names: the columns that are hyperparameters.
      scores: the columns that `run` returned.
      maximize: whether the highest score is the best.
      scales: of each hyperparameter `"log"`, `"linear"` or `"options"`, for pictures. What is not
        given is guessed: logarithmic where all values are above 0, and the highest is at least 100
        times the lowest and 4 times the one in the middle; or where they are a geometric series.
      state: what `best_state` gives; None where `run` was a plain function.
      state_id: the id of the row that `state` is of; None where nobody says, -1 where it is no row
        of the table.
      work: steps of the sweep, those of all trials together: `work.full`, if all took all steps;
        `work.nominal`, that trials took; `work.executed`, with the copies that filled up calls.
        None where a trial has no steps.

    A status is `"finished"`; `"stopped"` where its setting did not go on at a rung; `"diverged"`
    where the score that ranks is not finite; or `"waiting"` where it has not come to its end.
    `table["loss"]` is a column, `table[3]` a row as a dict, without the hyperparameters that it has
    not; `table[table["status"] == "diverged"]` and `table[:10]` are tables. `print(table)` tells
    the best rows.

    Raises:
      ValueError: where a column is missing, is longer than others or nobody knows what it is, or
        two have one name.

    Examples:
      >>> columns = {"rate": [0.01, 0.1, 1.0], "loss": [0.5, 0.2, jnp.nan]}
      >>> table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss",))
      >>> print(table.best["rate"], table["status"])
      0.1 ['finished' 'finished' 'diverged']
    """

    columns: Mapping[str, np.ndarray]
    score: str
    names: tuple[str, ...]
    scores: tuple[str, ...]
    maximize: bool = False
    scales: Mapping[str, Scale] = dataclasses.field(default_factory=dict)
    state: Any = None
    state_id: int | None = None
    work: Work | None = None

    def __post_init__(self):
        columns = _cells.completed(self.columns, self.score, self.names, self.scores)
        guessed = {name: _cells.scale(columns[name]) for name in self.names}
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "scales", guessed | dict(self.scales))

    @overload
    def __getitem__(self, at: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice | np.ndarray) -> "Table": ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, str):
            if at not in self.columns:
                raise KeyError(f"no column {at!r}; there are {', '.join(self.columns)}")
            return self.columns[at]
        if isinstance(at, int | np.integer):
            lacks = {n for n in self.names if _cells.missing(self[n][at : at + 1 or None])[0]}
            return {n: _cells.plain(x[at]) for n, x in self.columns.items() if n not in lacks}
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
          ValueError: if no trial finished with a finite score; of repeated settings, if none did
            in all of its repetitions.
        """
        table = self.mean() if self.repeated else self
        first = table.rank()[:1]
        if not first.size or table["status"][first[0]] != FINISHED:
            raise ValueError(
                f"Expected a {'setting' if self.repeated else 'trial'} that finished with a finite "
                f"{self.score}, got {_settings.endings(table)}"
            )
        return table[int(first[0])]

    @property
    def best_state(self) -> Any:
        """The state that the best trial ended in; of repeated settings, the best repetition.

        Raises:
          ValueError: where there is none: after a sweep of a plain function, in a table without a
            best row, or in one whose best is another than that of the sweep, as in a part of it.
        """
        if self.state is None and self.state_id is not None:
            raise ValueError(
                "Expected the table of a sweep, got that of a rung, at which no state is kept. "
                "Take best_state of the sweep's own table."
            )
        if self.state is None and self.work is not None:
            raise ValueError(f"Expected a state, and nobody has one: {_settings.endings(self)}")
        if self.state is None:
            raise ValueError(
                "Expected the table of a sweep of a lossopt.sweeps.Task, got one that kept no "
                "state. A plain function returns scores alone: write it as a Task, or run the "
                "best trial again."
            )
        if self.state_id is not None and (best := _settings.best_id(self)) != self.state_id:
            raise ValueError(
                f"Expected the state of trial {best}, which is the best here, got one that lacks "
                "it: a sweep keeps the state of its own best alone, by the score and the "
                f"repetitions that it was called with. Run trial {best} again."
            )
        return self.state

    @property
    def repeated(self) -> bool:
        """Whether rows share a setting."""
        settings = self.columns.get("setting")
        return settings is not None and len(np.unique(settings)) < len(settings)

    def rank(self) -> np.ndarray:
        """The numbers of the rows, the best first, int `[rows]`; equal scores by id.

        Rows that were stopped come behind those that finished, first those that took more steps.
        Scores that are not finite come last, whether low or high is best, and behind them the rows
        that wait, those at a rung first.
        """
        return np.lexsort((self["id"], *_cells.standing(self)))

    def sort(self, by: str | None = None) -> "Table":
        """The same rows with the best first, as `rank` has them.

        Args:
          by: a column, whose lowest comes first; options are in order of the alphabet.

        Raises:
          KeyError: if there is no such column.
          ValueError: if it holds arrays.
        """
        if by is None:
            return self[self.rank()]
        column = self[by]
        if column.ndim > 1:
            raise ValueError(f"Expected a column of numbers or options, got {by!r} of arrays.")
        scale = _cells.scale(column)
        places = ruler(column, scale).at(column) if scale == "options" else column
        return self[np.lexsort((self["id"], places))]

    def mean(self) -> "Table":
        """One row for each setting: the mean of each score over the repetitions that ran.

        Beside a score stands its standard error, `"loss/error"`, which is NaN of one repetition,
        and `"repeats"` says how many ran. Ids are those of the settings, seconds are summed. A
        setting of which a repetition diverged has diverged; one of which a repetition waits is
        waiting, and ranks behind. Hyperparameters that differ among the repetitions of a setting,
        such as folds, are left out.

        Examples:
          >>> columns = {"rate": [0.1, 0.1, 1.0, 1.0], "loss": [0.1, 0.5, 0.2, 0.2]}
          >>> columns |= {"setting": [0, 0, 1, 1]}
          >>> table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss",))
          >>> print(table.mean()["loss"], table.best["rate"])
          [0.3 0.2] 1.0
        """
        return _settings.mean(self)

    def at(self, steps: int) -> "Table":
        """The table of a rung: the trials that reached it, with their scores there.

        Scores after equal steps compare, so that pictures, intervals and `importance` tell of them.

        Args:
          steps: of a rung.

        Raises:
          ValueError: if there is no such rung.
        """
        return _settings.at(self, steps)

    def interval(self, name: str, *, within: float = 0.1, limit: float | None = None) -> Interval:
        """Between which values of a hyperparameter the good settings lie.

        A setting is good if its score, of repeated ones the mean, is at most `within` times the
        best score away from the best. The interval is from the lowest value of a good setting to
        the highest. Only trials that have the hyperparameter count. Others may lie between the
        good ones: `good` and `inside` count them, and `stopped` those that a rung stopped before
        anybody knew; `table.at(steps)` has intervals of scores after equal steps. Nothing is
        interpolated: the true ends lie between `below` and `low`, and between `high` and `above`.

        Args:
          name: a hyperparameter that is a number.
          within: a share of the best score's magnitude, at least 0: 0.1 takes losses of up to 1.1
            times the lowest, or accuracies from 0.9 times the highest on.
          limit: the worst score that is good, instead of `within`: for scores around 0, or one bar
            for parts of a table.

        Raises:
          ValueError: if `name` is no hyperparameter or has options, or no setting is good.

        Examples:
          >>> columns = {"rate": [0.01, 0.1, 1.0, 10.0], "loss": [0.5, 0.21, 0.2, jnp.nan]}
          >>> table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss",))
          >>> print(table.interval("rate"))
          rate 0.1 to 1, 1 decade: 2 of 2 settings there have a loss of at most 0.22
        """
        return interval(self, name, within, limit)

    def importance(
        self, score: str | None = None, *, repeats: int = 30, key: int = 0
    ) -> dict[str, tuple[float, float]]:
        """How much worse a model predicts the scores once a hyperparameter is shuffled.

        The model is a random forest of scikit-learn from the hyperparameters to the rank of the
        score, where trials that diverged share the last. A fifth of the settings is held out at a
        time; there a hyperparameter is shuffled among them, and what counts is by how much the
        mean squared error grows, as a share of the variance of the ranks. It tells of this model
        and of these spaces: what a forest does not find among few trials is near 0 or below it, and
        a hyperparameter that was swept narrowly matters little.

        Args:
          score: the column that is explained. None is the one that ranks.
          repeats: how often each is shuffled, at least 1.
          key: a whole number that the forest and the shuffles are drawn from.

        Returns:
          A mean and a standard deviation over the shuffles by name, the most important first,
          of the hyperparameters that are no arrays and not the same in all trials.

        Raises:
          ValueError: if less than 8 settings have a finite score, there is no such score, or no
            hyperparameter differs.
          ImportError: where scikit-learn is not installed.
        """
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
