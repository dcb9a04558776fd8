"""A run that goes on: what makes it the same run, and how it is taken up again."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _programs
from lossopt._paths import paths
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.training._best import Best
from lossopt.training._facts import of_rows
from lossopt.training._history import watched
from lossopt.training._plan import Data, Plan, Progress
from lossopt.training._run import BROKEN, Run
from lossopt.training._step import State
from lossopt.training._stop import Stopped, StopRule

ENDED = (*BROKEN, Stopped.ASKED)

Identity = Mapping[str, Any]


def identity(plan: Plan, key: Key[Array, ""], **data: Batch) -> Identity:
    """What makes two calls of `fit` the same run, JSON.

    Args:
      plan: of the run.
      key: of the run.
      **data: trees of arrays, or of their shapes, by name.
    """
    words = np.asarray(jax.random.key_data(key)).tolist()
    facts = {
        "key": f"{jax.random.key_impl(key)} {words}",
        "microbatches": plan.microbatches,
        **{f"source.{name}": x for name, x in plan.source._asdict().items()},
    }
    if plan.best is not None:
        facts["best"] = f"{'lowest' if plan.best.sign == 1 else 'highest'} {plan.best.column}"
    for name, tree in data.items():
        facts |= of_rows(name, tree)
    return facts


def differences(had: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each fact that is not the same."""
    lines = [
        f"{name}: was {had.get(name, 'nothing')}, is {now.get(name, 'nothing')}"
        for name in {**had, **now}
        if had.get(name) != now.get(name)
    ]
    return lines if len(lines) < 10 else [*lines[:10], f"and {len(lines) - 10} more"]


def same_run(had: Identity | None, now: Identity, where: str) -> None:
    """Raises where another run is to be taken up."""
    if had is not None and (lines := differences(had, now)):
        shards, asked = (facts.get("source.shards") for facts in (had, now))
        if shards != asked and "source.rows" in had:
            lines += [f"Give shards={shards}, which do on any number of devices, or leave it out."]
        raise ValueError(
            f"{where} holds another run than this call asks for:\n" + "\n".join(lines) + "\nCall "
            "fit as it was called then. Other epochs, steps, hyperparameters, stop rules and "
            "optimizers of the same state are the same run; for all else begin anew, with "
            "params=run.params or in another directory. (A loader that shuffles has to begin alike "
            "each time: seed it, or give it state() and restore().)"
        )


def same_form(had: PyTree, now: PyTree, where: str) -> None:
    """Raises where a tree has other leaves than the one that it is to go on as."""
    if lines := differences(_form(had), _form(now)):
        raise ValueError(
            f"{where} holds another structure than this call makes:\n" + "\n".join(lines) + "\nGo "
            "on with the model, the optimizer and the objective that it was trained with."
        )


def taken_up(plan: Plan, data: Data, begun: Progress, run: Run, where: str) -> Progress:
    """The progress of a run, where it ended.

    Args:
      plan: of this call.
      data: of this call.
      begun: its beginning, for the structure.
      run: one that has ended, or was interrupted.
      where: what holds it, for errors.
    """
    state = State(run.params, run.model_state, run.opt_state, run.steps)
    columns = rows_of(run)
    same_run({"best": run.judge}, {"best": plan.best and plan.best.column}, where)
    kept = {"best_params": run.best_params, "best_model_state": run.best_model_state}
    first = begun.best and dict(zip(kept, begun.best[:2]))
    empty = lambda columns: {name: np.zeros(0, x.dtype) for name, x in columns.items()}
    names = empty({name: x for name, x in columns.items() if name != "seconds"})
    had = {**state._asdict(), **kept, "unfinished": run.unfinished, "history": names}
    now = {**begun.state._asdict(), **(first or {}), "unfinished": begun.pool}
    same_form(had, now | {"history": empty(begun.window)}, where)
    best = None
    if plan.best and run.best_epoch is not None:
        at, column = int(run.best_epoch), columns[plan.best.column]
        value = jnp.asarray(plan.best.sign * column[at] if at >= 0 else np.inf)
        best = Best(run.best_params, run.best_model_state, value, run.best_epoch)
    waiting, status = begun.waiting, jnp.zeros((), jnp.int32)
    if data.stop is not None:
        waiting, status = replayed(data.stop, columns[watched(data)])
    if run.stopped in ENDED:
        status = run.status
    place = lambda x, like: jnp.asarray(x, like.dtype)
    rows = len(columns["step"])
    return begun._replace(
        state=State(*jax.tree.map(jnp.asarray, tuple(state))),
        best=best and jax.tree.map(place, best, begun.best),
        waiting=waiting,
        status=place(status, begun.status),
        pool=run.unfinished,
        rows=place(rows, begun.rows),
    )


def rows_of(run: Run) -> dict[str, np.ndarray]:
    """The history of one run, without the rows that it did not come to."""
    columns = {name: np.asarray(column) for name, column in run.history.items()}
    return {name: column[: np.count_nonzero(columns["step"])] for name, column in columns.items()}


def padded(columns: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Columns with so many rows, as long as the next power of two."""
    longer = lambda x: np.pad(x[:rows], (0, size_of(rows) - len(x[:rows])))
    return {name: longer(column) for name, column in columns.items()}


def replayed(rule: StopRule, values: np.ndarray) -> tuple[PyTree, Array]:
    """The state and the status of a rule that has seen these values, in a program of few shapes."""
    padded = np.zeros(size_of(len(values)), values.dtype)
    padded[: len(values)] = values
    return _programs.call(_replayed, (), rule, padded, np.int32(len(values)))


def size_of(rows: int) -> int:
    """The next power of two: arrays of few sizes make few programs."""
    return 1 << max(0, rows - 1).bit_length()


def _replayed(rule, values, count):
    def look(carry, at):
        state, status = carry
        seen = rule.update(state, values[at])
        goes = (at < count) & (status == Stopped.FINISHED.code)
        return jax.tree.map(partial(jnp.where, goes), seen, carry), None

    begun = rule.init(), jnp.zeros((), jnp.int32)
    return jax.lax.scan(look, begun, jnp.arange(len(values)))[0]


def _form(tree):
    told = lambda x: f"{jnp.result_type(x)}{list(np.shape(x))}"
    return {path or "it": told(x) for path, x in zip(paths(tree), jax.tree.leaves(tree))}
