"""What the page of a sweep says: the best trials, what was good, and what went wrong."""

import importlib.util
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lossopt.plots import _page, _ticks
from lossopt.plots._drawn import PANELS, picture
from lossopt.plots._origin import command, environment
from lossopt.plots._page import Section
from lossopt.plots._sweep import sweep
from lossopt.sweeps import _cells
from lossopt.sweeps._cells import DIVERGED, FINISHED, WAITING
from lossopt.sweeps._importance import LEAST
from lossopt.sweeps._interval import limit_of
from lossopt.sweeps._rulers import numbered
from lossopt.sweeps._table import Table

ROWS = 10
WITHIN = 0.1
WIDE = 9.8, 4.2  # inches
SIZE = 4.7, 3.5  # with words above


def head(table: Table) -> str:
    """How many trials there were, how they ended, and the best score."""
    pooled = _pooled(table)
    counts = {status: int(np.sum(table["status"] == status)) for status in _cells.STATUSES}
    told = f"{len(table):,} trials"
    told += f" of {len(pooled):,} settings" if table.repeated else ""
    told += ": " + ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    finished = bool(np.any(pooled["status"] == FINISHED))
    lines = _page.paragraph(f"{told}.", "lead" if finished else "lead alarm")
    facts = []
    if finished:
        best = pooled.best
        facts.append((f"best {table.score}", f"{best[table.score]:.6g}"))
        if table.repeated:
            facts.append(("its standard error", f"{best[f'{table.score}/error']:.2g}"))
        named = [name for name in table.names if name in best and np.ndim(best[name]) == 0]
        facts += [(name, _cells.word(best[name])) for name in named[:6]]
    seconds = np.asarray(table["seconds"], float)
    if np.any(np.isfinite(seconds)):
        facts.append(("seconds, of all trials", f"{np.nansum(seconds):,.1f}"))
    return lines + _page.facts(facts)


def sections(table: Table, shared: Mapping[str, Any]) -> list[Section]:
    """The parts of the page, in the order in which they are read.

    Args:
      table: of a sweep.
      shared: hyperparameters of all trials.
    """
    pooled = _pooled(table)
    ran = pooled[pooled["status"] != WAITING]
    names = numbered(ran) if len(ran) else []
    return [
        Section("All trials", _all(ran, names), wide=True),
        Section("Hyperparameters", _hyperparameters(ran, names), wide=True),
        Section("Over each hyperparameter", _each(ran, names), wide=True),
        Section("Best trials", _best(pooled), wide=True),
        Section("Diverged and waiting", _lost(pooled), wide=True),
        Section("Shared by all trials", _page.table(shared.items()) if shared else ""),
        Section("To run it again", command() + _page.paragraph(_KEYS)),
        Section("Environment", environment()),
    ]


_KEYS = (
    "The key of a trial is jax.random.fold_in(key, id). This page does not know key and trials of "
    "the sweep."
)


def _pooled(table):
    """The best setting first."""
    return (table.mean() if table.repeated else table).sort()


def _drawable():
    return importlib.util.find_spec("matplotlib") is not None


def _all(ran, names):
    """Parallel coordinates; a sentence without matplotlib."""
    if not names:
        return ""
    if not _drawable():
        return _page.paragraph("Pictures need matplotlib: pip install 'lossopt[plots]'.")
    if len(names) == 1:
        return ""
    draw = partial(sweep, ran, names, kind="parallel")
    return _page.wide_figure(picture("all trials", draw, "a-", WIDE))


def _each(ran, names):
    """The score over each hyperparameter, and over both where there are two."""
    if not names or not _drawable():
        return ""
    draws = [(name, partial(sweep, ran, name, within=WITHIN)) for name in names]
    if len(names) == 2:
        draws.append((f"{names[0]} and {names[1]}", partial(sweep, ran, names, kind="map")))
    pictures = [
        (name, picture(f"{ran.score} over {name}", draw, f"s{number}-", SIZE))
        for number, (name, draw) in enumerate(draws[:PANELS])
    ]
    left = ", ".join(name for name, _ in draws[PANELS:])
    return _page.figures(pictures) + (_page.paragraph(f"Not drawn: {left}.") if left else "")


