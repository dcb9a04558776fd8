"""Sums of regularizers whose prox is known.

A class states in `_after` the classes that it may be added to and after whose prox its own stands:
then the prox of the sum is one prox after the other. Only L2 has `_absorb`, and goes with all. The
`_joined` of two members are equal where one member says the same as both.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp

from lossopt._typing import Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Regularizer


def add(self: Regularizer, other: Regularizer) -> "Sum":
    """The sum of two regularizers; raises where its prox is not known."""
    if not isinstance(other, Regularizer):
        return NotImplemented
    members = (*_parts(self), *_parts(other))
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


@partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Sum:
    """Members that stand in no sum themselves, and of which every pair is known."""

    members: tuple[Regularizer, ...]

    def __call__(self, params: PyTree) -> Scalar:
        """The sum of the members' values."""
        return jnp.asarray(sum((member(params) for member in self.members), start=0.0))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        """One prox after the other."""
        moved, steps = _leaves.widened(params, step_size)
        for member in self.members:
            if absorb := getattr(member, "_absorb", None):
                moved, steps = absorb(moved, steps)
        for member in _in_order(self.members):
            moved = member.prox(moved, steps)
        return _leaves.like(moved, params)

    def _parts(self) -> tuple[Regularizer, ...]:
        return self.members

    __add__ = add
    __radd__ = add_to


def _in_order(members: Sequence[Any]) -> list[Any]:
    """Every pair is ordered, so the number of those before a member is its place."""
    rest = [member for member in members if not hasattr(member, "_absorb")]
    before = lambda member: sum(_stands_after(member, other) for other in rest)
    return sorted(rest, key=before)


def _known(a, b):
    free = hasattr(a, "_absorb") or hasattr(b, "_absorb")
    return free or _stands_after(a, b) or _stands_after(b, a)


def _stands_after(a, b):
    return isinstance(b, getattr(a, "_after", ()))


def _parts(regularizer) -> tuple[Regularizer, ...]:
    parts = getattr(regularizer, "_parts", None)
    return parts() if parts else (regularizer,)


def _name(regularizer):
    if isinstance(regularizer, Sum):
        return "(" + " + ".join(map(_name, regularizer.members)) + ")"
    return getattr(regularizer, "_called", type(regularizer).__name__)


def _remedy(a, b):
    one = getattr(a, "_joined", None)
    if one is not None and one == getattr(b, "_joined", None):
        return f"Write {one} for both."
    return "Give each its own leaves with lossopt.regularizers.by_path, or leave one out."
