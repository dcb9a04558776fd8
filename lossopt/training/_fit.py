"""The host's shell around a compiled run: several epochs a call, progress, numpy results."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify

from lossopt import _checks
from lossopt._objective import adapt
from lossopt._pieces import rows, walk
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.training._evaluation import batches, take
from lossopt.training._run import Data, Run, Spec, advance, finish, start


def fit(
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
    epochs_per_call: int | None = None,
    progress: bool | Literal["auto"] = "auto",
) -> Run:
    """Trains as `training.run` does, compiled, with a progress bar and numpy columns.

    Before it compiles, it evaluates the conditions that losses state on values (labels in range,
    weights at least 0) over `train` and `validation`. Rows of weight 0 count, too: pad with copies
    of real rows, or name the label of padding as `ignore_index`. Compiled programs outlive the
    call: a second `fit` with the same objective and optimizer objects and the same shapes compiles
    nothing.

    Args:
      objective: as in `training.run`, and so are all arguments up to `drop_last`.
      params: any tree of floating arrays; not changed.
      train: tree of arrays that share a leading axis of rows.
      optimizer: any `optax.GradientTransformation`.
      batch_size: rows a step. The ragged last batch is a smaller step of its own.
      epochs: passes over `train`, at least 1.
      key: typed PRNG key.
      validation: like `train`; measured after each epoch.
      microbatches: pieces a batch is cut into.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: the first one, such as batch statistics.
      hyperparameters: numbers for the objective.
      drop_last: whether the ragged last batch is left out.
      epochs_per_call: epochs between two updates of the progress bar; None adapts, so that a call
        takes a fraction of a second. The result has the same bits for any number.
      progress: whether to show a bar; `"auto"` shows it on a terminal.

    Returns:
      A `Run` whose `history` holds numpy arrays.

    Raises:
      ValueError: if data, names or numbers do not fit together, or a condition on values fails.
      TypeError: if `key` is not typed, or the objective returns another thing than `Mean`s.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> data, key = jnp.array([1.0, 2.0, 6.0]), jax.random.key(0)
      >>> run = lo.fit(objective, 0.0, data, optax.sgd(0.1), batch_size=3, epochs=50, key=key)
      >>> first, *_, last = run.history["train/fit"]
      >>> print(f"{run.params:.3f} {first:.3f} {last:.3f}")
      3.000 13.667 4.667
    """
    _checks.at_least(1, epochs_per_call=1 if epochs_per_call is None else epochs_per_call)
    train, validation, params, model_state, hyperparameters = jax.tree.map(
        _on_device, (train, validation, params, model_state, hyperparameters)
    )
    spec = Spec(objective, optimizer, batch_size, microbatches, has_aux, drop_last)
    data = Data(train, validation, key, hyperparameters)
    course = jax.tree.map(_own, start(spec, data, params, model_state, epochs))
    for name, part in (("train", train), ("validation", validation)):
        checked = data if name == "train" else data._replace(key=None)
        _preflight(name, spec, checked, part, model_state, params)

    done, count = 0, epochs_per_call or 1
    with _bar(epochs, progress) as show:
        while done < epochs:
            began = time.perf_counter()
            end = min(done + count, epochs)
            course = _advance(spec, data, course, np.int32(done), np.int32(end))
            history = jax.device_get(course.history)
            show(end, {name: column[end - 1] for name, column in history.items()})
            if epochs_per_call is None and done > 0:  # the first call compiles
                count = _adapted(count, time.perf_counter() - began)
            done = end
    result = finish(course)
    return dataclasses.replace(result, history=jax.device_get(result.history))


_advance = jax.jit(advance, static_argnums=0, donate_argnums=2)


def _own(x):
    """A copy, whose buffer may be donated, of a strong type, as what comes out of a program."""
    return jnp.array(x, dtype=jnp.result_type(x), copy=True)


def _adapted(count, seconds, low=0.1, high=0.25):
    if seconds < low:
        return count * 2
    return max(1, count // 2) if seconds > high else count


def _on_device(x):
    array = jnp.asarray(x)
    narrowed = jnp.issubdtype(array.dtype, jnp.integer) and array.dtype != np.asarray(x).dtype
    if narrowed and not np.array_equal(array, x):
        raise ValueError(
            f"Integers up to {np.max(np.abs(x))} do not fit {array.dtype}: renumber them, or set "
            "jax_enable_x64."
        )
    return array


@partial(jax.jit, static_argnums=0)
def _broken_conditions(spec, data, part, model_state, params):
    given = {"model_state": model_state, "hyperparameters": data.hyperparameters}
    call = adapt(spec.objective, spec.has_aux)

    def step(carry, number, indices):
        return carry, call(params, take(part, indices), key=data.key, **given)[0]

    pieces = batches(jnp.arange(rows(part)), spec.batch_size)
    checked = checkify.checkify(partial(walk, step), errors=checkify.user_checks)
    return checked(None, pieces)[0]


def _preflight(name, spec, data, part, model_state, params):
    """Evaluates the conditions on values; the compiler deletes whatever they do not need."""
    if part is None:
        return
    message = _broken_conditions(spec, data, part, model_state, params).get()
    if message:
        raise ValueError(f"{name}: {message.removesuffix(' (`check` failed)')}")


@contextlib.contextmanager
def _bar(epochs, progress):
    from rich import console
    from rich import progress as rich

    terminal = console.Console(stderr=True)
    shown = terminal.is_terminal if progress == "auto" else progress
    numbers = rich.TextColumn("{task.fields[numbers]}")
    columns = (*rich.Progress.get_default_columns(), rich.MofNCompleteColumn(), numbers)
    with rich.Progress(*columns, console=terminal, disable=not shown) as bar:
        task = bar.add_task("fit", total=epochs, numbers="")

        def show(done, row):
            numbers = "  ".join(f"{n} {x:.4g}" for n, x in row.items() if n.endswith("/value"))
            bar.update(task, completed=done, numbers=numbers)

        yield show
