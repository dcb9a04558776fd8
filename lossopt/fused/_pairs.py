"""Losses of all pairs of a list, without the pairs; those of two kinds by sorting."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Array
from lossopt.fused._compare import lists_of, logistic, reduced, totals
from lossopt.fused._how import Form, How, MeanOrValues, Memory
from lossopt.fused._sorted import hinges, weight_of_pairs
from lossopt.fused._walk import Facts
from lossopt.losses._ranks import Lists, Mask, read, weighed


def pairwise_logistic(
    scores: Lists,
    relevance: Lists,
    weights: Lists | None = None,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Logistic loss of every pair of items whose relevance differs (RankNet), block by block.

    $$\ell = \frac{\sum_{i,j: r_i > r_j} w_i w_j \phi(s_i - s_j)}{\sum_{i,j: r_i > r_j} w_i w_j},
        \qquad \phi(d) = \log(1 + e^{-d})$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, constants, shape `[*batch, items]`, real; only its order counts. NaN gives
        NaN.
      weights: $w$, shape `[*batch, items]`, at least 0, by default 1; weight 0 masks an item.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.
      memory: a budget for a block of pairs and temporaries of its shape, as in
        `lossopt.fused.plan` but in rows only, and `"auto"` is 4 MiB on CPU.
      per_example: whether to return the loss of each list.
      differentiable: `"jvp"` also allows `jax.jvp` and forward over reverse over forward, but
        computes the pairs twice; `"vjp"` has reverse mode, and every mode over it.

    Returns:
      The `Mean` over lists, each of weight 1, also those without pairs, whose loss is 0:
      `lo.mean(lo.losses.pairwise_logistic(...))`. Or one loss per list, shape `[*batch]`, at the
      same cost, for other weights of lists: `lo.mean(losses, weights)`.

    Raises:
      ValueError: if shapes do not fit, weights are negative, or the budget is below one block.
      TypeError: if `items` is not boolean.

    Examples:
      >>> loss = lo.fused.pairwise_logistic(jnp.array([2.0, 1.0, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      0.2201 1

    References:
      Burges et al., "Learning to Rank using Gradient Descent", 2005.
    """
    sums = partial(_in_blocks, logistic, How(memory, differentiable))
    return _loss("pairwise_logistic", sums, scores, relevance, weights, items, per_example)


