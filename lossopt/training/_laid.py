"""Arrays of a run, put where they lie on a mesh."""

from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt import _jax, _mesh
from lossopt._place import Parted, parted
from lossopt._processes import gathered
from lossopt._shardings import EVERYWHERE
from lossopt._typing import Batch, PyTree
from lossopt.training._arrays import on_device, on_host
from lossopt.training._layout import Layout, auto_mesh
from lossopt.training._step import maker


def laid_rows(layout: Layout, data: Batch, shards: int | None = None) -> Batch | Parted:
    """Rows over the devices, and on all of them the last rows, which shards do not divide.

    Where devices do not divide the shards all rows are on all devices: a batch is drawn there, and
    then cut. Without shards there are as many as devices.
    """
    devices = layout.devices
    with _jax.undisturbed():
        parts = parted(_cuttable(data), shards or devices)
    over = P() if shards and shards % devices else _mesh.spec(layout.axes.rows)
    even, rest = laid(layout, parts.even, over), laid(layout, parts.rest)
    return Parted(even, rest) if rest or not even else even[0]


def laid(layout: Layout, tree: PyTree, spec: P = EVERYWHERE) -> PyTree:
    """Arrays on the mesh, each as the spec says."""
    where = NamedSharding(layout.mesh, spec)
    return jax.tree.map(lambda x: _mesh.put(x, where), tree)


def _cuttable(tree):
    """Arrays on Auto axes where they lie: those of Explicit ones are cut at their devices alone."""

    def auto(x):
        lies = getattr(x, "sharding", None)
        if not isinstance(lies, NamedSharding) or not isinstance(lies.mesh, Mesh):
            return x
        auto = NamedSharding(auto_mesh(lies.mesh), lies.spec)
        return jax.device_put(x, auto) if lies.mesh.explicit_axes else x

    return jax.tree.map(auto, tree)


def laid_batch(layout: Layout | None, batch: Batch, ahead: int = 0) -> Batch | Parted:
    """A batch of a stream, of which each process has its own part; or several, as a stack.

    Rows of which not each device can have as many are on all devices.

    Args:
      layout: on a mesh, or None.
      batch: tree of arrays, the rows of this process.
      ahead: axes before the rows.
    """
    if layout is None:
        return on_device(data=batch)[0]
    batch = _cuttable(*on_host(data=batch))
    leaves = jax.tree.leaves(batch)
    rows = gathered([leaves[0].shape[ahead]])[:, 0]
    each = int(rows.min()) // (layout.devices // len(rows)) * (layout.devices // len(rows))
    cut = lambda part: jax.tree.map(lambda x: x[(*[slice(None)] * ahead, part)], batch)
    over = NamedSharding(layout.mesh, _mesh.spec(layout.axes.rows, ahead))
    with _jax.undisturbed():
        parts = cut(slice(each)), cut(slice(each, None))
    even = jax.tree.map(partial(_mesh.put_part, over), parts[0])
    if (rows == each).all():
        return even
    rest = jax.tree.map(partial(_joined, rows - each, ahead), parts[1])
    return Parted((even,) if each else (), (laid(layout, rest),))


def _joined(rows, ahead, x):
    """The rows that each process holds, on each of them."""
    if len(rows) == 1:
        return x
    room = [(0, 0)] * x.ndim
    room[ahead] = 0, max(rows) - x.shape[ahead]
    parts = process_allgather(np.pad(np.asarray(x), room))
    cut = [part[(*[slice(None)] * ahead, slice(n))] for part, n in zip(parts, rows)]
    return np.concatenate(cut, axis=ahead)


def laid_all(layout: Layout | None, **trees: PyTree) -> list[PyTree]:
    """Trees on all devices; of a function what it makes."""
    made = {name: make() if (make := maker(tree)) else tree for name, tree in trees.items()}
    if layout is None:
        return on_device(**made)
    return [laid(layout, tree) for tree in on_host(**made)]


def resting(layout: Layout | None, params: PyTree) -> tuple[Layout | None, PyTree]:
    """Parameters on the mesh, where they lie if they do, and a layout in which they rest there."""
    (params,) = on_device(params=params) if layout is None else on_host(params=params)
    if layout is None:
        return None, params
    shape = layout.mesh.shape
    found = [getattr(x, "sharding", None) for x in jax.tree.leaves(params)]
    here = [x if isinstance(x, NamedSharding) and x.mesh.shape == shape else None for x in found]
    layout = layout._replace(lying=tuple(x and x.spec for x in here))
    return layout, laid_params(layout, params)


def laid_params(layout: Layout | None, params: PyTree) -> PyTree:
    """Parameters, or what a function makes of them, where they rest; none is ever in one place."""
    make = maker(params)
    if layout is None:
        return on_device(params=params if make is None else make())[0]
    if make is None:
        (params,) = on_host(params=params)
    shapes = params if make is None else jax.eval_shape(make)
    rest = jax.tree.structure(shapes).unflatten(layout.of_params(shapes).rest)
    where = _mesh.placed(layout.mesh, rest)
    if make is None:
        return jax.tree.map(_mesh.put, params, where)
    with _jax.within(layout.mesh):
        return jax.jit(make, out_shardings=where)()
