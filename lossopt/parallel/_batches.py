"""Batches made longer, so that devices divide their rows, and batches that lie on all devices."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lossopt import _checks, _mesh, _pieces, _processes
from lossopt._jax import undisturbed
from lossopt._typing import ArrayLike, Batch, Bool
from lossopt.training._stream import owned


def pad_batch(batch: Batch, multiple: int) -> tuple[Batch, Bool[ArrayLike, " rows"]]:
    """A batch with copies of its first rows behind it, and a mask that tells them apart.

    For what wants rows of one number, such as `jax.pmap`. Put the mask into the batch: with
    `mean(values, batch["mask"])` value and gradient are those without copies. They are copies
    because a model may have no finite derivative at rows of zeros. `train_step(mesh=...)` takes any
    number of rows as it is.

    Args:
      batch: tree of arrays that share a leading axis of rows.
      multiple: of what the rows are to be, at least 1.

    Returns:
      The batch, of the fewest rows that are a multiple, and a mask `[rows]`, False for copies.
      Arrays of NumPy stay such, and so is the mask if all are.

    Raises:
      ValueError: if leaves differ in rows, there are none, or `multiple` is below 1.
      TypeError: if `multiple` is no whole number.

    Examples:
      >>> batch, mask = lo.parallel.pad_batch(np.array([5.0, 6.0, 7.0]), 4)
      >>> print(batch, mask)
      [5. 6. 7. 5.] [ True  True  True False]
    """
    multiple, total = _checks.count("multiple", multiple, 1), _pieces.rows(batch)
    places = np.arange(-total % multiple) % total
    host = not any(isinstance(x, jax.Array) for x in jax.tree.leaves(batch))
    mask = np.arange(total + len(places)) < total
    return jax.tree.map(partial(_longer, places), batch), mask if host else jnp.asarray(mask)


def _longer(places, x):
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        return np.concatenate([x, x[places]]) if len(places) else x
    return jnp.concatenate([x, x[places]]) if len(places) else x


def global_batch(
    mesh: Mesh, local_rows: Batch, *, axes: Mapping[str, str | Sequence[str]] | None = None
) -> Batch:
    """One batch of the rows that all processes have read, each its own part.

    For a loop of your own around `train_step(mesh=...)`; `fit` does it for what an iterable yields.
    All processes call it alike.

    Args:
      mesh: of devices of all processes.
      local_rows: tree of arrays that share a leading axis of rows, those of this process. Its
        devices must divide them. All processes give as many rows, in the same tree. Processes whose
        devices hold the same rows, because they lie along other axes of the mesh, give the same.
      axes: as in `train_step`.

    Returns:
      The tree with arrays of jax, their rows over the `data` and `fsdp` axes of the mesh, in the
      order of processes where the devices of the mesh are. Arrays of NumPy are copied.

    Raises:
      ValueError: on every process, if the devices of one do not divide its rows, if processes
        differ in structure, shapes or dtypes, or if the mesh leaves one out.
      TypeError: if `mesh` has no devices, or a leaf is no array.

    Examples:
      >>> mesh = lo.parallel.mesh()
      >>> batch = lo.parallel.global_batch(mesh, {"x": np.ones([16, 3])})
      >>> len(batch["x"].addressable_shards) == jax.device_count()
      True
    """
    refused, facts = None, {}
    try:
        facts = _facts(mesh, local_rows, axes)
    except (TypeError, ValueError) as error:
        refused = error
    outcome = repr(refused) if refused else "no error"
    _processes.same(
        {"the check of local_rows": outcome} | facts,
        "Give every process the same mesh, and the same arrays with as many rows.",
    )
    if refused:
        raise refused
    over = NamedSharding(mesh, _mesh.spec(_mesh.axes_of(mesh, axes).rows))
    with undisturbed():
        return jax.make_array_from_process_local_data(over, owned(local_rows))


def _facts(mesh, local_rows, axes):
    """What all processes must have alike, by name."""
    over = _mesh.axes_of(mesh, axes).rows
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"Expected mesh of devices, got {mesh!r}. Make one with lossopt.parallel.mesh()."
        )
    count = _places(mesh, over)
    rows, leaves = _pieces.rows(local_rows, "local_rows"), {}
    for path, x in jax.tree_util.tree_leaves_with_path(local_rows):
        name = "local_rows" + jax.tree_util.keystr(path)
        leaves[name] = f"{_checks.dtype(name, x)} {np.shape(x)}"
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            raise ValueError(
                f"Expected rows of this process, got {name}, which lies on others, too. It is a "
                "global array already: give it to the step as it is."
            )
    if rows % count:
        raise ValueError(
            f"Expected local_rows that the {count} devices of a process divide, got {rows} rows. "
            f"Pad them with lossopt.parallel.pad_batch(local_rows, {count}), whose mask the "
            "objective takes; or give lossopt.fit an iterable of batches, which takes any number."
        )
    structure = str(jax.tree.structure(local_rows))
    return {"mesh": _mesh.in_words(mesh), "the structure of local_rows": structure} | leaves


def _places(mesh, over):
    """Over how many devices rows of a process lie."""
    held = _mesh.held(mesh, over)
    parts = set(held.values())
    if sum(map(len, parts)) != _mesh.size(mesh, over) or len(set(map(len, parts))) > 1:
        raise ValueError(
            "Expected a mesh in which each process has as many devices and rows of its own, got "
            f"{ {process: len(part) for process, part in held.items()} } places for rows by "
            "process. Order its devices by process, as jax.devices() are."
        )
    return len(held[jax.process_index()])
