"""Metrics of ranked lists, one number each: what nobody minimizes, because its slope is 0."""

from typing import NamedTuple

import jax.numpy as jnp

from lossopt._typing import Array, Float, Number
from lossopt.losses._ranks import (
    Items,
    Lists,
    Mask,
    expected_discounts,
    gains,
    limit,
    places,
    ranking,
    read,
)


def ndcg(
    scores: Lists, relevance: Lists, *, top: Number | None = None, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Discounted cumulative gain of the first places, as a share of the best possible.

    $$\frac{1}{\text{IDCG}} \sum_{i: k_i \le K} \frac{2^{r_i} - 1}{\log_2(1 + k_i)}$$

    $k_i \ge 1$ is the rank of item i by decreasing score; with equal scores the value is the mean
    over their orders. IDCG is the same sum in the order by relevance.

    Args:
      scores: shape `[*batch, items]`.
      relevance: $r$, shape `[*batch, items]`, at least 0; one below 0 makes its list NaN.
      top: $K$, how many of the first places count, at least 1. None counts all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One number from 0 to 1 per list, shape `[*batch]`; 0 without relevance: weigh such lists by 0
      if they shall not count. Its slope in the scores is 0.

    Examples:
      >>> print(f"{lo.losses.ndcg(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0])):.4f}")
      0.6309

    References:
      Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", 2002.
      McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the
      Presence of Tied Scores", 2008.
    """
    top = limit(top)
    scores, relevance, present, known = read("ndcg", scores, relevance, items, 0)
    mean, _ = expected_discounts(ranking(scores, present), scores, top)
    worth = gains(relevance, top)
    return _closed(jnp.sum(worth * mean, axis=-1, where=present), scores, known)


def reciprocal_rank(
    scores: Lists, relevance: Lists, *, top: Number | None = None, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""One over the rank of the first relevant item. Its mean over lists is MRR.

    $$\frac{1}{\min_{i: r_i > 0} k_i}$$

    $k_i \ge 1$ is the rank of item i by decreasing score; with equal scores the value is the mean
    over their orders.

    Args:
      scores: shape `[*batch, items]`.
      relevance: $r$, relevant above 0, shape `[*batch, items]`; one below 0 makes its list NaN.
      top: how many of the first places count, at least 1: 0 is the value beyond. None counts all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One number from 0 to 1 per list, shape `[*batch]`; 0 without relevance, as in `ndcg`. Its
      slope in the scores is 0.

    Examples:
      >>> lo.losses.reciprocal_rank(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0]))
      Array(0.5, dtype=float32)

    References:
      Voorhees, "The TREC-8 Question Answering Track Report", 1999.
    """
    top = limit(top)
    scores, relevance, present, known = read("reciprocal_rank", scores, relevance, items, 0)
    ties = _ties(scores, relevance, present)
    reached = (ties.relevant > 0) & (ties.before == 0)  # the first scores of a relevant item
    left = ties.size - ties.place + 1  # of these scores, from a place on
    missed = jnp.where(reached, jnp.maximum(0, left - ties.relevant) / left, 1)
    begin = jnp.ones_like(missed[..., :1])
    not_yet = jnp.cumprod(jnp.concatenate([begin, missed[..., :-1]], axis=-1), axis=-1)
    chance = jnp.where(reached & (ties.rank <= top), not_yet * ties.relevant / left, 0)
    return _closed(jnp.sum(chance / ties.rank, axis=-1), scores, known)


def average_precision(
    scores: Lists, relevance: Lists, *, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Mean over the relevant items of the share of relevant ones down to their rank.

    $$\frac{1}{|R|} \sum_{i \in R} \frac{|\{j \in R: k_j \le k_i\}|}{k_i}, \qquad
        R = \{i: r_i > 0\}$$

    $k_i \ge 1$ is the rank of item i by decreasing score; with equal scores the value is the mean
    over their orders. The mean over lists is MAP.

    Args:
      scores: shape `[*batch, items]`.
      relevance: $r$, relevant above 0, shape `[*batch, items]`; one below 0 makes its list NaN.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One number from 0 to 1 per list, shape `[*batch]`; 0 without relevance, as in `ndcg`. Its
      slope in the scores is 0.

    Examples:
      >>> lo.losses.average_precision(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 0, 1]))
      Array(0.75, dtype=float32)

    References:
      Buckley and Voorhees, "Evaluating Evaluation Measure Stability", 2000.
    """
    scores, relevance, present, known = read("average_precision", scores, relevance, items, 0)
    ties = _ties(scores, relevance, present)
    beside = (ties.place - 1) * (ties.relevant - 1) / jnp.maximum(1, ties.size - 1)
    hits = ties.relevant / ties.size * (ties.before + 1 + beside) / ties.rank
    count = jnp.sum((relevance > 0) & present, axis=-1, dtype=hits.dtype)
    return _closed(jnp.sum(hits, axis=-1) / jnp.maximum(1, count), scores, known)


class _Ties(NamedTuple):
    """Of each rank, from 1 on, and of the scores that equal that at it.

    Attributes:
      rank: from 1 on.
      place: among the equal scores, from 1 on.
      size: how many these are.
      relevant: how many of them are relevant.
      before: how many of all before them are.
    """

    rank: Items
    place: Items
    size: Items
    relevant: Items
    before: Items


def _ties(scores, relevance, present):
    ranked = ranking(scores, present)
    hits = ranked.at_places((relevance > 0) & present).astype(scores.dtype)
    before = jnp.take_along_axis(jnp.cumsum(hits, axis=-1) - hits, ranked.first, axis=-1)
    rank = places(scores)
    place = rank - ranked.first.astype(scores.dtype)
    return _Ties(rank, place, ranked.sizes(scores), ranked.over_ties(hits), before)


def _closed(values, scores, known):
    """NaN where a score or a relevance is out of range."""
    return jnp.where(known & ~jnp.any(jnp.isnan(scores), axis=-1), values, jnp.nan)
