"""Columns of a table: what they may hold, and how they are told."""

from collections.abc import Mapping
from typing import Any

import numpy as np

FIXED = "id", "setting", "repeats", "status", "seconds"
PARENT = "parent"  # of a population: the trial whose state another went on from
FINISHED, STOPPED, DIVERGED, WAITING = STATUSES = "finished", "stopped", "diverged", "waiting"
SPAN = 100  # from the lowest to the highest value, from which on a scale is logarithmic


def completed(
    columns: Mapping[str, np.ndarray], score: str, names: tuple[str, ...], scores: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The columns in their order, with ids, statuses and seconds; raises where they do not fit."""
    _refuse(columns, score, names, scores)
    columns = {name: np.asarray(x) for name, x in columns.items()}
    sizes = {name: x.shape[:1] for name, x in columns.items()}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        told = ", ".join(f"{name} {x.shape}" for name, x in columns.items())
        raise ValueError(f"Expected columns with one entry for each trial, got {told}.")
    finite = np.isfinite(np.asarray(columns[score], float))
    count = len(finite)
    filled = {
        "id": np.arange(count),
        "status": np.where(finite, FINISHED, DIVERGED).astype(object),
        "seconds": np.full(count, np.nan),
    } | columns
    of_scores = [name for s in scores for name in (s, f"{s}/error")]
    rungs = _at_rungs(columns, names, (*scores, *names, PARENT))
    order = ["id", "setting", *names, *of_scores, *rungs, "repeats", "steps", "status", "seconds"]
    return {name: filled[name] for name in order if name in filled}


def rung(score: str, steps: int) -> str:
    """The column of a score at a rung."""
    return f"{score}@{steps}"


def rung_of(name: str, scores: tuple[str, ...]) -> int | None:
    """The steps of the rung that a column is of, None where it is none of these at a rung."""
    score, _, steps = name.rpartition("@")
    return int(steps) if score in scores and steps.isdecimal() and name not in scores else None


def at_rungs(table: Any) -> dict[str, int]:
    """The columns of scores at rungs, and the steps of these."""
    return _at_rungs(table.columns, table.names, table.scores)


def refuse_rungs(names: tuple[str, ...], scores: tuple[str, ...]) -> None:
    """Raises where a hyperparameter or a score has the name of a column at a rung."""
    taken = *scores, *names
    for name in taken:
        others = tuple(x for x in (*taken, PARENT) if x != name)
        if rung_of(name, others) is not None:
            raise ValueError(
                f"Expected another name than {name!r}: with rungs the table has columns of such "
                "names, scores after so many steps. Rename it."
            )


def scale(column: np.ndarray) -> str:
    """Whether numbers stand on a logarithmic scale, on a linear one, or are options."""
    if column.ndim > 1 or not np.issubdtype(column.dtype, np.number):
        return "options"
    values = np.unique(np.asarray(column, float))
    values = values[np.isfinite(values)]
    if values.size < 2 or values[0] <= 0:
        return "linear"
    steps = np.diff(np.log(values))
    geometric = values.size > 2 and np.ptp(steps) < 1e-3 * steps[0]
    wide = values[-1] >= max(SPAN * values[0], 4 * np.median(values))  # those of a Linear are not
    return "log" if geometric or wide else "linear"


def plain(x: Any) -> Any:
    """A Python number of the fewest digits that round to it; all else as it is."""
    if isinstance(x, np.floating):
        return float(str(x))  # 0.1 in float32 is 0.1
    return x.item() if isinstance(x, np.generic) else x


def option(x: Any) -> Any:
    """An option in a word: a function or a class by its name."""
    if isinstance(x, bool | int | float | str):
        return x
    return getattr(x, "__name__", None) or str(x)


def number(x: float, digits: int = 3) -> str:
    """A number in few letters: 0.003, 1024, 3e-5; a hyphen for NaN."""
    if not np.isfinite(x):
        return "-" if np.isnan(x) else str(x)
    if x == int(x) and abs(x) < 1e6:
        return f"{x:.0f}"
    if 1e-3 <= abs(x) < 1e6:
        return f"{x:.{max(digits, len(str(int(abs(x)))))}g}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def word(x: Any) -> str:
    """A number or an option, short; a hyphen for what is missing."""
    x = option(plain(x))
    if isinstance(x, bool | str):
        return str(x)
    return str(x) if isinstance(x, int) else number(x, 4)


def flat(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns as Python numbers and words, without those that have axes of their own."""
    kept = {name: [option(plain(x)) for x in c] for name, c in columns.items() if c.ndim == 1}
    return {name: _objects(values) for name, values in kept.items()}


def scored(status: np.ndarray) -> np.ndarray:
    """Which trials have a score that ranks them among others, bool `[rows]`."""
    return (status == FINISHED) | (status == STOPPED)


def standing(table: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ranks the rows of a table, the best lowest; the last counts most, each float `[rows]`.

    How rows ended; the steps of those that did not come to their end; the scores.
    """
    values, status = np.asarray(table[table.score], float), table["status"]
    level = np.select([status == FINISHED, status == STOPPED, status == WAITING], [0, 1, 3], 2)
    finite = np.isfinite(values)
    level[(level == 0) & ~finite] = 2
    known = "steps" in table.columns and "steps" not in (*table.names, *table.scores)
    short = (level == 1) | (level == 3)
    left = -np.asarray(table["steps"], float) * short if known else np.zeros(len(values))
    ranked = -values if table.maximize else values
    return np.where(finite & (level != 2), ranked, np.inf), left, level.astype(float)


def tried(table: Any, name: str) -> np.ndarray:
    """All values of a hyperparameter that trials used, in a population one after the other."""
    past = _at_rungs(table.columns, table.names, (name,))
    return np.concatenate([table[name], *(table[column] for column in past)])


def missing(column: np.ndarray) -> np.ndarray:
    """Where a trial has no such name, bool `[rows]`."""
    if column.dtype == object:
        return np.array([isinstance(x, float) and x != x for x in column], bool)
    if column.ndim > 1 or not np.issubdtype(column.dtype, np.floating):
        return np.zeros(len(column), bool)
    return np.isnan(column)


def _objects(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _at_rungs(columns, names, of):
    """The columns that are of some names at rungs, none of them a hyperparameter; their steps."""
    found = {column: rung_of(column, of) for column in columns if column not in names}
    return {column: steps for column, steps in found.items() if steps is not None}


def _refuse(columns, score, names, scores):
    for which, taken in (("hyperparameter", names), ("score", scores)):
        if clash := [name for name in taken if name in FIXED]:
            raise ValueError(
                f"Expected another name than {clash[0]!r} of a {which}: the table has a column of "
                "its own of this name. Rename it."
            )
    if clash := [name for name in scores if name in names]:
        raise ValueError(
            f"Expected scores and hyperparameters of different names, got {clash[0]!r} as both. "
            "Rename one of them."
        )
    if clash := [s for s in scores if f"{s}/error" in (*names, *scores)]:
        raise ValueError(
            f"Expected no column {clash[0] + '/error'!r} beside the score {clash[0]!r}: the mean "
            "of repetitions has its standard error there. Rename one of them."
        )
    if score not in scores:
        raise ValueError(
            f"Expected score as one of {', '.join(map(repr, scores))}, got {score!r}. Choose one."
        )
    if lost := [name for name in (*names, *scores) if name not in columns]:
        raise ValueError(f"Expected a column {lost[0]!r}; there are {', '.join(columns)}.")
    rungs = _at_rungs(columns, names, (*scores, *names, PARENT))
    if rungs and "steps" in (*names, *scores):
        raise ValueError(
            "Expected another name than 'steps' of a hyperparameter or a score: with rungs the "
            "table has a column of this name, the steps that a trial took. Rename it."
        )
    known = {*FIXED, "steps", *rungs, *names, *scores, *(f"{name}/error" for name in scores)}
    if more := [name for name in columns if name not in known]:
        raise ValueError(
            f"Expected the column {more[0]!r} among names or scores. Name it there, or leave "
            "it out."
        )
