"""How the trials of one program lie: one after the other, side by side, on how many devices."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
from jax.sharding import PartitionSpec as P

from lossopt._typing import PyTree

Mode = Literal["vmap", "sequential"]


@dataclasses.dataclass(frozen=True)
class Form:
    """The form in which a group of trials runs.

    Attributes:
      mode: `"vmap"` runs trials of a device side by side, `"sequential"` one after the other.
      chunk: trials side by side on a device; 1 in sequential mode.
      mesh: the devices, or None.
    """

    mode: Mode
    chunk: int
    mesh: jax.sharding.Mesh | None = None

    @property
    def width(self) -> int:
        """Trials of one call."""
        return self.chunk * (1 if self.mesh is None else self.mesh.size)

    @property
    def alone(self) -> bool:
        """Whether a call has one trial, and no axis of trials."""
        return self.mode == "sequential" and self.mesh is None

    def over(self, fn: Callable, common: int = 0) -> Callable:
        """A function of one trial as one of all trials of a call.

        Args:
          fn: a function of trees of arrays.
          common: how many of its last arguments are the same for all trials.
        """
        if self.alone:
            return fn
        each = _mapped(fn, common) if self.mode == "vmap" else _single(fn, common)
        return each if self.mesh is None else self._placed(each, common)

    def place(self, tree: PyTree, common: bool = False) -> PyTree:
        """Arrays of all trials of a call, or such as they have in common, where they are to lie."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, jax.NamedSharding(self.mesh, self._spec(common)))

    def like(self, tree: PyTree) -> PyTree:
        """Shapes of one trial as those of a call."""
        ahead = () if self.alone else (self.width,)
        where = None if self.mesh is None else jax.NamedSharding(self.mesh, self._spec(False))

        def of_call(x):
            weak = getattr(x, "weak_type", False)
            shape = ahead + x.shape
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where, weak_type=weak)

        return jax.tree.map(of_call, tree)

    def _spec(self, common):
        return P() if common or self.mesh is None else P(self.mesh.axis_names)

    def _placed(self, each, common):
        def call(*args):
            rows = [self._spec(i >= len(args) - common) for i in range(len(args))]
            own = jax.shard_map(
                each,
                mesh=self.mesh,
                in_specs=tuple(rows),
                out_specs=self._spec(False),
                check_vma=False,
            )
            return own(*args)

        return call


def _mapped(fn, common):
    def call(*args):
        own = len(args) - common
        return jax.vmap(fn, (0,) * own + (None,) * common)(*args)

    return call


def _single(fn, common):
    def call(*args):
        own = len(args) - common
        first = jax.tree.map(lambda x: x[0], args[:own])
        return jax.tree.map(lambda x: x[None], fn(*first, *args[own:]))

    return call
