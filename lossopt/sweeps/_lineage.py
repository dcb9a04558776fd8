"""Columns of a population: what its trials used, and from whom they went on."""

from collections.abc import Mapping

import numpy as np

from lossopt.sweeps._cells import PARENT, rung

Lineage = Mapping[str, np.ndarray]


def used(lineage: Lineage, levels: tuple[int, ...], steps: np.ndarray) -> dict[str, np.ndarray]:
    """The hyperparameters that change, as they were used up to the last score.

    Args:
      lineage: values up to each level by name, `[levels, trials]`, and parents.
      levels: steps at the ends of the generations.
      steps: that each trial has taken.
    """
    last, each = np.searchsorted(levels, steps), np.arange(len(steps))
    return {name: x[last, each] for name, x in lineage.items() if name != PARENT}


def passed(lineage: Lineage, levels: tuple[int, ...], steps: np.ndarray) -> dict[str, np.ndarray]:
    """A column of each name and level; where a trial has not come so far it is NaN, and no id."""
    found = {}
    for name, values in lineage.items():
        nothing = np.asarray(-1 if name == PARENT else np.nan, values.dtype)
        for level, x in zip(levels, values):
            found[rung(name, level)] = np.where(steps >= level, x, nothing)
    return found
