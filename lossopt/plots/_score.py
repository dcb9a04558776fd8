"""The score over one hyperparameter, and the interval of its good values."""

from typing import TYPE_CHECKING

import numpy as np

from lossopt.plots import _axes, _ticks
from lossopt.sweeps import _cells
from lossopt.sweeps._rulers import Ruler, numbered
from lossopt.sweeps._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD = "#009E73"
SHADE = {"facecolor": "#009E7329", "edgecolor": GOOD, "linewidth": 0.8}
HOLLOW = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markersize": 5}


def score_over(table: Table, name: str, within: float, axis: "Axes") -> None:
    """Draws the score of each trial over one hyperparameter.

    Args:
      table: with the best row first, and without rows that wait.
      name: of the hyperparameter.
      within: what is good.
      axis: where to draw.
    """
    table = table[~_cells.missing(table[name])]
    finished = _cells.scored(table["status"])
    on, scores = _ticks.ruler_of(table, name), _ticks.of_scores(table)
    if on.scale == "options":
        values = np.array([on.options.index(x) for x in table[name]], float)
    else:
        values = np.asarray(table[name], float)
    _scales(table, name, on, scores, axis)
    if on.scale != "options":
        axis.set_xlim(*_ends(on))
    good = _interval(table, name, within, axis) if table["status"][0] == "finished" else None
    if np.any(finished):
        best = _cells.number(table[table.score][0])
        at = _ticks.option(table[name][0]) if on.scale == "options" else _cells.number(values[0])
        score, look = float(table[table.score][0]), {**_axes.STAR, "zorder": 6}
        axis.plot([values[0]], [score], **look, color=_axes.BEST, label=f"best: {best} at {at}")
    if good is not None:
        axis.axvspan(good.low, good.high, **SHADE, label=_told(good))
    alone = numbered(table) == [name]
    if far := _dots(table[finished], values[finished], scores, axis, alone):
        mark = "v" if table.maximize else "^"
        told = f"beyond the picture: {far}"
        axis.plot([], [], marker=mark, linestyle="", color=_axes.GREY, label=told)
    if stopped := int(np.sum(table["status"] == "stopped")):
        told = f"stopped at a rung: {stopped}, with the last score"
        axis.plot([], [], **HOLLOW, color=_axes.GREY, label=told)
    if lost := int(np.sum(~finished)):
        edge = {"transform": axis.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        look = {"marker": "x", "linestyle": "", "color": _axes.GREY}
        y = 0.02 if table.maximize else 0.98
        axis.plot(values[~finished], [y] * lost, **look, **edge, label=f"diverged: {lost}")
    side = "highest" if table.maximize else "lowest"
    _axes.explained(axis, name, f"{table.score} ({side} is best)")
    _axes.above(axis)


def _scales(table, name, on, scores, axis):
    """The scale of the hyperparameter below, that of scores at the left."""
    if on.scale == "options":
        axis.set_xticks(range(len(on.options)), [_ticks.option(x) for x in on.options])
        axis.set_xlim(-0.5, len(on.options) - 0.5)
        _axes.as_text(*axis.get_xticklabels())
    else:
        axis.set_xscale(on.scale)
    axis.set_yscale(scores.scale)
    low, high = scores.low, scores.high
    room = 0.06
    if scores.scale == "log" and low < high:
        step = (high / low) ** room
        axis.set_ylim(low / step, high * step)
        _axes.logarithmic_where_it_helps(axis, np.array([low, high]))
    elif low < high:
        step = (high - low) * room
        axis.set_ylim(low - step, high + step)


def _ends(on):
    """Where the scale of the hyperparameter ends, a little beyond its values."""
    if on.scale == "log":
        step = (on.high / on.low) ** 0.05 if on.high > on.low else 2.0
        return on.low / step, on.high * step
    step = 0.05 * (on.high - on.low) or 1.0
    return on.low - step, on.high + step


def _dots(table, x, scores: Ruler, axis, alone):
    """A dot for each trial, with a bar of a standard error; those beyond the scale at its end."""
    y = np.asarray(table[table.score], float)
    shown = np.clip(y, scores.low, scores.high)
    colors = _axes.ranked(len(y))
    if alone and len(set(x)) == len(x) and table.scales[table.names[0]] != "options":
        order = np.argsort(x)
        axis.plot(x[order], shown[order], color="0.7", linewidth=1, zorder=1)
    error = table.columns.get(f"{table.score}/error")
    if error is not None and np.any(np.isfinite(error)):
        bar = {"fmt": "none", "ecolor": "0.6", "elinewidth": 1.2, "capsize": 2, "zorder": 2}
        axis.errorbar(x, shown, error, **bar)
    far = y != shown
    axis.scatter(x[~far][::-1], y[~far][::-1], s=22, c=colors[~far][::-1], zorder=3)
    mark = "v" if table.maximize else "^"
    axis.scatter(x[far], shown[far], s=30, c=colors[far], marker=mark, zorder=3)
    stopped = (table["status"] == "stopped") & ~far
    if np.any(stopped):
        axis.scatter(x[stopped], shown[stopped], s=7, c="white", zorder=3)
    return int(np.sum(far))


def _interval(table, name, within, axis):
    """The interval, with a line at its limit; None for options."""
    if table.scales[name] == "options":
        return None
    good = table.interval(name, within=within)
    axis.axhline(good.limit, color=GOOD, linewidth=1, linestyle="--", zorder=1)
    return good


def _told(good):
    """The interval in a line of the legend."""
    bound = "least" if good.maximize else "most"
    low, high = _cells.number(good.low), _cells.number(good.high)
    return f"good, at {bound} {_cells.number(good.limit)}: {low} to {high}"
