"""Factors of steps, on the way to the rules that must know them: those with a proximal step.

They travel in the state, for the time of one update, and so through what stands between.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lossopt import _paths
from lossopt._typing import Array, PyTree

Kinds = tuple[type, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inner", "factors", "taken"],
    meta_fields=["paths"],
)
@dataclasses.dataclass(frozen=True)
class Factored:
    """The state of a rule's direction, with factors of the leaves' steps.

    Attributes:
      inner: the state, perhaps within the factors of another.
      factors: by path, for some leaves of all.
      taken: by path, whether the rule has multiplied its rate by the factor.
      paths: of all leaves, where the factors come from.
    """

    inner: PyTree
    factors: dict[str, Array]
    taken: dict[str, Array]
    paths: tuple[str, ...]


def offered(
    state: PyTree, kinds: Kinds, factors: dict[str, Array], paths: tuple[str, ...]
) -> PyTree:
    """The state of an optimizer with the factors in that of each rule of these kinds."""

    def offer(node):
        shape = jnp.shape(node.count)  # of a map over rules, if there is one
        spread = {path: jnp.broadcast_to(factor, shape) for path, factor in factors.items()}
        taken = {path: jnp.zeros(shape, bool) for path in factors}
        return node._replace(inner=Factored(node.inner, spread, taken, paths))

    return _changed(offer, state, kinds)


def withdrawn(
    state: PyTree, kinds: Kinds, factors: dict[str, Array]
) -> tuple[PyTree, dict[str, Array]]:
    """The state without the factors, and what is left of them: 1 where a rule has taken one."""
    left = dict(factors)

    def withdraw(node):
        for path, taken in node.inner.taken.items():
            left[path] = jnp.where(jnp.all(taken), 1, left[path])
        return node._replace(inner=node.inner.inner)

    return _changed(withdraw, state, kinds), left


def bare(held: PyTree) -> PyTree:
    """The state of a direction without factors."""
    return bare(held.inner) if isinstance(held, Factored) else held


def around(held: PyTree, inner: PyTree) -> PyTree:
    """The next state of a direction, within the factors of the last one."""
    if not isinstance(held, Factored):
        return inner
    return dataclasses.replace(held, inner=around(held.inner, inner))


def take(held: PyTree, params: PyTree, *trees: PyTree) -> tuple[PyTree, ...]:
    """The factors, taken, and each tree times them, as a tree like the parameters.

    A number stands for a tree of it. Without factors all is what it was.
    """
    if not isinstance(held, Factored):
        return held, *trees
    inner, *within = take(held.inner, params, *trees)
    names, structure = _paths.paths(params), jax.tree.structure(params)
    if not set(names) <= set(held.paths):
        raise ValueError(
            "The factors of scale_by_path cannot reach the proximal step of a rule within it: it "
            f"names the leaves {list(held.paths)}, and the rule is given {names}. Put it inside of "
            "what makes another tree for the rule, directly around the rule."
        )
    one = lambda name, x: _times(held.factors[name], x) if name in held.factors else x
    leaves = [jax.tree.leaves(jax.tree.broadcast(tree, params)) for tree in within]
    moved = [structure.unflatten(map(one, names, own)) for own in leaves]
    taken = {k: jnp.ones_like(x) if k in names else x for k, x in held.taken.items()}
    return dataclasses.replace(held, inner=inner, taken=taken), *moved


def _times(factor, x):
    """The product, 0 where the factor is, of NaN also: it may share a group of a prox."""
    x = jnp.asarray(x)
    factor = jnp.asarray(factor, x.dtype)
    return jnp.where(factor == 0, 0, factor * x)


def _changed(change, state, kinds):
    held = lambda node: isinstance(node, kinds)
    return jax.tree.map(lambda node: change(node) if held(node) else node, state, is_leaf=held)
