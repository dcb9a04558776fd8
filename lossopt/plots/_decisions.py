"""Pictures of decisions."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from lossopt._typing import ArrayLike, Float
from lossopt.losses._decisions import decide
from lossopt.plots import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1001


def decision(
    logits: Float[ArrayLike, "*batch classes"],
    costs: Float[ArrayLike, "classes decisions"],
    *,
    axis: "Axes | None" = None,
) -> "Axes":
    """What decisions cost on average, and which one `losses.decide` takes for each row.

    Of two classes: the expected cost of each decision over the probability of class 1, the
    probabilities at which another decision becomes the cheapest, and those of the rows below. Of
    more: how many rows of each most probable class get which decision.

    Args:
      logits: shape `[*batch, classes]`, of a model trained with cross entropy.
      costs: finite cost of each decision in each class, shape `[classes, decisions]`.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis.

    Raises:
      ValueError: if the shapes do not match.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> costs = jnp.array([[0.0, 10.0], [1000.0, 0.0]])  # false alarm 10, missed fraud 1000
      >>> axis = lo.plots.decision(jnp.log(jnp.array([[0.98, 0.02], [0.999, 0.001]])), costs)
      >>> print(*(text.get_text() for text in axis.get_legend().get_texts()), sep=" | ")
      decision 0, 1 row | decision 1, 1 row | cheapest from 0.0099 on: decision 1
    """
    decisions = np.asarray(decide(logits, costs)).ravel()
    costs = np.asarray(costs, float)
    shares = np.asarray(jax.nn.softmax(np.asarray(logits, float))).reshape(-1, len(costs))
    axis = _axes.given(axis)
    return (_costs if len(costs) == 2 else _counts)(axis, shares, decisions, costs)


def _costs(axis, shares, decisions, costs):
    """Expected costs over the probability of class 1."""
    for number, (none, one) in enumerate(costs.T):
        rows = np.count_nonzero(decisions == number)
        label = f"decision {number}, {rows} {'row' if rows == 1 else 'rows'}"
        look = _axes.style(number, None, 2)
        axis.plot([0, 1], [none, one], **look, label=label)
        edge = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        taken = shares[decisions == number, 1]
        dots = {"marker": "|", "linestyle": "", "color": look["color"], "markersize": 9}
        axis.plot(taken, np.full(len(taken), 0.02), **dots, **edge, label="_")
    for share, number in _turns(costs):
        label = f"cheapest from {share:.2g} on: decision {number}"
        axis.axvline(share, color=_axes.GREY, linestyle=":", label=label)
    _axes.explained(axis, "probability of class 1", "expected cost, in units of the costs")
    return axis


def _turns(costs):
    """Where another decision becomes the cheapest, and which: corners of the lower envelope."""
    at, slopes = 0.0, costs[1] - costs[0]
    now = min(range(costs.shape[1]), key=lambda i: (costs[0, i], slopes[i]))
    while True:
        falling = [i for i in range(costs.shape[1]) if slopes[i] < slopes[now]]
        meets = {i: (costs[0, i] - costs[0, now]) / (slopes[now] - slopes[i]) for i in falling}
        meets = {i: share for i, share in meets.items() if at <= share < 1}
        if not meets:
            return
        now = min(meets, key=lambda i: (meets[i], slopes[i]))
        at = meets[now]
        yield at, now


def _counts(axis, shares, decisions, costs):
    """Rows by most probable class and decision; a row that is NaN is in none."""
    kept = decisions >= 0
    counts = np.zeros(costs.shape, int)
    np.add.at(counts, (shares[kept].argmax(axis=1), decisions[kept]), 1)
    axis.imshow(counts, cmap="Greys", vmin=0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axis.text(column, row, str(count), ha="center", va="center", color="wk"[not dark])
    axis.set(xticks=range(costs.shape[1]), yticks=range(len(costs)))
    axis.set(xlabel="decision", ylabel="most probable class")
    axis.set_title("rows by what is most probable, and what is decided", fontsize="small")
    return axis
