"""What judges the parameters, and the best of them."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lossopt._typing import Array, PyTree

Judge = Literal["train", "validation"] | tuple[str, Callable]  # the second is `max` or `min`
VALUES = {"train": "trained/value", "validation": "validation/value"}


class Goal(NamedTuple):
    """The column that decides what is best.

    Attributes:
      column: its name.
      sign: 1 where the lowest is best, -1 where the highest is.
    """

    column: str
    sign: int


class Best(NamedTuple):
    """The best so far.

    Attributes:
      params: after its row.
      model_state: likewise.
      value: of the column, times the sign of the goal.
      row: its number; -1 before there is one.
    """

    params: PyTree
    model_state: PyTree
    value: Array
    row: Array


def goal_of(best: Judge | None, validated: bool) -> Goal | None:
    """What the user asks for; None where nothing judges."""
    if best is None:
        return Goal(VALUES["validation"], 1) if validated else None
    if isinstance(best, str) and best in VALUES:
        return Goal(VALUES[best], 1)
    match best:
        case (str(column), direction) if direction is max or direction is min:
            return Goal(column, 1 if direction is min else -1)
    raise ValueError(
        "Expected best as 'train', 'validation', None, or a column of the history and its "
        f"direction, such as ('validation/accuracy', max), got {best!r}."
    )


def first(goal: Goal, params: PyTree, model_state: PyTree, row: dict[str, Array]) -> Best:
    """Before there is one; raises where the row has no such column."""
    columns = [name for name, x in row.items() if jnp.issubdtype(x.dtype, jnp.floating)]
    if goal.column not in columns:
        raise ValueError(
            f"best names the column {goal.column!r}, and the history has {', '.join(columns)}."
        )
    high = jnp.full((), jnp.inf, row[goal.column].dtype)
    return Best(params, model_state, high, jnp.full((), -1, jnp.int32))


def judged(goal: Goal, best: Best, now: Best) -> Best:
    """The better of two, where `now` holds a value as the row has it; the first of equals."""
    now = now._replace(value=goal.sign * now.value)
    better = jnp.isfinite(now.value) & (now.value < best.value) & finite(now.params)
    return jax.tree.map(partial(jnp.where, better), now, best)


def finite(tree: PyTree) -> Array:
    """Whether all numbers are."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)], bool))
