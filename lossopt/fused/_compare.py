"""All items of a list compared with all others, block by block."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lossopt import _jax
from lossopt._mean import mean
from lossopt._typing import Array, PyTree
from lossopt.fused import _devices
from lossopt.fused._how import How, MeanOrValues
from lossopt.fused._walk import Facts, Formula, Operands, Rows, average, values
from lossopt.losses._log_sums import lead

CACHE = 2**22  # bytes: what is compared and not multiplied is fastest near the processor


@dataclasses.dataclass(frozen=True)
class Difference:
    """Tiles of `left[:, None] - right[None, :]`; equal infinities lie 0 apart."""

    axis: int = 0

    def tile(self, left: Array, right: Array) -> Array:
        """Shape `[rows, columns]`."""
        return lead(left[:, None], right[None, :])

    def pull(self, left: Array, right: Array, slope: Array) -> tuple[Array, Array]:
        """The gradients of `left` and `right` from that of the tile."""
        del left, right
        return jnp.sum(slope, axis=1), -jnp.sum(slope, axis=0)


def totals(
    formula: Callable, how: How, scores: Array, columns: dict, facts: Facts, weights: Array
) -> Array:
    """The weighed sum of each list's rows, shape `[lists]`."""

    def total(scores, columns, facts, weights):
        operands = Operands(scores, scores, columns, {})
        return average(_walk(formula, how, scores), operands, facts, weights, how.form).total

    return _each(how, total, scores, columns, facts, weights)


def of_items(formula: Callable, how: How, scores: Array, facts: Facts, numbers: dict) -> Array:
    """One value per item, shape `[lists, items]`."""

    def row(scores, facts):
        operands = Operands(scores, scores, {}, numbers)
        return values(_walk(formula, how, scores), operands, facts, how.form)

    return _each(how, row, scores, facts)


def _walk(formula, how, scores):
    tiles = how.tiles(len(scores), len(scores), scores.dtype, cpu=CACHE)
    return Rows(Difference(), Formula(formula), tiles.rows, tiles.together)


def _each(how, fn, *args):
    """The lists side by side as far as the budget goes; one after another in the jvp form."""
    if len(args[0]) == 1:
        return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))
    if how.form == "jvp":
        return lax.map(lambda args: fn(*args), args)
    return jax.vmap(fn)(*args)


def lists_of(arrays: PyTree) -> PyTree:
    """Arrays of shape `[lists, items]` from those of `[*batch, items]`, whole on each device."""
    flat = lambda x: x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return _jax.alike(jax.tree.map(flat, _devices.gathered(arrays)))


def reduced(losses: Array, batch: tuple[int, ...], per_example: bool) -> MeanOrValues:
    """The `Mean` over lists, or their losses in the shape of the batch."""
    return losses.reshape(batch) if per_example else mean(losses)


@jax.custom_jvp
def logistic(lead: Array) -> Array:
    """`log(1 + exp(-lead))`; value and slope share one exponential."""
    return jnp.maximum(-lead, 0) + jnp.log1p(jnp.exp(-jnp.abs(lead)))


@logistic.defjvp
def _logistic_jvp(primals, tangents):
    (lead,), (tangent,) = primals, tangents
    return logistic(lead), -tangent * beaten(lead)


@jax.custom_jvp
def beaten(lead: Array) -> Array:
    """`1 / (1 + exp(lead))`, the smooth count of a defeat."""
    small = jnp.exp(-jnp.abs(lead))
    return jnp.where(lead >= 0, small, 1) / (1 + small)


@beaten.defjvp
def _beaten_jvp(primals, tangents):
    (lead,), (tangent,) = primals, tangents
    return beaten(lead), -tangent * beaten(lead) * beaten(-lead)
