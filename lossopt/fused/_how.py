"""How a loss is computed: none of its numbers depends on it, but the memory and the modes do."""

import dataclasses
import math
import operator
import re
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple, TypeAlias

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
Form = Literal["vjp", "jvp"]
MeanOrValues: TypeAlias = Any  # a `Mean`, or one value per example with `per_example=True`


class Tiles(NamedTuple):
    """A tile's rows and columns, its bytes with temporaries, how many fit; has it all columns."""

    rows: int
    columns: int
    bytes: int
    together: int
    whole: bool


@dataclasses.dataclass(frozen=True)
class How:
    """What all functions of this room are asked beside their arrays.

    Attributes:
      memory: a budget for a tile and temporaries of its shape.
      form: of differentiation.
      axis: names of axes of an enclosing map over which the rows are spread, as of `_checks.axes`.
      shards: devices over which the rows are spread; None where the arrays say it.
    """

    memory: Memory
    form: Form
    axis: tuple[Hashable, ...] = ()
    shards: int | None = None

    def __post_init__(self):
        if self.form not in ("vjp", "jvp"):
            raise ValueError(
                f"Expected differentiable 'vjp' or 'jvp', got {self.form!r}. Choose one."
            )

    def tiles(
        self,
        rows: int,
        columns: int,
        dtype: Any,
        *,
        copies: int = 2,
        by_columns: bool = False,
        cpu: int = CPU,
    ) -> Tiles:
        """The largest tile within the budget, rows first, because they need one pass.

        Args:
          rows: of the matrix.
          columns: of the matrix.
          dtype: of its entries.
          copies: how many arrays of the shape of a tile exist at a time.
          by_columns: whether the loss can be computed in blocks of columns.
          cpu: what `"auto"` means there, in bytes.
        """
        rows, columns = max(1, rows), max(1, columns)
        entry = copies * jnp.dtype(dtype).itemsize
        if isinstance(self.memory, Chunks):
            tile, budget = _given(self.memory, rows, columns, by_columns), 0
        else:
            most_rows = rows
            if self.memory == "auto":
                budget, most_rows = (cpu, rows) if jax.default_backend() == "cpu" else ACCELERATOR
                budget = budget if by_columns else max(budget, entry * columns * min(rows, LEAST))
            else:
                budget = _bytes(self.memory)
            tile = _fitting(rows, columns, budget // entry, most_rows, by_columns)
        if tile is None:
            least = columns * min(rows, LEAST)
            least = entry * (min(least, rows * min(columns, COLUMNS)) if by_columns else least)
            raise ValueError(
                f"Expected memory for one tile of a {rows} x {columns} matrix, got "
                f"{self.memory!r}. The least that works is {least} bytes: pass memory={least} or "
                "more."
            )
        size = entry * math.prod(tile)
        return Tiles(*tile, size, max(1, budget // size), tile[1] == columns)


def on_mesh(*arrays: Any) -> bool:
    """Whether devices may have to share these arrays."""
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    return not all(mesh.empty for mesh in (*meshes, jax.sharding.get_abstract_mesh()))


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


def _fitting(rows, columns, entries, most_rows, by_columns):
    """The rows and columns of a tile of at most so many entries; None where none is worthwhile."""
    in_rows, in_columns = entries // columns, entries // rows
    slim = in_rows >= LEAST and not (by_columns and in_columns >= COLUMNS)
    if in_rows >= min(rows, ROWS) or slim:
        return _even(rows, min(in_rows, most_rows)), columns
    if by_columns and in_columns >= min(columns, COLUMNS):
        return rows, _even(columns, in_columns)
    return None


def _even(count, most):
    """The largest divisor of `count` up to `most`, or equal parts but for a smaller last one."""
    most = min(most, count)
    divisors = (d for d in range(most, most // 2, -1) if count % d == 0)
    return next(divisors, -(-count // -(-count // most)))
