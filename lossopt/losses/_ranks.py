"""Lists of items as losses of ranks read them, and what a rank is worth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Num, Number
from lossopt.losses._log_sums import lead

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
    weights = jnp.ones(_checks.shape("scores", scores), bool) if weights is None else weights
    _checks.fits(weights=weights)
    scores, weights = _checks.same_shape(scores=scores, weights=weights)
    exist = _checks.mask("items", items, scores.shape)
    weights = jnp.where(exist & (weights != 0), weights, 0)  # what is not read has no slope
    _checks.at_least(0, weights=weights)
    _checks.nonnegative(member, weights=weights)
    top = lax.stop_gradient(jnp.max(weights, axis=-1, keepdims=True, initial=0))
    return scores, weights / jnp.where(top == 0, 1, top)


def limit(top: Number | None) -> Number:
    """How many of the first places count; all of them by default."""
    if top is None:
        return jnp.inf
    _checks.exact_shape((), top=top)
    _checks.at_least(1, top=top)
    return top


def discounts(rank: Items, top: Number = jnp.inf) -> Items:
    """What a gain is multiplied by at a rank, which may be smooth; 0 beyond `top`."""
    return jnp.where(rank > jnp.asarray(top, rank.dtype), 0, 1 / jnp.log2(1 + rank))


def gains(relevance: Items, top: Number = jnp.inf) -> Items:
    """Each item's gain over the ideal DCG of the first `top`; all 0 where there is no relevance."""
    best = jnp.max(relevance, axis=-1, keepdims=True, initial=0)
    # 2^(r - best) (1 - 2^-r): the factor 2^-best cancels and keeps large grades finite.
    scaled = jnp.exp2(relevance - best) * -jnp.expm1(-relevance * jnp.log(2.0))
    ranked = -jnp.sort(-scaled, axis=-1)
    ideal = jnp.sum(ranked * discounts(places(ranked), top), axis=-1, keepdims=True)
    return scaled / jnp.where(ideal == 0, 1, ideal)


def places(x: Items) -> Items:
    """From 1 on, in the shape and dtype of `x`."""
    return 1 + _index(x).astype(x.dtype)


class Ranking(NamedTuple):
    """The places of a list by decreasing score; places from 0, those of masked items are last.

    Attributes:
      order: the item at each place; equal scores by position.
      first: where the scores that equal that at this place begin.
      last: where they end.
    """

    order: Int[Array, "*batch items"]
    first: Int[Array, "*batch items"]
    last: Int[Array, "*batch items"]

    def at_places(self, x: Array) -> Array:
        """What the item at each place has."""
        return jnp.take_along_axis(x, self.order, axis=-1)

    def of_items(self, x: Array) -> Array:
        """What the place of each item has."""
        return jnp.take_along_axis(x, jnp.argsort(self.order, axis=-1), axis=-1)

    def over_ties(self, x: Array) -> Array:
        """The sum over the places of equal scores, at each of them."""

        def joined(one, other):
            begins = one[0] | other[0]
            return begins, other[1] + jnp.where(other[0], 0, one[1])

        begins = self.first == _index(x)
        _, total = lax.associative_scan(joined, (begins, x), axis=x.ndim - 1)
        return jnp.take_along_axis(total, self.last, axis=-1)

    def sizes(self, x: Array) -> Array:
        """How many equal scores there are at each place, in the dtype of `x`."""
        return (self.last - self.first + 1).astype(x.dtype)


def ranking(scores: Items, present: Bool[Array, "*batch items"]) -> Ranking:
    """Constants to the gradient."""
    index = _index(scores)
    keys = ~present, -lax.stop_gradient(scores), index
    *keys, order = lax.sort(keys, dimension=scores.ndim - 1, num_keys=2, is_stable=True)
    same = [key[..., 1:] == key[..., :-1] for key in keys]
    edge, differ = jnp.ones_like(present[..., :1]), ~(same[0] & same[1])
    begins, ends = (jnp.concatenate(x, axis=-1) for x in ((edge, differ), (differ, edge)))
    axis = scores.ndim - 1
    first = lax.cummax(jnp.where(begins, index, 0), axis=axis)
    last = lax.cummin(jnp.where(ends, index, scores.shape[-1]), axis=axis, reverse=True)
    return Ranking(order, first, last)


def expected_discounts(ranked: Ranking, scores: Items, top: Number) -> tuple[Items, Items]:
    """Means over the orders of equal scores: of an item's discount, and of how two of them differ.

    NaN where a score is.
    """
    rank, sizes = places(scores), ranked.sizes(scores)
    worth = discounts(rank, top)
    mean = ranked.over_ties(worth) / sizes
    lean = sizes - 1 - 2 * (rank - 1 - ranked.first.astype(scores.dtype))
    spread = 2 * ranked.over_ties(worth * lean) / jnp.maximum(1, sizes * (sizes - 1))
    bad = jnp.any(jnp.isnan(scores), axis=-1, keepdims=True)
    mean, spread = (jnp.where(bad, jnp.nan, x) for x in (mean, spread))
    return ranked.of_items(mean), ranked.of_items(spread)


def among_first(
    scores: Items, present: Bool[Array, "*batch items"], temperature: Number, top: Number
) -> Items:
    """The soft count of each item among the first `top`, which it adds up to; 1 in short lists."""
    if not scores.size:
        return scores
    scores = jnp.where(present, scores, -jnp.inf)
    ordered = -jnp.sort(-lax.stop_gradient(scores), axis=-1)
    count = jnp.sum(present, axis=-1, keepdims=True, dtype=scores.dtype)
    top = jnp.asarray(top, scores.dtype)
    last = jnp.minimum(top, scores.shape[-1]).astype(jnp.int32) - 1
    at = lambda place: jnp.take(ordered, place, axis=-1, mode="clip")[..., None]
    scores = lead(scores, at(last))  # only differences count
    wide = jnp.log(jnp.asarray(scores.shape[-1], scores.dtype))
    temperature = jnp.asarray(temperature, scores.dtype)
    high = temperature * (wide + 1) * jnp.ones_like(scores[..., :1])
    low = jnp.maximum(lead(at(last + 1), at(last)) - high, -temperature * (wide + 100))
    threshold = _threshold(scores, temperature, *map(lax.stop_gradient, (low, high)), top)
    soft = sigmoid((scores - threshold) / temperature)
    return jnp.where(present, jnp.where(count <= top, 1, soft), 0)


@jax.custom_jvp
def _threshold(scores, temperature, low, high, top):
    """Where the soft counts above it add up to `top`, by bisection."""

    def halve(_, ends):
        low, high = ends
        middle = low + (high - low) / 2
        many = jnp.sum(sigmoid((scores - middle) / temperature), axis=-1, keepdims=True) > top
        return jnp.where(many, middle, low), jnp.where(many, high, middle)

    low, high = lax.fori_loop(0, 60, halve, (low, high))
    return low + (high - low) / 2


@_threshold.defjvp
def _threshold_jvp(primals, tangents):
    """By the implicit function theorem."""
    scores, temperature, *_ = primals
    to_scores, to_temperature, *_ = tangents
    threshold = _threshold(*primals)
    leads = (scores - threshold) / temperature
    slope = sigmoid(leads) * sigmoid(-leads)
    total = jnp.sum(slope, axis=-1, keepdims=True)
    moves = to_scores - jnp.where(slope == 0, 0, leads) * to_temperature
    share = slope / jnp.where(total == 0, 1, total)
    return threshold, jnp.sum(share * moves, axis=-1, keepdims=True)


def _index(x):
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
