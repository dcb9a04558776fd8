"""The matrix in blocks of columns, each of which sees all rows at once."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from lossopt import _jax
from lossopt._typing import Array, PyTree
from lossopt.fused._heads import Head
from lossopt.fused._tiles import Facts, InnerProduct, Operands, wide


@dataclasses.dataclass(frozen=True)
class Columns:
    """Values of rows by one pass over the columns, and their gradient by another.

    Attributes:
      matrix: how a tile is made.
      head: what is measured of the rows.
      size: columns of a block.
      shards: groups of consecutive rows, one per device, that advance side by side.
      together: how many such matrices the budget holds at once.
    """

    matrix: InnerProduct
    head: Head
    size: int
    shards: int = 1
    together: int = 1

    def forward(self, operands: Operands, facts: Facts) -> tuple[Array, PyTree]:
        """One value per row, and what was measured of it."""
        rows = operands.rows | facts.rows

        def body(measured, block, start):
            del start
            right, columns, known = block
            tile = self.matrix.tile(operands.left, right)
            seen = self.head.look(tile, rows, columns | known, operands.numbers)
            return self.head.merge(measured, self.head.measure(*seen, rows, known))

        measured = self.head.nothing(len(operands.left), wide(operands.left, operands.right))
        measured, _ = _jax.alike((measured, operands))
        blocks = operands.right, operands.columns, facts.columns
        measured = self._fold(body, measured, blocks)
        return self.head.close(measured, operands.numbers), measured

    def backward(
        self, operands: Operands, facts: Facts, measured: PyTree, cotangents: Array
    ) -> tuple[Operands, None]:
        """The gradient of `sum(cotangents * values)`, in float32 or wider."""
        _, pull = jax.vjp(self.head.close, measured, operands.numbers)
        to_measured, to_numbers = pull(cotangents)
        rows = operands.rows | facts.rows

        def body(carry, block, start):
            right, columns, known = block
            to_left, to_whole, to_numbers = carry
            tile = self.matrix.tile(operands.left, right)
            look = lambda t, c, n: self.head.look(t, rows, c | known, n)
            logits, pull, teacher = jax.vjp(look, tile, columns, operands.numbers, has_aux=True)
            slopes = self.head.slopes(logits, teacher, measured, rows, known)
            along = jax.tree.map(lambda s, c: s * c[:, None], slopes, to_measured)
            slope, to_columns, numbers = pull(sum(jax.tree.leaves(along)))
            left, to_right = self.matrix.pull(operands.left, right, slope)
            put = lambda x, y: self._put(x, y, start)
            to_whole = jax.tree.map(put, to_whole, (to_right, to_columns))
            return to_left + left, to_whole, jax.tree.map(jnp.add, to_numbers, numbers)

        zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide(x)), tree)
        carry = zeros(operands.left), zeros((operands.right, operands.columns)), to_numbers
        blocks = operands.right, operands.columns, facts.columns
        left, (right, columns), numbers = self._fold(body, carry, blocks)
        return Operands(left, right, zeros(operands.rows), columns, numbers), None

    def _fold(self, body, carry, columns):
        """Carries `body(carry, block, start)` over blocks of columns, the last perhaps smaller."""
        count = columns[0].shape[self.matrix.axis]
        block = lambda start, size: jax.tree.map(lambda x: self._take(x, start, size), columns)
        step = jax.checkpoint(lambda c, i: (body(c, block(i, self.size), i), None))
        whole = count // self.size * self.size
        carry, _ = lax.scan(step, carry, jnp.arange(0, whole, self.size))
        return body(carry, block(whole, count - whole), whole) if whole < count else carry

    def _take(self, x, start, size):
        return lax.dynamic_slice_in_dim(x, start, size, self.matrix.axis % x.ndim)

    def _put(self, x, block, start):
        return lax.dynamic_update_slice_in_dim(x, block, start, self.matrix.axis % x.ndim)
