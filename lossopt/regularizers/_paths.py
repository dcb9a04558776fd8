"""A regularizer for each part of the parameters, named by path."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from lossopt._typing import Params, PyTree, Scalar, Step
from lossopt.regularizers._base import Regularizer


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
        message lists the paths.

    Examples:
      >>> r = lo.regularizers.by_path({r"kernel$": lo.regularizers.L1(0.5)})
      >>> float(r({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}))
      2.0
    """
    return _ByPath(tuple(rules), tuple(rules.values()))


@partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=["patterns"])
@dataclasses.dataclass(frozen=True)
class _ByPath:
    patterns: tuple[str, ...]
    members: tuple[Regularizer, ...]

    def __call__(self, params: PyTree) -> Scalar:
        leaves, paths = jax.tree.leaves(params), _paths(params)
        parts = zip(self.members, _places(self.patterns, paths))
        penalties = (member({paths[i]: leaves[i] for i in places}) for member, places in parts)
        return jnp.asarray(sum(penalties, start=0.0))

    def prox(self, params: Params, step: Step) -> Params:
        leaves, structure = jax.tree.flatten(params)
        steps, paths = jax.tree.leaves(jax.tree.broadcast(step, params)), _paths(params)
        for member, places in zip(self.members, _places(self.patterns, paths)):
            part, metric = ({paths[i]: x[i] for i in places} for x in (leaves, steps))
            moved = member.prox(part, metric)
            for i in places:
                leaves[i] = moved[paths[i]]
        return structure.unflatten(leaves)


def _paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if len(set(paths)) < len(paths):
        raise ValueError(f"Two leaves have one path among {paths}: rename one.")
    return paths


def _places(patterns, paths):
    """For each pattern the numbers of the leaves that it takes."""
    takers = [next((p for p in patterns if re.search(p, path)), None) for path in paths]
    for pattern in patterns:
        if pattern not in takers:
            raise ValueError(
                f"The pattern {pattern!r} takes no leaf of {paths}. A leaf goes to the first "
                "pattern that matches: correct the pattern, or move it forward."
            )
    return [[i for i, taker in enumerate(takers) if taker == pattern] for pattern in patterns]
