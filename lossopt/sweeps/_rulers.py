"""Where the values of a hyperparameter stand between its lowest and its highest."""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from lossopt.sweeps import _cells


@dataclasses.dataclass(frozen=True)
class Ruler:
    """The scale of a hyperparameter, whose ends are at 0 and 1.

    Attributes:
      scale: `"log"`, `"linear"` or `"options"`.
      low: the lowest value; of options 0.
      high: the highest value; of options the number of the last.
      options: in their order; empty for numbers.
    """

    scale: str
    low: float
    high: float
    options: tuple[Any, ...] = ()

    def at(self, column: Any) -> np.ndarray:
        """Positions `[rows]`, NaN where a trial has no such name; the middle if all are equal."""
        if self.scale == "options":
            missing = _cells.missing(np.asarray(column))
            numbers = [np.nan if m else self.options.index(x) for x, m in zip(column, missing)]
            low, high, numbers = self.low, self.high, np.array(numbers, float)
        else:
            low, high, numbers = map(self._warped, (self.low, self.high, column))
        if high == low:
            return np.where(np.isnan(numbers), np.nan, 0.5)
        return (numbers - low) / (high - low)

    def _warped(self, values):
        values = np.asarray(values, float)
        return np.log10(values) if self.scale == "log" else values


def ruler(column: np.ndarray, scale: str) -> Ruler:
    """The ruler of a column; its ends are the lowest and the highest finite value."""
    if scale == "options":
        missing = _cells.missing(column)
        options = list(dict.fromkeys(x for x, m in zip(column.tolist(), missing) if not m))
        with contextlib.suppress(TypeError):  # of different kinds: in the order of the trials
            options = sorted(options)
        return Ruler(scale, 0.0, float(max(len(options) - 1, 0)), tuple(options))
    values = np.asarray(column, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return Ruler("linear", 0.0, 0.0)
    return Ruler(scale, float(values.min()), float(values.max()))


def numbered(table: Any) -> list[str]:
    """The hyperparameters that have one value a trial, and not the same in all."""
    return [name for name in table.names if table[name].ndim == 1 and _varies(table[name])]


def _varies(column):
    missing = _cells.missing(column)
    values = [x for x, m in zip(column.tolist(), missing) if not m]
    return len(set(values)) > 1 or (0 < np.sum(missing) < len(column))
