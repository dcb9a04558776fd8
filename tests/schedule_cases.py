"""One row per schedule, with a reference in float64 that shares no code with it.

A contract may halve or double any one of the arguments: they leave room for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

from lossopt import schedules


class Schedule(NamedTuple):
    make: Callable[..., optax.Schedule]  # from the arguments below, each of which may be traced
    arguments: dict[str, float]
    start: float  # the value at count 0
    end: float | None  # the value held from count `steps` on; None where it never ends
    steps: int | None
    reference: Callable[[int], float]


def _restarts(t):
    length = 4
    while t >= length:
        t, length = t - length, length * 2
    return 0.1 + 0.9 * (1 + np.cos(np.pi * t / length)) / 2


def _triangle(t):
    cycle = np.floor(1 + t / (2 * 5))
    return 0.1 + 0.9 * max(0, 1 - abs(t / 5 - 2 * cycle + 1))


SCHEDULES = {
    "constant": Schedule(
        schedules.constant, {"level": 0.3}, start=0.3, end=0.3, steps=0, reference=lambda t: 0.3
    ),
    "linear": Schedule(
        schedules.linear,
        {"start": 1.0, "end": 0.1, "steps": 10},
        start=1.0,
        end=0.1,
        steps=10,
        reference=lambda t: np.interp(t, [0, 10], [1.0, 0.1]),
    ),
    "polynomial": Schedule(
        lambda start, end, steps, power: schedules.polynomial(start, end, steps, power=power),
        {"start": 1.0, "end": 0.1, "steps": 10, "power": 2.5},
        start=1.0,
        end=0.1,
        steps=10,
        reference=lambda t: 0.1 + 0.9 * (1 - min(t, 10) / 10) ** 2.5,
    ),
    "exponential": Schedule(
        schedules.exponential,
        {"start": 0.5, "rate": 0.05},
        start=0.5,
        end=None,
        steps=None,
        reference=lambda t: 0.5 * np.exp(-0.05 * t),
    ),
    "step": Schedule(
        lambda start, every, factor: schedules.step(start, every, factor=factor),
        {"start": 0.1, "every": 3, "factor": 0.4},
        start=0.1,
        end=None,
        steps=None,
        reference=lambda t: 0.1 * 0.4 ** (t // 3),
    ),
    "cosine": Schedule(
        lambda peak, steps, end: schedules.cosine(peak, steps, end=end),
        {"peak": 0.5, "steps": 10, "end": 0.05},
        start=0.5,
        end=0.05,
        steps=10,
        reference=lambda t: 0.05 + 0.45 * (1 + np.cos(np.pi * min(t, 10) / 10)) / 2,
    ),
    "inverse_sqrt": Schedule(
        schedules.inverse_sqrt,
        {"peak": 0.5, "steps": 4},
        start=0.5,
        end=None,
        steps=None,
        reference=lambda t: 0.5 * np.sqrt(4 / (4 + t)),
    ),
    "trapezoid": Schedule(
        lambda peak, steps, warmup, decay: schedules.trapezoid(
            peak, steps, warmup=warmup, decay=decay
        ),
        {"peak": 3.0, "steps": 20, "warmup": 4, "decay": 5},
        start=0.75,
        end=0.0,
        steps=20,
        reference=lambda t: np.interp(t, [-1, 3, 15, 20], [0.0, 3.0, 3.0, 0.0]),
    ),
    "one_cycle": Schedule(
        lambda start, peak, steps, warmup, decay, end: schedules.one_cycle(
            start, peak, steps, warmup=warmup, decay=decay, end=end
        ),
        {"start": 0.1, "peak": 1.0, "steps": 22, "warmup": 4, "decay": 6, "end": 0.01},
        start=0.1,
        end=0.01,
        steps=22,
        reference=lambda t: np.interp(t, [0, 4, 10, 22], [0.1, 1.0, 0.1, 0.01]),
    ),
    "triangular": Schedule(
        schedules.triangular,
        {"start": 0.1, "peak": 1.0, "steps": 5},
        start=0.1,
        end=None,
        steps=None,
        reference=_triangle,
    ),
    "cosine_restarts": Schedule(
        lambda peak, steps, factor, end: schedules.cosine_restarts(
            peak, steps, factor=factor, end=end
        ),
        {"peak": 1.0, "steps": 4, "factor": 2.0, "end": 0.1},
        start=1.0,
        end=None,
        steps=None,
        reference=_restarts,
    ),
    "warmup": Schedule(
        lambda steps, peak, decay: schedules.warmup(schedules.linear(peak, 0.1, decay), steps),
        {"steps": 4, "peak": 1.0, "decay": 8},
        start=0.25,
        end=0.1,
        steps=12,
        reference=lambda t: (t + 1) / 4 if t < 4 else np.interp(t - 4, [0, 8], [1.0, 0.1]),
    ),
    "join": Schedule(
        lambda first, second, level, end: schedules.join(
            [schedules.constant(level), optax.linear_schedule(1.0, 0.5, 4), lambda count: end],
            [first, second],
        ),
        {"first": 3, "second": 8, "level": 0.7, "end": 0.2},
        start=0.7,
        end=0.2,
        steps=8,
        reference=lambda t: 0.7 if t < 3 else np.interp(t, [3, 7], [1, 0.5]) if t < 8 else 0.2,
    ),
    "scale": Schedule(
        lambda factor, steps: schedules.scale(schedules.linear(1.0, 0.1, steps), factor),
        {"factor": 0.5, "steps": 10},
        start=0.5,
        end=0.05,
        steps=10,
        reference=lambda t: 0.5 * np.interp(t, [0, 10], [1.0, 0.1]),
    ),
    "per_epoch": Schedule(
        lambda steps_per_epoch, epochs: schedules.per_epoch(
            schedules.linear(1.0, 0.1, epochs), steps_per_epoch
        ),
        {"steps_per_epoch": 4, "epochs": 2.5},
        start=1.0,
        end=0.1,
        steps=10,
        reference=lambda t: np.interp(t / 4, [0, 2.5], [1.0, 0.1]),
    ),
}

# Further forms of some of them.
FORMS = {
    "exponential/end": Schedule(
        lambda start, rate, end: schedules.exponential(start, rate, end=end),
        {"start": 0.5, "rate": 0.05, "end": 0.3},
        start=0.5,
        end=0.3,
        steps=11,
        reference=lambda t: max(0.5 * np.exp(-0.05 * t), 0.3),
    ),
    "exponential/growing": Schedule(
        lambda start, rate, end: schedules.exponential(start, rate, end=end),
        {"start": 0.1, "rate": -0.3, "end": 1.5},
        start=0.1,
        end=1.5,
        steps=10,
        reference=lambda t: min(0.1 * np.exp(0.3 * t), 1.5),
    ),
    "step/end": Schedule(
        lambda start, every, factor, end: schedules.step(start, every, factor=factor, end=end),
        {"start": 1.0, "every": 3, "factor": 0.4, "end": 0.1},
        start=1.0,
        end=0.1,
        steps=9,
        reference=lambda t: max(0.4 ** (t // 3), 0.1),
    ),
    "warmup/start": Schedule(
        lambda steps, start, peak, decay: schedules.warmup(
            schedules.linear(peak, 0.1, decay), steps, start=start
        ),
        {"steps": 4, "start": 0.3, "peak": 1.0, "decay": 8},
        start=0.3,
        end=0.1,
        steps=12,
        reference=lambda t: np.interp(t, [0, 4, 12], [0.3, 1.0, 0.1]),
    ),
}
