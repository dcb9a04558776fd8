"""The one evaluation, and the names of what is measured."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lossopt import _checks, _jax, _programs
from lossopt._grad import Walked
from lossopt._jaxprs import canonical
from lossopt._mean import terms
from lossopt._objective import adapt
from lossopt._pieces import Pieces, rows
from lossopt._place import Parted
from lossopt._typing import Array, Batch, Key, Means, PyTree
from lossopt.training._arrays import on_device, on_host
from lossopt.training._facts import same, same_rows
from lossopt.training._laid import laid_all, laid_batch, laid_rows, resting
from lossopt.training._layout import Layout, joint, layout_of, outside, place_of, within
from lossopt.training._reader import Reader, reading
from lossopt.training._stream import is_stream, own_batches, owned

AHEAD = 3  # batches of a stream that are in flight


def evaluate(
    objective: Callable,
    params: PyTree,
    data: Batch,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    axes: Mapping[str, str | Sequence[str]] | None = None,
    gather: bool | str = True,
    shards: int | None = None,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
) -> dict[str, Array]:
    """Measures an objective on a whole data set, batch by batch and exactly.

    It is compiled once for an objective and shapes, also outside of `jit`.

    Args:
      objective: as in `run`; its `key` is None here, by which it knows that it is evaluated.
      params: any tree of arrays.
      data: tree of arrays that share a leading axis of rows; or an iterable of such batches.
      batch_size: rows at a time, the last batch may be smaller; None takes all.
      mesh: the devices, as in `fit`: each reads its own part of the rows. Parameters that lie on
        its devices already stay where they are, others are put on each.
      axes: as in `fit`.
      gather: likewise.
      shards: as in `run`; the rows of a batch come from each alike.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: given to the objective, and not changed.
      hyperparameters: given to the objective.

    Returns:
      Numbers, shape `()`, by name: `"value"`, each term and each metric.

    Raises:
      ValueError: if leaves of `data` differ in rows, or two columns would have one name.
      TypeError: if `batch_size` is no whole number.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> lo.training.evaluate(objective, 1.0, jnp.array([0.0, 2.0, 4.0]), batch_size=2)
      {'fit': Array(3.6666667, dtype=float32), 'value': Array(3.6666667, dtype=float32)}
    """
    size = None if batch_size is None else _checks.count("batch_size", batch_size, 1)
    parts = None if shards is None else _checks.count("shards", shards, 1)
    adapt(objective, has_aux, model_state=model_state, hyperparameters=hyperparameters)
    layout = layout_of(mesh, axes=axes, gather=gather)
    others = {"model_state": model_state, "hyperparameters": hyperparameters}
    if together := joint(layout):
        same({"params": params, **others}, batch_size=batch_size)
    layout, params = resting(layout, params)
    given = laid_all(layout, **others)
    if is_stream(data):
        own_batches(data=data, batch_size=batch_size, shards=shards)
        measure = measuring(objective, has_aux, layout)
        reader = reading(layout, data, "data")
        with outside(layout):
            return columns(*pooled(measure, reader, layout, params, *given))
    (data,) = on_device(data=data) if layout is None else on_host(data=data)
    rows(data, "data")
    if together:
        same_rows(False, data=data)
    parts = parts or (layout.devices if layout else _jax.shards(data))
    plan = objective, has_aux, size, parts, layout
    data = data if layout is None else laid_rows(layout, data)
    with _jax.on_mesh(data, params), within(layout):
        return _programs.call(evaluated, plan, params, data, *given)


def evaluated(*args: Any) -> dict[str, Array]:
    """The columns of what `measured` gives for the same arguments."""
    return columns(*measured(*args))


def measured(
    objective: Callable,
    has_aux: bool,
    batch_size: int | None,
    shards: int,
    layout: Layout | None,
    params: PyTree,
    data: Batch | Parted,
    model_state: PyTree,
    hyperparameters: PyTree,
    key: Key[Array, ""] | None = None,
) -> tuple[Means, Means]:
    """The means of an objective and its metrics, batch by batch; without a key, in evaluation."""
    call = adapt(objective, has_aux)
    given = {"key": key, "model_state": model_state, "hyperparameters": hyperparameters}

    def still(params, batch):
        means, aux = call(params, batch, **given)
        return means, {name: part for name, part in aux.items() if name == "metrics"}

    place = place_of(layout, params, shards)
    cut = partial(place.sized, size=batch_size, shards=shards)
    measure = Walked(still, True, cut, place).measure
    _, means, aux = canonical(measure)(params, data)
    return means, aux.get("metrics")


def measuring(
    objective: Callable, has_aux: bool, layout: Layout | None
) -> Callable[..., tuple[Means, Means]]:
    """What measures batches of a stream, compiled."""

    def measure(*args):
        with within(layout):
            return _programs.call(measured, (objective, has_aux, None, 1, layout), *args)

    return measure


def pooled(
    measure: Callable[..., tuple[Means, Means]],
    reader: Reader,
    layout: Layout | None,
    params: PyTree,
    *given: PyTree,
) -> tuple[Means, Means]:
    """Means and metrics over one pass of a stream, summed as those of rows in memory are.

    Args:
      measure: `measure(params, batch, *given)`, what it gives for one batch.
      reader: at the beginning of a pass.
      layout: on a mesh, or None.
      params: any tree of arrays.
      *given: model state and hyperparameters.
    """
    parts, others, size = [], [], reader.rows
    while reader.next is not None:
        kept = parts if reader.rows == size else others
        batch = laid_batch(layout, reader.take(owned))
        kept.append(measure(params, batch, *given))
        jax.block_until_ready(kept[-AHEAD : 1 - AHEAD])
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(parts))
    return Pieces((stacked,), tuple(others)).added()


def columns(
    means: Means, metrics: Means, others: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, Array]:
    """One number per name: `"value"`, the objective, then its terms, the metrics and others."""
    table = {"value": jnp.asarray(sum(map(_read, terms(means).values())))}
    for name, term in [*terms(means).items(), *terms(metrics).items()]:
        if name in table or (name == "" and term is not means):
            raise ValueError(
                f"Terms and metrics need names of their own, none of them 'value'; got {name!r} "
                "twice or no name at all. Return them in dicts."
            )
        table |= {name: _read(term)} if name else {}
    if taken := sorted(table.keys() & others.keys()):
        raise ValueError(
            f"The history has columns {taken} of its own: give terms and metrics other names."
        )
    return table | dict(others)


def _read(term):
    """The value; NaN, which is never best, where nothing was weighed."""
    return jnp.where(term.weight == 0, jnp.nan, term.value)
