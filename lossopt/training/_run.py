"""A whole training run as one pure function."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._grad import value_and_grad
from lossopt._mean import value
from lossopt._objective import adapt
from lossopt._pieces import rows, walk
from lossopt._typing import Array, ArrayLike, Batch, Key, PyTree
from lossopt.training._evaluation import batches, columns, evaluate, take


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "params",
        "model_state",
        "opt_state",
        "best_params",
        "best_model_state",
        "best_epoch",
        "history",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Attributes:
      params: after the last epoch.
      model_state: after the last epoch.
      opt_state: after the last epoch.
      best_params: after the best epoch; the first parameters if no epoch had a finite value.
      best_model_state: likewise.
      best_epoch: the row of `history` with the lowest `"validation/value"`, or without validation
        `"train/value"`; -1 if none was finite.
      history: columns, shape `[epochs]`, by name: `"train/value"`, `"train/fit"`,
        `"validation/accuracy"`, ... Train columns pool the steps of the epoch as they were taken,
        validation columns are measured after it.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    best_params: PyTree
    best_model_state: PyTree
    best_epoch: Array
    history: dict[str, Array]


class Spec(NamedTuple):
    """What a compiled run is made for; all else is data."""

    objective: Callable
    optimizer: optax.GradientTransformation
    batch_size: int
    microbatches: int = 1
    has_aux: bool = False
    drop_last: bool = False


class Data(NamedTuple):
    """What a run reads and never changes."""

    train: Batch
    validation: Batch
    key: Key[Array, ""]
    hyperparameters: PyTree


def run(
    objective: Callable,
    params: PyTree,
    train: Batch,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    epochs: int,
    key: Key[Array, ""],
    validation: Batch = None,
    microbatches: int = 1,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    drop_last: bool = False,
) -> Run:
    """Trains for whole epochs over shuffled minibatches: one pure function for `jit` and `vmap`.

    Args:
      objective: maps `(params, batch)` to a tree of `Mean`. It also receives those of the keywords
        `key` (None in evaluation), `model_state` and `hyperparameters` that its signature names.
      params: any tree of floating arrays.
      train: tree of arrays that share a leading axis of rows.
      optimizer: any `optax.GradientTransformation`; it is offered `value`, `grad` and `value_fn`.
      batch_size: rows a step. The ragged last batch is a smaller step of its own.
      epochs: passes over `train`, at least 1.
      key: typed PRNG key; it decides the order of rows and the keys of the objective.
      validation: like `train`; measured after each epoch.
      microbatches: pieces a batch is cut into, see `value_and_grad`. Each counts a constant term
        once: in the train column of a penalty a ragged last step of fewer pieces weighs less.
      has_aux: whether the objective returns `(means, aux)`, where the dict `aux` may hold
        `"metrics"`, a tree of `Mean`, and `"model_state"`.
      model_state: the first one, such as batch statistics.
      hyperparameters: numbers for the objective, perhaps traced.
      drop_last: whether the ragged last batch is left out.

    Returns:
      A `Run` of arrays.

    Raises:
      ValueError: if data, names or numbers do not fit together; the message says which.
      TypeError: if `key` is not typed, or the objective returns another thing than `Mean`s.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> trial = lambda rate: lo.training.run(
      ...     objective, 0.0, jnp.arange(9.0), optax.sgd(rate), batch_size=4, epochs=30,
      ...     key=jax.random.key(0)).history["train/value"][-1]
      >>> print(jax.vmap(trial)(jnp.array([0.001, 0.05])).round(1))
      [18.1  7.1]
    """
    spec = Spec(objective, optimizer, batch_size, microbatches, has_aux, drop_last)
    data = Data(train, validation, key, hyperparameters)
    course = start(spec, data, params, model_state, epochs)
    return finish(advance(spec, data, course, 0, epochs))


class State(NamedTuple):
    """What a step changes."""

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState


class Course(NamedTuple):
    """What an epoch changes."""

    state: State
    best: tuple[PyTree, PyTree]
    best_value: Array
    best_epoch: Array
    history: dict[str, Array]


def start(spec: Spec, data: Data, params: PyTree, model_state: PyTree, epochs: int) -> Course:
    """What there is before the first epoch; refuses what does not fit together."""
    _checks.at_least(1, epochs=epochs, batch_size=spec.batch_size, microbatches=spec.microbatches)
    _checks.at_most(spec.batch_size, microbatches=spec.microbatches)
    _checks.typed_key(data.key)
    params, model_state = jax.tree.map(jnp.asarray, (params, model_state))
    state = State(params, model_state, spec.optimizer.init(params))
    table = jax.eval_shape(partial(_first_row, spec), data, state)
    history = {name: jnp.full(epochs, jnp.nan, column.dtype) for name, column in table.items()}
    best_value = jnp.full((), jnp.inf, history[_watched(data)].dtype)
    return Course(state, (params, model_state), best_value, jnp.full((), -1, jnp.int32), history)


def advance(spec: Spec, data: Data, course: Course, begin: ArrayLike, end: ArrayLike) -> Course:
    """Trains the epochs from `begin` to before `end`, the same however they are cut."""
    epoch = partial(_epoch, spec, data)
    return jax.lax.fori_loop(begin, end, epoch, course)


def finish(course: Course) -> Run:
    """What the user keeps."""
    params, model_state, opt_state = course.state
    return Run(params, model_state, opt_state, *course.best, course.best_epoch, course.history)


def _epoch(spec, data, epoch, course):
    shuffle, noise = jax.random.split(jax.random.fold_in(data.key, epoch))
    order = jax.random.permutation(shuffle, rows(data.train))
    pieces = batches(order, spec.batch_size, drop_last=spec.drop_last)
    step = partial(_step, spec, data, noise)
    state, measured = walk(step, course.state, pieces)
    row = _row(measured.added(), _validate(spec, data, state))
    history = {name: col.at[epoch].set(row[name]) for name, col in course.history.items()}

    watched = row[_watched(data)]
    better = jnp.isfinite(watched) & (watched < course.best_value)
    keep = partial(jax.tree.map, partial(jnp.where, better))
    best = keep((state.params, state.model_state), course.best)
    best_value, best_epoch = keep(
        (watched, jnp.int32(epoch)), (course.best_value, course.best_epoch)
    )
    return Course(state, best, best_value, best_epoch, history)


def _step(spec, data, noise, state, number, indices):
    """The one training step."""
    batch = take(data.train, indices)
    size = -(-spec.batch_size // spec.microbatches)
    call = adapt(spec.objective, spec.has_aux)
    keywords = {
        "key": jax.random.fold_in(noise, 0 if number is None else number),
        "model_state": state.model_state,
        "hyperparameters": data.hyperparameters,
    }
    differentiate = value_and_grad(call, microbatches=-(-len(indices) // size), has_aux=True)
    (now, means, aux), grads = differentiate(state.params, batch, **keywords)
    update = optax.with_extra_args_support(spec.optimizer).update
    updates, opt_state = update(
        grads,
        state.opt_state,
        state.params,
        value=now,
        grad=grads,
        value_fn=lambda params: value(call(params, batch, **keywords)[0]),
    )
    params = optax.apply_updates(state.params, updates)
    state = State(params, aux.get("model_state"), opt_state)
    return state, (means, aux.get("metrics"))


def _validate(spec, data, state):
    if data.validation is None:
        return {}
    return evaluate(
        spec.objective,
        state.params,
        data.validation,
        batch_size=spec.batch_size,
        has_aux=spec.has_aux,
        model_state=state.model_state,
        hyperparameters=data.hyperparameters,
    )


def _first_row(spec, data, state):
    given = {"model_state": state.model_state, "hyperparameters": data.hyperparameters}
    call = adapt(spec.objective, spec.has_aux, **given)
    order = jnp.arange(rows(data.train))
    batch = take(data.train, order[: min(spec.batch_size, len(order))])
    means, aux = call(state.params, batch, key=data.key, **given)
    like, got = _outline(state.model_state), _outline(aux.get("model_state"))
    if "model_state" in aux and like != got:
        raise ValueError(f"Expected a model_state like the first one, {like}, got {got}.")
    return _row((means, aux.get("metrics")), _validate(spec, data, state))


def _outline(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), str(jnp.result_type(x))) for x in leaves]


def _row(measured, validation):
    row = {f"train/{name}": number for name, number in columns(*measured).items()}
    return row | {f"validation/{name}": number for name, number in validation.items()}


def _watched(data):
    return "train/value" if data.validation is None else "validation/value"
