"""Schedules made from schedules, whether ours, optax's or your own functions.

A schedule within another gets counts of its own, never negative. Whole counts stay whole where the
lengths are whole, so a schedule may index a table with them; `per_epoch` passes fractions.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._typing import Number
from lossopt.schedules import _ramps


def warmup(
    schedule: optax.Schedule, steps: Number, *, start: Number | None = None
) -> optax.Schedule:
    r"""A linear rise to the schedule's first value, then the schedule from its beginning.

    $$\eta_t = \begin{cases}
        \min(1, \; (t + 1) / T) \cdot \text{schedule}(0) & t < T \\
        \text{schedule}(t - T) & t \ge T \end{cases}$$

    With a `start` the line is $\text{start} + (\text{schedule}(0) - \text{start}) \, t / T$.

    Args:
      schedule: any function from a count to a number.
      steps: $T \ge 0$; 0 means no warmup.
      start: value at count 0. None starts at $\text{schedule}(0) / T$, so that the first step is
        not lost, and reaches the schedule's first value one step earlier.

    Returns:
      A function from the count $t$ to the value. It ends $T$ steps later than `schedule` does.

    Raises:
      ValueError: if `steps` is below 0.
      TypeError: if `schedule` is not a function.

    Examples:
      >>> schedule = lo.schedules.warmup(lo.schedules.linear(1.0, 0.0, 4), 2)
      >>> [float(schedule(t)) for t in (0, 1, 2, 3, 6)]
      [0.5, 1.0, 1.0, 0.75, 0.0]

    References:
      Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    """
    _function("schedule", schedule)
    steps = _ramps.unwrapped(steps)
    _checks.at_least(0, steps=steps)

    def warmed(count):
        # The schedule stands still at 0 until `steps`, the ramp at 1 from then on.
        t, value = _ramps.time(count), _since(steps, schedule, count)
        if start is None:
            return _ramps.rise(t + 1, steps) * value
        return _ramps.between(start, value, _ramps.rise(t, steps))

    return warmed


def join(schedules: Sequence[optax.Schedule], boundaries: Sequence[Number]) -> optax.Schedule:
    r"""One schedule after the other, each counting from its own beginning.

    $$\eta_t = \text{schedule}_i(t - b_i), \quad b_i \le t < b_{i + 1}, \quad b_0 = 0$$

    Args:
      schedules: at least one function from a count to a number.
      boundaries: $b_1, b_2, \dots$, counts in order from 0 on, one less than the schedules: where
        the second begins, the third, and so on. A schedule that ends where it begins is left out;
        the last one goes on for ever.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if there is no schedule, if the numbers of schedules and boundaries do not fit, or
        if the boundaries are not in order.
      TypeError: if one of the schedules is not a function.

    Examples:
      >>> parts = lo.schedules.constant(1.0), lo.schedules.linear(1.0, 0.5, 4)
      >>> schedule = lo.schedules.join(parts, [10])
      >>> [float(schedule(t)) for t in (0, 9, 10, 12, 14)]
      [1.0, 1.0, 1.0, 0.75, 0.5]
    """
    _checks.at_least(1, schedules=len(schedules))
    for i, schedule in enumerate(schedules):
        _function(f"schedules[{i}]", schedule)
    first, *later = schedules
    boundaries = _in_order(boundaries, len(later))

    def joined(count):
        count = jnp.maximum(_ramps.unwrapped(count), 0)
        value = _value(first, count)
        for boundary, schedule in zip(boundaries, later):
            now, begin = _ramps.alike(count, boundary)
            value = jnp.where(now < begin, value, _since(boundary, schedule, count))
        return value

    return joined


def scale(schedule: optax.Schedule, factor: Number) -> optax.Schedule:
    r"""A schedule times a number.

    $$\eta_t = \text{factor} \cdot \text{schedule}(t)$$

    Args:
      schedule: any function from a count to a number.
      factor: any number; -1 turns a learning rate into what `optax.scale_by_schedule` descends by.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      TypeError: if `schedule` is not a function.

    Examples:
      >>> schedule = lo.schedules.scale(lo.schedules.linear(1.0, 0.0, 4), 0.5)
      >>> [float(schedule(t)) for t in (0, 2, 4)]
      [0.5, 0.25, 0.0]
    """
    _function("schedule", schedule)
    return lambda count: _ramps.number(factor) * _value(schedule, count)


def per_epoch(schedule: optax.Schedule, steps_per_epoch: Number) -> optax.Schedule:
    r"""Turns a schedule over epochs into one over steps.

    $$\eta_t = \text{schedule}(t / \text{steps per epoch})$$

    Args:
      schedule: any function from epochs, fractions included, to a number.
      steps_per_epoch: above 0, itself perhaps a fraction.

    Returns:
      A function from the count $t$ of steps to the value. Put `warmup` around it and not within:
      its first step would be a whole epoch.

    Raises:
      ValueError: if `steps_per_epoch` is not above 0.
      TypeError: if `schedule` is not a function.

    Examples:
      >>> schedule = lo.schedules.per_epoch(lo.schedules.linear(1.0, 0.0, 2), 50)
      >>> [float(schedule(t)) for t in (0, 25, 50, 100)]
      [1.0, 0.75, 0.5, 0.0]
    """
    _function("schedule", schedule)
    steps_per_epoch = _ramps.unwrapped(steps_per_epoch)
    _checks.above(0, steps_per_epoch=steps_per_epoch)

    def stretched(count):
        # Compiled, a plain quotient may fall just below a whole epoch; divmod takes it exactly.
        length = _ramps.positive(steps_per_epoch)
        epochs, rest = jnp.divmod(_ramps.time(count), length)
        return _value(schedule, epochs + rest / length)

    return stretched


def _since(boundary, schedule, count):
    """The schedule at the count from `boundary` on, in whole numbers if both are; 0 before it."""
    count, boundary = _ramps.alike(count, boundary)
    return _value(schedule, jnp.maximum(count, boundary) - boundary)


def _value(schedule, count):
    return _checks.floats(value=schedule(_ramps.unwrapped(count)))[0]


def _function(name, schedule):
    if not callable(schedule):
        raise TypeError(
            f"Expected {name} to be a function of the count, got {schedule}. "
            f"For a level write lossopt.schedules.constant({schedule})."
        )


def _in_order(boundaries, count):
    if len(boundaries) != count:
        raise ValueError(
            f"Expected {count} boundaries, one less than schedules, got {len(boundaries)}."
        )
    boundaries = tuple(map(_ramps.unwrapped, boundaries))
    for earlier, later in pairwise([0, *boundaries]):
        _checks.at_least(0, **{"steps between boundaries": later - earlier})
    return boundaries
