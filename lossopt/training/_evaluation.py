"""The one evaluation loop, and the names of what is measured."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._mean import terms, value
from lossopt._objective import adapt
from lossopt._pieces import Pieces, contiguous, rows, walk
from lossopt._typing import Array, Batch, Means, PyTree


def evaluate(
    objective: Callable,
    params: PyTree,
    data: Batch,
    *,
    batch_size: int,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
) -> dict[str, Array]:
    """Measures an objective on a whole data set, batch by batch and exactly.

    Args:
      objective: as in `run`; its `key` is None here, by which it knows that it is evaluated.
      params: any tree of arrays.
      data: tree of arrays that share a leading axis of rows.
      batch_size: rows at a time; the last batch may be smaller.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: given to the objective, and not changed.
      hyperparameters: given to the objective.

    Returns:
      Numbers, shape `()`, by name: `"value"`, each term and each metric.

    Raises:
      ValueError: if leaves of `data` differ in rows, or two columns would have one name.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> lo.training.evaluate(objective, 1.0, jnp.array([0.0, 2.0, 4.0]), batch_size=2)
      {'value': Array(3.6666667, dtype=float32), 'fit': Array(3.6666667, dtype=float32)}
    """
    keywords = {"model_state": model_state, "hyperparameters": hyperparameters}
    call = adapt(objective, has_aux, **keywords)

    def step(carry, number, indices):
        means, aux = call(params, take(data, indices), key=None, **keywords)
        return carry, (means, aux.get("metrics"))

    _, measured = walk(step, None, batches(jnp.arange(rows(data)), batch_size))
    return columns(*measured.added())


def batches(order: Array, batch_size: int, *, drop_last: bool = False) -> Pieces:
    """Row numbers in batches; the last may be smaller, or is dropped."""
    _checks.at_least(1, batch_size=batch_size)
    if drop_last:
        _checks.at_most(len(order), batch_size=batch_size)
        order = order[: len(order) // batch_size * batch_size]
    return contiguous(order, batch_size)


def take(data: Batch, indices: Array) -> Batch:
    """The rows with these numbers."""
    return jax.tree.map(lambda x: jnp.asarray(x)[indices], data)


def columns(means: Means, metrics: Means) -> dict[str, Array]:
    """One number per name: `"value"`, the objective, then its terms and the metrics."""
    table = {"value": value(means)}
    for name, term in [*terms(means).items(), *terms(metrics).items()]:
        if name in table or (name == "" and term is not means):
            raise ValueError(
                f"Terms and metrics need names of their own, none of them 'value'; got {name!r} "
                "twice or no name at all. Return them in dicts."
            )
        table |= {name: term.value} if name else {}
    return table
