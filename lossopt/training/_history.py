"""A row of history, and what it decides."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._typing import Array, Means
from lossopt.training._best import Best, finite, judged
from lossopt.training._evaluation import columns, evaluated
from lossopt.training._norms import learning_rate, norms
from lossopt.training._plan import Data, Plan, Pooled, Progress
from lossopt.training._pool import emptied
from lossopt.training._step import State
from lossopt.training._stop import Stopped


class Outline(NamedTuple):
    """What one step and one row are made of; its numbers mean nothing.

    Attributes:
      sums: means and metrics of a step.
      norms: the columns of a step.
      row: all columns.
    """

    sums: tuple[Means, Means]
    norms: dict[str, Array]
    row: dict[str, Array]


def close(plan: Plan, data: Data, progress: Progress) -> Progress:
    """Writes a row of history, and does what it decides."""
    state, best = progress.state, progress.best
    row = _row(plan, data, state, progress.pool.sums, progress.norms)
    place = progress.rows % plan.window
    window = {name: column.at[place].set(row[name]) for name, column in progress.window.items()}
    if plan.best and best:
        now = Best(plan.judged(state), state.model_state, row[plan.best.column], progress.rows)
        best = judged(plan.best, best, now)
    waiting, status = progress.waiting, progress.status
    if data.stop is not None:
        waiting, status = data.stop.update(waiting, row[watched(data)])
    if plan.guard:
        status = jnp.where(finite(state.params), status, Stopped.NONFINITE_PARAMETERS.code)
    decided = {"best": best, "waiting": waiting, "status": status, "window": window}
    return plan.laid(
        progress._replace(pool=emptied(progress.pool), rows=progress.rows + 1, **decided)
    )


def new_rows(
    progress: Progress, before: Progress, began: float, ended: float
) -> list[dict[str, Any]]:
    """The rows of history that are in one window and not yet in the other, in seconds between."""
    window = jax.device_get(progress.window)
    size = len(next(iter(window.values())))
    rows = range(int(before.rows), int(progress.rows))
    times = np.linspace(began, ended, len(rows) + 1)[1:]
    return [
        {name: column[i % size] for name, column in window.items()} | {"seconds": seconds}
        for i, seconds in zip(rows, times)
    ]


def watched(data: Data) -> str:
    """The column that a stop rule watches."""
    return "trained/value" if data.validation is None else "validation/value"


def outline(plan: Plan, data: Data, state: State) -> Outline:
    """To be traced, for its shapes; refuses what does not fit together."""
    batch = plan.source.batch(data.train, data.key, 0)
    _, measured, slopes = plan.step(data, state, batch, data.key)
    sums = measured.terms, measured.metrics
    sizes = norms(plan.watch, (slopes, state.params), state.params)
    return Outline(sums, sizes, _row(plan, data, state, sums, sizes))


def _row(plan, data, state, sums, sizes):
    """One number for each column."""
    others = sizes | learning_rate(state.opt_state, data.hyperparameters)
    return measures(plan, data, state, sums, others) | {"step": state.count}


def measures(
    plan: Plan, data: Data, state: State, sums: tuple[Means, Means], others: dict[str, Array]
) -> dict[str, Array]:
    """The columns of what was pooled in training, and of what is measured now.

    Args:
      plan: of the run.
      data: what it reads.
      state: where it stands.
      sums: means and metrics of the steps.
      others: further columns of training.
    """
    given = state.model_state, data.hyperparameters
    parts = {"train": columns(sums[0], sums[1], others)}
    if isinstance(data.validation, Pooled):
        parts["validation"] = columns(*data.validation)
    elif data.validation is not None:
        parts["validation"] = evaluated(*plan.measure, plan.judged(state), data.validation, *given)
    if plan.measures_training:
        parts["trained"] = evaluated(*plan.measure, plan.judged(state), data.train, *given)
    return {f"{part}/{name}": x for part, row in parts.items() for name, x in row.items()}
