"""Rows cut into pieces, and the one walk over them."""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from lossopt import _checks, _jax
from lossopt._typing import ArrayLike, Batch, PyTree

_LIST = (
    " A list is a tree of its entries: where these are batches, one after the other, give "
    "collections.deque(batches)."
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["stacked", "last"],
    meta_fields=["strided"],
)
@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tree of arrays cut along its leading axis.

    Attributes:
      stacked: one tree of the pieces of equal size, its leaves `[pieces, rows, ...]`; or none.
      last: smaller pieces, or the only one; or none.
      strided: whether rows go round: of `k` stacked pieces, piece `i` holds rows `i, i + k, ...`.
    """

    stacked: tuple[PyTree, ...]
    last: tuple[PyTree, ...]
    strided: bool = False

    def joined(self) -> PyTree:
        """The rows in the order they had before they were cut."""
        ordered = lambda x: jnp.swapaxes(x, 0, 1) if self.strided else x
        flat = lambda x: ordered(x).reshape(-1, *x.shape[2:])
        join = lambda *xs: xs[0] if len(xs) == 1 else jnp.concatenate(xs)
        return jax.tree.map(join, *jax.tree.map(flat, self.stacked), *self.last)

    def added(self) -> PyTree:
        """The sum of the pieces."""
        parts = *jax.tree.map(partial(jnp.sum, axis=0), self.stacked), *self.last
        return reduce(partial(jax.tree.map, jnp.add), parts)


def strided(batch: Batch, count: int, shards: int = 1) -> Pieces:
    """At most `count` pieces whose rows go round within each shard, so that these stay in place.

    A batch without leaves is one piece.
    """
    if not jax.tree.leaves(batch):
        return Pieces((), (batch,))
    total = rows(batch)
    _checks.at_most(total, microbatches=count)
    each = total // shards
    size = -(-each // count)
    full = each // size
    if full == 1 and full * size == each:
        return Pieces((), (batch,))
    apart = lambda x: x.reshape(shards, each, *x.shape[1:])
    joined = lambda x: x.reshape(shards * x.shape[1], *x.shape[2:])

    def stack(x):
        rounds = apart(x)[:, : full * size].reshape(shards, size, full, *x.shape[1:])
        return jnp.moveaxis(rounds, 2, 0).reshape(full, shards * size, *x.shape[1:])

    rest = lambda x: joined(apart(x)[:, full * size :])
    last = (jax.tree.map(rest, batch),) if each % size else ()
    return Pieces((jax.tree.map(stack, batch),), last, strided=shards == 1)


def contiguous(batch: Batch, size: int) -> Pieces:
    """Pieces of `size` consecutive rows, the last perhaps smaller; of no rows one that is empty."""
    total = len(jax.tree.leaves(batch)[0])
    full = total // size
    block = lambda x: x[: full * size].reshape(full, size, *x.shape[1:])
    stacked = (jax.tree.map(block, batch),) if full else ()
    rest = total % size or not total
    last = (jax.tree.map(lambda x: x[full * size :], batch),) if rest else ()
    return Pieces(stacked, last)


def by_shard(batch: Batch, size: int, shards: int) -> Pieces:
    """Pieces of about `size` rows, of each shard equally many consecutive ones, at least one."""
    total = rows(batch) // shards
    each = min(max(1, size // shards), total)
    full = total // each
    shard = lambda x: jnp.reshape(x, (shards, total, *jnp.shape(x)[1:]))

    def block(x):
        cut = shard(x)[:, : full * each].reshape(shards, full, each, *jnp.shape(x)[1:])
        return jnp.swapaxes(cut, 0, 1).reshape(full, shards * each, *cut.shape[3:])

    def rest(x):
        cut = shard(x)[:, full * each :]
        return cut.reshape(shards * (total - full * each), *cut.shape[2:])

    stacked = _jax.by_rows(partial(jax.tree.map, block), shards, 1, batch)
    last = (_jax.by_rows(partial(jax.tree.map, rest), shards, 0, batch),) if total % each else ()
    return Pieces((stacked,), last)


def of_shards(pieces: Pieces, shards: int, batch: Batch) -> PyTree:
    """What was computed from the pieces of `by_shard`, in the order that rows have in the batch."""

    def join(*xs):
        *stacked, last = xs if pieces.last else (*xs, None)
        parts = [jnp.swapaxes(_apart(x, shards, 1), 0, 1) for x in stacked]
        parts = [x.reshape(shards, x.shape[1] * x.shape[2], *x.shape[3:]) for x in parts]
        parts += [] if last is None else [_apart(last, shards, 0)]
        whole = jnp.concatenate(parts, axis=1)
        return whole.reshape(shards * whole.shape[1], *whole.shape[2:])

    def joined(stacked, last):
        return jax.tree.map(join, *stacked, *last)

    return _jax.in_rows(joined, batch, pieces.stacked, pieces.last)


def _apart(x, shards, axis):
    return x.reshape(*x.shape[:axis], shards, x.shape[axis] // shards, *x.shape[axis + 1 :])


def walk(
    step: Callable[[Any, ArrayLike | None, PyTree], tuple[Any, PyTree]], carry: Any, pieces: Pieces
) -> tuple[Any, Pieces]:
    """Carries `step(carry, number, piece) -> (carry, out)` over the pieces, and keeps each `out`.

    They are numbered; the number of an only piece is None.
    """
    full, stacked, last = None, [], []
    for tree in pieces.stacked:
        full = len(jax.tree.leaves(tree)[0])
        carry, out = jax.lax.scan(lambda c, x: step(c, *x), carry, (jnp.arange(full), tree))
        stacked.append(out)
    only = full is None and len(pieces.last) == 1
    for number, piece in enumerate(pieces.last, start=full or 0):
        carry, out = step(carry, None if only else number, piece)
        last.append(out)
    return carry, Pieces(tuple(stacked), tuple(last), pieces.strided)


def rows(batch: Batch, name: str = "batch") -> int:
    """The length of the leading axis that all leaves of a batch share."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {name + jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        few = {}
        for leaf, shape in shapes.items():
            few.setdefault(shape[:1], f"{leaf} {shape}")
        got = ", ".join(few.values()) or "no arrays"
        raise ValueError(
            f"Expected {name} as arrays that share a leading axis of rows, got {got}. Stack them, "
            "one row an example; what is no row goes into hyperparameters or the objective itself."
            + (_LIST if isinstance(batch, list) else "")
        )
    return lengths.pop()[0]
