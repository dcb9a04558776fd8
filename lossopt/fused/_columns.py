"""The matrix in blocks of columns, each of which sees all rows at once."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from lossopt import _jax
from lossopt._numerics import wide
from lossopt._pieces import contiguous
from lossopt._pieces import walk as over
from lossopt._typing import PyTree
from lossopt.fused._walk import Criterion, Facts, Matrix, Operands, zeros


class Mergeable(Criterion, Protocol):
    """A criterion that a few numbers of each row determine, whatever columns they are of."""

    def nothing(self, rows: int, dtype: Any) -> PyTree:
        """What is seen of no columns."""
        ...

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        """What is seen of two sets of columns together."""
        ...


@dataclasses.dataclass(frozen=True)
class Columns:
    """The matrix in blocks of columns, each of which sees all rows at once.

    Attributes:
      matrix: how a tile is made.
      criterion: what it is asked.
      size: columns of a block.
      together: as of `Walk`.
    """

    matrix: Matrix
    criterion: Mergeable
    size: int
    together: int = 1
    one_pass: bool = False

    def forward(self, operands: Operands, facts: Facts) -> tuple[PyTree, PyTree]:
        """One value per row, and what was seen of it."""

        @jax.checkpoint
        def body(seen, number, piece):
            part, known = self._block(operands, facts, piece)
            tile = self.matrix.tile(part.left, part.right)
            return self.criterion.merge(seen, self.criterion.look(tile, part, known)), ()

        dtype = wide(jnp.result_type(operands.left, operands.right))
        nothing = self.criterion.nothing(len(operands.left), dtype)
        nothing, _ = _jax.alike((nothing, operands))
        seen, _ = over(body, nothing, self._pieces(operands))
        return self.criterion.close(seen, operands.numbers), seen

    def backward(
        self, operands: Operands, facts: Facts, residuals: PyTree, cotangents: PyTree
    ) -> tuple[Operands, None]:
        """The gradient, of another look at each tile."""
        _, close = jax.vjp(self.criterion.close, residuals, operands.numbers)
        asked, closing = close(cotangents)

        @jax.checkpoint
        def body(carry, number, piece):
            to_left, to_whole, to_numbers = carry
            part, known = self._block(operands, facts, piece)
            tile = self.matrix.tile(part.left, part.right)
            slope, to_columns, looking = self.criterion.pull(tile, part, known, residuals, asked)
            left, to_right = self.matrix.pull(part.left, part.right, slope)
            put = lambda x, block: self._put(x, block, piece)
            to_whole = jax.tree.map(put, to_whole, (to_right, to_columns))
            return (to_left + left, to_whole, jax.tree.map(jnp.add, to_numbers, looking)), ()

        start = *zeros((operands.left, (operands.right, operands.columns))), closing
        (left, (right, columns), numbers), _ = over(body, start, self._pieces(operands))
        return Operands(left, right, columns, numbers), None

    def _pieces(self, operands):
        """The numbers of the columns: blocks of the arrays are taken when they are needed."""
        return contiguous(jnp.arange(operands.right.shape[self.matrix.axis]), self.size)

    def _block(self, operands, facts, piece):
        take = lambda x: lax.dynamic_slice_in_dim(x, piece[0], len(piece), self.matrix.axis)
        right, columns, known = jax.tree.map(take, (*operands[1:3], facts.columns))
        return operands._replace(right=right, columns=columns), facts._replace(columns=known)

    def _put(self, x, block, piece):
        return lax.dynamic_update_slice_in_dim(x, block, piece[0], self.matrix.axis)
