"""`lossopt.sweep`: many runs, compiled once, in one table."""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Literal

import jax
import numpy as np

from lossopt import _checks, _jax
from lossopt._typing import Array, Key, PyTree
from lossopt.checkpoint import Checkpoints
from lossopt.sweeps._asked import asked_of
from lossopt.sweeps._evolved import together
from lossopt.sweeps._far import far_of
from lossopt.sweeps._form import Form, Mode
from lossopt.sweeps._host import Engine, Host, form_of, hosted, stretched
from lossopt.sweeps._identity import general
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._parts import Parts, checked, programs
from lossopt.sweeps._population import Population
from lossopt.sweeps._rungs import Rungs, dealt
from lossopt.sweeps._saves import Saves
from lossopt.sweeps._settled import Wanted
from lossopt.sweeps._suggest import Suggest
from lossopt.sweeps._table import Table
from lossopt.sweeps._task import Task
from lossopt.sweeps._trials import Trials, as_trials


@jax.transfer_guard("allow")  # programs are handed numbers of numpy
def sweep(
    run: Callable[[PyTree, Key[Array, ""]], PyTree] | Task,
    trials: Trials | Suggest | PyTree,
    key: Key[Array, ""],
    *,
    score: str | None = None,
    maximize: bool = False,
    rungs: Rungs | Population | None = None,
    mode: Mode | Literal["auto"] = "auto",
    chunk: int | Literal["auto"] = "auto",
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    timeout: float | None = None,
    on_row: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool | Literal["auto"] = "auto",
) -> Table:
    """Runs all trials, compiled once, and gives a table with a row for each.

    Trials that differ in numbers share a program, those that differ in an option of `Static` do
    not. A trial alone gives the bits that it has in a sweep of sequential mode, and at chunk 1;
    side by side, trials give the same bits at the same chunk.

    Args:
      run: a pure function of hyperparameters and a typed PRNG key, which returns a tree of
        scalars; or a `sweeps.Task`, of which the best state is kept and whose trials go on in the
        middle after an interruption.
      trials: `sweeps.Trials`, from `grid`, `random` or `sobol`; a tree of arrays that share a
        leading axis of trials; or `sweeps.suggest`, where a sampler proposes them chunk by chunk.
      key: typed PRNG key; that of a trial is `jax.random.fold_in(key, id)`.
      score: the scalar that ranks. None takes the only one, or that of the name `"loss"`.
      maximize: whether the highest score is the best. What is not finite ranks last either way.
      rungs: after how many steps how many settings of a `Task` go on, from `sweeps.halving` or
        `sweeps.hyperband`; the others stop there. Of repeated settings the means rank. Or
        `sweeps.population`, with which trials go on from the states of better ones.
      mode: `"vmap"` runs trials side by side, `"sequential"` one after the other; `"auto"` takes
        the first on accelerators, on a CPU what is faster, by trying where models are tiny.
      chunk: trials side by side on a device, at least 1; `"auto"` takes as many as fit. One after
        the other, it is how many run between two saves.
      memory: bytes of a device that a call may take; None takes what is free there, half of it on
        a CPU.
      mesh: devices, over all axes of which trials are spread. They do not speak to each other.
      executor: a `concurrent.futures.Executor`, or a function that makes one, such as
        `client.get_executor` of Dask: its workers run the chunks, and one of them settles mode and
        chunk. A pool that a function made is made again where a worker of it dies.
      checkpoint: a directory, or `checkpoint.Checkpoints`, where the sweep is saved after each
        chunk and rung, of short ones after some seconds. If it holds the sweep already, the call
        goes on there, with the same table at its end; without rungs it may have more trials. It is
        refused if trials, key, programs, constants, steps, rungs (with these also score and
        maximize), mode, chunk or versions of jax and lossopt are others.
      timeout: seconds, above 0, after which no further chunk begins.
      on_row: called with each row as it comes, a dict; with rungs at each that a trial reaches, as
        `"waiting"` until its end, and once more where it is stopped.
      progress: whether to show how it goes, as in `fit`.

    Returns:
      A `sweeps.Table` in the order of the trials. So it does after Ctrl-C; what has not run is
      `"waiting"`. A second Ctrl-C raises `KeyboardInterrupt` at once.

    Raises:
      ValueError: if there are no trials, their axes are unequal, `run` does not return scalars,
        there is no such score, not one trial fits into `memory`, `rungs` are of other numbers of
        settings or steps, or `checkpoint` holds another sweep.
      TypeError: if `key` is not typed, `run` cannot be called, or is a plain function with rungs;
        or inside of `jit`, `vmap`, `grad`.

    Examples:
      >>> run = lambda numbers, key: (numbers["rate"] - 0.3) ** 2
      >>> trials = lo.sweeps.grid({"rate": lo.sweeps.Linear(0.0, 1.0)}, 11)
      >>> table = lo.sweep(run, trials, jax.random.key(0))
      >>> print(f"{table.best['rate']:.1f}")
      0.3
    """
    wanted = _wanted(run, key, mode, chunk, memory, mesh)
    limit = math.inf
    if timeout is not None:
        _checks.above(0, timeout=timeout)
        limit = time.perf_counter() + timeout
    _checks.functions(on_row=on_row)
    asked = asked_of(trials, rungs, checkpoint)  # None of trials that are drawn beforehand
    found = as_trials(trials) if asked is None else asked.trials
    levels, steps = _levels(rungs, run, found), run.steps if isinstance(run, Task) else 0
    groups = Parts(run, key)
    parts, dtypes = groups.of(found), groups.dtypes
    ledger = Ledger(found, dtypes, _judge([*dtypes], score), maximize, steps, levels)
    far = None if executor is None else far_of(executor, run, parts, key, mesh, rungs, progress)
    engine = Engine(stretched, form_of) if far is None else Engine(far.stretched, far.form_of)
    runs = engine.stretched if asked is None else asked.runs(groups, engine)
    runs = runs if far is None else far.ended(runs)
    facts = {} if checkpoint is None else _facts(key, parts, rungs, asked, ledger)
    if isinstance(rungs, Population):
        wanted, runs = together(rungs, wanted, parts, ledger, facts)
        rungs = None
    saves = Saves(checkpoint, ledger, facts, {} if asked is None else asked.values)
    part_of = {int(row): part for part in parts for row in part.rows}
    saves.take_up(
        lambda row: part_of[row].shapes,
        lambda row, mode, chunk: Form(mode, chunk, mesh),
    )
    ledger.table()  # names that clash are said before anything runs
    if isinstance(run, Task):
        left = [part for part in parts if not ledger.ran[part.rows].all()]
        checked(run, left, found, key)
    count = 0 if asked is None else asked.count
    return hosted(Host(parts, ledger, saves, wanted, rungs, runs, limit, on_row, progress, count))


