"""Leaves named by path: the grammar of every argument that names leaves."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax

from lossopt._typing import PyTree


def paths(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of each leaf, its parts between slashes, as in `"params/Dense_0/kernel"`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if len(set(names)) < len(names):
        raise ValueError(f"Two leaves have one path among {names}: rename one.")
    return names


def hides(tree: PyTree) -> bool:
    """Whether leaves are hidden, as `optax.masked` and `optax.partition` hide those of others."""
    masked = lambda x: isinstance(x, optax.MaskedNode)
    return any(map(masked, jax.tree.leaves(tree, is_leaf=masked)))


def places(
    patterns: Iterable[str], paths: Sequence[str], *, hides: bool = False
) -> list[list[int]]:
    """For each pattern the numbers of the leaves that it takes; a leaf goes to the first match.

    It must take one, unless the tree `hides` some: what it takes may be among those.
    """
    patterns = list(patterns)
    for pattern in patterns:
        _compiles(pattern)
    takers = [next((p for p in patterns if re.search(p, path)), None) for path in paths]
    for pattern in patterns:
        if pattern not in takers and not hides:
            raise ValueError(
                f"The pattern {pattern!r} takes no leaf of {list(paths)}. A leaf goes to the "
                "first pattern that matches: correct the pattern, or move it forward."
            )
    return [[i for i, taker in enumerate(takers) if taker == pattern] for pattern in patterns]


def _compiles(pattern):
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Expected a regular expression, got {pattern!r}: {error}. Write '.*' for anything; a "
            "part of a path, such as 'kernel$', is enough."
        ) from None
