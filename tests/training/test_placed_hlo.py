"""What a step on a mesh compiles to: what is moved, computed and held, and the bits of it."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from tests import placed

pytestmark = pytest.mark.usefixtures("optimized", "uncached")
BIAS, KERNEL, HEAD = (64,), (16, 64), (24, 64)  # sorted shapes of the gradient's leaves
SHARDED = KERNEL, HEAD
SHARDS = (8, 16), (8, 24)
PRODUCTS = 2 * placed.ROWS * (2 * 16 * 64 + 3 * 64 * 24)  # multiplications and additions


@cache
def _compiled(partition, lowering="auto", microbatches=1, kind="auto"):
    return placed.program(
        placed.objective,
        optax.adamw(1e-2),
        placed.params(),
        placed.batch("last"),
        placed.mesh(kind),
        microbatches,
        partition=partition,
        lowering=lowering,
    )


@cache
def _stepped(*program):
    """The parameters after 20 steps."""
    state, cut, run = _compiled(*program)
    sharding, _ = run.input_shardings
    cut = jax.device_put(cut, sharding[1])
    state = jax.tree.map(partial(jnp.array, copy=True), state)
    for _ in range(20):
        state, _ = run(state, cut, None, None)
    return jax.tree.map(np.asarray, state.params)


def _flops(program):
    return program.cost_analysis()["flops"]


class TestMoved:
    """Operands of collectives; all other operands are scalars.

    On auto sharding with microbatches each gradient is summed once in the loop, and once for the
    smaller last piece: XLA does not take the sum out of the loop.
    """

    @pytest.mark.parametrize(
        ("lowering", "microbatches", "kind", "sums"),
        [
            ("auto", 1, "auto", 1),
            ("auto", 3, "auto", 2),
            ("shard_map", 3, "auto", 1),
            ("auto", 3, "explicit", 2),
        ],
    )
    def test_data_parallel_sums_each_gradient(self, lowering, microbatches, kind, sums):
        text = _compiled("data", lowering, microbatches, kind)[2].as_text()
        assert placed.moved(text) == {("all-reduce", x): sums for x in (BIAS, *SHARDED)}

    @pytest.mark.parametrize(("microbatches", "kind"), [(1, "auto"), (3, "auto"), (1, "explicit")])
    def test_fsdp_gathers_each_leaf_once(self, microbatches, kind):
        text = _compiled("fsdp", "auto", microbatches, kind)[2].as_text()
        sums = 1 if microbatches == 1 else 2
        gathers = {("all-gather", x): 1 for x in SHARDED}
        assert placed.moved(text) == gathers | {("all-reduce", x): sums for x in (BIAS, *SHARDED)}

    def test_shard_map_scatters_each_leaf_once(self):
        text = _compiled("fsdp", "shard_map", 3)[2].as_text()
        want = {("all-gather", x): 1 for x in SHARDED}
        want |= {("reduce-scatter", x): 1 for x in SHARDS}
        assert placed.moved(text) == want | {("all-reduce", BIAS): 1}

    def test_zero1_gathers_what_was_updated(self):
        text = _compiled("zero1")[2].as_text()
        want = {("all-gather", x): 1 for x in SHARDED}
        assert placed.moved(text) == want | {("all-reduce", x): 1 for x in (BIAS, *SHARDED)}


@pytest.mark.parametrize("partition", ["data", "fsdp"])
def test_each_device_computes_its_part_of_the_products(partition):
    """Of a loop one round is counted."""
    each = PRODUCTS / placed.DEVICES
    beside = 25 * sum(x.size for x in jax.tree.leaves(placed.params()))  # AdamW, sums
    assert each < _flops(_compiled(partition)[2]) < each + beside
    assert _flops(_compiled(partition, "auto", 3)[2]) < 5 / 8 * each + beside


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("partition", ["zero1", "fsdp"])
def test_20_steps_are_those_of_data_parallel_to_the_bit(partition, microbatches):
    """With a penalty on each number of the parameters, and a smaller last piece, XLA:CPU may
    contract a multiplication and an addition in one program and not in the other: a last bit.
    """
    want = _stepped("data", "auto", microbatches)
    jax.tree.map(np.testing.assert_array_equal, _stepped(partition, "auto", microbatches), want)


def test_rows_that_are_left_over_give_the_same_bits_too():
    """All devices compute them whole, also where each keeps a part of the gradient alone."""
    found = []
    for partition in ("data", "fsdp"):
        options = {"mesh": placed.mesh("auto"), "partition": partition}
        init, step = lo.train_step(placed.objective, optax.adam(0.01), **options)
        state = init(placed.params())
        for _ in range(3):
            state, _ = step(state, placed.batch("all", 5))
        found.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, found))


@pytest.mark.parametrize("partition", ["data", "fsdp"])
def test_20_steps_in_shard_map(partition):
    want = _stepped("data", "auto", 3)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, _stepped(partition, "shard_map", 3), want)


@pytest.mark.parametrize(("partition", "kind"), [("zero1", "auto"), ("fsdp", "explicit")])
def test_each_device_holds_its_part(partition, kind):
    """Of the optimizer's state, in FSDP of the parameters too."""
    params = {"first": np.ones((64, 256)), "bias": np.zeros(64), "last": np.ones((256, 64))}
    options = {"mesh": placed.mesh(kind), "partition": partition}
    init, _ = lo.train_step(placed.objective, optax.adam(0.1), **options)
    state = init(jax.tree.map(np.float32, params))
    for held in (state.opt_state, state.params)[: 1 + (partition == "fsdp")]:
        whole = sum(x.nbytes for x in jax.tree.leaves(held))
        for device in jax.devices():
            assert placed.bytes_on(device, held) <= 1.05 * whole / placed.DEVICES