def _hyperparameters(ran, names):
    """Of each its best value, its good ones, those that were tried, and how much it matters."""
    if not names or ran["status"][0] != FINISHED:
        return ""
    best, bound = ran.best, "least" if ran.maximize else "most"
    limit = _cells.word(limit_of(ran, WITHIN))
    caption = (
        f"Good is a {ran.score} of at {bound} {limit}, within {WITHIN:.0%} of the best; where "
        "not all have a hyperparameter, of those that do. From the "
        "lowest such value to the highest, and how many of the trials between them are good."
    )
    weights, why = _importance(ran)
    if weights:
        caption += (
            " Importance: what shuffling this hyperparameter adds to the error of a random forest "
            "that predicts ranks, as a share of their variance, and its standard deviation over "
            "shuffles. It is about that model."
        )
        names = list(weights)
    else:
        caption += f" {why}"
    rows = [
        (
            name,
            _cells.word(best.get(name, np.nan)),
            _good(ran, name),
            _tried(ran, name),
            *(
                [f"{round(weights[name][0], 2) + 0:.2f} ± {weights[name][1]:.2f}"]
                if weights
                else []
            ),
        )
        for name in names
    ]
    titles = ["", "best", "good", "tried", *(["importance"] if weights else [])]
    return _page.table(rows, titles, caption=caption, grid=True)


def _importance(ran):
    """The weights, or why there are none."""
    known = np.sum(np.isfinite(np.asarray(ran[ran.score], float)))
    if known < LEAST:
        return {}, f"Importance needs {LEAST} trials that finished."
    if importlib.util.find_spec("sklearn") is None:
        return {}, "Importance needs scikit-learn: pip install 'lossopt[sweeps]'."
    return ran.importance(), ""


def _good(ran, name):
    """The interval of good values, or the good options."""
    scores, limit = np.asarray(ran[ran.score], float), limit_of(ran, WITHIN)
    if ran.scales[name] == "options":
        near = (scores >= limit if ran.maximize else scores <= limit) & ~_cells.missing(ran[name])
        near &= ran["status"] == FINISHED
        return ", ".join(dict.fromkeys(_ticks.option(x) for x in ran[name][near])) or "none"
    try:
        good = ran.interval(name, within=WITHIN)
    except ValueError:  # those that have it diverged
        return "none"
    told = f"{_cells.word(good.low)} to {_cells.word(good.high)}"
    return f"{told}, {good.good} of {good.inside}"


def _tried(ran, name):
    on = _ticks.ruler_of(ran, name)
    if on.scale == "options":
        return ", ".join(map(_ticks.option, on.options))
    values = _cells.tried(ran, name)
    return f"{_cells.word(np.nanmin(values))} to {_cells.word(np.nanmax(values))}"


def _best(pooled):
    """The best rows."""
    shown = pooled[_cells.scored(pooled["status"])]
    stopped = " or were stopped at a rung" * bool(np.any(shown["status"] != FINISHED))
    return _rows(shown, f"that finished{stopped}, the best first") if len(shown) else ""


def _lost(pooled):
    """What diverged, and what has not run."""
    lost, waiting = (pooled[pooled["status"] == status] for status in (DIVERGED, WAITING))
    text = _rows(lost, "that diverged") if len(lost) else ""
    if len(waiting):
        ids = ", ".join(map(str, waiting["id"][:ROWS])) + (", …" if len(waiting) > ROWS else "")
        text += _page.paragraph(f"{len(waiting):,} have not run: id {ids}.")
    return text


def _rows(table, what):
    """A line for each of the first rows."""
    shown, error = table[:ROWS], f"{table.score}/error"
    extra = [error, "repeats"] if error in table.columns else []
    names = ["id", table.score, *extra, *table.names]
    names += [name for name in table.scores if name != table.score]
    names += ["steps"] * ("steps" in table.columns and "steps" not in names)
    names = [name for name in names if table[name].ndim == 1]
    cells = list(zip(*(map(_cells.word, shown[name]) for name in names)))
    if len(table) <= ROWS:
        caption = f"All {len(table)} {what}."
    else:
        caption = f"The first {ROWS} of {len(table):,} {what}."
    return _page.table(cells, names, caption=caption, grid=True)
