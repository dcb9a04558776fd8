"""States and batches as `jax.pmap` takes them: one slice on each device."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt._pieces import rows
from lossopt._typing import Batch, PyTree
from lossopt.training._inputs import numbers


def replicate(tree: PyTree, devices: Sequence[Any] | None = None) -> PyTree:
    """A copy of each leaf on each device, as `jax.pmap` takes states, keys and hyperparameters.

    The step of `train_step(..., axis_name="devices")` folds the number of the device into a key.

    Args:
      tree: any tree of arrays.
      devices: those of the `pmap`; None for all of this process.

    Returns:
      A tree of arrays `[devices, ...]`, which `pmap` does not copy again. Take the first of each
      leaf for what all hold.

    Raises:
      TypeError: if a leaf holds no numbers, or `devices` are none.
      ValueError: if there are no devices, or one comes twice.

    Examples:
      >>> lo.parallel.replicate({"w": jnp.ones(3)})["w"].shape
      (8, 3)
    """
    lie = _one_each(devices)
    numbers("tree", tree)
    return jax.tree.map(partial(_copies, lie), tree)


def split(batch: Batch, devices: Sequence[Any] | None = None) -> Batch:
    """The rows of a batch cut into one part for each device, as `jax.pmap` takes batches.

    Args:
      batch: tree of arrays that share a leading axis of rows.
      devices: those of the `pmap`; None for all of this process.

    Returns:
      A tree of arrays `[devices, rows / devices, ...]`, which `pmap` does not copy again; the first
      device has the first rows.

    Raises:
      ValueError: if the devices do not divide the rows, leaves differ in rows, there are no
        devices, or one comes twice.
      TypeError: if a leaf holds no numbers, or `devices` are none.

    Examples:
      >>> lo.parallel.split({"x": jnp.ones((16, 3))})["x"].shape
      (8, 2, 3)
    """
    lie = _one_each(devices)
    numbers("batch", batch)
    total, count = rows(batch), lie.mesh.size
    if total % count:
        raise ValueError(
            f"Expected rows that {count} devices divide, got {total}. Where the objective takes a "
            f"mask write batch, mask = lossopt.parallel.pad_batch(batch, {count}); or take "
            "train_step(mesh=lossopt.parallel.mesh()), which is exact for any number of rows."
        )
    part = lambda x: x.reshape(count, total // count, *x.shape[1:])
    return jax.tree.map(lambda x: jax.device_put(part(x), lie), batch)


def _one_each(devices):
    """How `pmap` has its arrays lie, whatever the name of its axis."""
    given = jax.local_devices() if devices is None else devices
    if not isinstance(given, Sequence) or not all(isinstance(x, jax.Device) for x in given):
        raise TypeError(
            f"Expected devices as a list of them, got {devices!r}. Write jax.local_devices()[:4]."
        )
    if not given or len(set(given)) < len(given):
        raise ValueError(
            f"Expected each device once, got {list(given)}. Leave devices out for all of them."
        )
    return NamedSharding(Mesh(np.array(given), ("devices",)), P("devices"))


def _copies(lie, x):
    x = x if isinstance(x, jax.Array) else np.asarray(x, jnp.result_type(x))
    return jax.make_array_from_callback((lie.mesh.size, *x.shape), lie, lambda _: x[None])
