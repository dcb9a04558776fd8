"""A training run as the task of a sweep: its step, source, loop and measure are those of `fit`."""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from lossopt import _checks, _jax, _programs
from lossopt._objective import names
from lossopt._pieces import rows
from lossopt._typing import Array, Batch, Key, Number, PyTree
from lossopt.sweeps._task import Task
from lossopt.training._evaluation import on_device
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


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["value"])
@dataclasses.dataclass(frozen=True)
class Option:
    """A hyperparameter that is no array: part of the structure of a tree, not one of its leaves."""

    value: Hashable


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
      `Static`, is passed on as it is.

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
    given = _Given(*described, _informed(init))
    return Task(
        partial(_begin, given),
        partial(_advance, given),
        partial(_score, given),
        steps=_steps(given, until),
        check=None if check is False else partial(_check, given),
    )


def _informed(init):
    """Whether it takes hyperparameters beside the key."""
    if not callable(init):
        raise TypeError(
            f"Expected init as a function that makes the first parameters, got "
            f"{type(init).__name__}. Write lambda key: params, if all trials begin alike."
        )
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(init).parameters.values()
    needed = [x.name for x in parameters if x.kind in positional and x.default is x.empty]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"Expected init(key) or init(hyperparameters, key), got one that needs {needed}. Bind "
            "the rest, as in lambda key: model.init(key, example)."
        )
    return len(needed) == 2


def _steps(given, until):
    """How many a trial takes; refuses what does not fit together for any hyperparameters."""
    if not callable(given.batch_size):
        plan, _ = _planned(given, None, jax.random.key(0))
        each = plan.source.steps if until.unit == "epochs" else 1
        _checks.at_most(NEVER // each, **{until.unit: until.number})
        return until.number * each
    if until.unit == "epochs":
        raise ValueError(
            "batch_size is a function, so that epochs differ in steps, and all trials take as many: "
            "give steps=."
        )
    return until.number


def _begin(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> Trial:
    known, (begin, key) = _known(hyperparameters), _keys(key)
    params, model_state = _made(given.init, given.informed, _passes(given), known, begin)
    plan, data = _planned(given, known, key)
    with _jax.on_mesh(data.train, params):
        begun = (start if given.check is False else start_judged)(plan, data, params, model_state)
        trial = Trial(*begun.state, begun.pool, known, key)
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


def _check(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> None:
    known, (begin, key) = _known(hyperparameters), _keys(key)
    making = given.init, given.informed, _passes(given)
    params, model_state = _programs.call(_made, making, known, begin)
    plan, data = _planned(given, known, key)
    with _jax.on_mesh(data.train, params):
        preflight(plan, data, params, model_state, given.check)


def _keys(key):
    """One for `init`, one for the run."""
    _checks.given_key(key)
    return jax.random.split(key)


def _state(trial):
    return State(trial.params, trial.model_state, trial.opt_state, trial.count)


def _passes(given):
    """Whether there is a model state."""
    return names(given.objective, "model_state")


def _made(init, informed, passes, hyperparameters, key):
    """The first parameters and the first model state, which may be None."""
    made = init(_opened(hyperparameters), key) if informed else init(key)
    if not passes:
        return made, None
    if type(made) is not tuple or len(made) != 2:
        raise TypeError(
            "The objective names model_state: expected (params, model_state) of init, got "
            f"{jax.tree.structure(made)}. Return both, or bind model_state to the objective."
        )
    return made


def _planned(given: _Given, hyperparameters: PyTree, key: Key[Array, ""]) -> tuple[Plan, Data]:
    """What the loop of `training` is given."""
    objective, optimizer = given.objective, given.optimizer
    size, taken = given.batch_size, callable(optimizer) or names(objective, "hyperparameters")
    if callable(size):
        size = size(_opened(hyperparameters))
        if isinstance(size, Tracer):
            raise TypeError(
                "batch_size is a traced number here, and decides shapes. Draw it from "
                "lossopt.sweeps.Static."
            )
    if any(isinstance(x, Option) for x in _values(hyperparameters)):
        objective = _with_options(objective)
        optimizer = _of_options(optimizer) if callable(optimizer) else optimizer
    cut = source(given.train, size, *given.cut)
    told = hyperparameters if taken else None
    data = Data(given.train, given.validation, key, told, None)
    plan = plan_of(objective, optimizer, cut, data, None, *given.options)
    return plan._replace(best=None, guard=None), data


def _known(hyperparameters):
    """Trees of arrays as they are, what else is in a dict as an `Option`."""
    if not isinstance(hyperparameters, dict):
        return on_device(hyperparameters=hyperparameters)[0]
    return {name: _array_or_option(name, x) for name, x in hyperparameters.items()}


def _array_or_option(name, x):
    leaves = jax.tree.leaves(x)
    if leaves and all(hasattr(leaf, "dtype") for leaf in leaves):
        return on_device(**{name: x})[0]
    if not isinstance(x, Hashable):
        raise TypeError(
            f"Expected the hyperparameter {name!r} as an array or something hashable, got "
            f"{type(x).__name__}. Make an array or a tuple of it."
        )
    return Option(x)


def _opened(hyperparameters):
    """As the user gave them."""
    if not isinstance(hyperparameters, dict):
        return hyperparameters
    opened = lambda x: x.value if isinstance(x, Option) else x
    return {name: opened(x) for name, x in hyperparameters.items()}


def _values(hyperparameters):
    return hyperparameters.values() if isinstance(hyperparameters, dict) else ()


def _with_options(objective):
    @wraps(objective)
    def opened(*args, **given):
        if "hyperparameters" in given:
            given["hyperparameters"] = _opened(given["hyperparameters"])
        return objective(*args, **given)

    return opened


def _of_options(optimizer):
    return lambda hyperparameters: optimizer(_opened(hyperparameters))
