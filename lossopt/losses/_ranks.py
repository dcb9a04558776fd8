"""Lists of items as losses of ranks read them, and what a rank is worth."""

import jax.numpy as jnp
from jax import lax

from lossopt import _checks
from lossopt._numerics import NO_LOGIT
from lossopt._typing import Array, ArrayLike, Bool, Float, Num

Lists = Num[ArrayLike, "*batch items"]
Mask = Bool[ArrayLike, "*batch items"] | None
Items = Float[Array, "*batch items"]


def read(
    member: str, scores: Lists, relevance: Lists, items: Mask, lowest: float = -jnp.inf
) -> tuple[Items, Items, Bool[Array, "*batch items"], Bool[Array, "*batch"]]:
    """Lists and relevance, 0 where masked; who is present; whose relevance is in range.

    Args:
      member: the loss that reads, which a message names.
      scores: one per item.
      relevance: one per item; NaN, and what lies below `lowest`, is out of range and read as 0.
      items: False for items that do not exist, which are never read; None for none.
      lowest: the least relevance; by default any number is in range.
    """
    _checks.rank_at_least(1, scores=scores)
    scores, relevance = _checks.same_shape(scores=scores, relevance=relevance)
    present = _checks.mask("items", items, scores.shape)
    relevance = jnp.where(present, relevance, 0)
    known = relevance >= lowest  # a NaN is not
    message = f"{member}: expected relevance >= {lowest}, got {{low}}."
    _checks.condition(known, message, low=jnp.min(relevance, initial=0))
    scores, relevance = jnp.where(present, scores, 0), jnp.where(known, relevance, 0)
    return scores, relevance, present, jnp.all(known, axis=-1)


def weighed(member: str, scores: Lists, weights: Lists | None, items: Mask) -> tuple[Items, Items]:
    """Scores, and weights of items, 0 where masked and 1 by default; the largest is 1.

    Only ratios of weights matter, and so no product of two leaves the range.
    """
    weights = jnp.ones(jnp.shape(scores), bool) if weights is None else weights
    scores, weights = _checks.same_shape(scores=scores, weights=weights)
    exist = _checks.mask("items", items, scores.shape)
    weights = jnp.where(exist & (weights != 0), weights, 0)  # what is not read has no slope
    _checks.at_least(0, weights=weights)
    _checks.nonnegative(member, weights=weights)
    top = lax.stop_gradient(jnp.max(weights, axis=-1, keepdims=True, initial=0))
    return scores, weights / jnp.where(top == 0, 1, top)


def sunk(scores: Items, present: Bool[Array, "*batch items"]) -> Items:
    """Masked items below every score; finite, so that their differences are 0 and not NaN."""
    return jnp.where(present, scores, NO_LOGIT[scores.dtype])


def ranks(scores: Items) -> Items:
    """From 1, by decreasing score; equal scores by position."""
    order = jnp.argsort(-scores, axis=-1, stable=True)
    return 1 + jnp.argsort(order, axis=-1).astype(scores.dtype)


def discounts(places: Items) -> Items:
    """What a gain is multiplied by at a rank, which may be smooth."""
    return 1 / jnp.log2(1 + places)


def gains(relevance: Items) -> Items:
    """Each item's gain over the ideal DCG; all 0 where there is no relevance."""
    best = jnp.max(relevance, axis=-1, keepdims=True, initial=0)
    # 2^(r - best) (1 - 2^-r): the factor 2^-best cancels and keeps large grades finite.
    scaled = jnp.exp2(relevance - best) * -jnp.expm1(-relevance * jnp.log(2.0))
    ideal = jnp.sum(scaled * discounts(ranks(relevance)), axis=-1, keepdims=True)
    return scaled / jnp.where(ideal == 0, 1, ideal)
