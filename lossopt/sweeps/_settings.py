"""Repetitions of settings, pooled."""

import dataclasses
from typing import Any

import numpy as np

from lossopt.sweeps._cells import (
    DIVERGED,
    FINISHED,
    PARENT,
    STOPPED,
    WAITING,
    at_rungs,
    rung,
    rung_of,
)


def mean(table: Any) -> Any:
    """One row for each setting; see `Table.mean`."""
    settings = table.columns.get("setting", table["id"])
    ids, first, which = np.unique(settings, return_index=True, return_inverse=True)
    order = np.argsort(first)
    groups = [np.flatnonzero(which == setting) for setting in order]
    first = first[order]
    ran = table["status"] != WAITING
    names = [name for name in table.names if _shared(table[name], groups)]
    columns = {"id": ids[order]} | {name: table[name][first] for name in names}
    for score in table.scores:
        values = np.asarray(table[score], float)
        pooled = [_mean(values[rows[ran[rows]]]) for rows in groups]
        columns[score], columns[f"{score}/error"] = np.array(pooled, float).reshape(-1, 2).T
    for name in at_rungs(table):
        columns[name] = np.array([np.mean(np.asarray(table[name][r], float)) for r in groups])
    if "steps" in table.columns and "steps" not in table.names:
        columns["steps"] = np.array([np.min(table["steps"][rows]) for rows in groups])
    columns["repeats"] = np.array([np.sum(ran[rows]) for rows in groups], int)
    columns["status"] = np.array([_status(table["status"][rows]) for rows in groups], object)
    columns["seconds"] = np.array([_sum(table["seconds"][rows[ran[rows]]]) for rows in groups])
    scales = {name: table.scales[name] for name in names}
    pooled = dataclasses.replace(table, columns=columns, names=tuple(names), scales=scales)
    if table.state_id is None:
        return pooled
    found = [s for s in ids if _first(table[settings == s]) == table.state_id]
    return dataclasses.replace(pooled, state_id=int(found[0]) if found else -1)


def at(table: Any, steps: int) -> Any:
    """The trials that reached a rung; see `Table.at`."""
    rungs = sorted(set(at_rungs(table).values()))
    if steps not in rungs:
        known = ", ".join(map(str, rungs)) or "none"
        raise ValueError(f"Expected the steps of a rung, got {steps!r}. There are {known}.")
    steps = rungs[rungs.index(steps)]  # 15.0 is 15
    there = table[table["steps"] >= steps]
    of = *table.scores, *table.names, PARENT
    last = "status", "steps", *(f"{score}/error" for score in table.scores)
    gone = lambda name: rung_of(name, of) is not None or name in last
    columns = {name: x for name, x in there.columns.items() if not gone(name)}
    used = [name for name in table.names if rung(name, steps) in table.columns]
    columns |= {name: there[rung(name, steps)] for name in (*table.scores, *used)}
    return dataclasses.replace(there, columns=columns, state=None, state_id=-1, work=None)


def endings(table: Any) -> str:
    """How the rows of a table without a best one ended, and what to do."""
    count = lambda status: int(np.sum(table["status"] == status))
    stopped = f"{n} that were stopped at a rung, " if (n := count(STOPPED)) else ""
    told = f"{stopped}{count(DIVERGED)} that diverged and {count(WAITING)} that wait."
    if at_rungs(table):
        return f"{told} Let the sweep go on, or take the table of a rung, at()."
    return f"{told} Let the sweep go on, or widen its spaces to where runs stay finite."


def best_id(table: Any) -> int:
    """The id of the best row; of repeated settings, of the best repetition of the best one."""
    best = table.best["id"]
    if not table.repeated:
        return best
    return _first(table[table["setting"] == best])


def _first(table):
    """The id of the best row."""
    return int(table["id"][table.rank()[0]])


def _mean(values):
    """The mean and its standard error."""
    count = len(values)
    with np.errstate(invalid="ignore"):
        error = np.std(values, ddof=1) / np.sqrt(count) if count > 1 else np.nan
        return (np.mean(values) if count else np.nan), error


def _sum(seconds):
    return np.sum(seconds) if len(seconds) else np.nan


def _status(statuses):
    """One that diverged decides, then one that waits."""
    return next((s for s in (DIVERGED, WAITING, STOPPED) if s in statuses), FINISHED)


def _shared(column, groups):
    """Whether all repetitions of each setting have one value."""
    return all(all(_same(column[row], column[rows[0]]) for row in rows[1:]) for rows in groups)


def _same(a, b):
    return a is b or bool(np.all((a == b) | ((a != a) & (b != b))))
