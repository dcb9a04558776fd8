"""Log-sums in two parts, the top and the log of the rest, so that differences keep their digits.

Their sum would be rounded to the size of the scores. Scores of minus infinity are taken, too.
"""

import jax.numpy as jnp
from jax import lax
from jax.nn import one_hot

from lossopt._typing import Array, Bool, Float

Items = Float[Array, "*batch items"]
Kept = Bool[Array, "*batch items"]


def lead(a: Array, b: Array) -> Array:
    """`a - b`; 0 where both are the same infinity."""
    return jnp.where((a == b) & jnp.isinf(a), 0, a - b)


def log_sum(scores: Items, kept: Kept) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Of the kept scores: the top, a constant, and the log of the rest; of none -inf and 0."""
    top = lax.stop_gradient(jnp.max(scores, axis=-1, where=kept, initial=-jnp.inf))
    terms = jnp.exp(lead(jnp.where(kept, scores, top[..., None]), top[..., None]))
    return top, _log(jnp.sum(terms, axis=-1, where=kept))


def tails(scores: Items, kept: Kept) -> tuple[Items, Items]:
    """As `log_sum`, of each score and all after it."""
    top = lax.stop_gradient(jnp.where(kept, scores, -jnp.inf))
    total = jnp.where(kept, jnp.exp(lead(jnp.where(kept, scores, top), top)), 0)

    def joined(one, other):
        top = jnp.maximum(one[0], other[0])
        share = lambda part: part[1] * jnp.exp(lead(part[0], top))
        return top, share(one) + share(other)

    top, total = lax.associative_scan(joined, (top, total), reverse=True, axis=scores.ndim - 1)
    return top, _log(total)


def surprises(scores: Items, kept: Kept) -> Items:
    """Minus the log of the softmax over kept scores, exact near 0; others are not read."""
    if not scores.size:
        return scores
    scores = jnp.where(kept, scores, -jnp.inf)
    best = one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1], dtype=bool)
    top = jnp.sum(jnp.where(best, scores, 0), axis=-1, keepdims=True)
    rest = jnp.where(kept & ~best, jnp.exp(lead(scores, top)), 0)
    behind = jnp.where(best, lax.stop_gradient(lead(top, top)), lead(top, scores))
    return behind + jnp.log1p(jnp.sum(rest, axis=-1, keepdims=True))


def _log(total):
    return jnp.log(jnp.where(total == 0, 1, total))
