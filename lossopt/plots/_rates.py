"""Pictures of what came of learning rates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lossopt import _checks
from lossopt._typing import ArrayLike
from lossopt.plots import _axes
from lossopt.training._learning_rate import RateGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 10  # times what the lowest rate came to; what is above lies outside of the picture


class Drawn(NamedTuple):
    """Numbers to draw: rates, values in a row for each seed, and the pick, if there was one."""

    rates: np.ndarray
    values: np.ndarray
    pick: float | None


def learning_rates(
    grid: RateGrid | tuple[ArrayLike, ArrayLike] | Mapping, *, axis: "Axes | None" = None
) -> "Axes":
    """What the objective came to at each learning rate, and the rate that was picked.

    Rates at which a seed met a number that is not finite are crosses at the upper edge. Where all
    values are above 0, the picture ends at ten times what the lowest rate came to.

    Args:
      grid: what `training.find_learning_rate` returns; or a pair `(rates, values)`, as
        `training.range_test` and sweeps give, the values of shape `[rates]` or `[seeds, rates]`; or
        several of these by name.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis. A line is the mean over seeds, small dots are single ones.

    Raises:
      ValueError: if shapes do not fit, or a rate is not above 0.
      TypeError: if `grid` is something else.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> values = [[8.0, 0.5, 9.0], [8.5, 0.4, np.nan]]
      >>> axis = lo.plots.learning_rates(([0.01, 0.1, 1.0], values))
      >>> print(axis.get_xscale(), *axis.lines[0].get_ydata())
      log 8.25 0.45 nan
    """
    grids = {name: _grid(one) for name, one in _axes.named(grid).items()}
    axis = _axes.given(axis)
    axis.set_xscale("log")
    for number, (name, one) in enumerate(grids.items()):
        _draw(axis, number, name, one)
    values = np.concatenate([one.values.ravel() for one in grids.values()])
    _axes.logarithmic_where_it_helps(axis, values)
    _axes.ended(axis, values, SHOWN * max(np.nanmax(one.values[:, 0]) for one in grids.values()))
    _axes.explained(axis, "learning rate", "value of the objective")
    return axis


def _grid(one):
    """Rates and values as numpy; raises where they do not fit."""
    pick = one.learning_rate if isinstance(one, RateGrid) else None
    if isinstance(one, RateGrid):
        one = one.rates, one.values
    if not isinstance(one, tuple | list) or len(one) != 2:
        raise TypeError(
            "Expected a result of lossopt.training.find_learning_rate, or a pair (rates, values), "
            f"got {type(one).__name__}. Several of them go into a dict by name."
        )
    rates, values = np.asarray(one[0], float), np.asarray(one[1], float)
    if rates.ndim != 1 or values.ndim not in (1, 2) or values.shape[-1] != rates.size:
        raise ValueError(
            f"Expected rates [rates] and values [rates] or [seeds, rates], got {rates.shape} and "
            f"{values.shape}. Transpose what has seeds last."
        )
    _checks.above(0, rates=rates)
    return Drawn(rates, np.atleast_2d(values), pick)


def _draw(axis, number, name, one):
    rates, values, pick = one
    mean = values.mean(axis=0)
    seeds = f"mean of {len(values)} seeds" if len(values) > 1 else ""
    label = ", ".join(filter(None, [name, seeds])) or "_"
    look = _axes.style(number)
    axis.plot(rates, mean, **look, label=label)
    if len(values) > 1:
        dots = {"color": look["color"], "marker": ".", "linestyle": "", "alpha": 0.6}
        axis.plot(np.tile(rates, len(values)), values.ravel(), **dots, label="_")
    lost = rates[~np.isfinite(mean)]
    if lost.size:
        edge = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        look = {"marker": "x", "linestyle": "", "color": look["color"]}
        label = ", ".join(filter(None, [name, "not finite"]))
        axis.plot(lost, np.full(lost.size, 0.98 - 0.04 * number), **look, **edge, label=label)
    if pick is not None:
        at = np.argmin(abs(rates - pick))
        end = " (at the end of the rates)" if at in (0, len(rates) - 1) else ""
        label = ", ".join(filter(None, [name, f"pick: {pick:.3g}{end}"]))
        axis.plot(pick, mean[at], **_axes.STAR, color=_axes.COLORS[6], label=label)
