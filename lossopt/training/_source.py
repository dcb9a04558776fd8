"""Where batches come from: rows in memory, shuffled without a table of their order."""

import math
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from lossopt import _checks, _jax, _pieces
from lossopt._numerics import mixed
from lossopt._place import Parted, parted
from lossopt._typing import Array, Batch, Int, Key, Num, Number

GOLDEN = 0x9E3779B9


class Rows(NamedTuple):
    """Rows in memory and how an epoch cuts them into batches.

    Attributes:
      rows: how many there are.
      batch_size: rows of a full batch, at most `rows`. A batch of all rows is not shuffled.
      drop_last: whether the rows that fill no batch are left out, others in each epoch, but for
        those that the shards do not divide.
      shards: equal parts of consecutive rows; each gives its share of each batch, in order. What
        they do not divide, the last rows, belongs to the last batch of each epoch.
    """

    rows: int
    batch_size: int
    drop_last: bool
    shards: int = 1

    @property
    def left(self) -> int:
        """The last rows, which the shards do not divide."""
        return self.rows % self.shards

    @property
    def full(self) -> int:
        """Full batches of an epoch."""
        whole = self.batch_size == self.rows
        return 1 if whole else (self.rows - self.left) // self.batch_size

    @property
    def rest(self) -> int:
        """Rows of the ragged last batch; 0 if there is none."""
        return 0 if self.drop_last else self.rows - self.full * self.batch_size

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.full + (self.rest > 0)

    def place(self, data: Batch, step: Any) -> tuple[Any, Any, Any]:
        """The epoch of a step, its number within that, and how many steps are left there."""
        epoch, number = jnp.divmod(step, self.steps)
        return epoch, number, self.steps - number

    def ready(self, data: Batch) -> Batch | Parted:
        """The rows, cut once where shards do not divide them."""
        return parted(data, self.shards) if self.left else data

    def batch(self, data: Batch | Parted, key: Key[Array, ""], number: Number) -> Batch | Parted:
        """A full batch.

        Args:
          data: the rows; or `parted` by the shards.
          key: typed PRNG key of the epoch.
          number: of the batch within the epoch, from 0, perhaps traced.

        Returns:
          A tree like `data`, of `batch_size` rows.
        """
        if self.batch_size == self.rows:
            return data
        (even,) = parted(data, self.shards).even
        return self.take(even, key, number, self.batch_size)

    def last(self, data: Batch | Parted, key: Key[Array, ""]) -> Batch | Parted:
        """The ragged last batch, of `rest` rows."""
        even = self.rest - self.left
        if not self.left:
            return self.take(data, key, self.full, even)
        parts = parted(data, self.shards)
        drawn = [self.take(x, key, self.full, even) for x in parts.even if even]
        return Parted(tuple(drawn), parts.rest)

    def take(self, data: Batch, key: Key[Array, ""], number: Number, size: int) -> Batch:
        """`size` rows that the shards divide, from where a batch of this number begins."""
        count, size = self.shards, size // self.shards
        shape = count, self.rows // count

        def drawn(data, key, number):
            begin = jnp.asarray(number, jnp.uint32) * jnp.uint32(self.batch_size // count)
            numbers = begin + jnp.arange(size, dtype=jnp.uint32)
            words = jax.random.bits(key, (2,), jnp.uint32)

            def order(part):
                return places(numbers, shape[1], words ^ mixed(part))

            orders = jax.vmap(order)(jnp.arange(count, dtype=jnp.uint32))
            orders = _jax.replicated(orders, data)

            def take(x):
                part = jnp.reshape(x, shape + jnp.shape(x)[1:])
                pick = lambda x, order: x.at[order].get(mode="promise_in_bounds")
                return jax.vmap(pick)(part, orders).reshape(count * size, *part.shape[2:])

            return jax.tree.map(take, data)

        return _jax.by_rows(drawn, count, 0, data, key, number)


def source(
    data: Batch,
    batch_size: SupportsIndex | None,
    drop_last: bool,
    shards: SupportsIndex | None = None,
) -> Rows:
    """How an epoch cuts the rows of `data`; refuses what cannot be cut.

    Args:
      data: tree of arrays that share a leading axis of rows.
      batch_size: rows a step, at least 1; all rows if there are no more, or if it is None.
      drop_last: whether the ragged last batch is left out.
      shards: parts that divide rows and batches; None is how the rows lie on devices.
    """
    rows = _pieces.rows(data, "train")
    size = rows if batch_size is None else _checks.count("batch_size", batch_size, 1)
    if drop_last:
        _checks.at_most(rows, batch_size=size)
    size = min(size, rows)
    parts = _jax.shards(data) if shards is None else _checks.count("shards", shards, 1)
    if size % parts and size < rows:
        raise ValueError(
            f"Each of {parts} shards draws as many rows of a batch as each other; got "
            f"batch_size={size}. Take a multiple of {parts}, or shards=1, which draws from all "
            "rows, wherever they lie."
        )
    return Rows(rows, size, bool(drop_last), parts)


@partial(jax.jit, static_argnums=1)
def places(
    numbers: Int[Array, "*batch"], rows: int, words: Num[Array, "2"]
) -> Int[Array, "*batch"]:
    """The rows at these places of a shuffled epoch: a bijection of 0 ... `rows` - 1.

    A Feistel network over pairs, `left * width + right`; who falls beyond the rows walks on along
    his cycle until he is back. Nothing of length `rows` is made.

    Args:
      numbers: places, 0 ... `rows` - 1.
      rows: at most 2**31 - 1.
      words: which of the bijections.

    References:
      Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    """
    width, height = _sides(rows)

    def once(x):
        left, right = x // jnp.uint32(width), x % jnp.uint32(width)
        sizes = height, width
        for number in range(_rounds(height)):
            word = words[number % 2] + jnp.uint32(GOLDEN * number % 2**32)
            moved = left + _scaled(mixed(right ^ word), sizes[0])
            left, right = right, jnp.where(moved >= sizes[0], moved - sizes[0], moved)
            sizes = sizes[::-1]
        return left * jnp.uint32(sizes[1]) + right

    def walk(carry):
        """All at first, then who is beyond: one copy of the rounds is half as long to compile."""
        first, x = carry
        return False, jnp.where(first | (x >= rows), once(x), x)

    on = lambda carry: carry[0] | jnp.any(carry[1] >= rows)
    start = True, _jax.alike((words, jnp.asarray(numbers, jnp.uint32)))[1]
    return jax.lax.while_loop(on, walk, start)[1].astype(jnp.int32)


def _sides(rows):
    """An even width and a height, about the root, with hardly more pairs than rows."""
    root = math.isqrt(rows - 1) + 1
    width = min(range(root + root % 2, root + root // 3 + 2, 2), key=lambda side: -rows % side)
    return width, -(-rows // width)


def _rounds(side):
    """So many that of what two of them let show, a root of the side each, 2**-12 is left."""
    return 2 + math.ceil(24 / math.log2(max(2, side)))


def _scaled(word, size):
    """`word * size // 2**32`, in halves of 16 bits: below `size`, which is at most 2**16."""
    half = jnp.uint32(2**16)
    return (word // half * size + word % half * size // half) // half
