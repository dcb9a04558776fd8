"""A training run as the task of a sweep: its step, source, loop and measure are those of `fit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from lossopt import _checks, _jax, _programs
from lossopt._objective import names
from lossopt._pieces import rows
from lossopt._typing import Array, Batch, Key, Number, PyTree
from lossopt.sweeps._begin import informed, keys, made
from lossopt.sweeps._options import has_options, known, of_options, opened, with_options
from lossopt.sweeps._task import Task
from lossopt.training._arrays import on_device
from lossopt.training._feed import horizon
from lossopt.training._history import measures
from lossopt.training._loop import start, take_steps
from lossopt.training._plan import Data, Plan
from lossopt.training._pool import Pool
from lossopt.training._preflight import preflight
from lossopt.training._run import plan_of, start_judged
from lossopt.training._source import source
from lossopt.training._step import Optimizer, State
from lossopt.training._stream import NEVER


class Trial(NamedTuple):
    """A training run between two steps.

    Attributes:
      params: the parameters.
      model_state: what the objective passes on, or None.
      opt_state: of the optimizer.
      count: steps taken, int32.
      pool: sums over the steps of the epoch that the last of them belongs to.
      hyperparameters: of the trial; what is no array is an `Option`.
      key: typed PRNG key of its rows and of the objective.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    count: Array
    pool: Pool
    hyperparameters: PyTree
    key: Key[Array, ""]


class _Given(NamedTuple):
    """What `task` was given, and whether `init` takes hyperparameters."""

    objective: Callable
    init: Callable
    optimizer: Optimizer
    train: Batch
    validation: Batch
    batch_size: Any
    cut: tuple[bool, int | None]
    options: tuple[Any, ...]
    check: bool | Sequence[str]
    informed: bool