def _wanted(run, key, mode, chunk, memory, mesh):
    """What is asked for; refuses what is no mode, number, mesh, key or run."""
    if _jax.traced():
        raise TypeError(
            "sweep is the host's loop, and the call is traced by jit, vmap or grad: take jax.vmap "
            "of the run itself there."
        )
    if not isinstance(run, Task) and not callable(run):
        raise TypeError(
            f"Expected run as a function of hyperparameters and key, or a lossopt.sweeps.Task, got "
            f"{run!r}."
        )
    _checks.given_key(key)
    _checks.one_of(mode=(mode, Literal["auto", "vmap", "sequential"]))
    if chunk != "auto":
        chunk = _checks.count("chunk", chunk, 1)
    if memory is not None:
        memory = _checks.count("memory", memory, 1)
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f"Expected mesh as a jax.sharding.Mesh, got {mesh!r}.")
    return Wanted(mode, chunk, memory, mesh)


def _levels(rungs, run, trials):
    """The steps of all rungs; refuses rungs that are not of these trials."""
    if rungs is None:
        return ()
    if not isinstance(rungs, Rungs | Population):
        raise TypeError(
            "Expected rungs from lossopt.sweeps.halving, hyperband or population, or as Rungs, got "
            f"{rungs!r}."
        )
    if not isinstance(run, Task):
        raise TypeError(
            "Expected a lossopt.sweeps.Task with rungs, got a plain function, which runs to its "
            "end. Write it as a Task, or make one with lossopt.sweeps.task."
        )
    if isinstance(rungs, Population):
        return rungs.levels(run.steps)
    if rungs.steps != run.steps:
        raise ValueError(
            f"Expected rungs that end at the {run.steps} steps of the task, got {rungs.steps}. "
            "Make them with the task's steps."
        )
    if (count := len(np.unique(np.asarray(trials.setting)))) != rungs.settings:
        raise ValueError(
            f"Expected {rungs.settings} settings for these rungs, got {count}. Draw as many as "
            "rungs.settings; repetitions of a setting count once."
        )
    return rungs.levels


def _facts(key, parts, rungs, asked, ledger):
    """What makes it the same sweep, by name: its key, its programs, and what no program knows."""
    steps = parts[0].trial.steps
    plan = {"steps": str(steps), "rungs": str(rungs)} if steps else {}
    if rungs is not None:
        plan["ranks by"] = f"the {'highest' if ledger.maximize else 'lowest'} {ledger.score}"
    plan |= dealt(rungs, ledger) if isinstance(rungs, Rungs) else {}
    return general(key) | programs(parts) | plan | ({} if asked is None else asked.facts)


def _judge(names, score):
    """The score that ranks."""
    if score is None:
        score = names[0] if len(names) == 1 else "loss"
        if score not in names:
            raise ValueError(
                f"Expected score, for run returns {', '.join(map(repr, names))} and no 'loss'. "
                "Name the one that ranks."
            )
    if score not in names:
        raise ValueError(
            f"Expected score as one of {', '.join(map(repr, names))}, which run returns, got "
            f"{score!r}. Choose one."
        )
    return score
