"""What every objective must do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lossopt import _audit
from lossopt._pieces import rows
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.testing._laws import require


def check_objective(
    objective: Callable,
    params: PyTree,
    batch: Batch,
    *,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    key: Key[Array, ""] | None = None,
) -> None:
    """Asserts what `fit` asks of an objective before it trains.

    Each term has the same value on rows taken at once and on three pieces of them, pooled; and
    rows that hold NaN or infinite numbers leave value and gradient finite. At most 16 rows are cut,
    spread over the batch, at `params` and at others near by, in evaluation: with `key=None`.
    Statistics of the batch in training are not seen. Rows that are not finite are read with `key`.

    Args:
      objective: maps `(params, batch)` to a tree of `Mean`, as in `lossopt.fit`.
      params: any tree of floating arrays.
      batch: tree of arrays that share a leading axis of at least 2 rows.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: given to the objective, where it names it.
      hyperparameters: likewise.
      key: typed PRNG key for objectives that cannot do without one; terms that depend on it are
        then not compared.

    Raises:
      AssertionError: if it does not; the message names the term, or the rows.
      ValueError: if the leaves of `batch` differ in rows, or there is one row.

    Examples:
      >>> batch = jnp.arange(6.0)
      >>> lo.testing.check_objective(lambda w, x: lo.mean((w - x) ** 2), 0.0, batch)
      >>> early = lambda w, x: lo.constant(jnp.mean((w - x) ** 2))
      >>> lo.testing.check_objective(early, 0.0, batch)  # doctest: +IGNORE_EXCEPTION_DETAIL
      Traceback (most recent call last):
      AssertionError: the only term has another value on rows taken at once than on pieces of them
    """
    if rows(batch) == 1:
        raise ValueError("Expected a batch of at least 2 rows, got 1: it cannot be cut.")
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    trial = _audit.Trial(objective, has_aux, strict=True)
    given = model_state, hyperparameters, key
    names = _audit.torn(trial, params, batch, *given)
    require(not names, _audit.torn_message(names))
    found = _audit.not_finite(batch)
    why = found and _audit.spoils(trial, found, rows(batch), True, params, batch, *given)
    require(not why, str(why))
