"""What an objective promises, tried on a few rows: pieces give the whole, and NaN stays out."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _jax, _processes, _programs
from lossopt._grad import measure, value_and_grad
from lossopt._jaxprs import prune
from lossopt._mean import Mean, pool, terms
from lossopt._objective import adapt
from lossopt._pieces import rows
from lossopt._typing import Array, Batch, Int, Key, PyTree

ROWS = 16
MOVE = 0.1
ALLOWED = 1e-4
ROUNDING = 1e-6


class Trial(NamedTuple):
    """An objective that is tried.

    Attributes:
      objective: as users write it.
      has_aux: whether it returns `(means, aux)`.
      strict: whether its errors are raised on the few rows, too. Where it is only trained later,
        what is wrong at the sizes of training is raised there.
    """

    objective: Callable
    has_aux: bool
    strict: bool = False


def torn(trial: Trial, params: PyTree, batch: Batch, *given: PyTree) -> list[str]:
    """The names of the terms that have another value on all rows than on pieces of them.

    Rows spread over the batch are taken at once and in three pieces, at the parameters and at
    others. Terms that depend on the key, and objectives that take no such rows, are not judged.

    Args:
      trial: what is tried.
      params: where to measure.
      batch: at least one row.
      *given: model state, hyperparameters, and a key for objectives that cannot do without.
    """
    at = lambda move: _programs.call(_gaps, (trial,), move, params, batch, *given)
    here, there = jax.device_get([at(np.float32(0)), at(np.float32(MOVE))])
    sizes = {name: max(here[name][1], there[name][1]) for name in here}
    far = lambda name, gap: np.isfinite(gap) & (gap > ALLOWED * sizes[name] + ROUNDING)
    return [name for name in here if far(name, here[name][0]) or far(name, there[name][0])]


def torn_message(names: Iterable[str]) -> str:
    """What is wrong with these terms, and what to do."""
    named = [f"the term {name!r}" if name else "the only term" for name in names]
    return (
        f"{' and '.join(named)} has another value on rows taken at once than on pieces of them, "
        "pooled: what is learned would depend on how a batch is cut. Where an average is taken "
        "early, as in constant(jnp.mean(x)), write mean(x). A loss that compares examples with "
        "each other needs them as lists, each list a row of the batch; or a batch that is not cut."
    )


def not_finite(batch: Batch) -> dict[str, Int[np.ndarray, " found"]]:
    """By leaf, the numbers of the rows that hold NaN or infinity, where there are some."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if is_inexact(leaf):
            whole = np.isfinite(_processes.whole(leaf))
            spoiled = np.flatnonzero(~whole.reshape(len(whole), -1).all(1))
            found |= {jax.tree_util.keystr(path): spoiled} if len(spoiled) else {}
    return found


