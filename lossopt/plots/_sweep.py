"""Pictures of sweeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lossopt import _checks
from lossopt.plots import _axes
from lossopt.plots._map import score_map
from lossopt.plots._parallel import parallel
from lossopt.plots._score import score_over
from lossopt.sweeps._rulers import numbered
from lossopt.sweeps._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = Literal["auto", "parallel", "map", "score"]


def sweep(
    table: Table,
    names: str | Sequence[str] | None = None,
    *,
    kind: Picture = "auto",
    within: float = 0.1,
    axis: "Axes | None" = None,
) -> "Axes":
    """The trials of a sweep: all hyperparameters, two of them, or one, and what they scored.

    Of repeated settings the mean is drawn. Trials that diverged are marked, those that wait are
    left out. Of such as were stopped at a rung it is the last score; `table.at(100)` is drawn where
    scores after equal steps are to be compared.

    Args:
      table: of `lossopt.sweep`, or one made of columns of your own. Another score is drawn of
        `dataclasses.replace(table, score="accuracy", maximize=True)`.
      names: a hyperparameter, or several. None takes all that differ among the trials.
      kind: `"parallel"` draws a line for each trial through the vertical scales of all
        hyperparameters to its score; colors tell ranks, and the best is drawn last. `"map"` draws
        scores over two hyperparameters: cells of one size where at least half of the pairs of
        values were tried, as in a grid, else dots, between which nothing is interpolated; where
        others differ too, it shows the best trial at each place. `"score"` draws the score over
        one hyperparameter, bars of one standard error where settings were repeated, and the
        interval of good values, shaded. `"auto"` takes `"score"` of one hyperparameter, `"map"` of
        two and `"parallel"` of more.
      within: what is good, see `sweeps.Table.interval`.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis. Scales are those of `table.scales`; scores are logarithmic where the lowest is the
      best, all are above 0 and the highest is more than 10 times the lowest. The scale of scores
      ends at twice the distance from the best to the quarter of the trials that is worst, so
      that a few bad trials do not flatten the others; they stand at its end.

    Raises:
      TypeError: for what is no `Table`.
      ValueError: if a name is no hyperparameter, there are too many or too few for the kind, or
        no trial has run.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> columns = {"rate": [0.01, 0.1, 1.0, 10.0], "loss": [0.5, 0.21, 0.2, jnp.nan]}
      >>> table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss",))
      >>> axis = lo.plots.sweep(table)
      >>> print(axis.get_xscale(), *axis.get_legend_handles_labels()[1], sep="; ")
      log; best: 0.2 at 1; good, at most 0.22: 0.1 to 1; diverged: 1
    """
    _checks.one_of(kind=(kind, Picture))
    table, names = _drawable(table, names)
    chosen = _kind(kind, names)
    axis = _axes.given(axis)
    if chosen == "parallel":
        parallel(table, names, axis)
    elif chosen == "map":
        score_map(table, names[0], names[1], axis)
    else:
        score_over(table, names[0], within, axis)
    return axis


def _drawable(table, names):
    """The rows that ran, the best first, of one setting each; and the names to draw."""
    if not isinstance(table, Table):
        raise TypeError(
            f"Expected table as a lossopt.sweeps.Table, got {type(table).__name__}. Take what "
            "lossopt.sweep returns, or make one of columns."
        )
    table = (table.mean() if table.repeated else table).sort()
    table = table[table["status"] != "waiting"]
    if not len(table):
        raise ValueError("Expected a trial that has run, and none of the table has.")
    if isinstance(names, str):
        names = [names]
    names = numbered(table) if names is None else list(names)
    known = [name for name in table.names if table[name].ndim == 1]
    if odd := [name for name in names if name not in known]:
        raise ValueError(
            f"Expected hyperparameters of one value for each trial, got {odd[0]!r}. There are "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    if not names:
        raise ValueError("Expected a hyperparameter that differs among the trials: none does.")
    return table, names


def _kind(kind, names):
    """What is drawn of so many hyperparameters; raises where it cannot."""
    if kind == "auto":
        return {1: "score", 2: "map"}.get(len(names), "parallel")
    wanted = {"score": 1, "map": 2}.get(kind, len(names))
    if len(names) != wanted:
        raise ValueError(
            f"Expected {wanted} name{'s' * (wanted > 1)} for kind={kind!r}, got "
            f"{', '.join(names)}. Name what is to be drawn, as sweep(table, {names[:wanted]!r}, "
            f"kind={kind!r}), on an axis each."
        )
    return kind
