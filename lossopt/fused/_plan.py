"""One budget of memory chooses the tiles of a matrix that is never whole."""

import dataclasses
import math
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt import _checks

UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 1e3, "MB": 1e6, "GB": 1e9}
CPU = 2**27  # bytes: larger tiles were not faster
ACCELERATOR = 2**32, 4096  # bytes, and the most rows of a tile
ROWS, COLUMNS = 128, 128  # the fewest of a tile that keep a processor busy
LEAST = 8  # rows that "auto" takes in any case, and before a budget is refused


class Chunks(NamedTuple):
    """Sizes of the tiles, where you want to choose them: one of the two, the other is whole.

    Attributes:
      rows: tokens, items or scores in a tile; all columns are in it.
      columns: classes in a tile; all rows are in it.

    Examples:
      >>> lo.fused.Chunks(rows=1024)
      Chunks(rows=1024, columns=None)
    """

    rows: int | None = None
    columns: int | None = None


Memory = str | int | Chunks


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a budget of memory chose, per device.

    Attributes:
      rows: rows of a tile.
      columns: columns of a tile.
      tiles: how many tiles there are.
      bytes: memory of a tile and of temporaries of its shape. Gradients, and their accumulators
        in float32, come on top of it.
      operations: multiplications and additions for one value and its gradient.
      arithmetic: these, as a multiple of what the whole matrix would take.
      token_shards: devices that the rows are spread over.
      together: how many such matrices `vmap` computes at once within the budget.

    Examples:
      >>> features, kernel = jnp.zeros((2048, 512)), jnp.zeros((512, 32768))
      >>> print(lo.fused.plan(features, kernel, memory="64MiB"))
      8 tiles of 256 x 32768, 64.0 MiB, 1.00 of the arithmetic of the whole, on 1 device
    """

    rows: int
    columns: int
    tiles: int
    bytes: int
    operations: int
    arithmetic: float
    token_shards: int
    together: int

    def __str__(self) -> str:
        devices = "1 device" if self.token_shards == 1 else f"each of {self.token_shards} devices"
        return (
            f"{self.tiles} tile{'s'[: self.tiles > 1]} of {self.rows} x {self.columns}, "
            f"{self.bytes / 2**20:.1f} MiB, "
            f"{self.arithmetic:.2f} of the arithmetic of the whole, on {devices}"
        )


class Tiles(NamedTuple):
    """A tile's rows and columns, its bytes with temporaries, how many fit; has it all columns."""

    rows: int
    columns: int
    bytes: int
    together: int
    whole: bool


def tiles(
    rows: int,
    columns: int,
    dtype: Any,
    memory: Memory,
    *,
    copies: int = 2,
    by_columns: bool = True,
    cpu: int = CPU,
) -> Tiles:
    """The largest tile within the budget, rows first, because they need one pass.

    Args:
      rows: of the matrix.
      columns: of the matrix.
      dtype: of its entries.
      memory: as in `plan`.
      copies: how many arrays of the shape of a tile exist at a time.
      by_columns: whether the loss can be computed in blocks of columns.
      cpu: what `"auto"` means there, in bytes.
    """
    rows, columns = max(1, rows), max(1, columns)
    entry = copies * jnp.dtype(dtype).itemsize
    most_rows = rows
    if isinstance(memory, Chunks):
        size = _given(memory, rows, columns, by_columns)
        return Tiles(*size, entry * math.prod(size), 1, size[1] == columns)
    if memory == "auto":
        budget, most_rows = (cpu, rows) if jax.default_backend() == "cpu" else ACCELERATOR
        budget = budget if by_columns else max(budget, entry * columns * min(rows, LEAST))
    else:
        budget = _bytes(memory)
    in_rows, in_columns = budget // (entry * columns), budget // (entry * rows)
    least = entry * min(columns * min(rows, LEAST), rows * min(columns, COLUMNS))
    if in_rows >= min(rows, ROWS) or (
        in_rows >= LEAST and not (by_columns and in_columns >= COLUMNS)
    ):
        tile = _even(rows, min(in_rows, most_rows)), columns
    elif by_columns and in_columns >= min(columns, COLUMNS):
        tile = rows, _even(columns, in_columns)
    else:
        least = least if by_columns else entry * columns * min(rows, LEAST)
        raise ValueError(
            f"Expected memory for one tile of a {rows} x {columns} matrix, got {memory!r}. "
            f"The least that works is {least} bytes: pass memory={least} or more."
        )
    size = entry * math.prod(tile)
    return Tiles(*tile, size, max(1, budget // size), tile[1] == columns)


def _given(chunks, rows, columns, by_columns):
    if (chunks.rows is None) == (chunks.columns is None):
        raise ValueError(f"Expected Chunks of rows or of columns, got {chunks}. Give one of them.")
    if chunks.columns is not None and not by_columns:
        raise ValueError(f"Expected Chunks of rows for this loss, got {chunks}. Give rows.")
    if chunks.columns is None:
        _checks.at_least(1, rows=operator.index(chunks.rows))
        return min(operator.index(chunks.rows), rows), columns
    _checks.at_least(1, columns=operator.index(chunks.columns))
    return rows, min(operator.index(chunks.columns), columns)


def _bytes(memory):
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(memory))
    if match is None or match[2] not in UNITS:
        raise ValueError(
            f"Expected memory as 'auto', as Chunks, or as bytes such as 2**28 or '256MiB' (units "
            f"{', '.join(filter(None, UNITS))}), got {memory!r}."
        )
    return int(float(match[1]) * UNITS[match[2]])


def _even(count, most):
    """The largest divisor of `count` up to `most`, or equal parts but for a smaller last one."""
    most = min(most, count)
    divisors = (d for d in range(most, most // 2, -1) if count % d == 0)
    return next(divisors, -(-count // -(-count // most)))