def task(
    objective: Callable,
    init: Callable,
    train: Batch,
    optimizer: Optimizer,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | Callable[[PyTree], int] | None = None,
    validation: Batch = None,
    shards: int | None = None,
    microbatches: int = 1,
    has_aux: bool = False,
    drop_last: bool = False,
    check: bool | Sequence[str] = True,
    evaluate_at: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Task:
    """A task that trains as `fit` does, for `sweep`.

    Each trial is a `training.run` with a key of its own:
    `begin, key = jax.random.split(key_of_the_trial)`, the first for `init`, the second for `run`.
    All trials read one copy of the data.

    Args:
      objective: as in `training.run`; its keyword `hyperparameters` receives those of the trial.
      init: `init(hyperparameters, key)` or `init(key)`, told apart by how many arguments it needs,
        gives the first parameters; or `(params, model_state)`, where the objective names
        `model_state`.
      train: tree of arrays that share a leading axis of rows.
      optimizer: any `optax.GradientTransformation`, or a function from the hyperparameters to one.
      epochs: passes over `train`, at least 1. Give either these or `steps`.
      steps: batches, likewise; the last epoch may be cut.
      batch_size: rows a step; the ragged last batch is a smaller step of its own. None takes all. A
        function from the hyperparameters, for sizes drawn from `Static`, goes with `steps`.
      validation: like `train`; measured by `score`.
      shards: as in `training.run`.
      microbatches: pieces a batch is cut into.
      has_aux: whether the objective returns `(means, aux)`, where the dict `aux` may hold
        `"metrics"`, a tree of `Mean`, and `"model_state"`.
      drop_last: whether the ragged last batch is left out.
      check: as in `fit`; data and objective are tried with the first trial of each program.
      evaluate_at: as in `training.run`, gives the parameters that are validated.

    Returns:
      A `Task`. Its `score` has the columns of the last row of a history: `"train/value"`,
      `"train/fit"`, ..., pooled over the steps of the epoch as they were taken;
      `"validation/value"`, ..., measured now; and `"loss"`, the value of validation, or else of
      training. Of hyperparameters in a dict, arrays may be traced; all else, such as the options of
      `Static`, is passed on as it is. Its `inherit` takes from the other trial all but the key and
      the hyperparameters.

    Raises:
      ValueError: if data, names or numbers do not fit together; the message says which.
      TypeError: if `init` needs other arguments, or a count is no whole number.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> rule = lambda numbers: optax.sgd(numbers["rate"])
      >>> task = lo.sweeps.task(objective, jax.random.normal, jnp.arange(9.0), rule, epochs=3)
      >>> trial = task.init({"rate": jnp.float32(0.5)}, jax.random.key(0))
      >>> print(task.steps, task.score(task.advance(trial, 2))["loss"])
      3 6.6666665
    """
    until = horizon(epochs, steps, None)
    if isinstance(validation, int | float | np.number):
        raise ValueError(
            f"validation={validation} is a share of rows, which each trial would split off by its "
            "own key. Split once, so that all are judged by the same rows: train, validation = "
            f"lossopt.training.split(train, {validation}, key)."
        )
    train, validation = on_device(train=train, validation=validation)
    if validation is not None:
        rows(validation, "validation")
    options = microbatches, has_aux, None, evaluate_at
    cut = drop_last, shards
    described = objective, init, optimizer, train, validation, batch_size, cut, options, check
    _checks.functions(objective=objective)
    given = _Given(*described, informed(init))
    return Task(
        partial(_begin, given),
        partial(_advance, given),
        partial(_score, given),
        steps=_steps(given, until),
        check=None if check is False else partial(_check, given),
        inherit=_inherit,
    )


def _steps(given, until):
    """How many a trial takes; refuses what does not fit together for any hyperparameters."""
    if not callable(given.batch_size):
        plan, _ = _planned(given, None, jax.random.key(0))
        each = plan.source.steps if until.unit == "epochs" else 1
        _checks.at_most(NEVER // each, **{until.unit: until.number})
        return until.number * each
    if until.unit == "epochs":
        raise ValueError(
            "batch_size is a function, so that epochs differ in steps, and all trials take equally "
            "many: give steps=."
        )
    return until.number


def _begin(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> Trial:
    numbers, (begin, key) = known(hyperparameters), keys(key)
    params, model_state = made(given.init, given.informed, _passes(given), numbers, begin)
    plan, data = _planned(given, numbers, key)
    with _jax.on_mesh(data.train, params):
        begun = (start if given.check is False else start_judged)(plan, data, params, model_state)
        trial = Trial(*begun.state, begun.pool, numbers, key)
        return _jax.alike((data, trial))[1]  # within a shard_map each device has trials of its own


def _advance(given: _Given, trial: Trial, steps: Number) -> Trial:
    plan, data = _planned(given, trial.hyperparameters, trial.key)
    with _jax.on_mesh(data.train, trial.params):
        data = _jax.alike((data, trial))[0]
        state, pool = take_steps(plan, data, _state(trial), trial.pool, steps)
    return Trial(*state, pool, trial.hyperparameters, trial.key)


def _score(given: _Given, trial: Trial) -> dict[str, Array]:
    plan, data = _planned(given, trial.hyperparameters, trial.key)
    with _jax.on_mesh(data.train, trial.params):
        row = measures(plan, data, _state(trial), trial.pool.sums, {})
    judged = "train/value" if data.validation is None else "validation/value"
    return {"loss": row[judged]} | row


def _inherit(own: Trial, donor: Trial, hyperparameters: PyTree) -> Trial:
    return donor._replace(hyperparameters=known(hyperparameters), key=own.key)


def _check(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> None:
    numbers, (begin, key) = known(hyperparameters), keys(key)
    making = given.init, given.informed, _passes(given)
    params, model_state = _programs.call(made, making, numbers, begin)
    plan, data = _planned(given, numbers, key)
    with _jax.on_mesh(data.train, params):
        preflight(plan, data, params, model_state, given.check)


def _state(trial):
    return State(trial.params, trial.model_state, trial.opt_state, trial.count)


def _passes(given):
    """Whether there is a model state."""
    return names(given.objective, "model_state")


def _planned(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> tuple[Plan, Data]:
    """What the loop of `training` is given."""
    objective, optimizer = given.objective, given.optimizer
    taken = callable(optimizer) or names(objective, "hyperparameters")
    size: Any = given.batch_size
    if callable(size):
        size = size(opened(hyperparameters))
        if isinstance(size, Tracer):
            raise TypeError(
                "batch_size is a traced number here, and decides shapes. Draw it from "
                "lossopt.sweeps.Static."
            )
    if has_options(hyperparameters):
        objective = with_options(objective)
        optimizer = of_options(optimizer) if callable(optimizer) else optimizer
    cut = source(given.train, size, *given.cut)
    told = hyperparameters if taken else None
    data = Data(given.train, given.validation, key, told, None)
    plan = plan_of(objective, optimizer, cut, data, None, *given.options)
    return plan._replace(best=None, guard=None), data
