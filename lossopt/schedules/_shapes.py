"""Shapes that start at one level and go to another."""

import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._typing import Number
from lossopt.schedules import _ramps


def constant(level: Number) -> optax.Schedule:
    r"""The same value at every count.

    $$\eta_t = \text{level}$$

    Args:
      level: the value.

    Returns:
      A function from the count $t$ to the value.

    Examples:
      >>> float(lo.schedules.constant(0.5)(7))
      0.5
    """
    return lambda count: _checks.floats(level=level)[0]


def linear(start: Number, end: Number, steps: Number) -> optax.Schedule:
    r"""A straight line from one level to another, where it stays.

    $$\eta_t = \text{end} + (\text{start} - \text{end}) \max(1 - t / T, \; 0)$$

    Args:
      start: value at count 0.
      end: value from count $T$ on.
      steps: $T \ge 0$; 0 is at the end from the beginning.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `steps` is negative.

    Examples:
      >>> schedule = lo.schedules.linear(1.0, 0.5, 4)
      >>> [float(schedule(t)) for t in (0, 1, 4, 9)]
      [1.0, 0.875, 0.5, 0.5]
    """
    return polynomial(start, end, steps, power=1)


def polynomial(start: Number, end: Number, steps: Number, *, power: Number) -> optax.Schedule:
    r"""A power of the time that is left.

    $$\eta_t = \begin{cases}
        \text{end} + (\text{start} - \text{end}) \, (1 - t / T)^p & t < T \\
        \text{end} & t \ge T \end{cases}$$

    Args:
      start: value at count 0.
      end: value from count $T$ on.
      steps: $T \ge 0$, as in `linear`.
      power: $p \ge 0$; 1 is `linear`, more falls early, less falls late.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `steps` or `power` is negative.

    Examples:
      >>> schedule = lo.schedules.polynomial(1.0, 0.0, 4, power=2)
      >>> [float(schedule(t)) for t in (0, 1, 2, 4, 9)]
      [1.0, 0.5625, 0.25, 0.0, 0.0]
    """
    steps, power = _ramps.unwrapped(steps), _ramps.unwrapped(power)
    _checks.at_least(0, steps=steps, power=power)

    def schedule(count):
        left = _ramps.ramp(_ramps.number(steps) - _ramps.time(count), steps)
        # The inner `where` keeps derivatives finite: a power below 1 has an infinite one at 0.
        part = jnp.where(left > 0, jnp.where(left > 0, left, 1) ** _ramps.number(power), 0)
        return _ramps.between(end, start, part)

    return schedule


def cosine(peak: Number, steps: Number, *, end: Number = 0.0) -> optax.Schedule:
    r"""Half a cosine wave from the peak down to the end.

    $$\eta_t = \text{end} + \frac{\text{peak} - \text{end}}{2}
        \left(1 + \cos \frac{\pi \min(t, T)}{T}\right)$$

    Args:
      peak: value at count 0.
      steps: $T \ge 0$, as in `linear`.
      end: value from count $T$ on, a level as `peak` is, not a fraction of it.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `steps` is negative.

    Examples:
      >>> schedule = lo.schedules.cosine(1.0, 4)
      >>> [round(float(schedule(t)), 4) for t in (0, 1, 2, 4, 9)]
      [1.0, 0.8536, 0.5, 0.0, 0.0]

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """
    steps = _ramps.unwrapped(steps)
    _checks.at_least(0, steps=steps)

    def schedule(count):
        left = _ramps.ramp(_ramps.number(steps) - _ramps.time(count), steps)
        return _ramps.between(end, peak, _ramps.half_wave(left))

    return schedule


def exponential(start: Number, rate: Number, *, end: Number | None = None) -> optax.Schedule:
    r"""Decay by an equal fraction in every step.

    $$\eta_t = \text{start} \cdot e^{-k t}$$

    Args:
      start: value at count 0.
      rate: $k$ per step; a negative one grows. The half-life is $\log(2) / k$ steps.
      end: a level that is held from where it is reached, if it is; None goes on for ever.

    Returns:
      A function from the count $t$ to the value.

    Examples:
      >>> schedule = lo.schedules.exponential(1.0, np.log(2) / 10)
      >>> [round(float(schedule(t)), 4) for t in (0, 10, 20)]
      [1.0, 0.5, 0.25]
    """

    def schedule(count):
        value = _ramps.number(start) * jnp.exp(-_ramps.time(count) * _ramps.number(rate))
        return value if end is None else _ramps.until(value, start, end)

    return schedule


def step(
    start: Number, every: Number, *, factor: Number, end: Number | None = None
) -> optax.Schedule:
    r"""Stairs: multiplied by a factor at regular counts.

    $$\eta_t = \text{start} \cdot \text{factor}^{\lfloor t / \text{every} \rfloor}$$

    Args:
      start: value before the first stair.
      every: length of a stair, above 0. The first new value is at count `every` itself.
      factor: above 0; 0.1 divides by ten.
      end: a level that is held from where it is reached, if it is; None goes on for ever.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `every` or `factor` is not above 0.

    Examples:
      >>> schedule = lo.schedules.step(0.1, 30, factor=0.1)
      >>> [round(float(schedule(t)), 6) for t in (0, 29, 30, 60)]
      [0.1, 0.1, 0.01, 0.001]
    """
    every, factor = _ramps.unwrapped(every), _ramps.unwrapped(factor)
    _checks.above(0, every=every, factor=factor)

    def schedule(count):
        # Compiled, t / every may fall just below a whole number; floor_divide takes it exactly.
        stairs = jnp.floor_divide(_ramps.time(count), _ramps.positive(every))
        value = _ramps.number(start) * jnp.power(_ramps.number(factor), stairs)
        return value if end is None else _ramps.until(value, start, end)

    return schedule


def inverse_sqrt(peak: Number, steps: Number) -> optax.Schedule:
    r"""Decay with the inverse square root of time, without end.

    $$\eta_t = \text{peak} \cdot \sqrt{T / (T + t)}$$

    Args:
      peak: value at count 0.
      steps: $T > 0$; at $3 T$ the value is half the peak.

    Returns:
      A function from the count $t$ to the value. Behind `warmup` of as many steps it is the
      schedule of the paper: $\text{peak} \cdot \sqrt{T / t}$ from count $T$ on.

    Raises:
      ValueError: if `steps` is not above 0.

    Examples:
      >>> schedule = lo.schedules.inverse_sqrt(1.0, 100)
      >>> [float(schedule(t)) for t in (0, 300, 1500)]
      [1.0, 0.5, 0.25]

    References:
      Vaswani et al., "Attention Is All You Need", 2017.
    """
    steps = _ramps.unwrapped(steps)
    _checks.above(0, steps=steps)
    falls = lambda count: jnp.sqrt(1 + _ramps.time(count) / _ramps.positive(steps))
    return lambda count: _ramps.number(peak) / falls(count)