LAYERS, SIDE = 16, 128


def _stack():
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32) / 25
    params = {"layers": {"kernel": draw(LAYERS, SIDE, SIDE), "bias": draw(LAYERS, SIDE)}}
    return params, {"x": draw(placed.ROWS, SIDE), "y": draw(placed.ROWS, SIDE)}


def _scanned(params, batch):
    def block(x, layer):
        layer = lo.parallel.gathered(layer)
        return x + jnp.tanh(x @ layer["kernel"] + layer["bias"][None]), None

    x, _ = jax.lax.scan(jax.checkpoint(block), batch["x"], params["layers"])
    return {"fit": lo.mean(jnp.sum(jnp.square(x - batch["y"]), 1))}


@cache
def _alone():
    """The parameters after a step on one device."""
    params, batch = _stack()
    init, step = lo.train_step(_scanned, optax.sgd(0.1))
    return jax.jit(step)(init(params), batch)[0].params


@pytest.mark.parametrize("lowering", ["auto", "shard_map"])
def test_layers_gathered_in_the_scan(lowering):
    """In its body the kernels are gathered once forward and once backward, of each a layer."""
    params, batch = _stack()
    options = {"mesh": placed.mesh(), "partition": "fsdp", "lowering": lowering}
    make = lambda **more: placed.program(_scanned, optax.sgd(0.1), params, batch, **options, **more)
    held, after = [], []
    for state, cut, run in (make(), make(gather="layers/kernel")):
        held.append(placed.temporary(run))
        moved = placed.moved(run.as_text())
        cut = jax.device_put(cut, run.input_shardings[0][1])
        after.append(run(state, cut, None, None)[0].params)
    assert held[1] <= 0.25 * held[0]
    jax.tree.map(np.testing.assert_array_equal, *after)
    alone = _alone()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), after[1], alone)
    gathers = {shape: n for (kind, shape), n in moved.items() if kind == "all-gather"}
    assert gathers == {(SIDE, SIDE): 2, (LAYERS, SIDE): 1}


def test_gathered_refuses_what_is_no_part_of_the_parameters():
    def objective(params, batch):
        return {"fit": lo.mean(batch["x"] @ lo.parallel.gathered({"other": params["kernel"]}))}

    init, step = lo.train_step(objective, optax.sgd(0.1), mesh=placed.mesh(), check=False)
    with pytest.raises(ValueError, match="as a part of one"):
        step(init({"kernel": jnp.ones(16)}), placed.batch())
