"""What schedules are made of: numbers that do not wrap, time, ramps, levels between two others."""

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._numerics import common, wide


def unwrapped(x):
    """The number itself, but a float where it is whole and no integer of jax holds it.

    What is left is 64 bits wide: differences of shorter ones would wrap, too.
    """
    if isinstance(x, jax.Array):
        return x
    whole = np.asarray(x)  # of Python's, objects where 64 bits do not hold them
    if whole.dtype.kind not in "iuO":
        return x
    fits = np.all(np.abs(whole) <= jnp.iinfo(jnp.result_type(int)).max)
    return whole.astype(np.int64 if fits else float)[()]


def alike(*xs):
    """Whole numbers as integers of a dtype that holds them all, if there is one; else floats."""
    xs = list(map(unwrapped, xs))
    dtype = common(*xs)
    whole = jnp.issubdtype(dtype, jnp.integer)
    whole = whole and all(np.can_cast(jnp.result_type(x), dtype) for x in xs)
    return [jnp.asarray(x, dtype) if whole else number(x) for x in xs]


def number(x):
    """As a float, the widest in use for a whole number, which jax would wrap as an integer."""
    return _checks.floats(number=jnp.asarray(x, wide(x, float)))[0]


def time(count):
    """The count as a float, where `count + 1` cannot overflow; 0 before the start."""
    return jnp.maximum(number(count), 0)


def ramp(x, length):
    """From 0 at `x <= 0` to 1 at `x >= length`; of length 0 it is a jump."""
    length = number(length)
    return jnp.where(length > 0, jnp.clip(x / positive(length), 0, 1), (x > 0).astype(length.dtype))


def rise(x, length):
    """From 0 at `x <= 0` to 1 at `x >= length`; of length 0 it is 1 from the beginning."""
    return jnp.where(number(length) > 0, ramp(x, length), 1)


def positive(length):
    """A length to divide by, as a float: itself, or 1 where it is a traced 0."""
    length = number(length)
    return jnp.where(length > 0, length, 1)


def between(low, high, part):
    """`low` at part 0 and `high` at part 1, both exactly."""
    return number(low) * (1 - part) + number(high) * part


def until(value, start, end):
    """The value until it has come from the start to the end, which it holds from there on."""
    start, end = number(start), number(end)
    reached = (value >= end) & (end >= start) | (value <= end) & (end <= start)
    return jnp.where(reached, end, value)


def half_wave(part):
    """(1 - cos(pi part)) / 2, without its cancellation near part 0."""
    return jnp.sin(jnp.pi / 2 * part) ** 2
