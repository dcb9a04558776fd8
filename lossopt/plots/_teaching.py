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
      The axis. It is logarithmic where values fall that far from their peak and never rise again.

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
    curves = _values("schedule", _axes.named(schedule), counts)
    axis = _axes.given(axis)
    for number, (name, y) in enumerate(curves.items()):
        axis.plot(counts, y, **_axes.style(number, None, len(y)), label=name or "_")
    falls = [y[np.argmax(y) :] for y in curves.values()]
    if all(np.all(np.diff(y) <= 0) for y in falls):
        _axes.logarithmic_where_it_helps(axis, np.concatenate(falls))
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
    points, fns = np.linspace(low, high, POINTS), _axes.named(fn)
    values = {
        name: partial(_of_prediction, _function("loss", one), jnp.asarray(target))
        for name, one in fns.items()
    }
    of = {"loss": values, "slope": {name: jax.grad(one) for name, one in values.items()}}
    kinds = [kind for kind in of if draw in (kind, "both")]
    curves = {kind: _values(kind, of[kind], points) for kind in kinds}
    axis = _axes.given(axis)
    for number, name in enumerate(fns):
        for dash, kind in enumerate(kinds):
            look = _axes.style(number, dash if draw == "both" else None, POINTS)
            thin = {"marker": "", "linewidth": 1.0} if dash else {}
            label = f"{name} {kind}".strip() if dash or not name else name
            axis.plot(points, curves[kind][name], **look | thin, label=label)
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


def _values(what, fns, points):
    """One number of each function for each point, numpy, by one program."""
    fns = {name: _function(what, fn) for name, fn in fns.items()}
    values = jax.jit(lambda x: [jax.vmap(fn)(x) for fn in fns.values()])(points)
    for value in values:
        if value.shape != points.shape:
            raise ValueError(
                f"Expected one number of the {what} for each, got an array of shape "
                f"{value.shape[1:]}. Draw one of them, as lambda x: fn(x)[0]."
            )
    return {name: np.asarray(value) for name, value in zip(fns, values)}
