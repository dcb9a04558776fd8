"""Losses of whole lists by ranks, without the matrix of their items."""

import jax.numpy as jnp
from jax import lax

from lossopt import _checks
from lossopt._mean import mean
from lossopt._typing import ArrayLike, Bool, Num, Number
from lossopt.fused._compare import Comparison, beaten, lists_of, logistic
from lossopt.fused._plan import Memory
from lossopt.fused._tiles import Facts, Form, MeanOrValues

Lists = Num[ArrayLike, "*batch items"]
Mask = Bool[ArrayLike, "*batch items"] | None


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
      The `Mean` over lists, or one loss per list, shape `[*batch]`, 0 without relevance, as
      `lossopt.losses.lambda_rank`.

    Raises:
      ValueError: if shapes do not fit or the budget is below one block.

    Examples:
      >>> loss = lo.fused.lambda_rank(jnp.array([1.0, 2.0, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.4f}")
      0.5257

    References:
      Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", 2010.
    """
    comparison = Comparison(_swaps, memory, differentiable)
    comparison.check()
    batch = jnp.shape(scores)[:-1]
    lists, grades, present, known = _read("lambda_rank", scores, relevance, items)
    if lists.size == 0:
        return _reduced(jnp.sum(lists, axis=-1), batch, per_example)
    sunk = jnp.where(present, lax.stop_gradient(lists), jnp.finfo(lists.dtype).min)
    rows = {"gain": _gains(grades), "discount": _discounts(_ranks(sunk))}
    columns = rows | {"gain": jnp.where(present, rows["gain"], jnp.inf)}
    total = comparison.totals(lists, {}, Facts(rows, columns), jnp.ones_like(lists))
    return _reduced(jnp.where(known, total, jnp.nan), batch, per_example)


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
      The `Mean` over lists, or one loss per list in [0, 1), shape `[*batch]`, 0 without
      relevance, as `lossopt.losses.approximate_ndcg`.

    Raises:
      ValueError: if shapes do not fit, `temperature` is not positive, or the budget is below one
        block.

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
    comparison = Comparison(_beaten, memory, differentiable)
    comparison.check()
    batch = jnp.shape(scores)[:-1]
    lists, grades, present, known = _read("approximate_ndcg", scores, relevance, items)
    if lists.size == 0:
        return _reduced(jnp.sum(lists, axis=-1), batch, per_example)
    numbers = {"temperature": jnp.asarray(temperature, lists.dtype)}
    ranks = 0.5 + comparison.rows(lists, Facts({}, {"present": present}), numbers)
    gains = _gains(grades)  # an item's own share of its rank is 1/2
    loss = 1 - jnp.sum(gains * _discounts(ranks), axis=-1)
    loss = jnp.where(jnp.any(gains > 0, axis=-1), loss, 0)
    return _reduced(jnp.where(known, loss, jnp.nan), batch, per_example)


def _read(name, scores, relevance, items):
    """Lists and relevance, 0 where masked; who is present; whose relevance is in range."""
    _checks.rank_at_least(1, scores=scores)
    scores, relevance = _checks.same_shape(scores=scores, relevance=relevance)
    present = _checks.mask("items", items, scores.shape)
    relevance = jnp.where(present, lax.stop_gradient(relevance), 0)
    known = relevance >= 0  # a NaN is not
    message = f"{name}: expected relevance >= 0, got {{low}}."
    _checks.condition(known, message, low=jnp.min(relevance, initial=0))
    scores, relevance = jnp.where(present, scores, 0), jnp.where(known, relevance, 0)
    *lists, known = lists_of((scores, relevance, present, known))
    return *lists, jnp.all(known, axis=-1)


def _reduced(losses, batch, per_example):
    return losses.reshape(batch) if per_example else mean(losses)


def _swaps(leads, rows, columns, numbers):
    """The sum over worse items; a masked one gains too much to be worse."""
    del numbers
    gains = jnp.maximum(0, rows["gain"][:, None] - columns["gain"][None, :])
    swaps = gains * jnp.abs(rows["discount"][:, None] - columns["discount"][None, :])
    return jnp.sum(swaps * logistic(jnp.where(swaps == 0, 0, leads)), axis=1)


def _beaten(leads, rows, columns, numbers):
    """By how many items each is beaten, smoothly; by itself one half."""
    del rows
    defeats = beaten(leads / numbers["temperature"])
    return jnp.sum(defeats, axis=1, where=columns["present"][None, :])


def _ranks(scores):
    order = jnp.argsort(-scores, axis=-1, stable=True)
    return 1 + jnp.argsort(order, axis=-1).astype(scores.dtype)


def _discounts(ranks):
    return 1 / jnp.log2(1 + ranks)


def _gains(relevance):
    """Each item's gain over the ideal DCG; all 0 where there is no relevance."""
    best = jnp.max(relevance, axis=-1, keepdims=True, initial=0)
    # 2^(r - best) (1 - 2^-r): the factor 2^-best cancels and keeps large grades finite.
    gains = jnp.exp2(relevance - best) * -jnp.expm1(-relevance * jnp.log(2.0))
    ideal = jnp.sum(gains * _discounts(_ranks(relevance)), axis=-1, keepdims=True)
    return gains / jnp.where(ideal == 0, 1, ideal)
