"""The interval of good values of a hyperparameter."""

import dataclasses
from typing import Any

import numpy as np

from lossopt import _checks
from lossopt.sweeps._cells import FINISHED, STOPPED, WAITING, missing, plain, tried, word


@dataclasses.dataclass(frozen=True)
class Interval:
    """Between which values of a hyperparameter the good settings lie; see `Table.interval`.

    Attributes:
      name: of the hyperparameter.
      low: the lowest value of a good setting.
      high: the highest value of a good setting.
      score: the column that ranks.
      limit: the worst score that is good.
      maximize: whether the highest score is the best.
      good: how many settings are good.
      inside: how many that ran lie from `low` to `high`, good or not.
      stopped: how many of these were stopped at a rung, so that nobody knows whether they are good.
      below: the next lower value that was tried; NaN where there is none: the interval may go on.
      above: the next higher value that was tried; NaN where there is none.

    `print(interval)` tells it in a sentence.
    """

    name: str
    low: float
    high: float
    score: str
    limit: float
    maximize: bool
    good: int
    inside: int
    stopped: int
    below: float
    above: float

    @property
    def decades(self) -> float:
        """The logarithm to the base 10 of `high / low`; NaN where `low` is not above 0."""
        return float(np.log10(self.high / self.low)) if self.low > 0 else float("nan")

    def __str__(self) -> str:
        wide = f"{self.decades:.2g}" if self.low > 0 else ""
        wide = f", {wide} decade{'s' * (wide != '1')}" if wide else ""
        ends = {"least": self.below, "most": self.above}
        open_ends = [f"the {end}" for end, x in ends.items() if x != x]
        tried = f" ({' and '.join(open_ends)} that was tried)" if open_ends else ""
        short = f" ({self.stopped} of them stopped at a rung)" if self.stopped else ""
        return (
            f"{self.name} {word(self.low)} to {word(self.high)}{wide}{tried}: {self.good} of "
            f"{self.inside} settings there{short} have a {self.score} of at "
            f"{'least' if self.maximize else 'most'} {word(self.limit)}"
        )


def limit_of(table: Any, within: float) -> float:
    """The worst score that is good."""
    best = table.best[table.score]
    return best + (-1 if table.maximize else 1) * within * abs(best)


def interval(table: Any, name: str, within: float, limit: float | None) -> Interval:
    """See `Table.interval`."""
    if name not in table.names or table.scales[name] == "options":
        numbers = [n for n in table.names if table.scales[n] != "options"]
        raise ValueError(
            f"Expected the name of a hyperparameter that is a number, got {name!r}. There are "
            f"{', '.join(numbers) or 'none'}. Of options take a part of the table each, "
            "table[table[name] == option]."
        )
    _checks.at_least(0, within=within)
    table = table.mean() if table.repeated else table
    table = table[~missing(table[name])]
    best = table.best[table.score]
    worst = limit_of(table, within) if limit is None else float(limit)
    values, scores = table[name], table[table.score]
    known = np.isfinite(np.asarray(values, float)) & (table["status"] != WAITING)
    good = known & (table["status"] == FINISHED) & _reach(scores, worst, table.maximize)
    if not np.any(good):
        raise ValueError(
            f"Expected a setting of {name} with a {table.score} of {worst:.6g} or better, and none "
            f"is: the best of the table is {best:.6g}. Choose another limit."
        )
    low, high = np.min(values[good]), np.max(values[good])
    inside = known & (values >= low) & (values <= high)
    others = tried(table[known], name)
    lower, higher = others[others < low], others[others > high]
    return Interval(
        name=name,
        low=float(plain(low)),
        high=float(plain(high)),
        score=table.score,
        limit=worst,
        maximize=table.maximize,
        good=int(np.sum(good)),
        inside=int(np.sum(inside)),
        stopped=int(np.sum(inside & (table["status"] == STOPPED))),
        below=float(plain(np.max(lower))) if lower.size else float("nan"),
        above=float(plain(np.min(higher))) if higher.size else float("nan"),
    )


def _reach(scores, limit, maximize):
    """Which scores are as good as a limit, which is rounded as they are: 0.1 reaches 0.1."""
    if np.issubdtype(scores.dtype, np.floating):
        limit = scores.dtype.type(limit)
    return scores >= limit if maximize else scores <= limit
