"""States of trials that wait at a rung, on the host."""

from functools import cache
from typing import Any

import jax
import numpy as np

from lossopt import _jax, _keys
from lossopt._typing import PyTree
from lossopt.sweeps._form import Form

Leaves = list[np.ndarray]


class Resting:
    """The states of trials between two rungs, by row; of typed keys the raw data."""

    def __init__(self):
        self._leaves: dict[int, Leaves] = {}

    def put(self, rows: np.ndarray, state: PyTree, form: Form, on: np.ndarray) -> None:
        """Takes the states of a call's trials, but forgets all of whom none can go on.

        Args:
          rows: of the trials of the call.
          state: theirs.
          form: of the call.
          on: rows of all trials that may go on.
        """
        self._leaves = {int(row): self._leaves[row] for row in on.tolist() if row in self}
        new = [place for place, row in enumerate(rows) if row in on]
        leaves = raw(state) if new else []
        for place in new:
            one = leaves if form.alone else [x[place].copy() for x in leaves]
            self._leaves[int(rows[place])] = one

    def take_up(self, rows: np.ndarray, leaves: Leaves) -> None:
        """Takes the states of a group, as `groups` gives them."""
        for place, row in enumerate(rows):
            self._leaves[int(row)] = [x[place] for x in leaves]

    def drop(self, rows: np.ndarray) -> None:
        """Forgets some."""
        for row in rows:
            self._leaves.pop(int(row), None)

    def state(self, rows: np.ndarray, form: Form, like: PyTree) -> PyTree:
        """The state of a call; missing trials are copies of the first.

        Args:
          rows: of its trials.
          form: of the call.
          like: shapes of the state of one trial.
        """
        if form.alone:
            return keyed(self._leaves[int(rows[0])], like)
        filled = [*rows, *[rows[0]] * (form.width - len(rows))]
        return form.place(keyed(self.stacked(np.asarray(filled)), like))

    def groups(self) -> list[tuple[np.ndarray, Leaves]]:
        """The rows of trials with states of equal shapes, and these stacked."""
        groups = {}
        for row, leaves in sorted(self._leaves.items()):
            groups.setdefault(tuple((x.shape, x.dtype) for x in leaves), []).append(row)
        return [(np.array(rows), self.stacked(np.array(rows))) for rows in groups.values()]

    def stacked(self, rows: np.ndarray) -> Leaves:
        """The leaves of some trials of a group, each `[rows, ...]`."""
        return [np.stack(some) for some in zip(*(self._leaves[int(row)] for row in rows))]

    def __contains__(self, row: int) -> bool:
        return row in self._leaves


def raw(tree: PyTree) -> Leaves:
    """The leaves on the host, of typed keys their data."""
    with _jax.undisturbed():
        data = [jax.random.key_data(x) if _keys.is_key(x) else x for x in jax.tree.leaves(tree)]
        return [np.asarray(x) for x in jax.device_get(data)]


def keyed(leaves: Leaves, like: PyTree) -> PyTree:
    """A tree of raw leaves, with typed keys where `like`, a tree of shapes, has them."""
    shapes, structure = jax.tree.flatten(like)
    return structure.unflatten([_keyed(x, shape) for x, shape in zip(leaves, shapes)])


def raw_like(like: PyTree) -> list[Any]:
    """The shapes of raw leaves of a tree of shapes."""
    of = lambda x: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    return [of(x) for x in jax.tree.leaves(like)]


def _keyed(x, like):
    if not _is_key(like):
        return x
    return jax.random.wrap_key_data(x, impl=_kind(like.dtype))


@cache
def _kind(dtype):
    """Of which kind typed keys of a dtype are, which jax says of arrays alone."""
    found = []
    like = jax.ShapeDtypeStruct((), dtype)
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def _is_key(like):
    return jax.numpy.issubdtype(like.dtype, jax.dtypes.prng_key)
