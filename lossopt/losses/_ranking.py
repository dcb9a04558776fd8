"""Losses of whole lists, one number each; microbatches never cut a list. Natural logarithms."""

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Number
from lossopt.losses._log_sums import lead, surprises, tails
from lossopt.losses._ranks import (
    Lists,
    Mask,
    among_first,
    discounts,
    expected_discounts,
    gains,
    limit,
    ranking,
    read,
    weighed,
)


def pairwise_logistic(
    scores: Lists, relevance: Lists, weights: Lists | None = None, *, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Logistic loss of every pair of items whose relevance differs (RankNet).

    $$\ell = \frac{\sum_{i,j: r_i > r_j} w_i w_j \phi(s_i - s_j)}{\sum_{i,j: r_i > r_j} w_i w_j},
        \qquad \phi(d) = \log(1 + e^{-d})$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, shape `[*batch, items]`, real; only its order counts. NaN gives NaN.
      weights: $w$, shape `[*batch, items]`, at least 0, by default 1; weight 0 masks an item.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, 0 without pairs. Microbatches never cut a list.

    Examples:
      >>> lo.losses.pairwise_logistic(jnp.array([2.0, 1.0, 0.0]), jnp.array([1, 0, 0])).round(4)
      Array(0.2201, dtype=float32)

    References:
      Burges et al., "Learning to Rank using Gradient Descent", 2005.
    """
    phi = lambda d: jax.nn.softplus(-d)
    return _mean_over_pairs("pairwise_logistic", phi, scores, relevance, weights, items)


def pairwise_hinge(
    scores: Lists, relevance: Lists, weights: Lists | None = None, *, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Hinge loss of every pair (ranking SVM): `pairwise_logistic` with another $\phi$.

    $$\phi(d) = \max(0, 1 - d)$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, as in `pairwise_logistic`.
      weights: $w$, as in `pairwise_logistic`.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, 0 without pairs. Microbatches never cut a list.

    Examples:
      >>> lo.losses.pairwise_hinge(jnp.array([2.0, 1.5, 0.0]), jnp.array([1, 0, 0]))
      Array(0.25, dtype=float32)

    References:
      Joachims, "Optimizing Search Engines using Clickthrough Data", 2002.
    """
    phi = lambda d: jnp.maximum(0, 1 - d)
    return _mean_over_pairs("pairwise_hinge", phi, scores, relevance, weights, items)


def pairwise_squared_hinge(
    scores: Lists, relevance: Lists, weights: Lists | None = None, *, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Squared hinge loss of every pair: `pairwise_logistic` with another $\phi$.

    $$\phi(d) = \max(0, 1 - d)^2$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, as in `pairwise_logistic`.
      weights: $w$, as in `pairwise_logistic`.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, 0 without pairs. Microbatches never cut a list.

    Examples:
      >>> lo.losses.pairwise_squared_hinge(jnp.array([2.0, 1.5, 0.0]), jnp.array([1, 0, 0]))
      Array(0.125, dtype=float32)

    References:
      Chapelle and Keerthi, "Efficient Algorithms for Ranking with SVMs", 2010.
    """
    phi = lambda d: jnp.maximum(0, 1 - d) ** 2
    return _mean_over_pairs("pairwise_squared_hinge", phi, scores, relevance, weights, items)


def list_softmax(scores: Lists, relevance: Lists, *, items: Mask = None) -> Float[Array, "*batch"]:
    r"""Cross entropy between the share of relevance and the softmax of the scores (ListNet).

    $$\ell = -\sum_i \frac{r_i}{\sum_j r_j} \log \frac{e^{s_i}}{\sum_j e^{s_j}}$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, shape `[*batch, items]`, at least 0; one below 0 makes its list NaN.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, 0 without relevance. Microbatches never cut a list.

    Examples:
      >>> lo.losses.list_softmax(jnp.zeros(3), jnp.array([2, 1, 0])).round(4)  # log 3
      Array(1.0986, dtype=float32)

    References:
      Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", 2007.
    """
    scores, relevance, present, known = read("list_softmax", scores, relevance, items, 0)
    total = jnp.sum(relevance, axis=-1, keepdims=True)
    share = relevance / jnp.where(total == 0, 1, total)
    surprise = jnp.where(share > 0, surprises(scores, present), 0)  # 0 times infinity is 0 here
    return jnp.where(known, jnp.sum(share * surprise, axis=-1), jnp.nan)


def list_mle(scores: Lists, relevance: Lists, *, items: Mask = None) -> Float[Array, "*batch"]:
    r"""Negative log-likelihood of the order by relevance under Plackett and Luce.

    $$\ell = -\sum_k \log \frac{e^{s_{\pi(k)}}}{\sum_{m \ge k} e^{s_{\pi(m)}}}$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: `[*batch, items]`; $\pi$ is its decreasing order, ties by position. NaN gives NaN.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, a sum over its items. Microbatches never cut a list.

    Examples:
      >>> lo.losses.list_mle(jnp.zeros(3), jnp.array([2, 1, 0])).round(3)  # log 3!
      Array(1.792, dtype=float32)

    References:
      Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm", 2008.
    """
    scores, relevance, present, known = read("list_mle", scores, relevance, items)
    order = jnp.argsort(jnp.where(present, -relevance, jnp.inf), axis=-1, stable=True)
    ranked, present = (jnp.take_along_axis(x, order, axis=-1) for x in (scores, present))
    followed = present[..., 1:]
    top, rest = tails(ranked[..., 1:], followed)
    terms = jax.nn.softplus(lead(top, ranked[..., :-1]) + rest)  # exact near 0
    return jnp.where(known, jnp.sum(terms, axis=-1, where=followed), jnp.nan)


def lambda_rank(
    scores: Lists, relevance: Lists, *, top: Number | None = None, items: Mask = None
) -> Float[Array, "*batch"]:
    r"""Logistic loss of every pair, weighed by what swapping the two would change in NDCG.

    $$\ell = \sum_{i,j: r_i > r_j} \frac{|G_i - G_j|}{\text{IDCG}} \, |D(k_i) - D(k_j)| \,
        \log(1 + e^{-(s_i - s_j)}), \quad G_i = 2^{r_i} - 1, \quad D(k) = \frac{1}{\log_2(1 + k)}$$

    $k_i \ge 1$ is the rank of item i by decreasing score and a constant to the gradient; with
    equal scores the loss is the mean over their orders. The ideal DCG is the sum of $G_i D(k)$ in
    the order by relevance.

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, shape `[*batch, items]`, at least 0; one below 0 makes its list NaN.
      top: how many of the first places count, at least 1: $D(k)$ is 0 beyond. None counts all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list, shape `[*batch]`, 0 without relevance. Microbatches never cut a list.

    Examples:
      >>> lo.losses.lambda_rank(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0])).round(4)
      Array(0.5257, dtype=float32)

    References:
      Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", 2010.
      Wang et al., "The LambdaLoss Framework for Ranking Metric Optimization", 2018.
    """
    top = limit(top)
    scores, relevance, present, known = read("lambda_rank", scores, relevance, items, 0)
    ranked = ranking(scores, present)
    mean, spread = expected_discounts(ranked, scores, top)
    tied = _pairs(jnp.equal, ranked.of_items(ranked.first))
    apart = jnp.where(tied, spread[..., :, None], jnp.abs(_differences(mean)))
    swaps = jnp.maximum(0, _differences(gains(relevance, top))) * apart
    terms = swaps * jax.nn.softplus(-jnp.where(swaps == 0, 0, _pairs(lead, scores)))
    return jnp.where(known, jnp.sum(terms, axis=(-2, -1), where=present[..., None, :]), jnp.nan)


def approximate_ndcg(
    scores: Lists,
    relevance: Lists,
    *,
    temperature: Number,
    top: Number | None = None,
    items: Mask = None,
) -> Float[Array, "*batch"]:
    r"""One minus NDCG at smooth ranks, with the gains and the ideal DCG of `lambda_rank`.

    $$\ell = 1 - \frac{1}{\text{IDCG}} \sum_i c_i \frac{2^{r_i} - 1}{\log_2(1 + k_i)}, \qquad
        k_i = 1 + \sum_{j \ne i} \frac{1}{1 + e^{(s_i - s_j) / T}}$$

    $c_i$ is 1, but in lists of more than $K$ items the soft count of the item among the first $K$:

    $$c_i = \frac{1}{1 + e^{(t - s_i) / T}}, \qquad t: \; \sum_i c_i = K$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, shape `[*batch, items]`, at least 0; one below 0 makes its list NaN.
      temperature: $T > 0$, the units of `scores`. In the limit 0 ranks and counts are exact where
        scores differ; equal scores share the middle of their places.
      top: $K$, how many of the first places count, at least 1, in the ideal DCG, too. None counts
        all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per list from 0 to 1, 0 without relevance. Microbatches never cut a list.

    Examples:
      >>> lo.losses.approximate_ndcg(jnp.zeros(2), jnp.array([1, 0]), temperature=0.1).round(4)
      Array(0.2435, dtype=float32)

    References:
      Qin, Liu and Li, "A General Approximation Framework for Direct Optimization of Information
      Retrieval Measures", 2010.
    """
    _checks.exact_shape((), temperature=temperature)
    _checks.above(0, temperature=temperature)
    first = limit(top)
    scores, relevance, present, known = read("approximate_ndcg", scores, relevance, items, 0)
    worth, leads = gains(relevance, first), _pairs(lead, scores)
    endless = jnp.isinf(leads)  # a slope of 0 in the temperature, and not 0 times infinity
    beaten = jax.nn.sigmoid(-jnp.where(endless, 0, leads) / temperature)
    beaten = jnp.where(endless, jnp.where(leads < 0, 1.0, 0.0), beaten)
    smooth = 0.5 + jnp.sum(beaten, axis=-1, where=present[..., None, :])  # its own share is 1/2
    counts = 1 if top is None else among_first(scores, present, temperature, first)
    loss = 1 - jnp.sum(worth * discounts(smooth) * counts, axis=-1)
    return jnp.where(known, jnp.where(jnp.any(worth > 0, axis=-1), loss, 0), jnp.nan)


def margin_ranking(
    better: Float[ArrayLike, "*batch"], worse: Float[ArrayLike, "*batch"], *, margin: Number
) -> Float[Array, "*batch"]:
    r"""Hinge loss of pairs that are already made.

    $$\ell = \max(0, \; m - (b - w))$$

    Args:
      better: $b$, the score that should be higher, shape `[*batch]`.
      worse: $w$, the score that should be lower, shape `[*batch]`.
      margin: $m \ge 0$, the lead that is enough, the units of the scores.

    Returns:
      One loss per pair, shape `[*batch]`.

    Examples:
      >>> lo.losses.margin_ranking(jnp.array([2.0, 0.0]), jnp.array([0.0, 0.5]), margin=1.0)
      Array([0. , 1.5], dtype=float32)
    """
    _checks.at_least(0, margin=margin)
    better, worse = _checks.same_shape(better=better, worse=worse)
    return jnp.maximum(0, margin - lead(better, worse))


def _mean_over_pairs(name, phi, scores, relevance, weights, items):
    scores, weights = weighed(name, scores, weights, items)
    scores, relevance, _, known = read(name, scores, relevance, weights != 0)
    pairs = jnp.where(_differences(relevance) > 0, _pairs(jnp.multiply, weights), 0)
    leads = jnp.where(pairs == 0, 0, _pairs(lead, scores))  # an infinite one is not multiplied by 0
    total = jnp.sum(pairs * phi(leads), axis=(-2, -1))
    weight = jnp.sum(pairs, axis=(-2, -1))
    return jnp.where(known, total / jnp.where(weight == 0, 1, weight), jnp.nan)


def _pairs(fn, x):
    return fn(x[..., :, None], x[..., None, :])


def _differences(x):
    return _pairs(jnp.subtract, x)
