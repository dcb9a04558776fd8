"""A matrix of logits that exists one tile at a time: what it is made of, and how it is made."""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from lossopt._typing import Array

Form = Literal["vjp", "jvp"]
MeanOrValues: TypeAlias = Any  # a `Mean`, or one value per example with `per_example=True`


class Operands(NamedTuple):
    """What the loss is differentiated by; every leaf is floating.

    Attributes:
      left: what the rows of the matrix are made of, shape `[rows, ...]`.
      right: what its columns are made of.
      rows: more numbers of each row, by name, leaves `[rows, ...]`.
      columns: more numbers of each column, by name, leaves `[columns, ...]`.
      numbers: numbers that hold for the whole matrix, leaves `()`.
    """

    left: Any
    right: Any
    rows: Any
    columns: Any
    numbers: Any


class Facts(NamedTuple):
    """What the loss reads as constants, such as labels, by row and by column."""

    rows: Any
    columns: Any


@dataclasses.dataclass(frozen=True)
class InnerProduct:
    """Tiles of `left @ right`; `transposed` is for a `right` of shape `[columns, depth]`.

    Products of low precision are summed in float32. The cotangent of a tile is rounded once, to
    the dtype of the operands, and both of its products are float32 again.
    """

    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of `right` along which the columns lie."""
        return 0 if self.transposed else -1

    def tile(self, left: Array, right: Array) -> Array:
        """Shape `[rows, columns]`."""
        return _dot(left, right, 1, 1 if self.transposed else 0)

    def pull(self, left: Array, right: Array, slope: Array) -> tuple[Array, Array]:
        """The gradients of `left` and `right`, in float32 or wider, from that of the tile."""
        slope = slope.astype(jnp.promote_types(left.dtype, right.dtype))
        to_left = _dot(slope, right, 1, 0 if self.transposed else 1)
        pair = (slope, left) if self.transposed else (left, slope)
        return to_left, _dot(*pair, 0, 0)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Tiles of `left[:, None] - right[None, :]`."""

    def tile(self, left: Array, right: Array) -> Array:
        """Shape `[rows, columns]`."""
        return left[:, None] - right[None, :]

    def pull(self, left: Array, right: Array, slope: Array) -> tuple[Array, Array]:
        """The gradients of `left` and `right` from that of the tile."""
        del left, right
        return jnp.sum(slope, axis=1), -jnp.sum(slope, axis=0)


def check_form(form: Form) -> None:
    """Raises where the form is unknown."""
    if form not in ("vjp", "jvp"):
        raise ValueError(f"Expected differentiable 'vjp' or 'jvp', got {form!r}. Choose one.")


def wide(*arrays: Array) -> jnp.dtype:
    """The dtype of sums over these arrays: float32 or wider."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _dot(a, b, axis_a, axis_b):
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=wide(a, b))
