"""One equation behind the norms of groups in a diagonal metric."""

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Array

_LIMIT = 200  # Newton needs about ten steps, and a few more for each scale of a wild metric


@jax.custom_jvp
def solution(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    r"""$1 / (s b + c)$ and $s b / (s b + c)$ for the $s$ at which $\| a / (s b + c) \| = 1$.

    The norm runs along the last axis. Where it is at most 1 already, s is 0. All are at least 0, b
    above it, and where a is 0 nothing is divided. The last axis of b and c may be 1.

    The reciprocal of the norm is concave in s, as a power mean of lines, so Newton's method on it
    climbs from the left without passing the root.
    """
    moved = _climb(a, b, c) * b
    whole = jnp.where(moved + c == 0, jnp.inf, moved + c)
    return 1 / whole, moved / whole


@solution.defjvp
def _solution_jvp(primals, tangents):
    (a, b, c), (da, db, dc) = primals, tangents
    total = lambda x: jnp.sum(x, -1, keepdims=True)
    inverse, moved = solution(a, b, c)
    part = a * inverse
    share = jnp.square(part) * moved
    width = total(share)
    width = jnp.where(width > 0, width, 1)
    share = share / width
    # By relative changes, as squares of 1e-30 and 1e30 are no numbers; and beside that of the
    # coordinate of the largest share: if it has all, its own change cancels and leaves the others.
    change = jnp.broadcast_to(db / b, share.shape)
    places = lax.broadcasted_iota(jnp.int32, share.shape, share.ndim - 1)
    first = places == jnp.argmax(share, -1, keepdims=True)
    beside = jnp.where(first, 0, change - total(jnp.where(first, change, 0)))
    of_all = total(part * (da - part * dc) * inverse) / width - total(share * beside)
    of_moved, of_c = beside + of_all, dc * inverse
    return (inverse, moved), (
        -inverse * (of_c + moved * of_moved),
        moved * (c * inverse * of_moved - of_c),
    )


@jax.jit  # a program of its own, so that use outside of jit compiles its loop once
def _climb(a, b, c):
    def further(state):
        count, _, moved = state
        return (count < _LIMIT) & moved

    def nearer(state):
        count, s, _ = state
        squares, slope = _squares_and_slope(s, a, b, c)
        above = ~(squares <= 1)  # what is NaN goes on as NaN
        ahead = (jnp.sqrt(squares) - 1) * squares / jnp.where(above, slope, 1)
        higher = jnp.where(above, s + ahead, s)
        return count + 1, higher, jnp.any(higher > s)

    return lax.while_loop(further, nearer, (0, _below(a, b, c), True))[1]


def _below(a, b, c):
    """No coordinate alone, nor all with the largest b and c, passes 1 at the root."""
    top = lambda x: jnp.max(x, -1, keepdims=True)
    norm = jnp.sqrt(jnp.sum(jnp.square(a), -1, keepdims=True))
    alone, together = top((a - c) / b), (norm - top(c)) / top(b)
    return jnp.maximum(jnp.maximum(alone, together), 0)


def _squares_and_slope(s, a, b, c):
    """The squared norm, and minus half of its derivative in s."""
    some = a > 0
    whole = jnp.where(some, s * b + c, 1)
    squares = jnp.where(some, jnp.square(a / whole), 0)
    total = lambda x: jnp.sum(x, -1, keepdims=True)
    return total(squares), total(squares * b / whole)
