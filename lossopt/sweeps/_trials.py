"""`Trials`: the values of all hyperparameters, one row for each trial, and who is who."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._keys import is_key
from lossopt._typing import ArrayLike, Int, PyTree
from lossopt.sweeps._columns import columns, is_flat, mapped, numbers, taken
from lossopt.sweeps._spaces import Dimension


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "id", "setting", "present"],
    meta_fields=["options", "scales"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """Hyperparameters, one row for each trial, with an id that a row keeps wherever it goes.

    By a name it gives a column; by a slice, an index array or a mask the trials of these rows with
    their ids; by a number one row as a dict. `grid`, `random` and `sobol` make it of a space.

    Attributes:
      values: dict from names to arrays `[trials, ...]`, or any tree of such. Of what is `Static`
        there is the place among its options, -1 where a trial lacks it.
      id: int32 `[trials]`, none twice. A trial's key is that of the sweep, folded with it.
      setting: int32 `[trials]`, which repetitions share. None is the ids.
      present: dict from the names that some trials lack to booleans `[trials]`.
      options: pairs of a name and its options, of what is `Static`.
      scales: pairs of a name and `"log"` or `"linear"`, of what was drawn from a range.

    Examples:
      >>> trials = lo.sweeps.grid({"rate": lo.sweeps.Linear(0, 1)}, 5)
      >>> print(trials["rate"], trials[3:]["rate"], trials[3:].id, trials[2])
      [0.   0.25 0.5  0.75 1.  ] [0.75 1.  ] [3 4] {'rate': 0.5}
    """

    values: PyTree
    id: Int[ArrayLike, " trials"]
    setting: Any = None
    present: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    scales: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if self.setting is None:
            object.__setattr__(self, "setting", self.id)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns: of a dict of arrays its own, else the paths of the leaves."""
        return tuple(columns(self.values))

    def __len__(self) -> int:
        return jnp.shape(self.id)[0]

    def __contains__(self, name: object) -> bool:
        return name in columns(self.values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return _column(self, index)
        if not isinstance(index, slice):
            index = np.asarray(index, int if np.size(index) == 0 else None)
        rows = np.arange(len(self))[index]
        if np.ndim(rows) > 1:
            raise IndexError(f"Expected rows along one axis, got shape {rows.shape}. Flatten them.")
        return _at(self, rows) if np.ndim(rows) else _row(self, rows)

    def repeat(self, count: int, /, **values: ArrayLike) -> "Trials":
        """The same settings under several keys each, repetitions of a setting side by side.

        The first repetition keeps the id; with a larger count the others keep theirs, too.

        Args:
          count: how many of each, at least 1.
          **values: further hyperparameters `[count, ...]`, one row for each repetition, such as
            masks from `folds`.

        Returns:
          `count` times as many trials, with ids of their own.

        Raises:
          ValueError: if a name is taken, a leading axis is not `count`, or an id is beyond int32.
          TypeError: if `count` is no whole number, or there are names but `values` is no dict.

        Examples:
          >>> trials = lo.sweeps.grid({"rate": lo.sweeps.Linear(0, 1)}, 2).repeat(3)
          >>> print(trials["rate"], trials.id, trials.setting)
          [0. 0. 0. 1. 1. 1.] [0 2 4 1 3 5] [0 0 0 1 1 1]
        """
        count, trials = _checks.count("count", count, 1), as_trials(self)
        rows, turns = np.divmod(np.arange(len(trials) * count), count)
        more = {name: _added(trials, name, x, count)[turns] for name, x in values.items()}
        trials, step = _at(trials, rows), int(np.max(trials.id)) + 1
        joined = {**trials.values, **more} if more else trials.values
        return dataclasses.replace(trials, values=joined, id=as_ids(trials.id, turns * step))


def as_trials(trials: PyTree) -> Trials:
    """Trials on the host, or those of a tree of arrays with ids 0, 1, ...; both are checked."""
    values = trials.values if isinstance(trials, Trials) else trials
    if not jax.tree.leaves(values):
        raise ValueError("Expected trials with at least one hyperparameter, got none. Add one.")
    if space := [name for name, x in columns(values).items() if isinstance(x, Dimension)]:
        raise TypeError(
            f"Expected trials, got a space, with {columns(values)[space[0]]!r} at {space[0]!r}. "
            "Draw trials from it, as by lossopt.sweeps.random(space, 64, key)."
        )
    values = mapped(numbers, values)
    lengths = {name: _length(x) for name, x in columns(values).items()}
    if not isinstance(trials, Trials):
        trials = Trials(values, np.arange(max(lengths.values())))
    else:
        lengths |= {"the ids": _length(trials.id), "the settings": _length(trials.setting)}
        lengths |= {f"{name} present": _length(x) for name, x in trials.present.items()}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 0:
        raise ValueError(
            f"Expected hyperparameters of one leading axis, the trials, got lengths {lengths} (-1: "
            "no axis). Make an array of a list; what is the same for all trials belongs into the "
            "function that runs them."
        )
    if not len(trials):
        raise ValueError("Expected at least one trial, got none.")
    ids, counts = np.unique(as_ids(trials.id), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"Expected each id once, got {ids[counts > 1][:3]} more often. Take each trial once; "
            "trials.repeat(count) gives the same settings under several keys."
        )
    present = {name: np.asarray(x, bool) for name, x in trials.present.items()}
    host = {"id": as_ids(trials.id), "setting": as_ids(trials.setting)}
    return _chosen(dataclasses.replace(trials, values=values, present=present, **host))


def as_ids(ids: ArrayLike, shift: ArrayLike = 0) -> Int[np.ndarray, " trials"]:
    """Ids and how far they move, within int32."""
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"Expected integer ids, got {ids.dtype}. Number the trials from 0.")
    moved = ids.astype(np.int64) + shift
    for end in (moved.min(initial=0), moved.max(initial=0)):
        if not 0 <= end < 2**31:
            raise ValueError(
                f"Expected ids from 0 to 2**31 - 1, got {end}. Number the trials from 0; repeat or "
                "join fewer."
            )
    return moved.astype(np.int32)


