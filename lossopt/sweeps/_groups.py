"""Which trials share a program: those of the same options and the same names."""

import dataclasses
from typing import Any

import numpy as np

from lossopt._typing import Int, PyTree
from lossopt.sweeps._columns import is_flat, taken
from lossopt.sweeps._trials import Trials, lacks


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Trials that differ in traced values only.

    Attributes:
      statics: pairs of a name and its option, as far as they have it.
      names: of the traced hyperparameters that they have.
      rows: where they stand among all trials.
    """

    statics: tuple[tuple[str, Any], ...]
    names: tuple[str, ...]
    rows: Int[np.ndarray, " members"]


def groups(trials: Trials) -> list[Group]:
    """The groups of all trials, in the order in which they appear."""
    options = dict(trials.options)
    traced = [name for name in trials.names if name not in options]
    codes = [np.where(lacks(trials, name), -1, trials.values[name]) for name in options]
    held = [~lacks(trials, name) for name in traced]
    marks = np.stack([*codes, *held], axis=1).astype(np.int64)
    kinds, first, which = np.unique(marks, axis=0, return_index=True, return_inverse=True)
    return [
        _group(options, traced, kinds[kind], np.flatnonzero(which.reshape(-1) == kind))
        for kind in np.argsort(first)
    ]


def row_values(trials: Trials, group: Group) -> PyTree:
    """The traced arrays of the trials of a group: a dict of those they have, or a whole tree."""
    if not is_flat(trials.values):
        return taken(trials.values, group.rows)
    return taken({name: trials.values[name] for name in group.names}, group.rows)


def _group(options, traced, marks, rows):
    codes, held = marks[: len(options)], marks[len(options) :]
    statics = ((name, options[name][code]) for name, code in zip(options, codes) if code >= 0)
    return Group(tuple(statics), tuple(name for name, has in zip(traced, held) if has), rows)
