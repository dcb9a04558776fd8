"""Losses of whole lists by ranks, without the matrix of their items."""

import jax.numpy as jnp
from jax import lax

from lossopt import _checks
from lossopt._typing import Number
from lossopt.fused._compare import beaten, lists_of, logistic, of_items, reduced, totals
from lossopt.fused._how import Form, How, MeanOrValues, Memory
from lossopt.fused._walk import Facts
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
)


def lambda_rank(
    scores: Lists,
    relevance: Lists,
    *,
    top: Number | None = None,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Logistic loss of every pair, weighed by what swapping them would change in NDCG, in blocks.

    $$\ell = \sum_{i,j: r_i > r_j} \frac{|G_i - G_j|}{\text{IDCG}} \, |D(k_i) - D(k_j)| \,
        \log(1 + e^{-(s_i - s_j)}), \quad G_i = 2^{r_i} - 1, \quad D(k) = \frac{1}{\log_2(1 + k)}$$

    $k_i \ge 1$ is the rank of item i by decreasing score and a constant to the gradient; with
    equal scores the loss is the mean over their orders. The ideal DCG is the sum of $G_i D(k)$ in
    the order by relevance.

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, constants, shape `[*batch, items]`, at least 0; one below 0 makes its list
        NaN.
      top: how many of the first places count, at least 1: $D(k)$ is 0 beyond. None counts all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.
      memory: as in `pairwise_logistic`.
      per_example: whether to return the loss of each list.
      differentiable: as in `pairwise_logistic`.

    Returns:
      The `Mean` over lists, each of weight 1, as in `pairwise_logistic`. Or one loss per list,
      shape `[*batch]`, 0 without relevance, as `lossopt.losses.lambda_rank`.

    Raises:
      ValueError: if shapes do not fit, `top` is below 1, or the budget is below one block.
      TypeError: if `items` is not boolean.

    Examples:
      >>> loss = lo.fused.lambda_rank(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.4f}")
      0.5257

    References:
      Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", 2010.
    """
    how, batch, top = How(memory, differentiable), jnp.shape(scores)[:-1], limit(top)
    lists, grades, present, known = _read("lambda_rank", scores, relevance, items)
    if lists.size == 0:
        return reduced(jnp.sum(lists, axis=-1), batch, per_example)
    ranked = ranking(lists, present)
    mean, spread = expected_discounts(ranked, lax.stop_gradient(lists), top)
    rows = {"gain": gains(grades, top), "discount": mean, "spread": spread}
    rows["tie"] = ranked.of_items(ranked.first)
    columns = rows | {"gain": jnp.where(present, rows["gain"], jnp.inf)}
    total = totals(_swaps, how, lists, {}, Facts(rows, columns), jnp.ones_like(lists))
    return reduced(jnp.where(known, total, jnp.nan), batch, per_example)


def approximate_ndcg(
    scores: Lists,
    relevance: Lists,
    *,
    temperature: Number,
    top: Number | None = None,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""One minus NDCG at smooth ranks, with the gains and ideal DCG of `lambda_rank`, in blocks.

    $$\ell = 1 - \frac{1}{\text{IDCG}} \sum_i c_i \frac{2^{r_i} - 1}{\log_2(1 + k_i)}, \qquad
        k_i = 1 + \sum_{j \ne i} \frac{1}{1 + e^{(s_i - s_j) / T}}$$

    $c_i$ is 1, but in lists of more than $K$ items the soft count of the item among the first $K$:

    $$c_i = \frac{1}{1 + e^{(t - s_i) / T}}, \qquad t: \; \sum_i c_i = K$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, constants, shape `[*batch, items]`, at least 0; one below 0 makes its list
        NaN.
      temperature: $T > 0$, the units of `scores`. In the limit 0 ranks and counts are exact where
        scores differ; equal scores share the middle of their places.
      top: $K$, how many of the first places count, at least 1, in the ideal DCG, too. None counts
        all.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.
      memory: as in `pairwise_logistic`.
      per_example: whether to return the loss of each list.
      differentiable: as in `pairwise_logistic`.

    Returns:
      The `Mean` over lists, each of weight 1, as in `pairwise_logistic`. Or one loss per list from
      0 to 1, shape `[*batch]`, 0 without relevance, as `lossopt.losses.approximate_ndcg`.

    Raises:
      ValueError: if shapes do not fit, `temperature` is not one positive number, `top` is below 1,
        or the budget is below one block.
      TypeError: if `items` is not boolean.

    Examples:
      >>> loss = lo.fused.approximate_ndcg(jnp.zeros(2), jnp.array([1, 0]), temperature=0.1)
      >>> print(f"{loss.value:.4f}")
      0.2435

    References:
      Qin, Liu and Li, "A General Approximation Framework for Direct Optimization of Information
      Retrieval Measures", 2010.
    """
    _checks.exact_shape((), temperature=temperature)
    _checks.above(0, temperature=temperature)
    how, batch, first = How(memory, differentiable), jnp.shape(scores)[:-1], limit(top)
    lists, grades, present, known = _read("approximate_ndcg", scores, relevance, items)
    if lists.size == 0:
        return reduced(jnp.sum(lists, axis=-1), batch, per_example)
    numbers = {"temperature": jnp.asarray(temperature, lists.dtype)}
    defeats = of_items(_defeats, how, lists, Facts({}, {"present": present}), numbers)
    worth, places = gains(grades, first), 0.5 + defeats  # an item's own share of its rank is 1/2
    counts = 1 if top is None else among_first(lists, present, numbers["temperature"], first)
    loss = 1 - jnp.sum(worth * discounts(places) * counts, axis=-1)
    loss = jnp.where(jnp.any(worth > 0, axis=-1), loss, 0)
    return reduced(jnp.where(known, loss, jnp.nan), batch, per_example)


def _read(name, scores, relevance, items):
    """As the dense losses read them, and flat."""
    relevance = lax.stop_gradient(jnp.asarray(relevance))
    *lists, known = read(name, scores, relevance, items, lowest=0)
    lists, known = lists_of(lists), lists_of(known[..., None])
    return *lists, known[:, 0]


def _swaps(leads, operands, facts):
    """The sum over worse items; a masked one gains too much to be worse."""
    del operands
    rows, columns = facts
    better = jnp.maximum(0, rows["gain"][:, None] - columns["gain"][None, :])
    apart = jnp.abs(rows["discount"][:, None] - columns["discount"][None, :])
    tied = rows["tie"][:, None] == columns["tie"][None, :]
    swaps = better * jnp.where(tied, rows["spread"][:, None], apart)
    return jnp.sum(swaps * logistic(jnp.where(swaps == 0, 0, leads)), axis=1)


def _defeats(leads, operands, facts):
    """By how many items each is beaten, smoothly; by itself one half."""
    endless = jnp.isinf(leads)  # a slope of 0 in the temperature, and not 0 times infinity
    defeats = beaten(jnp.where(endless, 0, leads) / operands.numbers["temperature"])
    defeats = jnp.where(endless, jnp.where(leads < 0, 1.0, 0.0), defeats)
    return jnp.sum(defeats, axis=1, where=facts.columns["present"][None, :])
