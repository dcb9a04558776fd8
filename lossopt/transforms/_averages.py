"""Averages that forget, kept divided by the weight that they have gathered."""

import jax
import jax.numpy as jnp

from lossopt._typing import Array, Number


def gather(weight: Array, forgotten: Number, own: Number) -> Array:
    r"""Adds a weight to a sum of weights that forgets: $(1 - f) W + w$.

    Args:
      weight: $W$ in two parts whose difference it is: in one part it would come to rest $1 / f$
        roundings away from $w / f$.
      forgotten: $f$, the share of the old that is forgotten, in [0, 1]; of a rate $b$ it is
        $1 - b$, which is known better than $b$ where that is near 1.
      own: $w \ge 0$.

    Returns:
      The next sum, in two parts.
    """
    total, lost = weight
    added = jnp.asarray(own - forgotten * (total - lost) - lost, total.dtype)
    longer = total + added
    return jnp.stack([longer, (longer - total) - added])


def toward(old: Array, new: Array, share: Array | Number) -> Array:
    """The average in which `new` has this share: exactly `new` at 1 and where both are equal.

    A sum of two products rests elsewhere, because their factors are rounded apart. The difference
    is added to the nearer end, so that the farther one leaves no rounding behind.
    """
    share = jnp.asarray(share, new.dtype)
    return jnp.where(share < 0.5, old + share * (new - old), new + (1 - share) * (old - new))


def toward_in_two(old: Array, new: Array, share: Array) -> Array:
    """As `toward`, in two parts: a complex number's real part and what rounding has left over.

    In one part it stands still where its steps are below half of its last digit: at a share of
    1e-4, some 5000 last digits away from where it should be. Two real arrays would be two loops
    and the memory of both once more.
    """
    average, rest = old.real, old.imag
    near = share < 0.5
    base = jnp.where(near, average, new)
    ahead, behind = (new - average) - rest, (average - new) + rest
    added = jnp.where(near, share * ahead + rest, (1 - share) * behind)
    total = base + added
    taken = total - base
    return jax.lax.complex(total, (base - (total - taken)) + (added - taken))
