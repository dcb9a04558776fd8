"""Losses of whole lists by ranks, without the matrix of their items."""

import jax.numpy as jnp
from jax import lax

from lossopt import _checks
from lossopt._typing import Number
from lossopt.fused._compare import beaten, lists_of, logistic, of_items, reduced, totals
from lossopt.fused._how import Form, How, MeanOrValues, Memory
from lossopt.fused._walk import Facts
from lossopt.losses._ranks import Lists, Mask, discounts, gains, ranks, read, sunk


def lambda_rank(
    scores: Lists,
    relevance: Lists,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Logistic loss of every pair, weighed by what swapping them would change in NDCG, in blocks.

    $$\ell = \sum_{i,j: r_i > r_j} \frac{|G_i - G_j|}{\text{IDCG}} \, |D(k_i) - D(k_j)| \,
        \log(1 + e^{-(s_i - s_j)}), \quad G_i = 2^{r_i} - 1, \quad D(k) = \frac{1}{\log_2(1 + k)}$$

    $k_i \ge 1$ is the rank of item i by decreasing score, equal scores by position, and a
    constant to the gradient. The ideal DCG is the sum of $G_i D(k)$ in the order by relevance.

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, constants, shape `[*batch, items]`, at least 0; one below 0 makes its list
        NaN.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.
      memory: as in `pairwise_logistic`.
      per_example: whether to return the loss of each list.
      differentiable: as in `pairwise_logistic`.

    Returns:
      The `Mean` over lists, each of weight 1, as in `pairwise_logistic`. Or one loss per list,
      shape `[*batch]`, 0 without relevance, as `lossopt.losses.lambda_rank`.

    Raises:
      ValueError: if shapes do not fit or the budget is below one block.
      TypeError: if `items` is not boolean.

    Examples:
      >>> loss = lo.fused.lambda_rank(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.4f}")
      0.5257

    References:
      Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", 2010.
    """
    how, batch = How(memory, differentiable), jnp.shape(scores)[:-1]
    lists, grades, present, known = _read("lambda_rank", scores, relevance, items)
    if lists.size == 0:
        return reduced(jnp.sum(lists, axis=-1), batch, per_example)
    places = ranks(sunk(lax.stop_gradient(lists), present))
    rows = {"gain": gains(grades), "discount": discounts(places)}
    columns = rows | {"gain": jnp.where(present, rows["gain"], jnp.inf)}
    total = totals(_swaps, how, lists, {}, Facts(rows, columns), jnp.ones_like(lists))
    return reduced(jnp.where(known, total, jnp.nan), batch, per_example)


def approximate_ndcg(
    scores: Lists,
    relevance: Lists,
    *,
    temperature: Number,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""One minus NDCG at smooth ranks, with the gains and ideal DCG of `lambda_rank`, in blocks.

    $$\ell = 1 - \frac{1}{\text{IDCG}} \sum_i \frac{2^{r_i} - 1}{\log_2(1 + k_i)}, \qquad
        k_i = 1 + \sum_{j \ne i} \frac{1}{1 + e^{(s_i - s_j) / T}}$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, constants, shape `[*batch, items]`, at least 0; one below 0 makes its list
        NaN.
      temperature: $T > 0$, the units of `scores`; ranks are exact in the limit 0.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.
      memory: as in `pairwise_logistic`.
      per_example: whether to return the loss of each list.
      differentiable: as in `pairwise_logistic`.

    Returns:
      The `Mean` over lists, each of weight 1, as in `pairwise_logistic`. Or one loss per list in
      [0, 1), shape `[*batch]`, 0 without relevance, as `lossopt.losses.approximate_ndcg`.

    Raises:
      ValueError: if shapes do not fit, `temperature` is not one positive number, or the budget is
        below one block.
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
    how, batch = How(memory, differentiable), jnp.shape(scores)[:-1]
    lists, grades, present, known = _read("approximate_ndcg", scores, relevance, items)
    if lists.size == 0:
        return reduced(jnp.sum(lists, axis=-1), batch, per_example)
    numbers = {"temperature": jnp.asarray(temperature, lists.dtype)}
    defeats = of_items(_defeats, how, lists, Facts({}, {"present": present}), numbers)
    worth, places = gains(grades), 0.5 + defeats  # an item's own share of its rank is 1/2
    loss = 1 - jnp.sum(worth * discounts(places), axis=-1)
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
    swaps = better * jnp.abs(rows["discount"][:, None] - columns["discount"][None, :])
    return jnp.sum(swaps * logistic(jnp.where(swaps == 0, 0, leads)), axis=1)


def _defeats(leads, operands, facts):
    """By how many items each is beaten, smoothly; by itself one half."""
    defeats = beaten(leads / operands.numbers["temperature"])
    return jnp.sum(defeats, axis=1, where=facts.columns["present"][None, :])
