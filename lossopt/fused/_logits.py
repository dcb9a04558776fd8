"""Tiles of logits, and the logs of sums of their exponentials."""

import dataclasses
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._numerics import NO_LOGIT, wide
from lossopt._typing import Array, ArrayLike


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
        slope = slope.astype(jnp.result_type(left, right))
        to_left = _dot(slope, right, 1, 0 if self.transposed else 1)
        pair = (slope, left) if self.transposed else (left, slope)
        return to_left, _dot(*pair, 0, 0)


def logits(exist: Array | None, tile: Array, columns: dict, numbers: dict) -> Array:
    """With bias, soft cap and temperature; of classes that do not exist, below all others."""
    z = tile + columns["bias"][None, :] if "bias" in columns else tile
    z = _capped(z, numbers["soft_cap"]) if "soft_cap" in numbers else z
    z = z / numbers["temperature"] if "temperature" in numbers else z
    return z if exist is None else jnp.where(exist[None, :], z, NO_LOGIT[z.dtype])


class LogSum(NamedTuple):
    """Logs of sums of exponentials, in two parts: their sum would lose the digits of the second.

    Attributes:
      top: no less than any of the logits; a constant to the gradient.
      rest: what comes on top of it.
    """

    top: Array
    rest: Array

    def over(self, logits: Array) -> Array:
        """How far they are above logits of their rows, shape `[rows]` or `[rows, columns]`."""
        top, rest = (x.reshape(x.shape + (1,) * (logits.ndim - x.ndim)) for x in self)
        return (top - logits) + rest

    def log_share(self, part: "LogSum") -> Array:
        """The log of the share that a part has."""
        return part.rest - self.over(part.top)


def log_sum(logits: Array, where: ArrayLike = True, *, after: ArrayLike = -jnp.inf) -> LogSum:
    """The log of the sum of exponentials of each row.

    Of a sum that underflows beside a masked logit it returns a bound, still e^-87 below that.
    `after` is no more than the highest logit: it makes the compiler wait, and drop its tile, first.
    """
    top = lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1), after))
    top = jnp.maximum(top, NO_LOGIT[logits.dtype])
    total = jnp.sum(jnp.where(where, jnp.exp(logits - top[:, None]), 0), axis=-1)
    return LogSum(top, _log(total))


def joined(*sums: LogSum) -> LogSum:
    """The log-sum of all that they are of."""
    top = lax.stop_gradient(reduce(jnp.maximum, (x.top for x in sums)))
    return LogSum(top, reduce(jnp.logaddexp, (x.rest + (x.top - top) for x in sums)))


def _capped(z, cap):
    """As it is where a large cap bends nothing: scaled by an infinite one it would be NaN."""
    straight = jnp.abs(z) <= jnp.finfo(z.dtype).eps * cap
    finite = jnp.where(jnp.isinf(cap), 1, cap)
    return jnp.where(straight, z, finite * jnp.tanh(z / finite))


@jax.custom_jvp
def _log(total):
    return jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))


@_log.defjvp
def _log_jvp(primals, tangents):
    """By the exponential, because the square of a total, of the next derivative, underflows."""
    log = _log(*primals)
    return log, jnp.exp(-log) * tangents[0]


def _dot(a, b, axis_a, axis_b):
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=wide(jnp.result_type(a, b)))
