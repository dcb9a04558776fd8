"""Logits of a tile, and the logs of sums of their exponentials."""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._numerics import NO_LOGIT
from lossopt._typing import Array, ArrayLike


def logits(tile: Array, columns: dict, numbers: dict) -> Array:
    """With bias and soft cap."""
    z = tile + columns["bias"][None, :] if "bias" in columns else tile
    if "soft_cap" in numbers:
        z = numbers["soft_cap"] * jnp.tanh(z / numbers["soft_cap"])
    return z


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


@jax.custom_jvp
def _log(total):
    return jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))


@_log.defjvp
def _log_jvp(primals, tangents):
    """By the exponential, because the square of a total, of the next derivative, underflows."""
    log = _log(*primals)
    return log, jnp.exp(-log) * tangents[0]
