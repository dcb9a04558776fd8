"""Batches made longer, so that devices divide their rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks, _pieces
from lossopt._typing import ArrayLike, Batch, Bool


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
