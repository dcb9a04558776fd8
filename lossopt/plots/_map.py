"""Scores over two hyperparameters."""

from typing import TYPE_CHECKING

import numpy as np

from lossopt.plots import _axes, _ticks
from lossopt.sweeps import _cells
from lossopt.sweeps._rulers import numbered
from lossopt.sweeps._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL = 0.5  # of all pairs of values: from there on they are cells
TICKS = 10
COLUMNS = 10  # of a map, in whose cells scores are written


def score_map(table: Table, across: str, up: str, axis: "Axes") -> None:
    """Draws scores over two hyperparameters, as cells of a grid or as dots.

    Args:
      table: with the best row first, and without rows that wait.
      across: the hyperparameter on the horizontal axis.
      up: that on the vertical axis.
      axis: where to draw.
    """
    table = table[~_cells.missing(table[across]) & ~_cells.missing(table[up])]
    if not len(table):
        raise ValueError(f"Expected a trial that has both {across} and {up}, and none has.")
    finished = _cells.scored(table["status"])
    x, y = _ticks.ruler_of(table, across), _ticks.ruler_of(table, up)
    places = np.column_stack([x.at(table[across]), y.at(table[up])]).round(6)
    first = np.sort(np.unique(places, axis=0, return_index=True)[1])  # the best at each place
    table, places, finished = table[first], places[first], finished[first]
    values = np.where(finished, np.asarray(table[table.score], float), np.nan)
    lines = [np.unique(column) for column in places.T]
    grid = len(places) >= FULL * len(lines[0]) * len(lines[1])
    if grid:  # cells of one size, whatever lies between the values
        places = np.stack([np.searchsorted(*pair) for pair in zip(lines, places.T)], 1).astype(
            float
        )
    scores = _ticks.of_scores(table)
    look = _look(table, scores)
    shown = np.clip(values, scores.low, scores.high)
    drawn = (_cells_of if grid else _dots_of)(axis, places, shown, look)
    if grid and len(lines[0]) <= COLUMNS:
        _written(axis, places, values, look)
    _marks(axis, table, places, finished)
    for side, name, on, at in zip((axis.xaxis, axis.yaxis), (across, up), (x, y), places.T):
        ticks = _every(on, table[name], at) if grid else _ticks.ticks(on, table[name])
        _frame(side, name, *ticks)
    if np.any(finished):
        others = [name for name in numbered(table) if name not in (across, up)]
        _bar(axis, drawn, table, scores, values, bool(others))


def _look(table, scores):
    """How a score becomes a color: dark is good."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm if scores.scale == "log" else Normalize
    colors = colormaps["viridis_r" if table.maximize else "viridis"]
    return {"norm": norm(scores.low, scores.high), "cmap": colors}


def _cells_of(axis, places, values, look):
    """A cell for each pair of values, blank where it was not tried."""
    columns, rows = places.max(axis=0).astype(int) + 1
    cells = np.full((rows, columns), np.nan)
    cells[places[:, 1].astype(int), places[:, 0].astype(int)] = values
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    line = {"edgecolors": "white", "linewidth": 0.6}
    return axis.pcolormesh(np.arange(columns), np.arange(rows), cells, **look, **line)


def _dots_of(axis, places, values, look):
    """A dot for each trial, the best on top."""
    shown = np.isfinite(values)
    x, y, values = (a[shown][::-1] for a in (*places.T, values))
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    axis.set_axisbelow(True)
    axis.grid(color="0.9", linewidth=0.6)
    return axis.scatter(x, y, c=values, **look, s=46, edgecolors="0.6", linewidths=0.5, zorder=3)


def _every(on, column, at):
    """A tick for each value of a grid, or for some of them where they are many."""
    first = np.unique(at, return_index=True)[1]
    first = first[:: -(-len(first) // TICKS)]
    word = _ticks.option if on.scale == "options" else _cells.number
    return at[first], [word(x) for x in column[first]]


def _written(axis, places, values, look):
    """The score of each cell, in the ink that is read on its color."""
    for (x, y), value in zip(places, values):
        if np.isfinite(value):
            red, green, blue, _ = look["cmap"](look["norm"](value))
            ink = "#010101" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "#fefefe"
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": ink}
            axis.annotate(_cells.number(value), (x, y), **text)


def _marks(axis, table, places, finished):
    """The best trial, and those that diverged; what they mean stands above the picture."""
    ring = {"marker": "o", "color": "none", "markeredgecolor": _axes.BEST, "linestyle": ""}
    cross = {"marker": "x", "color": _axes.GREY, "linestyle": ""}
    if finished[0]:
        axis.plot(*places[:1].T, **ring, markersize=19, markeredgewidth=2.5, zorder=5)
        told = f"best: {_cells.number(table[table.score][0])}"
        axis.plot([], [], **ring, markersize=9, markeredgewidth=2, label=told)
    if lost := int(np.sum(~finished)):
        axis.plot(*places[~finished].T, **cross, markersize=7, zorder=2, label=f"diverged: {lost}")
    _axes.above(axis, columns=3)


def _frame(side, name, places, words):
    """The name of a hyperparameter, and its values."""
    side.set_ticks(places, words)
    side.set_label_text(name)
    _axes.as_text(side.label, *side.get_ticklabels())


def _bar(axis, drawn, table, scores, values, others):
    """What colors mean."""
    beyond = {True: "min", False: "max"}[table.maximize]
    known = values[np.isfinite(values)]
    outside = np.any((known < scores.low) | (known > scores.high))
    end = {"extend": beyond if outside else "neither"}
    bar = axis.get_figure(root=True).colorbar(drawn, ax=axis, **end)
    side = "highest" if table.maximize else "lowest"
    told = f"{table.score} ({side} is best{', and shown, of the others' * others})"
    places = _ticks.nice(scores)
    bar.set_ticks(places, labels=[_cells.number(x) for x in places])
    bar.set_ticks([], minor=True)
    bar.set_label(told)
    _axes.as_text(bar.ax.yaxis.label)
    bar.outline.set_visible(False)
