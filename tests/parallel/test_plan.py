"""What a plan says, against the arrays and programs of `train_step`, and by hand."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

import lossopt as lo
from lossopt import _jax
from lossopt._place import parted
from lossopt.training import _layout, _placed, _step

pytestmark = pytest.mark.usefixtures("uncached")

ROWS, P = 128, 2 * 64 * 256  # rows of a batch, parameters
PARTITIONS = get_args(_layout.Partition)
SHAPES = {
    "first": jax.ShapeDtypeStruct((64, 256), jnp.float32),
    "last": jax.ShapeDtypeStruct((256, 64), jnp.float32),
}
OPTIMIZER = optax.adam(1e-3)


def objective(params, batch):
    out = jnp.tanh(batch["x"] @ params["first"]) @ params["last"]
    return {"fit": lo.mean(jnp.sum((out - batch["y"]) ** 2, axis=-1))}


def arrays():
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), SHAPES)


def batch(rows=ROWS):
    return {name: jax.ShapeDtypeStruct((rows, 64), jnp.float32) for name in "xy"}


def fsdp_mesh(devices=8):
    return AbstractMesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,))


@pytest.fixture(scope="module")
def plans():
    mesh = lo.parallel.mesh(data=1, fsdp=-1)
    given = objective, OPTIMIZER, SHAPES, batch(), mesh
    return {name: lo.parallel.plan(*given, partition=name) for name in PARTITIONS}


class TestAgainstWhatIsTrained:
    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_bytes_at_rest(self, plans, partition):
        mesh, plan = lo.parallel.mesh(data=1, fsdp=-1), plans[partition]
        init, _ = lo.train_step(objective, OPTIMIZER, mesh=mesh, partition=partition)
        state = init(arrays)
        on_first = lambda tree: sum(
            shard.data.nbytes
            for x in jax.tree.leaves(tree)
            for shard in x.addressable_shards
            if shard.device == mesh.devices.flat[0]
        )
        assert plan.parameters == on_first(state.params)
        assert plan.optimizer == on_first((state.opt_state, state.count))
        assert plan.at_rest == on_first(state)

    def test_memory_of_the_program(self, plans):
        mesh = lo.parallel.mesh(data=1, fsdp=-1)
        layout = _layout.layout(mesh, "fsdp", "auto", None, (), True)
        placed = _placed.placed(_step.Recipe(objective, OPTIMIZER), layout, True)
        rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch())
        rows = jax.device_put(rows, jax.NamedSharding(mesh, jax.P("fsdp")))
        with jax.set_mesh(mesh):
            state = placed.init(arrays())
            program = placed.program(state).lower(state, parted(rows, 8), None, None).compile()
        memory = program.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        assert 0 < new < 1000  # all of the state is donated
        assert plans["fsdp"].peak == held + new
        assert memory.argument_size_in_bytes == plans["fsdp"].at_rest + plans["fsdp"].batch
        assert plans["fsdp"].collectives == lo.parallel.collectives(program)


class TestByHand:
    """`moved` is that of a ring, (n - 1) / n of the parameters and twice that for a sum."""

    def test_at_rest(self, plans):
        counts = 8  # of Adam and of the step
        assert {name: (x.parameters, x.optimizer) for name, x in plans.items()} == {
            "data": (4 * P, 8 * P + counts),
            "zero1": (4 * P, P + counts),
            "fsdp": (P // 2, P + counts),
        }

    def test_arrays_are_moved(self, plans):
        def large(plan):
            sizes = {}
            for x in plan.collectives:
                if x.shape:
                    sizes[x.kind] = sizes.get(x.kind, 0) + x.times * x.bytes
            return sizes

        assert large(plans["data"]) == {"all-reduce": 4 * P}
        both = {"all-reduce": 4 * P, "all-gather": 4 * P}
        assert large(plans["zero1"]) == large(plans["fsdp"]) == both
        near = lambda moved, share: abs(moved - share * 4 * P * 7 / 8) < 100
        assert near(plans["data"].moved, 2)
        assert near(plans["fsdp"].moved, 3)

    def test_products_are_divided(self, plans):
        """Of a row 2 P forward and 2 P for gradients, and P for that of what is in between."""
        assert {plan.operations for plan in plans.values()} == {ROWS // 8 * 5 * P}

    def test_batch_and_model_state_and_pieces(self):
        """Of 130 rows each device has 16, and the other 2; a key is no part of it."""

        def with_state(params, batch, key, model_state, hyperparameters):
            kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
            means = objective(params, batch | {"x": batch["x"] * kept})
            scaled = hyperparameters["scale"] * means["fit"]
            return {"fit": scaled}, {"model_state": model_state + 1}

        plan = lo.parallel.plan(
            with_state,
            lambda numbers: optax.sgd(numbers["rate"]),
            arrays,
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch(130)),
            lo.parallel.mesh(data=2, fsdp=4),
            partition="fsdp",
            lowering="shard_map",
            microbatches=2,
            has_aux=True,
            model_state=np.zeros(300, np.float32),
            hyperparameters={"rate": 0.1, "scale": np.float32(2)},
        )
        assert plan.batch == (16 + 2) * 2 * 64 * 4
        assert plan.model_state == 1200
        assert plan.optimizer == 4  # the count of steps
        assert plan.parameters == P  # 4 of 4 bytes
        assert plan.operations == (16 + 2) * 5 * P
        gathered = [x for x in plan.collectives if x.kind == "all-gather"]
        assert [(x.bytes, x.devices) for x in gathered] == [(2 * P, 4)] * 2


class TestAbstract:
    def test_as_many_as_there_are(self, plans):
        plan = lo.parallel.plan(
            objective, OPTIMIZER, arrays(), batch(), fsdp_mesh(), partition="fsdp"
        )
        assert plan == dataclasses.replace(plans["fsdp"], mesh={"fsdp": 8})

    def test_simulated_as_the_real_ones(self, plans, monkeypatch):
        one = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda: one)
        plan = lo.parallel.plan(
            objective, OPTIMIZER, SHAPES, batch(), fsdp_mesh(), partition="fsdp"
        )
        same = {"mesh": {"fsdp": 8}, "platform": "simulated cpu"}
        assert plan == dataclasses.replace(plans["fsdp"], **same)

    def test_64_devices_of_which_there_are_8(self):
        mesh = AbstractMesh((4, 16), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
        plan = lo.parallel.plan(objective, OPTIMIZER, SHAPES, batch(), mesh, partition="fsdp")
        assert (plan.devices, plan.platform) == (64, "simulated cpu")
        assert (plan.parameters, plan.optimizer) == (4 * P // 16, 8 * P // 16 + 8)
        assert plan.operations == ROWS // 64 * 5 * P
        assert {x.devices for x in plan.collectives if x.kind == "all-gather"} == {16}

    def test_a_version_that_cannot_simulate_says_what_to_do(self, monkeypatch):
        monkeypatch.setattr(_jax.xla_client, "make_cpu_client", lambda: None)
        with pytest.raises(TypeError) as caught:
            lo.parallel.plan(objective, OPTIMIZER, SHAPES, batch(), fsdp_mesh(9))
        assert "device_count=9" in caught.value.__notes__[0]

    def test_trains_on_none(self):
        mesh: Any = fsdp_mesh()
        with pytest.raises(TypeError, match=r"Mesh of devices.*lossopt\.parallel\.plan says"):
            lo.train_step(objective, OPTIMIZER, mesh=mesh)


def test_prints_what_one_copies(plans):
    lines = str(plans["fsdp"]).splitlines()
    assert lines[0] == "8 devices, data 1 x fsdp 8: fsdp, auto, for cpu"
    words = [line.split() for line in lines]
    assert ["parameters", "16.0", "KiB"] in words
    assert ["at", "rest", "48.0", "KiB"] in words
    assert ["products", "2.621", "Mflop"] in words
    assert ["all-gather", "of", "2", "128.0", "KiB", "112.0", "KiB"] in words
    assert len({len(line) for line in lines[1:9]}) == 1  # below each other


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"microbatches": 200, "lowering": "shard_map"}, "microbatches <= 128"),
        ({"params": {"first": np.zeros((64, 256), int)}}, "floating params"),
        ({"batch": {"x": np.zeros((4, 64)), "y": np.zeros((5, 64))}}, "rows"),
        ({"rules": [("middle", jax.P())]}, "'middle' takes no leaf"),
        ({"mesh": 8}, "Expected mesh as a"),
    ],
)
def test_refuses_what_a_step_would(changed, message):
    given = {"params": SHAPES, "batch": batch(), "mesh": fsdp_mesh()} | changed
    with pytest.raises((TypeError, ValueError), match=message):
        lo.parallel.plan(objective, OPTIMIZER, **given)
