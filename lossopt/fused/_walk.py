"""A matrix that exists one tile at a time, walked forward for values and backward for gradients.

A walk is a program without rules of its own. Here it gets the rules: of differentiation, and of
`vmap` within a budget of memory.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from lossopt import _jax
from lossopt._mean import Mean, mean
from lossopt._numerics import wide
from lossopt._pieces import contiguous
from lossopt._pieces import walk as over
from lossopt._typing import Array, PyTree
from lossopt.fused._how import Form
from lossopt.fused._turns import in_turns


class Operands(NamedTuple):
    """What the loss is differentiated by; every leaf is floating.

    Attributes:
      left: what the rows of the matrix are made of, shape `[rows, ...]`.
      right: what its columns are made of.
      columns: more numbers of each column, by name, leaves `[columns, ...]`.
      numbers: numbers that hold for the whole matrix, by name, leaves `()`.
    """

    left: Array
    right: Array
    columns: dict[str, Array]
    numbers: dict[str, Array]


class Facts(NamedTuple):
    """What the loss reads as constants, such as labels, by row and by column."""

    rows: dict[str, Array]
    columns: dict[str, Array]


class Walk(Protocol):
    """A way over the matrix.

    Attributes:
      together: how many such matrices the budget holds at once.
      one_pass: whether `backward` needs no residuals, and returns the values, too.
    """

    @property
    def together(self) -> int: ...

    @property
    def one_pass(self) -> bool: ...

    def forward(self, operands: Operands, facts: Facts) -> tuple[PyTree, PyTree]:
        """The values, and residuals."""
        ...

    def backward(
        self, operands: Operands, facts: Facts, residuals: PyTree, cotangents: PyTree
    ) -> tuple[Operands, PyTree]:
        """The gradient of `sum(cotangents * values)`, in float32 or wider; and the values."""
        ...


def values(walk: Walk, operands: Operands, facts: Facts, form: Form) -> PyTree:
    """What the walk gives, one value per row; its gradient walks the matrix once more."""
    if form == "jvp":
        return walk.forward(operands, facts)[0]
    return _values(walk, *_alike(operands, facts))


def average(walk: Walk, operands: Operands, facts: Facts, weights: Array, form: Form) -> Mean:
    """The weighed mean of the rows. Where one pass will do, the gradient is made on the way."""
    if form == "jvp" or not walk.one_pass:
        return mean(values(walk, operands, facts, form), weights)
    return Mean(_total(walk, *_alike(operands, facts, weights)), jnp.sum(weights))


def _alike(*trees):
    """Inside of `shard_map` rules see leaves that vary over the same devices."""
    return _jax.alike(trees) if jax.sharding.get_abstract_mesh().manual_axes else trees


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(walk, operands, facts):
    return _bounded(walk, "forward", operands, facts)[0]


def _values_forward(walk, operands, facts):
    values, residuals = _bounded(walk, "forward", operands, facts)
    return values, (operands, facts, residuals)


def _values_backward(walk, saved, cotangents):
    operands, facts, residuals = saved
    unit, cotangents = _within_range(operands, cotangents)
    gradient, _ = _bounded(walk, "backward", operands, facts, residuals, cotangents)
    return _like(operands, gradient, unit), None


_values.defvjp(_values_forward, _values_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(walk, operands, facts, weights):
    values, _ = _bounded(walk, "forward", operands, facts)
    return mean(values, weights).total


def _total_forward(walk, operands, facts, weights):
    unit, cotangents = _within_range(operands, weights)
    gradient, values = _bounded(walk, "backward", operands, facts, None, cotangents)
    return mean(values, weights).total, (operands, gradient, unit, values, weights)


def _total_backward(walk, saved, cotangent):
    operands, gradient, unit, values, weights = saved
    unread = (weights == 0) & ~jnp.isfinite(values)
    to_weights = cotangent * jnp.where(unread, 0, values)
    to_operands = _like(operands, gradient, unit * cotangent)
    return to_operands, None, to_weights.astype(weights.dtype)


_total.defvjp(_total_forward, _total_backward)


def _like(operands, gradient, factor):
    return jax.tree.map(lambda x, g: (factor * g).astype(x.dtype), operands, gradient)


def _within_range(operands, cotangents):
    """A power of two, and cotangents over it: the slopes of a tile shall fit into float16."""
    if all(x.dtype != jnp.float16 for x in jax.tree.leaves(operands)):
        return 1, cotangents
    top = reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(cotangents)])
    unit = jax.lax.stop_gradient(jnp.exp2(jnp.floor(jnp.log2(jnp.where(top == 0, 1, top)))))
    return unit, jax.tree.map(lambda x: x / unit, cotangents)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mapped(walk, way, *args):
    call = custom_vmap(getattr(walk, way))
    call.def_vmap(partial(in_turns, _bounded, walk, way))
    return call(*args)


@_mapped.defjvp
def _mapped_jvp(walk, way, primals, tangents):
    return jax.jvp(getattr(walk, way), primals, tangents)


_bounded: Callable = jax.jit(_mapped, static_argnums=(0, 1))


class Matrix(Protocol):
    """How a tile is made of its rows and columns, which lie along `axis` of `right`."""

    @property
    def axis(self) -> int: ...

    def tile(self, left: Array, right: Array) -> Array:
        """Shape `[rows, columns]`, in float32 or wider."""
        ...

    def pull(self, left: Array, right: Array, slope: Array) -> tuple[Array, Array]:
        """The gradients of `left` and `right`, in float32 or wider, from that of the tile."""
        ...


class Criterion(Protocol):
    """What a tile tells of each of its rows, and what that asks of the tile.

    Operands and facts are those of the tile.
    """

    def look(self, tile: Array, operands: Operands, facts: Facts) -> PyTree:
        """Numbers of each row, leaves `[rows]`."""
        ...

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: PyTree, asked: PyTree
    ) -> tuple[Array, dict, dict]:
        """The gradients of tile, columns and numbers: `asked` of what was `seen` of whole rows."""
        ...

    def close(self, seen: PyTree, numbers: dict) -> PyTree:
        """One value per row, or some, of what was seen of all its columns."""
        ...


@dataclasses.dataclass(frozen=True)
class Formula:
    """A criterion of whole rows, as a function of tile, operands and facts."""

    value: Callable[[Array, Operands, Facts], Array]

    def look(self, tile: Array, operands: Operands, facts: Facts) -> Array:
        """The values already."""
        return self.value(tile, operands, facts)

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: Array, asked: Array
    ) -> tuple[Array, dict, dict]:
        """As jax differentiates it."""
        del seen

        def value(tile, columns, numbers):
            return self.value(tile, operands._replace(columns=columns, numbers=numbers), facts)

        return jax.vjp(value, tile, operands.columns, operands.numbers)[1](asked)

    def close(self, seen: Array, numbers: dict) -> Array:
        """Nothing is left to do."""
        del numbers
        return seen


@dataclasses.dataclass(frozen=True)
class Rows:
    """The matrix in blocks of rows, each of which sees all columns at once.

    Attributes:
      matrix: how a tile is made.
      criterion: what it is asked.
      size: rows of a block.
      together: as of `Walk`.
    """

    matrix: Matrix
    criterion: Criterion
    size: int
    together: int = 1
    one_pass: bool = True

    def forward(self, operands: Operands, facts: Facts) -> tuple[PyTree, None]:
        """One value per row, and nothing to remember."""

        @jax.checkpoint
        def body(carry, number, piece):
            left, rows = piece
            tile = self.matrix.tile(left, operands.right)
            seen = self.criterion.look(tile, operands, facts._replace(rows=rows))
            return carry, self.criterion.close(seen, operands.numbers)

        pieces = contiguous((operands.left, facts.rows), self.size)
        return over(body, (), pieces)[1].joined(), None

    def backward(
        self, operands: Operands, facts: Facts, residuals: None, cotangents: PyTree
    ) -> tuple[Operands, PyTree]:
        """The gradient, and the values, of one look at each tile."""
        del residuals
        _, *whole = operands

        @jax.checkpoint
        def body(carry, number, piece):
            left, rows, cotangent = piece
            known = facts._replace(rows=rows)
            tile = self.matrix.tile(left, operands.right)
            seen = self.criterion.look(tile, operands, known)
            values, close = jax.vjp(self.criterion.close, seen, operands.numbers)
            alike = jax.tree.map(lambda x, like: x.astype(like.dtype), cotangent, values)
            asked, closing = close(alike)
            slope, to_columns, looking = self.criterion.pull(tile, operands, known, seen, asked)
            to_left, to_right = self.matrix.pull(left, operands.right, slope)
            to_whole = [to_right, to_columns, jax.tree.map(jnp.add, closing, looking)]
            return jax.tree.map(jnp.add, carry, to_whole), (to_left, values)

        pieces = contiguous((operands.left, facts.rows, cotangents), self.size)
        to_whole, out = over(body, zeros(whole), pieces)
        to_left, values = out.joined()
        return Operands(to_left, *to_whole), values


def zeros(tree: PyTree) -> PyTree:
    """Where gradients are added up, in float32 or wider."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide(x.dtype)), tree)
