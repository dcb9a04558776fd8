"""What all batches of a stream are like."""

import jax
import numpy as np

from lossopt._paths import paths
from lossopt._typing import Batch


class Form:
    """The form of a first batch, which others have but for their rows.

    Args:
      first: a batch.
    """

    def __init__(self, first: Batch):
        self._first = first
        leaves, self._structure = jax.tree.flatten(first)
        self._outlines = [*map(_outline, leaves)]

    def fits(self, batch: Batch) -> bool:
        """Whether a batch is like the first, but for its rows, which all leaves share."""
        leaves, structure = jax.tree.flatten(batch)
        rows = leading(batch)
        return (
            structure == self._structure
            and rows > 0
            and all(
                _outline(x) == want and np.shape(x)[0] == rows
                for want, x in zip(self._outlines, leaves)
            )
        )

    def differs(self, batch: Batch) -> str:
        """What is not like in the first batch."""
        tell = lambda tree: dict(zip(paths(tree), map(_told, jax.tree.leaves(tree))))
        want, got = tell(self._first), tell(batch)
        lines = [
            f"{path or 'the batch'} is {got.get(path, 'nothing')}, in the first it is "
            f"{want.get(path, 'nothing')}"
            for path in {**want, **got}
            if got.get(path) != want.get(path)
        ] or [f"it is a tree {jax.tree.structure(batch)}, the first {self._structure}"]
        return f"{'; '.join(lines[:4])}. Batches may differ in rows alone, the same for all leaves."


def leading(batch: Batch) -> int:
    """The length of the first axis of the first leaf; 0 where there is none."""
    leaves = jax.tree.leaves(batch)
    return next(iter(np.shape(leaves[0])), 0) if leaves else 0


def _outline(x):
    """All but the rows."""
    shape = np.shape(x)
    return _dtype(x), len(shape), shape[1:]


def _dtype(x):
    kind = getattr(x, "dtype", None)
    return kind if isinstance(kind, np.dtype) else np.asarray(x).dtype


def _told(x):
    return f"{_dtype(x)}{list(np.shape(x))}"
