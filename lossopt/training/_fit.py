"""The host of a compiled run: what is checked before, one call after another, a progress bar."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lossopt import _checks, _jax, _pieces, _programs
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.training._bar import bar
from lossopt.training._best import Judge
from lossopt.training._evaluation import on_device
from lossopt.training._inputs import trainable
from lossopt.training._loop import Data, Plan, Progress, advance, start
from lossopt.training._preflight import preflight
from lossopt.training._run import BROKEN, Run, finish, plan_of, start_judged
from lossopt.training._source import source
from lossopt.training._split import parted
from lossopt.training._step import Optimizer
from lossopt.training._stop import Stopped, StopRule

WINDOW = 256


def fit(
    objective: Callable,
    params: PyTree,
    train: Batch,
    optimizer: Optimizer,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    batch_size: int | None = None,
    key: Key[Array, ""],
    validation: Batch = None,
    stop: StopRule | None = None,
    best: Judge | None = None,
    shards: int | None = None,
    microbatches: int = 1,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    drop_last: bool = False,
    check: bool | Sequence[str] = True,
    watch: str | None = None,
    progress: bool | Literal["auto"] = "auto",
) -> Run:
    """Trains as `training.run` does, compiled, with early stopping and a progress bar.

    Before it compiles, it evaluates the conditions that losses state on values (labels in range,
    weights at least 0) over `train` and `validation`. Rows of weight 0 count, too: pad with copies
    of real rows, or name the label of padding as `ignore_index`. Rows that hold NaN are measured,
    and refused where the value or its gradient is NaN, too; so are terms of `train` without weight
    and, with microbatches, terms that have another value when some rows are cut into pieces. A loss
    or parameters that are not finite end the run, with the last finite parameters. Compiled
    programs outlive the call: a second `fit` with the same objective and optimizer and the same
    shapes compiles nothing, for any numbers, epochs and stop.

    Args:
      objective: as in `training.run`.
      params: any tree of floating arrays; not changed.
      train: tree of arrays that share a leading axis of rows.
      optimizer: any `optax.GradientTransformation`, or a function from the hyperparameters to one.
      epochs: passes over `train`, at least 1. Give either these or `steps`.
      steps: batches, at least 1; the last epoch may be cut.
      evaluate_every: steps between two rows of history, beside the one after the last step; None is
        an epoch.
      batch_size: rows a step; the ragged last batch is a smaller step of its own. None takes all.
      key: typed PRNG key.
      validation: like `train`; measured with each row of history. A share such as 0.2 is split
        off, by the key and without looking: see `training.split`.
      stop: a rule such as `Patience(10) | Target(0.1)`, which watches the validation value.
      best: `"validation"`, the default where there is validation; `"train"` measures the training
        set with each row of history and judges by that. Or any column and its direction, as in
        `("validation/accuracy", max)`.
      shards: equal parts of consecutive rows, of which each draws its own share of each batch, so
        that devices keep the rows they hold. A number of the run, not of the machine: 8 draw the
        same rows on any devices. None is how `train` lies on devices.
      microbatches: pieces a batch is cut into.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: the first one, such as batch statistics.
      hyperparameters: numbers for the objective and the optimizer.
      drop_last: whether the ragged last batch is left out.
      check: whether data and objective are checked before: conditions on values, rows that are not
        finite, whole against pieces, and a penalty that the optimizer alone holds; or the names of
        the terms that are meant for each microbatch on its own.
      watch: as in `training.run`, leaves that have columns of their own.
      progress: whether to show how it goes, a bar on a terminal, elsewhere lines now and then;
        `"auto"` shows it on a terminal.

    Returns:
      A `Run` whose `history` holds numpy arrays; `run.stopped.value` says why it ended.

    Raises:
      ValueError: if data, names or numbers do not fit together, or a check of values fails.
      TypeError: if a leaf of the parameters is not floating, or another leaf holds no numbers; if
        `key` is not typed, a count is no whole number, or the objective returns another thing than
        `Mean`s or names what is not given; and inside of `jit`, `vmap` and `grad`: take
        `training.run` there.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> data, key = jnp.array([1.0, 2.0, 6.0]), jax.random.key(0)
      >>> run = lo.fit(objective, 0.0, data, optax.sgd(0.1), epochs=50, key=key)
      >>> first, *_, last = run.history["train/fit"]
      >>> print(f"{run.params:.3f} {first:.3f} {last:.3f}")
      3.000 13.667 4.667
    """
    given = {"params": params, "train": train, "key": key, "validation": validation}
    given |= {"model_state": model_state, "hyperparameters": hyperparameters}
    _refuse_tracers(given | {"stop": stop})
    given["train"], given["validation"], held = parted(train, validation, key, shards)
    params, train, key, validation, model_state, hyperparameters = on_device(**given)
    trainable(params)
    data = Data(train, validation, key, hyperparameters, stop)
    if validation is not None:
        _pieces.rows(validation, "validation")
    rows = source(train, batch_size, drop_last, shards)
    schedule = _Schedule.of(epochs, steps, evaluate_every, rows.steps)
    plan = plan_of(objective, optimizer, rows, data, best, microbatches, has_aux, watch)
    plan = plan._replace(window=WINDOW)
    first = start_judged if check else start
    begin = lambda: _programs.call(first, (plan,), data, params, model_state)
    with _jax.on_mesh(train, params):
        preflight(plan, data, params, model_state, check)
        run = _host(plan, data, begin, schedule, progress, time.perf_counter)
    return dataclasses.replace(run, validation_rows=held)


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """How many steps, and how many of them between two rows of history."""

    steps: int
    every: int
    unit: Literal["epochs", "steps"]
    per_unit: int

    @classmethod
    def of(cls, epochs, steps, every, per_epoch):
        """From what the user gave, of which one counts."""
        if (epochs is None) == (steps is None):
            raise ValueError(
                f"Expected either epochs or steps, got epochs={epochs} and steps={steps}."
            )
        every = per_epoch if every is None else _checks.count("evaluate_every", every, 1)
        unit, number, size = ("epochs", epochs, per_epoch) if steps is None else ("steps", steps, 1)
        units = _checks.count(unit, number, 1)
        _checks.at_most(np.iinfo(np.int32).max // size, **{unit: units})
        return cls(units * size, min(every, units * size), unit, size)


def _host(
    plan: Plan,
    data: Data,
    begin: Callable[[], Progress],
    schedule: _Schedule,
    shown: bool | Literal["auto"],
    clock: Callable[[], float],
) -> Run:
    """Calls the program until the run ends; each call takes a fraction of a second."""
    every, last = np.int32(schedule.every), np.int32(schedule.steps)
    call = lambda progress, first, end: _programs.call(
        advance, (plan,), data, progress, np.int32(first), np.int32(end), every, last
    )
    progress, history, done, count = begin(), [], 0, 1
    stopped, pool = Stopped.FINISHED, progress.pool
    origin = now = clock()
    with bar(schedule.unit, schedule.steps // schedule.per_unit, shown) as show:
        while done < schedule.steps:
            end = min(done + count, schedule.steps, done + (plan.window - 1) * schedule.every)
            before = progress
            progress = call(before, done, end)
            stopped, pool = Stopped(int(progress.status)), progress.pool
            if stopped in BROKEN:
                progress, stopped = _last_finite(call, before, progress, stopped)
            began, now = now, clock()
            history += _new_rows(progress, before, began - origin, now - origin)
            taken = int(progress.state.count) / schedule.per_unit
            show(taken, history[-1] if history else {}, now - origin)
            if stopped is not Stopped.FINISHED:
                break
            if done:  # the first call compiles
                count = _adapted(end - done, now - began)
            done = end
    columns = {
        name: np.array([row[name] for row in history], column.dtype)
        for name, column in progress.window.items()
    } | {"seconds": np.array([row["seconds"] for row in history], float)}
    measured = pool if stopped is Stopped.NONFINITE_LOSS else progress.pool
    run = finish(plan, progress, jnp.int32(stopped.code), measured)
    return dataclasses.replace(run, history=columns)


def _last_finite(call, before, after, stopped):
    """The last progress whose numbers are finite, by taking steps of the last call again.

    It is sought between `before`, whose numbers are, and `after`, whose are not.
    """
    first = low = int(before.state.count)
    high, last = int(after.state.count), before
    trial = high - 1
    while high - low > 1:
        tried = call(before, first, trial)
        if int(tried.status) == Stopped.FINISHED.code:
            low, last = trial, tried
        else:
            high, stopped = trial, Stopped.NONFINITE_PARAMETERS
        trial = (low + high) // 2
    return last, stopped


def _new_rows(progress, before, began, ended):
    """The rows of history that are in one window and not yet in the other, in seconds between."""
    window = jax.device_get(progress.window)
    size = len(next(iter(window.values())))
    rows = range(int(before.rows), int(progress.rows))
    times = np.linspace(began, ended, len(rows) + 1)[1:]
    return [
        {name: column[i % size] for name, column in window.items()} | {"seconds": seconds}
        for i, seconds in zip(rows, times)
    ]


def _adapted(count, seconds, aim=0.25):
    """How many steps take so long, approached without leaps."""
    return max(1, int(count * min(16, max(0.25, aim / max(seconds, 1e-9)))))


def _refuse_tracers(given):
    holds = lambda tree: any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
    names = [name for name, tree in given.items() if holds(tree)]
    if names or _jax.traced():
        raise TypeError(
            f"fit is the host's loop, and {' and '.join(names) or 'the call'} is traced by jit, "
            "vmap or grad: take lossopt.training.run there."
        )