def spoils(
    trial: Trial,
    found: dict[str, Int[np.ndarray, " found"]],
    size: int,
    slopes: bool,
    params: PyTree,
    batch: Batch,
    *given: PyTree,
) -> str | None:
    """What the rows that are not finite, without the others, do to an objective; None if nothing.

    Args:
      trial: what is tried.
      found: the rows, by leaf.
      size: rows that are measured at a time.
      slopes: whether the gradient counts.
      params: where to measure.
      batch: all rows.
      *given: model state, hyperparameters and key.
    """
    numbers = np.unique(np.concatenate(list(found.values()))).astype(np.int32)
    count = 1 << (len(numbers) - 1).bit_length()  # few shapes, so few programs
    index = np.concatenate([numbers, np.full(count - len(numbers), numbers[-1])])
    plan = trial, -(-count // size), slopes
    value, slope = _programs.call(_finite, plan, params, batch, index.astype(np.int32), *given)
    if value and slope:
        return None
    shown = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    many = f"{len(numbers)} rows, {shown}, hold" if len(numbers) > 1 else f"row {shown} holds"
    return (
        f"{many} NaN or infinite numbers in {', '.join(name or 'it' for name in found)}, and the "
        f"{'gradient' if value else 'value'} there is not finite. A weight of 0 does not keep a "
        "model's derivatives clean: pad with copies of a real row, and repair or leave out what is "
        "missing."
    )


def is_inexact(x: PyTree) -> bool:
    """Whether a leaf holds floating or complex numbers."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _gaps(
    trial: Trial,
    move: Array,
    params: PyTree,
    batch: Batch,
    model_state: PyTree,
    hyperparameters: PyTree,
    key: Key[Array, ""] | None,
) -> dict[str, tuple[Array, Array]]:
    """For each term, how far the pieces are from the whole, and how large they are."""
    params, some = _moved(params, move), _taken(batch, _spread(rows(batch)))
    call = adapt(trial.objective, trial.has_aux)
    given = {"model_state": model_state, "hyperparameters": hyperparameters}

    def measured(key, params, some):
        with jax.default_matmul_precision("highest"):
            return terms(call(params, some, key=key, **given)[0])

    def gaps(key, params, some):
        whole, *pieces = (measured(key, params, x) for x in [some, *_pieces(some)])
        return {name: _gap(term, [piece[name] for piece in pieces]) for name, term in whole.items()}

    def noisy(name):
        _, used = prune(lambda key: measured(key, params, some)[name].value, key)
        return any(jax.tree.leaves(used))

    try:
        return prune(gaps, None, params, some)[0]()
    except Exception:  # some objectives cannot be evaluated
        if trial.strict and key is None:
            raise
    try:
        found = prune(gaps, key, params, some)[0]()
        return {name: gap for name, gap in found.items() if not noisy(name)}
    except Exception:
        if trial.strict:
            raise
        return {}


def _gap(whole: Mean, pieces: list[Mean]) -> tuple[Array, Array]:
    pooled = pool(*pieces)
    size = Mean(jnp.sum(jnp.abs(jnp.stack([x.total for x in pieces]))), jnp.abs(pooled.weight))
    return jnp.abs(whole.value - pooled.value), size.value


def _moved(params, move):
    """The parameters, each moved by a share of their typical size, of 1 where all are 0."""

    def moved(x):
        if not is_inexact(x) or not jnp.size(x):
            return x
        size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x))))
        shape = jnp.sin(jnp.arange(1.0, 1.0 + jnp.size(x))).reshape(jnp.shape(x))
        return (x + move * jnp.where(size == 0, 1, size) * shape).astype(x.dtype)

    return jax.tree.map(moved, params)


def _spread(count):
    """At most 16 rows, from the first to near the last."""
    some = min(count, ROWS)
    return np.arange(some) * count // some


def _taken(batch, index):
    take = lambda batch, index: jax.tree.map(lambda x: x[index], batch)
    return _jax.by_rows(take, 1, 0, batch, index)


def _pieces(batch):
    """Three unequal parts, as far as there are rows: equal ones hide means of means."""
    count = rows(batch)
    cuts = 0, count // 2, 5 * count // 6, count
    part = lambda low, high: jax.tree.map(lambda x: x[low:high], batch)
    return [part(low, high) for low, high in pairwise(cuts) if low < high]


def _finite(
    trial: Trial,
    pieces: int,
    slopes: bool,
    params: PyTree,
    batch: Batch,
    index: Array,
    model_state: PyTree,
    hyperparameters: PyTree,
    key: Key[Array, ""] | None,
) -> tuple[Array | bool, Array | bool]:
    """Whether value and gradient are finite on some rows."""
    some, call = _taken(batch, index), adapt(trial.objective, trial.has_aux)
    given = {"key": key, "model_state": model_state, "hyperparameters": hyperparameters}
    way = partial(value_and_grad if slopes else measure, microbatches=pieces, has_aux=True)
    try:
        found = way(call)(params, some, **given)
    except Exception:
        if trial.strict:
            raise
        return True, True
    (value, *_), grads = found if slopes else (found, ())
    whole = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(grads)]
    return jnp.isfinite(value), jnp.all(jnp.array(whole, bool))