def lacks(trials: Trials, name: str) -> np.ndarray:
    """Which trials lack a hyperparameter."""
    absent = np.full(len(trials), name not in trials)
    return ~np.asarray(trials.present[name]) if name in trials.present else absent


def _chosen(trials):
    """Trials whose options are there, and whose names are those of columns."""
    found = columns(trials.values)
    for name in (*trials.present, *dict(trials.options)):
        if name not in found:
            raise ValueError(f"Expected {name!r} among the hyperparameters {list(found)}. Add it.")
    for name, options in trials.options:
        codes = found[name][~lacks(trials, name)]
        if codes.dtype != np.int32 or not np.isin(codes, range(len(options))).all():
            raise ValueError(
                f"Expected the values of {name!r} as places among its {len(options)} options, got "
                f"{codes}. Draw them from lossopt.sweeps.Static."
            )
    return trials


def _length(x):
    return (*jnp.shape(x), -1)[0]


def _at(trials, rows):
    parts = {"values": trials.values, "present": trials.present}
    whose = taken({"id": trials.id, "setting": trials.setting}, rows)
    return dataclasses.replace(trials, **{k: taken(x, rows) for k, x in parts.items()}, **whose)


def _column(trials, name):
    """A column with NaN for what is missing, of an option the option itself."""
    if name not in trials:
        raise KeyError(f"{name!r} is none of the hyperparameters {list(trials.names)}.")
    x, missing = columns(trials.values)[name], lacks(trials, name)
    if options := dict(trials.options).get(name):
        column = np.empty(len(trials), object)
        for row, code in enumerate(np.asarray(x)):
            column[row] = np.nan if missing[row] else options[code]
        return column
    column = np.asarray(jax.random.key_data(x) if is_key(x) else x)
    if not missing.any():
        return column
    real = jnp.issubdtype(column.dtype, jnp.inexact)
    column = column.astype(column.dtype if real else np.float64)
    column[missing] = np.nan
    return column


def _row(trials, row):
    options = dict(trials.options)
    held = {
        name: x
        for name, x in taken(columns(trials.values), row).items()
        if name not in trials.present or trials.present[name][row]
    }
    plain = lambda x: x if np.ndim(x) or is_key(x) else x.item()
    return {name: options[name][x] if name in options else plain(x) for name, x in held.items()}


def _added(trials, name, values, count):
    if not is_flat(trials.values):
        raise TypeError(
            f"Expected trials of a dict of arrays to add {name!r} to, got a tree of "
            f"{list(trials.names)}. Name its arrays."
        )
    if name in trials:
        raise ValueError(f"Expected a new name, got {name!r}, which the trials have. Rename it.")
    values = numbers(name, values)
    if _length(values) != count:
        raise ValueError(
            f"Expected {name} with one row for each of {count} repetitions, got shape "
            f"{values.shape}."
        )
    return values
