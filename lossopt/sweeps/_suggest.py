"""Trials that a sampler suggests while the sweep runs."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._keys import is_key
from lossopt.sweeps._cells import plain
from lossopt.sweeps._columns import place
from lossopt.sweeps._draws import checked
from lossopt.sweeps._spaces import Choice, Integer, Space, Static

Ask = Callable[[int], Sequence[Mapping[str, Any]]]
Tell = Callable[[list[dict[str, Any]]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Suggest:
    """Trials that a sampler proposes, chunk by chunk; `suggest` makes it, and says how.

    Attributes:
      space: from names to ranges and choices.
      ask: from a number of trials to the hyperparameters of each.
      tell: receives the rows of each chunk that has run.
      n: number of trials.
      chunk: how many the sampler proposes at a time.
    """

    space: Space
    ask: Ask
    tell: Tell
    n: int
    chunk: int

    def __post_init__(self):
        object.__setattr__(self, "space", dict(checked(self.space)))
        for name, function in {"ask": self.ask, "tell": self.tell}.items():
            if not callable(function):
                raise TypeError(
                    f"Expected {name} as a function, got {function!r}. Pass a method of the "
                    "sampler, or a function that calls it."
                )
        object.__setattr__(self, "n", _checks.count("n", self.n, 1))
        object.__setattr__(self, "chunk", _checks.count("chunk", self.chunk, 1))

    def __repr__(self) -> str:
        return f"Suggest of {self.n} trials, {self.chunk} at a time"

    def asked(self, count: int, start: int) -> dict[str, np.ndarray]:
        """So many proposals as columns; of what has options, the places of these.

        Args:
          count: how many.
          start: the id of the first.
        """
        given = self.ask(count)
        if not isinstance(given, Sequence) or len(given) != count:
            many = f" of {len(given)}" if isinstance(given, Sequence) else ""
            raise ValueError(
                f"Expected ask({count}) to return a list of {count} dicts, got "
                f"{type(given).__name__}{many}. Return one for each of the next trials."
            )
        for id, one in enumerate(given, start):
            if not isinstance(one, Mapping) or set(one) != set(self.space):
                got = list(one) if isinstance(one, Mapping) else repr(one)
                raise ValueError(
                    f"Expected ask to give trial {id} a dict of {list(self.space)}, got {got}. "
                    "Give each trial all names of the space, and no others."
                )
        columns = {name: [one[name] for one in given] for name in self.space}
        return {name: _column(self.space[name], name, x, start) for name, x in columns.items()}

    def values(self, asked: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The columns of trials; of what is `Static` the places."""
        of = lambda x, column: x.options[column] if isinstance(x, Choice) else column
        return {name: of(x, asked[name]) for name, x in self.space.items()}

    @property
    def nothing(self) -> dict[str, np.ndarray]:
        """The columns of no proposal."""
        return {name: np.zeros(0, _dtype(x)) for name, x in self.space.items()}


