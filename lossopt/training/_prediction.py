"""A model over rows, a batch at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lossopt import _checks, _jax, _programs
from lossopt._jaxprs import canonical
from lossopt._pieces import by_shard, of_shards, rows, walk
from lossopt._typing import Batch, PyTree
from lossopt.training._arrays import on_device


def predict(fn: Callable, params: PyTree, data: Batch, *, batch_size: int | None = None) -> PyTree:
    """Maps a model over rows, batch by batch, and puts the results one behind the other.

    It is compiled once for a function and shapes, also outside of `jit`. Rows that lie on several
    devices stay there.

    Args:
      fn: `fn(params, batch)`, any tree of arrays with a row for each of the batch. What it computes
        for a row must not depend on the others.
      params: any tree of arrays; what else a model needs goes with them, as in
        `(params, model_state)`.
      data: tree of arrays that share a leading axis of rows.
      batch_size: rows at a time, the last batch may be smaller; None takes all.

    Returns:
      The tree that `fn` returns, for all rows, in their order.

    Raises:
      ValueError: if leaves of `data` differ in rows, or a result has another number of rows.
      TypeError: if `batch_size` is no whole number.

    Examples:
      >>> model = lambda params, batch: {"y": batch @ params}
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
      >>> print(lo.training.predict(model, jnp.array([1.0, 0.5]), x, batch_size=2)["y"])
      [2. 5. 8.]
    """
    size = None if batch_size is None else _checks.count("batch_size", batch_size, 1)
    data, params = on_device(data=data, params=params)
    rows(data)
    with _jax.on_mesh(data, params):
        return _programs.call(_predicted, (fn, size, _jax.shards(data)), params, data)


def _predicted(fn, batch_size, shards, params, data):
    count = rows(data)
    shards = shards if count % shards == 0 else 1

    def walked(params, data):
        step = lambda carry, number, piece: (carry, _of_rows(fn(params, piece), rows(piece)))
        return walk(step, None, by_shard(data, batch_size or count, shards))[1]

    return of_shards(canonical(walked)(params, data), shards, data)


def _of_rows(out, count):
    """The results; raises where one of them has not a row for each."""
    found = {
        jax.tree_util.keystr(path): jnp.shape(x)
        for path, x in jax.tree_util.tree_leaves_with_path(out)
    }
    if not found or any(shape[:1] != (count,) for shape in found.values()):
        got = ", ".join(f"{name} {shape}".strip() for name, shape in found.items()) or "no arrays"
        raise ValueError(
            f"Expected fn to give one row for each of the {count} of a batch, along the leading "
            f"axis, got {got}. Averages over rows are measured by lossopt.training.evaluate."
        )
    return out
