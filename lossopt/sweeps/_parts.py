"""The groups of the trials of a sweep, as they appear."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _keys
from lossopt._typing import Array, Key
from lossopt.sweeps._calls import Calls
from lossopt.sweeps._groups import Group, groups, row_values
from lossopt.sweeps._host import Part
from lossopt.sweeps._identity import label, program
from lossopt.sweeps._task import Task
from lossopt.sweeps._trial import Trial
from lossopt.sweeps._trials import Trials


class Parts:
    """The groups of a sweep so far.

    Args:
      run: of the sweep.
      key: of the sweep.

    Attributes:
      dtypes: of all scores, by name.
      new: the groups that the last call of `of` found, and no call before.
    """

    def __init__(self, run: Callable | Task, key: Key[Array, ""]):
        self._run, self._key = run, key
        self._known: list[tuple[Group, Part]] = []
        self.dtypes: dict[str, Any] = {}
        self.new: list[Part] = []

    def of(self, trials: Trials, start: int = 0) -> list[Part]:
        """The groups of the trials from a row on, each with the programs that it had before."""
        self.new = []
        found = [
            dataclasses.replace(group, rows=group.rows + start) for group in groups(trials[start:])
        ]
        return [self._part(trials, group) for group in found]

    def _part(self, trials, group):
        values = jax.tree.map(_host, row_values(trials, group))
        ids = np.asarray(trials.id)[group.rows]
        for known, part in self._known:
            if _same(known, group):
                calls = part.calls.others(values, ids)
                return dataclasses.replace(part, rows=group.rows, values=values, calls=calls)
        part = self._made(group, values, ids)
        self._known.append((group, part))
        self.new.append(part)
        return part

    def _made(self, group, values, ids):
        trial, known = Trial(self._run, group.statics, self._key), self._known
        shapes, scores = trial.shapes(jax.tree.map(lambda x: x[0], values))
        name = label(group.statics, group.names)
        if any(name == part.label for _, part in known):
            name += f" ({len(known)})"
        if known and scores.keys() != self.dtypes.keys():
            raise ValueError(
                f"Expected all trials to return the same scores, got {', '.join(self.dtypes)} of "
                f"{known[0][1].label} and {', '.join(scores)} of {name}."
            )
        self.dtypes |= {
            name: jnp.promote_types(x.dtype, self.dtypes.get(name, x.dtype))
            for name, x in scores.items()
        }
        return Part(trial, group.rows, values, shapes, name, Calls(trial, values, ids))


def programs(parts: list[Part]) -> dict[str, str]:
    """The programs of some groups, as facts."""
    return {part.label: program(part.trial, part.first) for part in parts}


def checked(task: Task, parts: list[Part], trials: Trials, key: Key[Array, ""]) -> None:
    """Lets the task look at the first trial of each group, outside of any trace."""
    if task.check is None:
        return
    for part in parts:
        values = part.first | dict(part.trial.statics) if part.trial.statics else part.first
        task.check(values, jax.random.fold_in(key, np.asarray(trials.id)[part.rows[0]]))


def _same(one, other):
    """Whether groups have the same names, and the very options."""
    if one.names != other.names or len(one.statics) != len(other.statics):
        return False
    pairs = zip(one.statics, other.statics)
    return all(a == b and x is y for (a, x), (b, y) in pairs)


def _host(x):
    return x if _keys.is_key(x) else np.asarray(x)
