"""Columns of a table: what they may hold, and how they are told."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SPAN = 100  # from the lowest to the highest value, from which on a scale is logarithmic


def check(table: Any, fixed: Iterable[str]) -> None:
    """Raises where the columns are not those of a table."""
    columns, names, scores = table.columns, table.names, table.scores
    for which, taken in (("hyperparameter", names), ("score", scores)):
        if clash := [name for name in taken if name in fixed]:
            raise ValueError(
                f"Expected another name than {clash[0]!r} of a {which}: the table has a column of "
                "its own of this name. Rename it."
            )
    if clash := [name for name in scores if name in names]:
        raise ValueError(
            f"Expected scores and hyperparameters of different names, got {clash[0]!r} as both. "
            "Rename one of them."
        )
    wanted = ["id", *names, *scores, "status", "seconds"]
    if missing := [name for name in wanted if name not in columns]:
        raise ValueError(f"Expected columns {', '.join(wanted)}, and {missing[0]!r} is missing.")
    if table.score not in scores:
        raise ValueError(
            f"Expected score as one of {', '.join(map(repr, scores))}, got {table.score!r}."
        )
    sizes = {name: np.shape(x)[:1] for name, x in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Expected columns of one length, got {sizes}.")


def scale(column: np.ndarray) -> str:
    """Whether numbers stand on a logarithmic scale, on a linear one, or are options."""
    if column.dtype == object or column.ndim > 1:
        return "options"
    values = np.unique(np.asarray(column, float))
    values = values[np.isfinite(values)]
    if values.size < 2 or values[0] <= 0:
        return "linear"
    ratios = values[1:] / values[:-1]
    geometric = values.size > 2 and np.ptp(ratios) < 1e-3 * ratios[0]
    return "log" if geometric or values[-1] >= SPAN * values[0] else "linear"


def plain(x: Any) -> Any:
    """A Python number of the fewest digits that round to it; all else as it is."""
    if not isinstance(x, np.generic):
        return x
    if isinstance(x, np.floating):
        return float(str(x))  # 0.1 in float32 is 0.1
    return x.item()


def option(x: Any) -> Any:
    """An option in a word: a function or a class by its name."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    return getattr(x, "__name__", None) or str(x)


def flat(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns as Python numbers and words, without those that have axes of their own."""
    kept = {name: [option(plain(x)) for x in c] for name, c in columns.items() if c.ndim == 1}
    return {name: _objects(values) for name, values in kept.items()}


def missing(column: np.ndarray) -> np.ndarray:
    """Where a trial has no such name, bool `[rows]`; an array of several axes is always there."""
    if column.dtype == object:
        return np.array([x is None or (isinstance(x, float) and x != x) for x in column], bool)
    if column.ndim > 1 or not np.issubdtype(column.dtype, np.floating):
        return np.zeros(len(column), bool)
    return np.isnan(column)


def _objects(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column
