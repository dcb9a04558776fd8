"""Scales of hyperparameters and scores: their ends, their ticks, and how numbers are written."""

import numpy as np

from lossopt.plots import _axes
from lossopt.sweeps import _cells
from lossopt.sweeps._rulers import Ruler, ruler
from lossopt.sweeps._table import Table

FEW = 6  # different values, each of which has a tick
TICKS = 5
FAR = 2  # times as far from the best score as the upper quartile: there a scale of scores ends
LETTERS = 16  # of an option


def option(x: object) -> str:
    """An option in few letters."""
    text = str(_cells.option(_cells.plain(x)))
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def ruler_of(table: Table, name: str) -> Ruler:
    """The ruler of a hyperparameter; its ends are those of all trials."""
    return ruler(table[name], table.scales[name])


def of_scores(table: Table) -> Ruler:
    """The ruler of the score that ranks, which leaves out what is far worse than the rest."""
    values = np.asarray(table[table.score], float)
    values = values[np.isfinite(values)]
    if not values.size:
        return Ruler("linear", 0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    log = not table.maximize and low > 0 and high > _axes.SPAN * low
    warp, back = (np.log10, lambda x: 10**x) if log else (np.asarray, float)
    if table.maximize:
        low = max(low, high - FAR * (high - float(np.quantile(values, 0.25))) or low)
    else:
        best, most = float(warp(low)), float(np.quantile(warp(values), 0.75))
        high = min(high, float(back(best + FAR * (most - best))) if most > best else high)
    return Ruler("log" if log else "linear", low, high)


def ticks(on: Ruler, values: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """Positions between 0 and 1, and labels; where there are few values, one for each."""
    if on.scale == "options":
        return on.at(np.array([*on.options, None], object)[:-1]), [option(x) for x in on.options]
    places = nice(on, values)
    return on.at(places), [_cells.number(x) for x in places]


def nice(on: Ruler, values: np.ndarray | None = None) -> np.ndarray:
    """The values at which ticks stand."""
    if on.low == on.high:
        return np.array([on.low])
    few = np.unique(np.asarray([] if values is None else values, float))
    few = few[np.isfinite(few)]
    if 0 < len(few) <= FEW:
        return few
    if on.scale == "log":
        low, high = np.log10([on.low, on.high])
        steps = [1, 2, 5] if high - low < 1.5 else [1]
        decades = np.arange(np.floor(low), np.ceil(high) + 1)
        places = np.concatenate([np.multiply(steps, 10.0**x) for x in decades])
        places = places[(places >= on.low * 0.999) & (places <= on.high * 1.001)]
        return places[:: max(1, -(-len(places) // (TICKS + 1)))]
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(TICKS - 1, steps=[1, 2, 2.5, 5, 10])
    places = np.asarray(locator.tick_values(on.low, on.high))
    room = 1e-9 * (on.high - on.low)
    return places[(places >= on.low - room) & (places <= on.high + room)]
