"""A table in a few lines of text."""

from typing import Any

import numpy as np

from lossopt.sweeps import _cells

ROWS = 5
WIDTH = 96  # letters of a line


def told(table: Any) -> str:
    """How many trials, how they ended, and the best rows."""
    statuses = table["status"]
    counts = {s: int(np.sum(statuses == s)) for s in _cells.STATUSES}
    best = "highest" if table.maximize else "lowest"
    head = f"Table: {len(table)} trials, " + ", ".join(
        f"{n} {s}" for s, n in counts.items() if n or s != _cells.STOPPED
    )
    head += f"; best is the {best} {table.score}"
    if table.work is not None and table.work.nominal < table.work.full:
        head += f"\n{table.work.nominal:,} of {table.work.full:,} steps of the sweep taken, "
        head += f"{table.work.executed:,} executed"
    shown = (table.mean() if table.repeated else table).sort()[:ROWS]
    return "\n".join([head, *_lines(shown)])


def _lines(table):
    error = f"{table.score}/error"
    names = ["id", table.score, *[error] * (error in table.columns), *table.names]
    names += [name for name in table.scores if name != table.score] + ["status"]
    names = [name for name in names if table[name].ndim == 1 and not _repeats(table, name)]
    cells = [[name, *map(_cells.word, table[name])] for name in names]
    widths = [max(map(len, column)) for column in cells]
    kept = np.cumsum(np.add(widths, 2)) <= WIDTH
    kept[:2] = True
    lines = zip(*([c.rjust(w) for c in col] for col, w, k in zip(cells, widths, kept) if k))
    left = [name for name, k in zip(names, kept) if not k]
    return ["  ".join(line) for line in lines] + ([f"and {', '.join(left)}"] if left else [])


def _repeats(table, name):
    """Whether a score says what that which ranks says, or one before it."""
    scores = [table.score, *(x for x in table.scores if x != table.score)]
    before = scores[: scores.index(name)] if name in scores else []
    return any(np.array_equal(table[x], table[name], equal_nan=True) for x in before)
