"""Shapes that rise and fall, once or again and again."""

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from lossopt import _checks
from lossopt._typing import Number
from lossopt.schedules import _ramps


def trapezoid(peak: Number, steps: Number, *, warmup: Number, decay: Number) -> optax.Schedule:
    r"""Linear warmup, constant plateau, linear decay to zero.

    $$\eta_t = \text{peak} \cdot \max\Big(0, \;
        \min\big(1, \; (t + 1) / \text{warmup}, \; (T - t) / \text{decay}\big)\Big)$$

    Args:
      peak: the plateau.
      steps: $T$, at least `warmup + decay`; from there on the value is 0.
      warmup: steps to reach the plateau, at least 0; the first step is already positive.
      decay: steps from the plateau to 0, at least 0.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `warmup` or `decay` is negative, or their sum is above `steps`.

    Examples:
      >>> schedule = lo.schedules.trapezoid(1.0, 8, warmup=2, decay=4)
      >>> [float(schedule(t)) for t in (0, 1, 4, 6, 8)]
      [0.5, 1.0, 1.0, 0.5, 0.0]

    References:
      Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
      2024.
    """
    _rest(steps, warmup, decay)

    def schedule(count):
        t = _ramps.time(count)
        fall = _ramps.ramp(_ramps.number(steps) - t, decay)
        return _ramps.number(peak) * jnp.minimum(_ramps.ramp(t + 1, warmup), fall)

    return schedule


def one_cycle(
    start: Number, peak: Number, steps: Number, *, warmup: Number, decay: Number, end: Number = 0.0
) -> optax.Schedule:
    r"""Straight up to a high peak, straight back, then down to the end.

    $$\eta_t = \begin{cases}
        \text{start} + (\text{peak} - \text{start}) \min(t / w, \; (w + d - t) / d) & t < w + d \\
        \text{end} + (\text{start} - \text{end}) \, (T - t) / (T - w - d) & w + d \le t < T \\
        \text{end} & t \ge T \end{cases}$$

    with $w$ = warmup and $d$ = decay.

    Args:
      start: value at count 0 and at the foot of the cycle, usually a tenth of the peak or less.
      peak: value at count `warmup`.
      steps: $T$, at least `warmup + decay`.
      warmup: steps from the start to the peak, at least 0; the paper has `warmup == decay`.
      decay: steps from the peak back to the start, at least 0.
      end: value from count $T$ on.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `warmup` or `decay` is negative, or their sum is above `steps`.

    Examples:
      >>> schedule = lo.schedules.one_cycle(0.25, 1.0, 10, warmup=4, decay=4)
      >>> [float(schedule(t)) for t in (0, 4, 8, 9, 10)]
      [0.25, 1.0, 0.25, 0.125, 0.0]

    References:
      Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large
      Learning Rates", 2018.
    """
    rest = _rest(steps, warmup, decay)

    def schedule(count):
        t, foot = _ramps.time(count), _ramps.number(start)
        cycle = _ramps.number(warmup) + _ramps.number(decay)
        hat = jnp.minimum(_ramps.rise(t, warmup), _ramps.ramp(cycle - t, decay))
        tail = _ramps.ramp(_ramps.number(steps) - t, rest)
        return _ramps.number(peak) * hat + foot * (tail - hat) + _ramps.number(end) * (1 - tail)

    return schedule


def triangular(start: Number, peak: Number, steps: Number) -> optax.Schedule:
    r"""Straight up and straight down, for ever.

    $$\eta_t = \text{start} + (\text{peak} - \text{start}) \,
        \big(1 - |(t / T \bmod 2) - 1|\big)$$

    Args:
      start: value at counts $0, 2T, 4T, \dots$
      peak: value at counts $T, 3T, \dots$
      steps: $T > 0$, half a cycle.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `steps` is not above 0.

    Examples:
      >>> schedule = lo.schedules.triangular(0.0, 1.0, 4)
      >>> [float(schedule(t)) for t in (0, 1, 4, 7, 8, 12)]
      [0.0, 0.25, 1.0, 0.25, 0.0, 1.0]

    References:
      Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.
    """
    steps = _ramps.unwrapped(steps)
    _checks.above(0, steps=steps)

    def schedule(count):
        half = _ramps.positive(steps)
        phase = jnp.remainder(_ramps.time(count), 2 * half) / half
        return _ramps.between(peak, start, jnp.abs(phase - 1))

    return schedule


