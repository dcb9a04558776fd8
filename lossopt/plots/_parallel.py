"""Parallel coordinates: a line for each trial through all of its hyperparameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lossopt.plots import _axes, _ticks
from lossopt.sweeps import _cells
from lossopt.sweeps._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABSENT = -0.14  # where lines pass that have no such hyperparameter
ROOM = 0.07  # of a slot, in which lines through one option lie beside each other
INCH = 0.085  # of a letter
NOTE = {"fontsize": 8, "zorder": 5}


def parallel(table: Table, names: Sequence[str], axis: "Axes") -> None:
    """Draws the trials, the best last; the last axis is the score.

    Args:
      table: with the best row first, and without rows that wait.
      names: of the hyperparameters.
      axis: where to draw.
    """
    from matplotlib.collections import LineCollection

    finished = _cells.scored(table["status"])
    places = _places(table, names, finished)
    x = np.arange(len(names) + 1)
    lines = [np.column_stack([x, y]) for y in places]
    good = [line for line, f in zip(lines, finished) if f][::-1]
    lost = [line for line, f in zip(lines, finished) if not f]
    colors = _axes.ranked(len(good))[::-1]
    if lost:
        look = {"colors": _axes.LOST, "linewidths": 0.9, "linestyles": (0, (3, 2)), "zorder": 1}
        axis.add_collection(LineCollection(lost, **look, label="diverged"))
        axis.plot([x[-1]] * len(lost), [y[-1, 1] for y in lost], "x", color=_axes.LOST, zorder=4)
    axis.add_collection(LineCollection(good, colors=colors, linewidths=1.1, zorder=2))
    if good:
        look = {"linewidth": 3, "marker": "o", "markersize": 6, "zorder": 4}
        axis.plot(x, good[-1][:, 1], color=_axes.BEST, markeredgecolor="white", **look)
    _rulers(table, names, axis, places)
    _words(table, names, axis, places)
    _legend(table, axis, len(good), len(lost))


def _places(table, names, finished):
    """Where each trial passes each axis, `[rows, names + 1]`."""
    rank = np.linspace(0.5, -0.5, len(table)) * ROOM
    columns = []
    for name in names:
        on = _ticks.ruler_of(table, name)
        places = on.at(table[name]) + (rank if on.scale == "options" else 0)
        columns.append(np.where(np.isnan(places), ABSENT, places))
    on, values = _ticks.of_scores(table), np.asarray(table[table.score], float)
    places = np.clip(on.at(np.where(finished, values, on.low)), 0, 1)
    return np.column_stack([*columns, np.where(finished, places, _lost_at(table))])


def _lost_at(table):
    """Beyond the worst score."""
    return ABSENT if table.maximize else 1 - ABSENT


def _rulers(table, names, axis, places):
    """The vertical lines, and their ticks in the units of each."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    rulers = [(_ticks.ruler_of(table, name), table[name]) for name in names]
    for at, (on, values) in enumerate([*rulers, (_ticks.of_scores(table), None)]):
        axis.plot([at, at], [0, 1], color="black", linewidth=0.9, zorder=3)
        last = at == len(names)
        marks = list(zip(*_ticks.ticks(on, values)))
        if last and np.any(table["status"] == "diverged"):
            marks.append((_lost_at(table), "diverged"))
        if not last and np.any(places[:, at] == ABSENT):
            marks.append((ABSENT, "not set"))
        for y, word in marks:
            side = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            _axes.as_text(axis.annotate(word, (at, y), **side, **NOTE, bbox=box))
            axis.plot([at], [y], marker="_", markersize=5, color="black", zorder=3)


def _words(table, names, axis, places):
    """Names below the vertical lines."""
    best = "highest" if table.maximize else "lowest"
    labels = [*names, f"{table.score}\n({best} is best)"]
    axis.set_xticks(range(len(labels)), labels)
    inches = axis.get_figure(root=True).get_figwidth() / (len(labels) + 0.5)
    turned = max(map(len, names)) * INCH > inches
    _axes.as_text(*axis.get_xticklabels())
    if turned:
        for label in axis.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    low, high = np.min(places), np.max(places)
    axis.set(xlim=(-0.15, len(names) + 0.6), ylim=(min(low, 0) - 0.06, max(high, 1) + 0.06))


def _legend(table, axis, finished, lost):
    """What colors and dashes mean, above the lines."""
    from matplotlib.lines import Line2D

    keys = []
    if finished:
        told = f"best: {table.score} {_cells.number(table[table.score][0])}"
        keys.append(Line2D([], [], color=_axes.BEST, linewidth=3, marker="o", label=told))
    if finished > 2:
        first, last = _axes.ranked(finished)[[0, -1]]
        keys += [Line2D([], [], color=first, label="next best")]
        keys += [Line2D([], [], color=last, label=f"worst of {finished}")]
    if lost:
        told = f"diverged: {lost}"
        keys.append(Line2D([], [], color=_axes.LOST, linestyle="--", marker="x", label=told))
    _axes.above(axis, columns=4, handles=keys)
