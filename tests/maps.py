"""The kinds of maps over devices, each as one function."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.regression import at


def _in_pmap_or_vmap(transform, make, params, *args):
    split = lambda x: x.reshape(8, -1, *x.shape[1:])
    mapped = transform(make("devices"), axis_name="devices", in_axes=(None, *[0] * len(args)))
    out = jax.jit(mapped)(params, *jax.tree.map(split, args))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.stack([x[0]] * 8)), out)
    return at(out, 0)


def _in_shard_map(sizes, check, make, params, *args):
    axes = ("rows", "columns")[: len(sizes)]
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(sizes))
    fn = make(axes if len(axes) > 1 else axes[0])
    specs = (P(), *[P(axes)] * len(args))
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
    return jax.jit(mapped)(params, *args)


# Each calls make(axis_name)(params, *args), args split over 8 devices; all must give the same.
MAPS = {
    "pmap": partial(_in_pmap_or_vmap, jax.pmap),
    "vmap": partial(_in_pmap_or_vmap, jax.vmap),
    "shard_map": partial(_in_shard_map, (8,), True),
    "shard_map, check off": partial(_in_shard_map, (8,), False),
    "shard_map, two axes": partial(_in_shard_map, (4, 2), True),
    "shard_map, two axes, check off": partial(_in_shard_map, (4, 2), False),
}
each_map = pytest.mark.parametrize("on_devices", MAPS.values(), ids=MAPS)
