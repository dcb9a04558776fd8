"""Pictures of regularizers: over one weight, and over two."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from lossopt import _checks
from lossopt._typing import Number
from lossopt.plots import _axes
from lossopt.plots._teaching import POINTS, one_of
from lossopt.regularizers._base import Regularizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FINE, COARSE, LEVELS = 121, 7, 8  # points a side of the values and of the proxes; level sets


def regularizers(
    regularizer: Regularizer | Mapping[str, Regularizer],
    *,
    draw: Literal["both", "value", "prox", "levels"] = "both",
    step_size: Number = 1.0,
    reach: float = 3.0,
    axis: "Axes | None" = None,
) -> "Axes":
    """The penalty and the proximal point of one weight; or level sets over two weights.

    Args:
      regularizer: any `Regularizer`, or several by name; of level sets one.
      draw: `"value"`, `"prox"` or `"both"` over one weight, a leaf of shape `[1]`. `"levels"` draws
        the level sets of the penalty over two weights, a leaf of shape `[2]`, and arrows that lead
        to proximal points. The inside of a constraint, whose value is 0 everywhere, is grey.
      step_size: of the prox, above 0.
      reach: weights are drawn from `-reach` to `reach`, above 0.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis.

    Raises:
      ValueError: if a number is not above 0, `draw` is another word, or level sets of several are
        asked for.
      TypeError: if something is no regularizer.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> axis = lo.plots.regularizers(lo.regularizers.L1(1.0), draw="prox", reach=2.0)
      >>> weights, shrunk = axis.lines[0].get_data()
      >>> print(weights[[0, 300, 525]], shrunk[[0, 300, 525]])
      [-2.   0.   1.5] [-1.   0.   0.5]
    """
    one_of("draw", draw, ("both", "value", "prox", "levels"))
    _checks.above(0, step_size=step_size, reach=reach)
    members = _axes.named(regularizer)
    for member in members.values():
        if not isinstance(member, Regularizer):
            raise TypeError(
                f"Expected a regularizer, got {member!r}. Take one of lossopt.regularizers, or an "
                "object that is a function of the parameters and has prox(params, step_size)."
            )
    if draw != "levels":
        return _over_one(members, draw, step_size, reach, axis)
    if len(members) > 1:
        raise ValueError(
            f"Expected one regularizer to draw its level sets, got {', '.join(members)}. Draw each "
            "on an axis of its own."
        )
    return _over_two(next(iter(members.values())), step_size, reach, axis)


def _over_one(members, draw, step_size, reach, axis):
    weights = np.linspace(-reach, reach, POINTS)
    curves = {name: _measured(one, weights[:, None], step_size) for name, one in members.items()}
    prox_of = f"prox of step size {np.asarray(step_size):g}"
    axis = _axes.given(axis)
    for number, (name, (values, moved)) in enumerate(curves.items()):
        value = _axes.style(number, 0 if draw == "both" else None, POINTS)
        prox = _axes.style(number, 1 if draw == "both" else None, POINTS)
        if draw != "prox":
            axis.plot(weights, values, **value, label=name or "penalty")
        if draw != "value":
            told = name if draw == "prox" and name else f"{name} {prox_of}".strip()
            thin = {"marker": "", "linewidth": 1.0} if draw == "both" else {}
            axis.plot(weights, moved[:, 0], **prox | thin, label=told)
    if draw != "value":
        axis.plot(weights, weights, color=_axes.GREY, linestyle=":", label="no prox")
    told = {"both": "penalty, and weight after a prox", "value": "penalty", "prox": prox_of}
    _axes.explained(axis, "weight", told[draw])
    return axis


def _over_two(member, step_size, reach, axis):
    fine, coarse = (np.linspace(-reach, reach, count) for count in (FINE, COARSE))
    points, everywhere = _square(coarse), _square(fine)
    values, stayed = _measured(member, everywhere, step_size)
    still = np.all(np.isclose(stayed, everywhere, atol=1e-6), axis=1).reshape(FINE, FINE)
    _, moved = _measured(member, points, step_size)
    axis = _axes.given(axis)
    if np.ptp(values) > 0:
        lines = axis.contour(
            fine, fine, values.reshape(FINE, FINE), LEVELS, colors=_axes.GREY, linewidths=0.8
        )
        axis.clabel(lines, fontsize="x-small")
    elif still.any():
        axis.contourf(fine, fine, still, [0.5, 1.5], colors="0.85")
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003}
    axis.quiver(*points.T, *(moved - points).T, **arrows, color=_axes.COLORS[5])
    axis.plot(*moved.T, color=_axes.COLORS[6], marker="o", markersize=4, linestyle="")
    axis.set_aspect("equal")
    title = f"arrows: a prox of step size {np.asarray(step_size):g}"
    axis.set_title(title, fontsize="small")
    _axes.explained(axis, "first weight", "second weight")
    return axis


def _square(side):
    """All points whose two coordinates are of the side."""
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def _measured(member, points, step_size):
    """Penalty and proximal point of each row."""
    both = lambda x: (member(x), member.prox(x, step_size))
    return [np.asarray(x) for x in jax.jit(jax.vmap(both))(points.astype("float32"))]
