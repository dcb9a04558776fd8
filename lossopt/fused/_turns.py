"""Many matrices under `vmap`: at once as far as the budget goes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lossopt._typing import PyTree


def in_turns(
    bounded: Callable, walk: Any, way: str, size: int, batched: PyTree, *args: PyTree
) -> tuple[PyTree, PyTree]:
    """The rule of `vmap` of `bounded(walk, way, *args)`: all at once, or some at a time."""
    leaves, structure = jax.tree.flatten(args)
    along = tuple(jax.tree.leaves(batched))
    if size <= walk.together:
        share = dataclasses.replace(walk, together=walk.together // size)
        out = bounded(_Many(share, along, share.together), way, *args)
    else:
        mapped = [leaf if each else None for leaf, each in zip(leaves, along, strict=True)]
        fill = lambda some: [leaf if x is None else x for leaf, x in zip(leaves, some, strict=True)]
        one = lambda some: bounded(walk, way, *structure.unflatten(fill(some)))
        out = jax.lax.map(one, mapped, batch_size=walk.together if walk.together > 1 else None)
    return out, jax.tree.map(lambda _: True, out)


@dataclasses.dataclass(frozen=True)
class _Many:
    """Many matrices at once; `along` says which leaves of the arguments are many."""

    walk: Any
    along: tuple[bool, ...]
    together: int

    def forward(self, *args):
        return self._each(self.walk.forward, args)

    def backward(self, *args):
        return self._each(self.walk.backward, args)

    def _each(self, walk, args):
        axes = [0 if each else None for each in self.along]
        return jax.vmap(walk, jax.tree.structure(args).unflatten(axes))(*args)
