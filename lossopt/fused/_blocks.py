"""The matrix in blocks of rows, each of which sees all columns at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt._typing import Array, PyTree
from lossopt.fused._tiles import Difference, Facts, InnerProduct, Operands, wide


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Values of rows, and their gradient, block by block.

    Attributes:
      matrix: how a tile is made.
      head: maps `(tile, rows, columns, numbers)` to one value per row, shape `[rows]`; the
        operands and facts of rows and of columns reach it as one dict each.
      size: rows of a block.
      shards: groups of consecutive rows, one per device, that advance side by side.
      together: how many such matrices the budget holds at once.
    """

    matrix: InnerProduct | Difference
    head: Callable[..., Array]
    size: int
    shards: int = 1
    together: int = 1

    def forward(self, operands: Operands, facts: Facts) -> tuple[Array, None]:
        """One value per row, and nothing to remember."""

        @jax.checkpoint
        def body(carry, piece):
            left, rows, known = piece
            tile = self.matrix.tile(left, operands.right)
            columns = operands.columns | facts.columns
            return carry, self.head(tile, rows | known, columns, operands.numbers)

        return sweep(body, None, (operands.left, operands.rows, facts.rows), self.size)[1], None

    def backward(
        self, operands: Operands, facts: Facts, memory: None, cotangents: Array
    ) -> tuple[Operands, Array]:
        """The gradient of `sum(cotangents * values)` in float32 or wider, and the values again."""
        del memory
        whole = operands.right, operands.columns, operands.numbers

        @jax.checkpoint
        def body(carry, piece):
            (left, rows, known), cotangent = piece
            tile = self.matrix.tile(left, operands.right)

            def head(tile, rows, columns, numbers):
                return self.head(tile, rows | known, columns | facts.columns, numbers)

            values, pull = jax.vjp(head, tile, rows, operands.columns, operands.numbers)
            slope, to_rows, *to_whole = pull(cotangent.astype(values.dtype))
            to_left, to_right = self.matrix.pull(left, operands.right, slope)
            carry = jax.tree.map(jnp.add, carry, (to_right, *to_whole))
            return carry, (values, to_left, to_rows)

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide(x)), whole)
        pieces = (operands.left, operands.rows, facts.rows), cotangents
        (right, columns, numbers), out = sweep(body, zeros, pieces, self.size)
        values, left, rows = out
        return Operands(left, right, rows, columns, numbers), values


def sweep(
    body: Callable[[Any, PyTree], tuple[Any, PyTree]], carry: Any, rows: PyTree, size: int
) -> tuple[Any, PyTree]:
    """Scans over blocks of `size` rows, then over those that are left; joins the outputs."""
    count = len(jax.tree.leaves(rows)[0])
    full = count // size
    parts = []
    if full:
        block = lambda x: x[: full * size].reshape(full, size, *x.shape[1:])
        carry, out = jax.lax.scan(body, carry, jax.tree.map(block, rows))
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out))
    if count % size or not count:
        carry, out = body(carry, jax.tree.map(lambda x: x[full * size :], rows))
        parts.append(out)
    join = lambda *xs: xs[0] if len(xs) == 1 else jnp.concatenate(xs)
    return carry, jax.tree.map(join, *parts)
