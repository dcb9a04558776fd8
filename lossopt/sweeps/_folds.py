"""Folds of cross-validation, as values of trials."""

import jax
import numpy as np

from lossopt import _checks, _pieces
from lossopt._typing import Array, Batch, Bool, Key


def folds(
    train: Batch, count: int, key: Key[Array, ""] | None = None
) -> Bool[np.ndarray, "folds rows"]:
    """Masks of the rows that train, of which each leaves out its share to validate.

    Each row validates exactly once; shares differ by one row at most. Rows that belong together,
    such as those of one patient, may be torn apart, and rare classes missing in a share: make masks
    of your own for such data.

    Args:
      train: tree of arrays that share a leading axis of rows.
      count: of folds, from 2 to the number of rows.
      key: a typed key that shuffles. None deals the rows out in turn: row `i` validates in fold
        `i % count`.

    Returns:
      Booleans `[count, rows]`, True where a row trains, False where it validates.

    Raises:
      ValueError: if arrays differ in rows, or there are fewer than folds.
      TypeError: if `count` is no whole number, or the key not typed.

    Examples:
      >>> print(lo.sweeps.folds(np.arange(5), 2).astype(int))
      [[0 1 0 1 0]
       [1 0 1 0 1]]
    """
    rows = _pieces.rows(train, "train")
    count = _checks.count("count", count, 2)
    _checks.at_most(rows, count=count)
    fold = np.arange(rows) % count
    if key is not None:
        fold = np.random.default_rng(key_words(key)).permutation(fold)
    return fold != np.arange(count)[:, None]


def key_words(key: Key[Array, ""]) -> list[int]:
    """The words of one typed key, a seed of NumPy's."""
    _checks.given_key(key)
    _checks.exact_shape((), key=key)
    return np.asarray(jax.random.key_data(key)).ravel().tolist()
