"""What the pairs of a block of items with all items are asked for."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import softplus

from lossopt._numerics import NO_LOGIT, wide
from lossopt._pieces import contiguous
from lossopt._pieces import walk as over
from lossopt._typing import Array, PyTree
from lossopt.fused._logits import LogSum
from lossopt.fused._walk import Facts, Matrix, Operands, zeros


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Log-sums of the other logits of each row, and of each column over the rows at hand.

    Attributes:
      matrix: how a tile is made.
      size: rows of a block.
      together: as of `Walk`.
    """

    matrix: Matrix
    size: int
    together: int = 1
    one_pass: bool = False

    def forward(self, operands: Operands, facts: Facts) -> tuple[PyTree, PyTree]:
        """Rivals `[rows]`, rivals `[columns]` and own logits `[rows]`; the first two again."""

        @jax.checkpoint
        def body(carry, number, piece):
            left, known = piece
            tile = self.matrix.tile(left, operands.right)
            logits, own = self._look(tile, operands.numbers, known, facts.columns)
            top = lax.stop_gradient(jnp.max(logits, axis=1))
            rows = LogSum(top, jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=1)))
            old, total = carry
            top = lax.stop_gradient(jnp.maximum(old, jnp.max(logits, axis=0)))
            total = total * jnp.exp(old - top)
            total += jnp.sum(jnp.exp(logits - top[None, :]), axis=0)
            return (top, total), (rows, own)

        dtype = wide(jnp.result_type(operands.left, operands.right))
        none = jnp.zeros_like(operands.right[:, 0], dtype=dtype)
        pieces = contiguous((operands.left, facts.rows), self.size)
        (top, total), out = over(body, (none + NO_LOGIT[dtype], none), pieces)
        rows, own = out.joined()
        columns = LogSum(top, jnp.log(total))
        return (rows, columns, own), (rows, columns)

    def backward(
        self, operands: Operands, facts: Facts, residuals: PyTree, cotangents: PyTree
    ) -> tuple[Operands, None]:
        """The gradient."""
        *to_sums, to_own = cotangents
        rows, columns = residuals
        to_rows, to_columns = (
            to.rest * jnp.exp(-sums.rest) for to, sums in zip(to_sums, residuals, strict=True)
        )

        @jax.checkpoint
        def body(carry, number, piece):
            left, known, top, to_row, to_own = piece
            look = lambda tile, numbers: self._look(tile, numbers, known, facts.columns)
            tile = self.matrix.tile(left, operands.right)
            (logits, _), pull = jax.vjp(look, tile, operands.numbers)
            slope = to_row[:, None] * jnp.exp(logits - top[:, None])
            slope += to_columns[None, :] * jnp.exp(logits - columns.top[None, :])
            slope, to_numbers = pull((slope, to_own))
            to_left, to_right = self.matrix.pull(left, operands.right, slope)
            return jax.tree.map(jnp.add, carry, (to_right, to_numbers)), to_left

        pieces = contiguous((operands.left, facts.rows, rows.top, to_rows, to_own), self.size)
        carry, left = over(body, zeros((operands.right, operands.numbers)), pieces)
        right, numbers = carry
        return Operands(left.joined(), right, {}, numbers), None

    def _look(self, tile, numbers, rows, columns):
        """The logits of others, those that do not exist below all; and each row's own."""
        logits = numbers["scale"] * tile
        same = _same(rows, columns)
        own = jnp.sum(jnp.where(same, logits, 0), axis=1)
        return jnp.where(_exist(~same, rows, columns), logits, NO_LOGIT[logits.dtype]), own


def belonging(tile: Array, operands: Operands, facts: Facts) -> Array:
    """How well each pair is told apart, summed over columns."""
    logits = operands.numbers["scale"] * tile + operands.numbers["bias"]
    loss = softplus(jnp.where(_same(*facts), -logits, logits))
    return jnp.sum(jnp.where(_exist(True, *facts), loss, 0), axis=1)


def likeness(tile: Array, operands: Operands, facts: Facts) -> Array:
    """Cross entropy of the columns of the same label, by the lead of the best over the others."""
    others = _exist(~_same(*facts), *facts)
    logits = jnp.where(others, tile / operands.numbers["temperature"], NO_LOGIT[tile.dtype])
    best = jnp.argmax(logits, axis=1)[:, None] == jnp.arange(tile.shape[1])[None, :]
    top = jnp.sum(jnp.where(best, logits, 0), axis=1, keepdims=True)
    rest = jnp.sum(jnp.where(others & ~best, jnp.exp(logits - top), 0), axis=1)
    positives = others & (facts.rows["labels"][:, None] == facts.columns["labels"][None, :])
    count = jnp.sum(positives, axis=1).astype(tile.dtype)
    behind = jnp.where(best, lax.stop_gradient(top - logits), top - logits)  # the best by 0, always
    lead = jnp.sum(jnp.where(positives, behind, 0), axis=1) / jnp.maximum(1, count)
    return jnp.where(count > 0, lead + jnp.log1p(rest), 0)


def _same(rows, columns):
    return rows["index"][:, None] == columns["index"][None, :]


def _exist(pairs, rows, columns):
    if "present" not in columns:
        return pairs
    return pairs & rows["present"][:, None] & columns["present"][None, :]
