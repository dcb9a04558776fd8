"""What lies where, in words."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from lossopt import _mesh, _paths, _shardings
from lossopt._typing import PyTree

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def describe(
    tree: PyTree,
    mesh: Mesh | AbstractMesh,
    rules: _shardings.Rules = (),
    *,
    axes: Mapping[str, str | Sequence[str]] | None = None,
) -> str:
    """A table of where `parallel.shardings` puts each leaf, and of the bytes on each device.

    Args:
      tree: as `shardings` takes it; so are all others.
      mesh: likewise.
      rules: likewise.
      axes: likewise.

    Returns:
      A line for each leaf: its path, shape, dtype, spec and bytes on one device; then their sum, at
      rest and at peak, when a step has gathered what lies over `data` and `fsdp`. The peak is of
      these leaves alone; `parallel.plan` knows that of a step.

    Raises:
      ValueError: as `shardings`.

    Examples:
      >>> tree = {"kernel": jnp.zeros((64, 512)), "bias": jnp.zeros(64)}
      >>> print(lo.parallel.describe(tree, lo.parallel.mesh(data=1, fsdp=8)).splitlines()[-1])
      at peak, gathered  144.2 KiB
    """
    leaves, paths = jax.tree.leaves(tree), _paths.paths(tree)
    specs = [x.spec for x in jax.tree.leaves(_shardings.shardings(tree, mesh, rules, axes=axes))]
    over = _mesh.axes_of(mesh, axes).rows
    size = lambda x, spec: (
        math.prod(jnp.shape(x))
        * jnp.result_type(x).itemsize
        // _mesh.size(mesh, _shardings.names(spec))
    )
    own = [size(x, spec) for x, spec in zip(leaves, specs)]
    whole = [size(x, _shardings.without(spec, over)) for x, spec in zip(leaves, specs)]
    gathered = sum(much for much, little in zip(whole, own) if much != little)
    lines = [
        [path, " x ".join(map(str, jnp.shape(x))) or "()", str(jnp.result_type(x)), _short(spec)]
        for path, x, spec in zip(paths, leaves, specs)
    ]
    table = columns([[*line, in_words(n)] for line, n in zip(lines, own)], "<><<>")
    sums = {
        "one device alone": sum(size(x, _shardings.EVERYWHERE) for x in leaves),
        f"each of {mesh.size} at rest": sum(own),
        "at peak, gathered": sum(own) + gathered,
    }
    below = columns([[name, in_words(n)] for name, n in sums.items()], "<>")
    return "\n".join([*table, "", *below])


def in_words(size: float) -> str:
    """A number of bytes."""
    power = min(int(math.log2(max(size, 1))) // 10, len(_UNITS) - 1)
    return f"{size / 2 ** (10 * power):.{min(power, 1)}f} {_UNITS[power]}"


def columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines whose columns stand below each other, each to the left, `"<"`, or to the right."""
    rows = [[*row, *[""] * (len(sides) - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = [[f"{x:{side}{n}}" for x, side, n in zip(row, sides, widths)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def _short(spec):
    return str(spec).replace("PartitionSpec", "P")
