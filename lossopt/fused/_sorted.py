"""Hinges over all pairs of two kinds of items, in O(n log n) by sorting.

Along the sorted line every sum over the items beyond a point grows by terms of one sign: weights
times the gap to the next point. Nothing cancels, so float32 is enough for any offset and spread.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Array


def hinges(power: int, scores: Array, weights: Array, better: Array) -> Array:
    r"""$\sum_{i, j} w_i w_j \max(0, 1 - (s_i - s_j))^p$ over better items i and others j.

    Args:
      power: $p$, 1 or 2.
      scores: $s$, shape `[items]`; any number where the weight is 0.
      weights: $w$, shape `[items]`, at least 0.
      better: which items are better, shape `[items]`.

    Returns:
      Shape `()`; every mode of differentiation goes through.
    """
    position, rest = map(lax.stop_gradient, _positions(scores, better))
    index = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    order = lax.sort((position, rest, index), num_keys=2)[-1]
    scores, weights, better = scores[order], weights[order], better[order]
    beyond = _beyond(power, scores, weights, better)
    return jnp.sum(jnp.where(better, weights * beyond, 0)) + _endless(scores, weights, better)


def _endless(scores, weights, better):
    """What pairs at infinity add, whose gaps are not read: infinity, or 1 where both lie there."""
    kinds = better & (weights != 0), ~better & (weights != 0)
    total = lambda kind, at: jnp.sum(jnp.where(kind & (scores == at), weights, 0))
    equal = sum(total(kinds[0], at) * total(kinds[1], at) for at in (-jnp.inf, jnp.inf))
    below = (scores == -jnp.inf) & kinds[0] & jnp.any(kinds[1] & (scores != -jnp.inf))
    above = (scores == jnp.inf) & kinds[1] & jnp.any(kinds[0] & (scores != jnp.inf))
    unknown = jnp.isnan(scores) & (kinds[0] | kinds[1]) & jnp.any(kinds[0]) & jnp.any(kinds[1])
    return equal + jnp.sum(jnp.where(below | above | unknown, jnp.abs(scores), 0))


def weight_of_pairs(relevance: Array, weights: Array) -> Array:
    """The sum of `weights[i] * weights[j]` over pairs where i is more relevant than j."""
    order = jnp.argsort(lax.stop_gradient(relevance))
    relevance, weights = relevance[order], weights[order]
    before = _shift(jnp.cumsum(weights), 1)
    first, _ = _ties(relevance[1:] != relevance[:-1])
    return jnp.sum(weights * before[first])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _beyond(power, scores, weights, better):
    r"""$\sum_j w_j (t_j - t_i)^p$ over others j with $t_j > t_i$, of sorted positions t.

    Those at $t_i$ count one half for power 0, the slope of a maximum of equals.
    """
    position, rest = _positions(scores, better)
    gaps = (position[1:] - position[:-1]) + (rest[1:] - rest[:-1])
    different = gaps != 0
    gaps = jnp.append(jnp.where(jnp.isfinite(gaps), gaps, 0), jnp.zeros(1, gaps.dtype))
    here = _suffix(jnp.where(better, 0, weights))
    after = _shift(here, -1)
    if power == 0:
        first, last = _ties(different)
        return (here[first] + after[last]) / 2
    first_moment = _suffix(after * gaps)
    if power == 1:
        return first_moment
    return _suffix(gaps * (2 * _shift(first_moment, -1) + after * gaps))


@_beyond.defjvp
def _beyond_jvp(power, primals, tangents):
    """By formula, because the slopes of gaps would cancel."""
    scores, weights, better = primals
    to_scores, to_weights, _ = tangents
    out = _beyond(power, scores, weights, better)
    tangent = _beyond(power, scores, to_weights, better)
    if power:
        fall = to_scores * _beyond(power - 1, scores, weights, better)
        rise = _beyond(power - 1, scores, weights * to_scores, better)
        tangent += power * (rise - fall)
    return out, tangent


def _positions(scores, better):
    """Where hinges bend, in two floats whose sum is exact: scores, less the margin if better."""
    shifted = lax.stop_gradient(scores) - 1
    # Without the barrier, a compiler would cancel what is meant to be rounded.
    shifted = lax.optimization_barrier(shifted)
    back = lax.optimization_barrier(lax.stop_gradient(scores) - shifted)
    rest = (lax.stop_gradient(scores) - (shifted + back)) + (back - 1)
    rest = jnp.where(better & jnp.isfinite(scores), rest, 0)
    return scores - better.astype(scores.dtype), lax.stop_gradient(rest)


def _suffix(x):
    return lax.cumsum(x, reverse=True)


def _shift(x, by):
    """Moved by one place, with a 0 where nothing comes from."""
    zero = jnp.zeros(1, x.dtype)
    return jnp.append(zero, x[:-1]) if by > 0 else jnp.append(x[1:], zero)


def _ties(different):
    """The first and the last index of the equal neighbors of each item."""
    edge = jnp.ones(1, bool)
    index = jnp.arange(len(different) + 1)
    first = lax.cummax(jnp.where(jnp.append(edge, different), index, 0))
    last = lax.cummin(jnp.where(jnp.append(different, edge), index, len(different)), reverse=True)
    return first, last
