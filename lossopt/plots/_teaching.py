"""Pictures of functions: what a schedule gives, and what a loss and its slope are."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt import _checks
from lossopt._typing import Number
from lossopt.plots import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTS = 1025  # of a long schedule
POINTS = 601


def schedules(
    schedule: optax.Schedule | Mapping[str, optax.Schedule],
    steps: int,
    *,
    axis: "Axes | None" = None,
) -> "Axes":
    """Values of a schedule at its counts.

    Args:
      schedule: a function from a count to a number, which may be traced; or several by name.
      steps: the last count, at least 1. Counts are whole; of a long schedule a thousand are drawn.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis. It is logarithmic where values fall that far from their peak.

    Raises:
      ValueError: if `steps` is below 1, or a value is no number.
      TypeError: if a schedule is not a function.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> schedule = lo.schedules.warmup(lo.schedules.cosine(1.0, 4), 2)
      >>> axis = lo.plots.schedules(schedule, 6)
      >>> print(axis.lines[0].get_xdata(), axis.lines[0].get_ydata().round(2))
      [0 1 2 3 4 5 6] [0.5  1.   1.   0.85 0.5  0.15 0.  ]
    """
    steps = _checks.count("steps", steps, 1)
    counts = np.unique(np.linspace(0, steps, min(steps + 1, COUNTS)).round().astype(int))
    curves = {name: _values("schedule", fn, counts) for name, fn in _axes.named(schedule).items()}
    axis = _axes.given(axis)
    for number, (name, y) in enumerate(curves.items()):
        axis.plot(counts, y, **_axes.style(number, None, len(y)), label=name or "_")
    falls = np.concatenate([y[np.argmax(y) :] for y in curves.values()])
    _axes.logarithmic_where_it_helps(axis, falls)
    _axes.explained(axis, "count of steps, from 0", "value of the schedule")
    return axis


def losses(
    fn: Callable | Mapping[str, Callable],
    target: Number = 0.0,
    *,
    low: float = -3.0,
    high: float = 3.0,
    draw: Literal["both", "loss", "slope"] = "both",
    axis: "Axes | None" = None,
) -> "Axes":
    """A loss of one prediction, and its slope.

    Args:
      fn: maps `(prediction, target)`, two numbers, to one loss, as `lo.losses.huber` does; or
        several by name. Numbers of a loss are set by `functools.partial`.
      target: what is predicted: a number, or the label of a logit.
      low: the first prediction.
      high: the last prediction, above `low`.
      draw: `"loss"`, `"slope"` or `"both"`; the slope is the derivative by the prediction.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis. Where both are drawn, losses are lines with markers and slopes thin dashes.

    Raises:
      ValueError: if `high` is not above `low`, `draw` is another word, or a loss is no number.
      TypeError: if a loss is not a function.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> axis = lo.plots.losses(lo.losses.huber, 0.0)
      >>> loss, slope = axis.lines
      >>> print(loss.get_ydata()[-1], slope.get_ydata()[-1], slope.get_label())
      2.5 1.0 slope
    """
    _checks.above(low, high=high)
    one_of("draw", draw, ("both", "loss", "slope"))
    points = np.linspace(low, high, POINTS)
    fns = _axes.named(fn)
    of = {
        name: partial(_of_prediction, _function("loss", one), jnp.asarray(target))
        for name, one in fns.items()
    }
    values = {name: _values("loss", one, points) for name, one in of.items()}
    slopes = {name: _values("slope", jax.grad(one), points) for name, one in of.items()}
    axis = _axes.given(axis)
    for number, name in enumerate(fns):
        if draw != "slope":
            look = _axes.style(number, 0 if draw == "both" else None, POINTS)
            axis.plot(points, values[name], **look, label=name or "loss")
        if draw != "loss":
            look = _axes.style(number, 1 if draw == "both" else None, POINTS)
            thin = {"marker": "", "linewidth": 1.0} if draw == "both" else {}
            label = name if draw == "slope" and name else f"{name} slope".strip()
            axis.plot(points, slopes[name], **look | thin, label=label)
    told = {"both": "loss, and its slope", "loss": "loss", "slope": "slope of the loss"}
    _axes.explained(axis, f"prediction, where the target is {np.asarray(target):g}", told[draw])
    return axis


def one_of(name: str, word: object, words: tuple[str, ...]) -> None:
    """Raises for a word that is none of these."""
    if word not in words:
        raise ValueError(f"Expected {name} as one of {', '.join(map(repr, words))}, got {word!r}.")


def _of_prediction(fn, target, prediction):
    return fn(prediction, target)


def _function(name, fn):
    """The function; raises for something else."""
    if not callable(fn):
        raise TypeError(
            f"Expected the {name} as a function, got {fn!r}. Several go into a dict by name."
        )
    return fn


def _values(name, fn, points):
    """One number for each point, numpy."""
    values = np.asarray(jax.jit(jax.vmap(_function(name, fn)))(points))
    if values.shape != points.shape:
        raise ValueError(
            f"Expected one number of the {name} for each, got an array of shape "
            f"{values.shape[1:]}. Draw one of them, as lambda x: fn(x)[0]."
        )
    return values