def suggest(space: Space, ask: Ask, tell: Tell, n: int, *, chunk: int = 8) -> Suggest:
    """Trials that any sampler of the kind "ask and tell" proposes, each chunk by what came before.

    Given to `lossopt.sweep` in place of trials. It asks for a chunk, runs it, tells its rows, and
    asks for the next one. All chunks run in one program for each option of `Static`, the last and
    smaller one, too. Ids count up from 0 in the order of the proposals, so that the rows are those
    of a sweep of the same trials drawn beforehand.

    With `checkpoint=` proposals are saved before they run. A call that goes on tells the sampler
    all rows that ran in one call of `tell`, runs what was asked for and did not run, and goes on
    asking; of a sampler that is determined by the rows it was told, the table is the same one.
    `n` may be larger then.

    Args:
      space: dict from names to `Log`, `Linear`, `Integer`, `Choice` or `Static`.
      ask: maps a number of trials to a sequence of as many dicts, each with a value for every name
        of the space: within its range, or one of its options.
      tell: receives a list of rows in the order of ids, each a dict as `table[0]` gives it: id,
        hyperparameters, scores, status. Rows of status `"diverged"` have scores that are not
        finite. Before each `ask` all earlier trials have been told.
      n: number of trials, at least 1.
      chunk: how many trials are asked for at a time, at least 1. None of them knows how the others
        end, so that a sampler learns `n / chunk` times; and that many run side by side, at most.
        With 8 it learns often in a search of a hundred trials, and asking and saving cost little
        beside trials of a second. Trials one after the other, as on a CPU, want fewer, a device
        that holds many wants more.

    Returns:
      The trials, as `sweep` takes them. Rungs are refused.

    Raises:
      ValueError: if the space is empty, or `n` or `chunk` is below 1. The sweep raises it where
        `ask` returns another number of dicts, other names, or a value outside of the space.
      TypeError: if the space holds something else, `n` or `chunk` is no whole number, or `ask` or
        `tell` no function.

    Examples:
      >>> near = [0.5]
      >>> ask = lambda count: [{"x": near[0] / 2**k} for k in range(1, count + 1)]
      >>> tell = lambda rows: near.insert(0, min(rows, key=lambda row: row["loss"])["x"])
      >>> trials = lo.sweeps.suggest({"x": lo.sweeps.Linear(0, 1)}, ask, tell, 8, chunk=2)
      >>> print(lo.sweep(lambda numbers, key: numbers["x"], trials, jax.random.key(0)).best["x"])
      0.001953125
    """
    return Suggest(space, ask, tell, n, chunk)


def _dtype(dimension):
    ranged = not isinstance(dimension, Integer | Choice | Static)
    return jnp.result_type(float) if ranged else np.int32


def _column(dimension, name, values, start):
    """The values of a name, checked, or their places among the options."""
    found = [_found(dimension, x) for x in values]
    if None in found:
        at = found.index(None)
        raise ValueError(
            f"Expected ask to give trial {start + at} a value of {name!r} {_told(dimension)}, got "
            f"{values[at]!r}. Let the sampler draw from the space that suggest was given."
        )
    return np.asarray(found, _dtype(dimension))


def _found(dimension, value):
    """A value as a number of its column, None where it is none."""
    if isinstance(dimension, Static):
        at = place(dimension.options, value)
        return at if at < len(dimension.options) else None
    if isinstance(dimension, Choice):
        return _place(dimension.options, value)
    if isinstance(value, bool | np.bool_) or np.ndim(value) or not _real(value):
        return None
    if isinstance(dimension, Integer):
        whole = jnp.issubdtype(np.asarray(value).dtype, jnp.integer)
        return int(value) if whole and dimension.low <= value <= dimension.high else None
    low, high, value = np.asarray([dimension.low, dimension.high, value], _dtype(dimension))
    return value if low <= value <= high else None


def _place(options, value):
    """Where a number or an array stands among the rows of options."""
    if is_key(options):
        options = jax.random.key_data(options)
        value = jax.random.key_data(value) if is_key(value) else value
    rows = np.asarray(options)
    try:
        one = np.asarray(value)
        if jnp.issubdtype(rows.dtype, jnp.inexact):
            one = one.astype(rows.dtype)
    except (TypeError, ValueError):
        return None
    if one.shape != rows.shape[1:]:
        return None
    same = np.flatnonzero((rows == one).reshape(len(rows), -1).all(axis=1))
    return int(same[0]) if same.size else None


def _real(value):
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _told(dimension):
    if isinstance(dimension, Choice | Static):
        options = dimension.options
        if isinstance(options, tuple) or np.ndim(options) == 1:
            return f"among {[plain(x) for x in options]}"
        return f"among its {len(options)} options"
    kind = "a whole number" if isinstance(dimension, Integer) else "a number"
    return f"as {kind} from {dimension.low} to {dimension.high}"
