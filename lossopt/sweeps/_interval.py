"""The interval of good values of a hyperparameter."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """Between which values of a hyperparameter the good settings lie.

    Attributes:
      name: of the hyperparameter.
      low: the lowest value of a good setting.
      high: the highest value of a good setting.
      limit: the worst score that is good.
      good: how many settings are good.
      inside: how many settings lie between `low` and `high`, good or not.
      below: the next value below `low` that was tried; NaN where there is none, so that the
        interval may be wider than the space.
      above: the next value above `high` that was tried; NaN where there is none.
    """

    name: str
    low: float
    high: float
    limit: float
    good: int
    inside: int
    below: float
    above: float

    @property
    def decades(self) -> float:
        """The logarithm to the base 10 of `high / low`; NaN where `low` is not above 0."""
        return float(np.log10(self.high / self.low)) if self.low > 0 else float("nan")


def interval(table: Any, name: str, within: float, limit: float | None) -> Interval:
    """See `Table.interval`."""
    table = table.mean() if table.repeated else table
    values = np.asarray(table[name], float)
    best = table.best[table.score]
    sign = -1 if table.maximize else 1
    worst = best + sign * within * abs(best) if limit is None else float(limit)
    known = np.isfinite(values)
    good = known & (table["status"] == "finished")
    good &= sign * np.asarray(table[table.score], float) <= sign * worst
    low, high = np.min(values[good]), np.max(values[good])
    beyond = values[known & (values < low)], values[known & (values > high)]
    return Interval(
        name,
        float(low),
        float(high),
        worst,
        int(np.sum(good)),
        int(np.sum((values >= low) & (values <= high) & (table["status"] != "waiting"))),
        float(np.max(beyond[0])) if beyond[0].size else float("nan"),
        float(np.min(beyond[1])) if beyond[1].size else float("nan"),
    )
