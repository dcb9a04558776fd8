"""Pictures of what happened in a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.core import Tracer

from lossopt.plots import _axes
from lossopt.training._resume import rows_of
from lossopt.training._run import Run
from lossopt.training._source import Rows
from lossopt.training._stop import Stopped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {
    "train": "training",
    "trained": "training set, after the row",
    "validation": "validation",
}
OUTSIDE = 1000  # times the highest value of the lowest of several curves: there the picture ends


class Curves(NamedTuple):
    """One run to be drawn.

    Attributes:
      run: what it left.
      columns: its rows.
      x: where each row stands.
    """

    run: Run
    columns: dict[str, np.ndarray]
    x: np.ndarray


def loss_curves(
    run: Run | Mapping[str, Run], term: str = "value", *, axis: "Axes | None" = None
) -> "Axes":
    r"""Training and validation over epochs, the best epoch, and where and why a run ended early.

    Args:
      run: one `Run`, or several by name, which are drawn beside each other.
      term: what is drawn of each part of the data: `"value"`, the objective, or the name of one
        of its terms or metrics, such as `"fit"`.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis. Epochs count from 1; where nobody knows how many steps an epoch has, as in streams,
      rows stand at their steps. Of several runs it ends at 1000 times the highest value of the
      lowest curve, where all values are above 0, so that one that diverges does not hide others.

    Raises:
      ValueError: if a run has no such columns, or others than the runs beside it, or is several
        runs at once.
      TypeError: if something is no `Run`.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> stop = lo.training.Patience(2)
      >>> run = lo.fit(objective, 0.0, jnp.arange(9.0), optax.sgd(0.1), epochs=99,
      ...              validation=jnp.ones(3), stop=stop, key=jax.random.key(0))
      >>> print(*lo.plots.loss_curves(run).get_legend_handles_labels()[1], sep="\n")
      training
      validation
      best: epoch 1, 0.04
      stopped after epoch 3: the value stopped falling
    """
    curves, unit = _curves(run)
    parts = [part for part in PARTS if any(f"{part}/{term}" in x.columns for x in curves.values())]
    columns = [f"{part}/{term}" for part in parts] or [f"train/{term}"]
    _refuse_missing(curves, columns)
    axis = _axes.given(axis)
    alone = len(curves) == 1
    labels = [PARTS[part] for part in parts]
    if alone:
        _draw(axis, curves, columns, labels)
    else:
        told = {_with_reason(name, one): one for name, one in curves.items()}
        _draw(axis, told, columns, [None] * (len(parts) - 1) + [""])
    for number, one in enumerate(curves.values()):
        color = _axes.COLORS[(len(columns) - 1 if alone else number) % len(_axes.COLORS)]
        _mark_best(axis, one, columns, unit if alone else None, color)
        _mark_end(axis, one, columns[-1], unit if alone else None, color)
    if not alone:
        _key(axis, labels)
    label = "value of the objective" if term == "value" else term
    _axes.explained(axis, unit, label)
    return axis


def history(
    run: Run | Mapping[str, Run], columns: str | Sequence[str], *, axis: "Axes | None" = None
) -> "Axes":
    """Columns of the history over epochs.

    Args:
      run: one `Run`, or several by name: then colors tell runs apart, and dashes columns.
      columns: a name or several, such as `"train/gradient_norm"`.
      axis: where to draw. None makes a figure of pyplot.

    Returns:
      The axis, with epochs as in `loss_curves`.

    Raises:
      ValueError: if a run has no such column; the message tells what there is. Or if it is several
        runs at once.
      TypeError: if something is no `Run`.
      ImportError: if matplotlib is not installed.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> run = lo.fit(objective, 0.0, jnp.ones(8), optax.sgd(0.1), epochs=3, key=jax.random.key(0))
      >>> axis = lo.plots.history(run, "train/gradient_norm")
      >>> print(axis.get_ylabel(), *axis.lines[0].get_ydata().round(2))
      train/gradient_norm 2.0 1.6 1.28
    """
    curves, unit = _curves(run)
    names = [columns] if isinstance(columns, str) else list(columns)
    _refuse_missing(curves, names)
    axis = _axes.given(axis)
    _draw(axis, curves, names, names if len(names) > 1 else [""])
    _axes.explained(axis, unit, names[0] if len(names) == 1 else "value of each column")
    return axis


def _curves(run: Any) -> tuple[dict[str, Curves], str]:
    """The runs by name, and what their rows are counted in: epochs where all of them know them."""
    runs = _axes.named(run)
    columns = {name: _rows(name, one) for name, one in runs.items()}
    streamed = any(
        one.origin and "source.rows" not in one.origin["identity"] for one in runs.values()
    )
    place = (lambda one, steps: steps) if streamed else _epochs
    x = {name: place(one, columns[name]["step"]) for name, one in runs.items()}
    unit = "step" if streamed else "epoch"
    return {name: Curves(runs[name], columns[name], x[name]) for name in runs}, unit


def _epochs(run, steps):
    """The epoch in which each row ended, counted from 1."""
    if run.origin is None:  # of training.run, whose rows are epochs
        return np.arange(1, len(steps) + 1)
    facts = run.origin["identity"]
    return steps / Rows(*(facts[f"source.{name}"] for name in Rows._fields)).steps


def _rows(name, run):
    """The columns of one run; raises for something else."""
    if not isinstance(run, Run):
        raise TypeError(
            f"Expected a Run of lossopt.fit or lossopt.training.run, or a mapping of names to "
            f"runs, got {type(run).__name__}{f' of the name {name!r}' * bool(name)}."
        )
    for column, x in run.history.items():
        if isinstance(x, Tracer) or np.ndim(x) != 1:
            raise ValueError(
                f"A curve is of one run, and the column {column!r} has the shape {np.shape(x)}"
                f"{' while it is traced' * isinstance(x, Tracer)}. Take one of several by "
                "jax.tree.map(lambda x: x[i], runs), outside of jit, or a mapping of such ones."
            )
    return rows_of(run)


def _refuse_missing(curves, columns):
    """Raises where a run lacks a column, and tells what all of them have."""
    shared = [
        column
        for column in next(iter(curves.values())).columns
        if all(column in one.columns for one in curves.values())
    ]
    for name, one in curves.items():
        for column in columns:
            if column not in one.columns:
                which = f"the run {name!r}" if name else "the run"
                raise ValueError(
                    f"Expected a column {column!r}, and {which} has none. "
                    f"{'All runs have' if len(curves) > 1 else 'There are'} {', '.join(shared)}."
                )


def _draw(axis, curves, columns, labels):
    """Runs times columns; what there is only one of needs no name, and None asks for none."""
    values = []
    for number, (name, one) in enumerate(curves.items()):
        for dash, (column, label) in enumerate(zip(columns, labels)):
            y = one.columns[column]
            look = _axes.style(dash if len(curves) == 1 else number, dash, len(y))
            told = "" if label is None else ", ".join(filter(None, [name, label]))
            axis.plot(one.x, y, **look, label=told or "_")
            values.append(y)
    _axes.logarithmic_where_it_helps(axis, np.concatenate(values))
    if len(curves) > 1 and all(np.any(np.isfinite(y)) for y in values):
        most = OUTSIDE * min(np.max(y[np.isfinite(y)]) for y in values)
        _axes.ended(axis, np.concatenate(values), most)


def _with_reason(name, one):
    """The name of a run, and why it did not take all of its steps."""
    reason = one.run.stopped
    return name if reason is Stopped.FINISHED else f"{name}: {reason.value}"


def _mark_best(axis, one, columns, unit, color):
    """A star on the curve that decided, or on the last where that is not drawn."""
    row = -1 if one.run.best_epoch is None else int(one.run.best_epoch)
    if row < 0:
        return
    judge = one.run.judge
    y = one.columns[judge if judge in columns else columns[-1]][row]
    by = "" if judge in columns else f" by {judge}"
    label = f"best{by}: {unit} {one.x[row]:g}, {y:.4g}" if unit else "_"
    axis.plot(one.x[row], y, **_axes.STAR, color=color, label=label)


def _mark_end(axis, one, column, unit, color):
    """A cross at the last finite row of a run that did not take all of its steps."""
    if one.run.stopped is Stopped.FINISHED:
        return
    where = f"after {unit} {one.x[-1]:g}" if len(one.x) else "before its first row"
    label = f"stopped {where}: {one.run.stopped.value}" if unit else "_"
    finite = np.flatnonzero(np.isfinite(one.columns[column]))[-1:]
    axis.plot(one.x[finite], one.columns[column][finite], **_axes.CROSS, color=color, label=label)


def _key(axis, labels):
    """What dashes and marks of several runs mean."""
    for dash, label in enumerate(labels):
        axis.plot([], [], color=_axes.GREY, linestyle=_axes.DASHES[dash], label=label)
    for label, mark in (("best", _axes.STAR), ("stopped early", _axes.CROSS)):
        axis.plot([], [], **mark, color=_axes.GREY, label=label)
