"""What schedules are made of: time, ramps, and levels between two others."""

import jax.numpy as jnp

from lossopt import _checks


def time(count):
    """The count as a float, where `count + 1` cannot overflow; 0 before the start."""
    return jnp.maximum(_float(count), 0)


def ramp(x, length):
    """From 0 at `x <= 0` to 1 at `x >= length`; of length 0 it is a jump."""
    return jnp.where(length > 0, jnp.clip(x / positive(length), 0, 1), x > 0)


def positive(length):
    """A length to divide by, as a float: itself, or 1 where it is a traced 0."""
    return _float(jnp.where(length > 0, length, 1))


def between(low, high, part):
    """`low` at part 0 and `high` at part 1, both exactly."""
    return low * (1 - part) + high * part


def half_wave(part):
    """(1 - cos(pi part)) / 2, without its cancellation near part 0."""
    return jnp.sin(jnp.pi / 2 * part) ** 2


def _float(x):
    dtype = jnp.result_type(x, float)  # a whole number takes the widest float in use
    return _checks.floats(number=jnp.asarray(x, dtype))[0]
