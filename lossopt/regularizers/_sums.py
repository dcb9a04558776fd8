"""Sums of regularizers whose prox is known.

Every pair is one prox after the other, as one of the two says by `stands`, or holds a member that
goes with all, and has `absorb`. What is a sum itself has `summands`, and counts as these.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp

from lossopt._typing import Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Quadratic, Regularizer, Summand


def add(self: Regularizer, other: Regularizer) -> "Sum":
    """The sum of two regularizers: `__add__ = lossopt.regularizers.add` in a class of your own.

    Args:
      self: a regularizer.
      other: a regularizer.

    Returns:
      Their sum, a regularizer.

    Raises:
      ValueError: if its prox is not known; the message names the pair.

    Examples:
      >>> both = lo.regularizers.add(lo.regularizers.L1(1.0), lo.regularizers.NonNegative())
      >>> print(both.prox(jnp.array([-3.0, 3.0]), 0.5))
      [0.  2.5]
    """
    if not isinstance(other, Regularizer):
        return NotImplemented
    members = (*_summands(self), *_summands(other))
    for pair in combinations(members, 2):
        if not _known(*pair):
            raise ValueError(
                f"Expected a sum whose prox is known, got {_name(self)} + {_name(other)}, which "
                f"holds the pair {_name(pair[0])} + {_name(pair[1])}. {_remedy(*pair)}"
            )
    return Sum(members)


def add_to(self: Regularizer, other: Regularizer) -> "Sum":
    """`other + self`."""
    return add(other, self) if isinstance(other, Regularizer) else NotImplemented


@partial(jax.tree_util.register_dataclass, data_fields=["summands"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Sum:
    """Summands that are no sums themselves, and of which every pair is known."""

    summands: tuple[Regularizer, ...]

    def __call__(self, params: PyTree) -> Scalar:
        """The sum of their values."""
        return jnp.asarray(sum((member(params) for member in self.summands), start=0.0))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        """One prox after the other."""
        moved, steps = _leaves.widened(params, step_size)
        for member in self.summands:
            if isinstance(member, Quadratic):
                moved, steps = member.absorb(moved, steps)
        for member in _in_order(self.summands):
            moved = member.prox(moved, steps)
        return _leaves.like(moved, params)

    __add__ = add
    __radd__ = add_to


def _in_order(members: Sequence[Regularizer]) -> list[Regularizer]:
    """Every pair is ordered, so the number of those before a member is its place."""
    rest = [member for member in members if not isinstance(member, Quadratic)]
    before = lambda member: sum(_stands_after(member, other) for other in rest)
    return sorted(rest, key=before)


def _known(a, b):
    free = isinstance(a, Quadratic) or isinstance(b, Quadratic)
    return free or _stands_after(a, b) or _stands_after(b, a)


def _stands_after(a, b):
    return _place(a, b) == "after" or _place(b, a) == "before"


def _place(member, other):
    return member.stands(other) if isinstance(member, Summand) else None


def _summands(regularizer) -> tuple[Regularizer, ...]:
    return getattr(regularizer, "summands", (regularizer,))


def _name(regularizer):
    if isinstance(regularizer, Sum):
        return "(" + " + ".join(map(_name, regularizer.summands)) + ")"
    return type(regularizer).__name__


def _remedy(a, b):
    if jax.tree.structure(a) == jax.tree.structure(b):
        return f"Write one {_name(a)} for both."
    return (
        "Write one that says both, give each its own leaves with lossopt.regularizers.by_path, or "
        "leave one out."
    )