def cosine_restarts(
    peak: Number, steps: Number, *, factor: Number = 1.0, end: Number = 0.0
) -> optax.Schedule:
    r"""`cosine` again and again, each time slower by a factor.

    $$\eta_t = \text{end} + \frac{\text{peak} - \text{end}}{2}
        \left(1 + \cos \frac{\pi (t - s_n)}{T f^n}\right), \quad
        s_n = T \sum_{i < n} f^i \le t < s_{n + 1}$$

    Cycle $n$ has the length $T f^n$; at a restart $t = s_n$ the value is the peak.

    Args:
      peak: value at every restart.
      steps: $T > 0$, length of the first cycle.
      factor: $f \ge 1$, from the length of a cycle to the next one's.
      end: what every cycle falls to; its restart comes before it is reached.

    Returns:
      A function from the count $t$ to the value.

    Raises:
      ValueError: if `steps` is not above 0, or `factor` is below 1.

    Examples:
      >>> schedule = lo.schedules.cosine_restarts(1.0, 2, factor=2)
      >>> [round(float(schedule(t)), 4) for t in (0, 1, 2, 4, 5, 6)]
      [1.0, 0.5, 1.0, 0.5, 0.1464, 1.0]

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """
    steps, factor = _ramps.unwrapped(steps), _ramps.unwrapped(factor)
    _checks.above(0, steps=steps)
    _checks.at_least(1, factor=factor)

    def schedule(count):
        first, ratio = _ramps.positive(steps), _ramps.positive(factor)
        phase = _phase(_ramps.time(count), first, ratio)
        return _ramps.between(end, peak, _ramps.half_wave(1 - phase))

    return schedule


def _rest(steps, warmup, decay):
    """What warmup and decay leave of the steps."""
    steps, warmup, decay = map(_ramps.unwrapped, (steps, warmup, decay))
    _checks.at_least(0, warmup=warmup, decay=decay)
    steps, warmup, decay = map(_float, (steps, warmup, decay))
    rest = steps - warmup - decay
    if not isinstance(rest, Tracer) and rest < -1e-6 * steps:  # more than parts of them round to
        _checks.at_least(0, **{"steps - warmup - decay": rest})
    return rest


def _float(length):
    """As a float, on the host where it is known."""
    return _ramps.number(length) if isinstance(length, jax.Array) else float(length)


def _phase(t, steps, factor):
    """The part of the current cycle that is over, from 0 to 1."""
    growth = jnp.maximum(factor, 1) - 1
    rate = jnp.log1p(growth)
    cycles = t / steps  # had they all the length of the first
    clock = jnp.log1p(growth * cycles) / _ramps.positive(rate)  # whole at restarts
    nearest = jnp.round(jnp.where(growth > 0, clock, cycles))

    sums = lambda n: jnp.where(growth > 0, jnp.expm1(n * rate) / _ramps.positive(growth), n)
    # At a restart rounding decides between the peak and the end. Whole numbers are made exact (up
    # to a million first cycles); other restarts come 1e-6 of their time early rather than late.
    whole = (steps == jnp.round(steps)) & (factor == jnp.round(factor))
    early = sums(nearest) * (1 - 8 * jnp.finfo(t.dtype).eps)
    restart = steps * jnp.where(whole, jnp.round(sums(nearest)), early)
    n = jnp.where(t < restart, nearest - 1, nearest)
    return jnp.clip((t - steps * sums(n)) / (steps * jnp.exp(n * rate)), 0, 1)