def pairwise_hinge(
    scores: Lists,
    relevance: Lists,
    weights: Lists | None = None,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Hinge loss of every pair (ranking SVM): `pairwise_logistic` with another $\phi$.

    $$\phi(d) = \max(0, 1 - d)$$

    Where relevance takes two values at most in each list, the pairs are summed exactly in
    $O(n \log n)$ by sorting. Booleans always do; numbers are looked at when the program runs (so
    that under your own `vmap` both ways are computed: give booleans, or lists as leading axes).

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, as in `pairwise_logistic`.
      weights: $w$, as in `pairwise_logistic`.
      items: as in `pairwise_logistic`.
      memory: as in `pairwise_logistic`.
      per_example: as in `pairwise_logistic`.
      differentiable: as in `pairwise_logistic`.

    Returns:
      As `pairwise_logistic`.

    Raises:
      ValueError, TypeError: as `pairwise_logistic`.

    Examples:
      >>> loss = lo.fused.pairwise_hinge(jnp.array([2.0, 1.5, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.2f} {loss.weight:.0f}")
      0.25 1

    References:
      Joachims, "Optimizing Search Engines using Clickthrough Data", 2002.
      Rust and Hocking, "A Log-linear Gradient Descent Algorithm for Unbalanced Binary
      Classification using the All Pairs Squared Hinge Loss", 2023.
    """
    sums = partial(_sorted_or_in_blocks, 1, How(memory, differentiable))
    return _loss("pairwise_hinge", sums, scores, relevance, weights, items, per_example)


def pairwise_squared_hinge(
    scores: Lists,
    relevance: Lists,
    weights: Lists | None = None,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Squared hinge loss of every pair: `pairwise_hinge` with another $\phi$.

    $$\phi(d) = \max(0, 1 - d)^2$$

    Args:
      scores: $s$, shape `[*batch, items]`.
      relevance: $r$, as in `pairwise_hinge`; two values are sorted.
      weights: $w$, as in `pairwise_logistic`.
      items: as in `pairwise_logistic`.
      memory: as in `pairwise_logistic`.
      per_example: as in `pairwise_logistic`.
      differentiable: as in `pairwise_logistic`.

    Returns:
      As `pairwise_logistic`.

    Raises:
      ValueError, TypeError: as `pairwise_logistic`.

    Examples:
      >>> loss = lo.fused.pairwise_squared_hinge(jnp.array([2.0, 1.5, 0.0]), jnp.array([1, 0, 0]))
      >>> print(f"{loss.value:.3f} {loss.weight:.0f}")
      0.125 1

    References:
      Chapelle and Keerthi, "Efficient Algorithms for Ranking with SVMs", 2010.
    """
    sums = partial(_sorted_or_in_blocks, 2, How(memory, differentiable))
    return _loss("pairwise_squared_hinge", sums, scores, relevance, weights, items, per_example)


def _loss(name, sums, scores, relevance, weights, items, per_example):
    """The `Mean` over lists, or their losses, of `sums(binary, scores, relevance, weights)`."""
    binary, batch = jnp.result_type(relevance) == jnp.bool_, jnp.shape(scores)[:-1]
    scores, relevance, weights, known = _read(name, scores, relevance, weights, items)
    if scores.size == 0:
        return reduced(jnp.sum(scores, axis=-1), batch, per_example)
    weight = jax.vmap(weight_of_pairs)(relevance, _or_ones(weights, scores))
    losses = sums(binary, scores, relevance, weights) / jnp.where(weight == 0, 1, weight)
    return reduced(jnp.where(known, losses, jnp.nan), batch, per_example)


def _read(name, scores, relevance, weights, items):
    """As the dense losses read them, and flat; weights of 1 are None."""
    relevance = lax.stop_gradient(jnp.asarray(relevance))
    if weights is None and items is None:
        *lists, _, known = read(name, scores, relevance, None)
    else:
        scores, weights = weighed(name, scores, weights, items)
        *lists, _, known = read(name, scores, relevance, weights != 0)
        lists.append(weights)
    *lists, known = lists_of((*lists, known[..., None]))
    scores, relevance, *rest = lists
    return scores, relevance, rest[0] if rest else None, known[:, 0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sorted_or_in_blocks(power, how, binary, scores, relevance, weights):
    """The sum over the pairs of each list, of a hinge to this power."""
    present = _or_ones(weights, scores) != 0
    low = jnp.min(relevance, axis=-1, keepdims=True, where=present, initial=jnp.inf)
    high = jnp.max(relevance, axis=-1, keepdims=True, where=present, initial=-jnp.inf)
    two = jnp.all((relevance == low) | (relevance == high) | ~present)
    better = relevance > low

    def in_order(scores, relevance, weights):
        return jax.vmap(partial(hinges, power))(scores, _or_ones(weights, scores), better)

    if binary:
        return in_order(scores, relevance, weights)
    in_blocks = partial(_in_blocks, _HINGES[power], how, binary)
    return lax.cond(two, in_order, in_blocks, scores, relevance, weights)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _in_blocks(phi, how, binary, scores, relevance, weights):
    """The sum of `phi` over the pairs of each list."""
    del binary
    present = _or_ones(weights, scores) != 0
    rows = {"relevance": jnp.where(present, relevance, -jnp.inf)}
    columns = {"relevance": jnp.where(present, relevance, jnp.inf)}
    factors = {} if weights is None else {"weights": weights}
    facts, weighed = Facts(rows, columns), _or_ones(weights, scores)
    return totals(_Over(phi), how, scores, factors, facts, weighed)


@dataclasses.dataclass(frozen=True)
class _Over:
    r"""The sum of $w_j \phi$ over the items j that are less relevant."""

    phi: Callable[[Array], Array]

    def __call__(self, leads, operands, facts):
        pairs = facts.rows["relevance"][:, None] > facts.columns["relevance"][None, :]
        terms = self.phi(jnp.where(pairs, leads, 0))
        if "weights" in operands.columns:
            terms = terms * operands.columns["weights"][None, :]
        return jnp.sum(terms, axis=1, where=pairs)


def _or_ones(weights, scores):
    return jnp.ones_like(scores) if weights is None else weights


def _hinge(lead):
    return jnp.maximum(0, 1 - lead)


def _squared_hinge(lead):
    return _hinge(lead) ** 2


_HINGES = {1: _hinge, 2: _squared_hinge}
