"""Meshes, and which of their axes are whose."""

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _mesh

THREE = AbstractMesh((2, 4, 3), ("data", "fsdp", "model"))
OTHER = AbstractMesh((2, 4, 3), ("replica", "shard", "model"))
HALF = AbstractMesh((2, 4), ("data", "shard"))
ONE = AbstractMesh((8,), ("x",))


class TestMesh:
    @pytest.mark.parametrize(
        ("sizes", "shape"),
        [
            ({}, (8, 1)),
            ({"fsdp": 4}, (2, 4)),
            ({"fsdp": -1, "data": 1}, (1, 8)),
            ({"fsdp": -1, "data": 2}, (2, 4)),
            ({"data": 3}, (3, 1)),
            ({"data": 1}, (1, 1)),
            ({"data": 2, "fsdp": 3}, (2, 3)),
        ],
    )
    def test_sizes(self, sizes, shape):
        mesh = lo.parallel.mesh(**sizes)
        assert mesh.axis_names == ("data", "fsdp")
        assert mesh.devices.shape == shape
        assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
        assert {x.id for x in mesh.devices.flat} == set(range(mesh.size))

    @pytest.mark.parametrize(
        ("sizes", "error", "match"),
        [
            ({"data": -1, "fsdp": -1}, ValueError, r"-1 for both. Write mesh\(fsdp=-1, data=1\)"),
            ({"data": 16}, ValueError, r"within 8 devices, got data=16, fsdp=1.*cpu_devices', 16"),
            ({"fsdp": 16}, ValueError, r"within 8 devices, got data=-1, fsdp=16.*cpu_devices', 16"),
            ({"fsdp": 3}, ValueError, r"leaves 2 idle.*or write mesh\(data=2, fsdp=3\)"),
            ({"data": 3, "fsdp": -1}, ValueError, r"leaves 2 idle.*mesh\(data=3, fsdp=2\)"),
            ({"data": 0}, ValueError, "data >= 1, got 0"),
            ({"fsdp": -2}, ValueError, "fsdp >= 1, got -2"),
            ({"data": 2.0}, TypeError, "data as a whole number, got 2.0"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, sizes, error, match):
        with pytest.raises(error, match=match):
            lo.parallel.mesh(**sizes)


class TestAxes:
    @pytest.mark.parametrize(
        ("mesh", "axes", "rows", "fsdp"),
        [
            (THREE, None, ("data", "fsdp"), ("fsdp",)),
            (ONE, None, ("x",), ("x",)),
            (ONE, {"data": "x"}, ("x",), ()),
            (OTHER, {"data": "replica", "fsdp": "shard"}, ("replica", "shard"), ("shard",)),
            (OTHER, {"data": "replica"}, ("replica",), ()),
            (OTHER, {"fsdp": ("model", "shard")}, ("shard", "model"), ("shard", "model")),
            (OTHER, {"data": ["shard", "shard"], "fsdp": "shard"}, ("shard",), ("shard",)),
            (OTHER, {"data": None, "fsdp": ()}, (), ()),
            (HALF, {"fsdp": "shard"}, ("data", "shard"), ("shard",)),  # data has its own name
            (HALF, {"fsdp": "shard", "data": ()}, ("shard",), ("shard",)),
            (THREE, {"data": ("data", "fsdp")}, ("data", "fsdp"), ()),
            (AbstractMesh((8, 1), ("data", "fsdp")), None, ("data",), ()),  # of one device
        ],
    )
    def test_are_named_or_said(self, mesh, axes, rows, fsdp):
        assert _mesh.axes_of(mesh, axes) == (rows, fsdp)

    @pytest.mark.parametrize(
        ("mesh", "axes", "error", "match"),
        [
            (OTHER, None, ValueError, r"axis 'data' or 'fsdp', got axes.*axes=\{'data': ...,"),
            (AbstractMesh((), ()), None, ValueError, r"got axes \(\)"),
            (OTHER, {"data": "rows"}, ValueError, "among those of mesh.*got 'rows'. Correct axes="),
            (OTHER, {"rows": "replica"}, ValueError, r"'data' and 'fsdp' in axes, got \['rows'\]"),
            (OTHER, ("replica", "shard"), TypeError, r"axes as a dict.*Write axes=\{'data'"),
            (jax.devices()[:2], None, TypeError, r"got \[.*Make one with lossopt.parallel.mesh\("),
            (8, None, TypeError, "mesh as a jax.sharding.Mesh, got 8"),
        ],
    )
    def test_what_nobody_can_read_is_refused(self, mesh, axes, error, match):
        with pytest.raises(error, match=match):
            _mesh.axes_of(mesh, axes)

    def test_a_sharding_is_no_mesh(self):
        with pytest.raises(TypeError, match="got NamedSharding"):
            _mesh.axes_of(NamedSharding(lo.parallel.mesh(), P()))
