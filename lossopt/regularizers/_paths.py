"""A regularizer for each part of the parameters, named by path."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from lossopt._paths import hides, paths, places
from lossopt._typing import Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Regularizer
from lossopt.regularizers._sums import add, add_to


def by_path(rules: Mapping[str, Regularizer]) -> Regularizer:
    """Restricts regularizers to the leaves whose paths match a pattern.

    Args:
      rules: from regular expressions to regularizers. A pattern is searched (`re.search`) in a
        leaf's path, whose parts stand between slashes, as in `"params/Dense_0/kernel"`. A leaf
        takes the first rule that matches; a leaf that none matches is free.

    Returns:
      A regularizer: the sum of its members, each on its own leaves.

    Raises:
      ValueError: when it is used, if a pattern takes no leaf, or if two leaves have one path; the
        message lists the paths. Inside of `optax.partition`, which hides the leaves of other
        groups, a pattern may take none.

    Examples:
      >>> r = lo.regularizers.by_path({r"kernel$": lo.regularizers.L1(0.5)})
      >>> float(r({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}))
      2.0
    """
    return ByPath(tuple(rules), tuple(rules.values()))


@partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=["patterns"])
@dataclasses.dataclass(frozen=True)
class ByPath:
    """Members, each on the leaves that its pattern takes."""

    patterns: tuple[str, ...]
    members: tuple[Regularizer, ...]

    def __call__(self, params: PyTree) -> Scalar:
        """The sum of their values."""
        leaves, names = jax.tree.leaves(params), paths(params)
        parts = self._shares(params)
        penalties = (member({names[i]: leaves[i] for i in taken}) for member, taken in parts)
        return jnp.asarray(sum(penalties, start=0.0))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        """The prox of each member on its leaves."""
        leaves, structure = jax.tree.flatten(params)
        single, names = _leaves.single(step_size), paths(params)
        steps = jax.tree.leaves(_leaves.spread(params, step_size=step_size))
        for member, taken in self._shares(params):
            part, metric = ({names[i]: x[i] for i in taken} for x in (leaves, steps))
            moved = member.prox(part, step_size if single else metric)
            for i in taken:
                leaves[i] = moved[names[i]]
        return structure.unflatten(leaves)

    def _shares(self, params):
        """Each member with the numbers of its leaves, where it has any."""
        taken = places(self.patterns, paths(params), hides=hides(params))
        return [(member, part) for member, part in zip(self.members, taken) if part]

    __add__ = add
    __radd__ = add_to
