"""All items of a list compared with all others, block by block."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lossopt import _jax
from lossopt._typing import Array, PyTree
from lossopt.fused import _devices, _forms
from lossopt.fused._blocks import Blocks
from lossopt.fused._plan import Memory, tiles
from lossopt.fused._tiles import Difference, Facts, Form, Operands, check_form

CACHE = 2**22  # bytes: what is compared and not multiplied is fastest near the processor


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The loss of item i over all others, and how the lists of a batch are walked.

    Attributes:
      head: as of `Blocks`.
      memory: as of the public functions.
      form: as of the public functions.
    """

    head: Callable[..., Array]
    memory: Memory
    form: Form

    def check(self) -> None:
        """Raises where the form is unknown."""
        check_form(self.form)

    def totals(self, scores: Array, columns: dict, facts: Facts, weights: Array) -> Array:
        """The weighed sum of each list's rows, shape `[lists]`."""

        def total(scores, columns, facts, weights):
            operands = Operands(scores, scores, {}, columns, {})
            jvp = self.form == "jvp"
            return _forms.average(self._method(scores), operands, facts, weights, jvp=jvp).total

        return self._each(total, scores, columns, facts, weights)

    def rows(self, scores: Array, facts: Facts, numbers: dict) -> Array:
        """One value per item, shape `[lists, items]`."""

        def row(scores, facts):
            operands = Operands(scores, scores, {}, {}, numbers)
            return _forms.rows(self._method(scores), operands, facts, jvp=self.form == "jvp")

        return self._each(row, scores, facts)

    def _method(self, scores):
        shape = len(scores), len(scores)
        tile = tiles(*shape, scores.dtype, self.memory, by_columns=False, cpu=CACHE)
        return Blocks(Difference(), self.head, tile.rows, together=tile.together)

    def _each(self, fn, *args):
        """The lists side by side as far as the budget goes; one after another in the jvp form."""
        if len(args[0]) == 1:
            return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))
        if self.form == "jvp":
            return lax.map(lambda args: fn(*args), args)
        return jax.vmap(fn)(*args)


def lists_of(arrays: PyTree) -> PyTree:
    """Arrays of shape `[lists, items]` from those of `[*batch, items]`, whole on each device."""
    flat = lambda x: x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return _jax.alike(jax.tree.map(flat, _devices.gathered(arrays)))


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
