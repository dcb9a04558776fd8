"""The step on 8 simulated devices is that of one: values, gradients, uses and what is refused."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lossopt as lo
from tests import placed
from tests.counted import counted

pytestmark = pytest.mark.usefixtures("uncached")
MASKS = "all", "first", "last", "none"
REMEMBERS = optax.sgd(0.1, momentum=0.9)


def _agrees(state, measured, params, batch, tolerance):
    """The value and the gradient of a first step are those by hand."""
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    value, gradient = placed.reference(params, batch)
    close(measured.value, value)
    jax.tree.map(close, _gradient(state), gradient)


def _gradient(state):
    """What the momentum remembers of a first step."""
    return state.opt_state[0].trace


def _steps(microbatches, dtype, rows=placed.ROWS, masks=MASKS, **options):
    """A first step under each mask."""
    tolerance = {np.float32: 1e-6, np.float64: 1e-12}[dtype]
    params = placed.params(dtype)
    with jax.enable_x64(dtype is np.float64):
        init, step = lo.train_step(
            placed.objective, REMEMBERS, microbatches=microbatches, **options
        )
        for mask in masks:
            batch = placed.batch(mask, rows, dtype)
            _agrees(*step(init(params), batch), params, batch, tolerance)


class TestValueAndGradient:
    """`benchmarks/parallel.py --laws` has the whole matrix."""

    @pytest.mark.parametrize(
        ("partition", "lowering", "microbatches", "kind", "sizes", "dtype"),
        [
            ("data", "auto", 3, "auto", (8, 1), np.float64),
            ("data", "shard_map", 3, "explicit", (8, 1), np.float64),
            ("zero1", "auto", 3, "explicit", (8, 1), np.float64),
            ("zero1", "shard_map", 1, "auto", (2, 4), np.float64),
            ("fsdp", "auto", 1, "auto", (2, 4), np.float64),
            ("fsdp", "auto", 3, "explicit", (1, 8), np.float64),
            ("fsdp", "shard_map", 3, "auto", (2, 4), np.float64),
            ("fsdp", "auto", 3, "auto", (1, 8), np.float32),
            ("fsdp", "shard_map", 1, "explicit", (1, 8), np.float32),
        ],
    )
    def test_on_a_mesh(self, partition, lowering, microbatches, kind, sizes, dtype):
        options = {"partition": partition, "lowering": lowering}
        _steps(microbatches, dtype, mesh=placed.mesh(kind, sizes), **options)

    @pytest.mark.parametrize(
        ("rows", "lowering", "microbatches", "kind"),
        [
            (61, "auto", 3, "auto"),
            (61, "shard_map", 3, "explicit"),
            (5, "auto", 1, "explicit"),
            (5, "shard_map", 2, "auto"),
        ],
    )
    def test_rows_that_devices_do_not_divide(self, rows, lowering, microbatches, kind):
        """Those that are left over are computed alike on all, and count once."""
        options = {"mesh": placed.mesh(kind, (2, 4)), "partition": "fsdp", "lowering": lowering}
        _steps(microbatches, np.float64, rows, ("all", "last"), **options)

    @pytest.mark.parametrize("transform", [jax.pmap, jax.vmap])
    def test_in_a_map(self, transform):
        with jax.enable_x64(True):
            init, step = lo.train_step(
                placed.objective, REMEMBERS, microbatches=3, axis_name="devices"
            )
            run = jax.jit(transform(step, axis_name="devices"))
            params = placed.params(np.float64)
            state = jax.tree.map(lambda x: jnp.stack([x] * placed.DEVICES), init(params))
            for mask in MASKS:
                batch = placed.batch(mask, dtype=np.float64)
                shares = jax.tree.map(lambda x: x.reshape(placed.DEVICES, -1, *x.shape[1:]), batch)
                after, measured = jax.tree.map(_same_on_all, run(state, shares))
                _agrees(after, measured, params, batch, 1e-12)


def _same_on_all(x):
    np.testing.assert_array_equal(x, np.stack([x[0]] * placed.DEVICES))
    return x[0]


TOKENS = np.array([51, 3, 8, 60, 22, 31, 5, 40, 17, 29, 12, 64, 2, 38, 49, 11])  # of each row


def _routed(params, batch):
    """A token loss, and what keeps the experts of each row evenly used."""
    gates = jax.nn.softmax(batch["x"] @ params["router"])
    outputs = jnp.sum(gates * (batch["x"] @ params["experts"]), -1)
    fit = lo.mean(jnp.square(outputs - batch["y"]), batch["mask"])
    share = jnp.mean(gates, 1)
    return {"fit": fit, "balance": 0.1 * lo.mean(jnp.sum(jnp.square(share), -1))}


@pytest.mark.parametrize("lowering", [None, "auto", "shard_map"])
def test_pieces_and_devices_do_not_change_the_gradient_of_a_router(lowering):
    """16 rows of 442 tokens in 4 pieces, on 1, 2 and 8 devices."""
    assert TOKENS.sum() == 442
    random = np.random.default_rng(0)
    mask = np.arange(64) < TOKENS[:, None]
    x, y = random.normal(size=(16, 64, 4)), random.normal(size=(16, 64))
    batch = {"x": x, "y": y, "mask": mask.astype(float)}
    params = {"router": random.normal(size=(4, 3)), "experts": random.normal(size=(4, 3))}
    with jax.enable_x64(True):
        want = jax.jit(jax.grad(lambda p: lo.value(_routed(p, batch))))(params)
        for devices in (2, 8) if lowering else (1,):
            place = {}
            if lowering:
                place = {"mesh": lo.parallel.mesh(data=devices), "lowering": lowering}
            init, step = lo.train_step(_routed, REMEMBERS, microbatches=4, **place)
            step = step if lowering else jax.jit(step)
            got = _gradient(step(init(params), batch)[0])
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), got, want)


def _fsdp(objective=placed.objective, optimizer=REMEMBERS, kind="auto", **options):
    mesh = placed.mesh(kind)
    return lo.train_step(objective, optimizer, mesh=mesh, partition="fsdp", **options)


def _lies(state):
    return [x.sharding for x in jax.tree.leaves(state)]


class TestCalls:
    @pytest.mark.parametrize("kind", placed.KINDS)
    def test_a_second_call_compiles_nothing_and_the_state_is_donated(self, kind):
        init, step = _fsdp(kind=kind)
        batch = placed.batch()
        first = init(placed.params())
        second, _ = step(first, batch)
        assert _lies(second) == _lies(first)
        assert all(x.is_deleted() for x in jax.tree.leaves(first))
        third, _ = step(second, batch)
        with counted() as count:
            third, _ = step(third, batch)
            with jax.set_mesh(placed.mesh(kind)):
                third, _ = step(third, batch)
                again = init(placed.params())
                again, _ = step(again, batch)
        assert vars(count) == {"traces": 0, "lowered": 0, "compiled": 0}
        assert int(third.count) == 4

    @pytest.mark.parametrize("rows", [1 << 15, (1 << 15) + 2])
    def test_the_memory_of_a_batch_may_be_written_to_at_once(self, rows):
        """As a loader does that has one buffer for all its batches."""
        later = lambda x: jax.lax.fori_loop(0, 9, lambda _, y: jnp.cos(y), x)
        slow = lambda params, batch: lo.mean((batch + 0 * later(batch)) @ params)
        init, step = lo.train_step(slow, optax.sgd(0.0), mesh=lo.parallel.mesh())
        state, values = init(np.full(8, 1 / 8, np.float32)), []
        batch = _on_lines(np.empty((rows, 8), np.float32))
        for number in range(8):
            batch[:] = number
            state, measured = step(state, batch)
            values.append(measured.value)
        np.testing.assert_allclose(values, np.arange(8), rtol=1e-6)

    def test_an_objective_may_name_an_axis_of_one_device(self):
        """`fsdp` of `mesh()`: whoever names both axes need not know how many devices each has."""
        every = lambda x: jax.lax.pmean(x, ("data", "fsdp"))
        options = {"mesh": lo.parallel.mesh(), "lowering": "shard_map"}
        init, step = lo.train_step(lambda w, x: lo.mean(every(x) * w), REMEMBERS, **options)
        _, measured = step(init(np.float32(2)), np.arange(8, dtype=np.float32))
        assert float(measured.value) == 7

    def test_an_objective_may_gather_over_both_axes(self):
        """It is judged as of one device, which no nested map allows here."""
        every = lambda x: jax.lax.all_gather(x, ("data", "fsdp"), tiled=True)
        options = {"mesh": lo.parallel.mesh(data=2, fsdp=4), "lowering": "shard_map"}
        init, step = lo.train_step(lambda w, x: lo.mean(every(x) * w), REMEMBERS, **options)
        state, measured = step(init(np.float32(2)), np.arange(8, dtype=np.float32))
        assert (float(measured.value), float(_gradient(state))) == (7, 3.5)

    def test_a_state_that_was_taken(self):
        init, step = _fsdp()
        state = init(placed.params())
        step(state, placed.batch())
        with pytest.raises(ValueError, match=r"that no step has taken.*what the step gave back"):
            step(state, placed.batch())

    def test_functions_that_make_the_start(self):
        """It lies as that of arrays does, and no device holds the whole of it."""
        make = lambda: {"kernel": jax.random.normal(jax.random.key(0), (512, 1024))}
        init, _ = _fsdp(optimizer=optax.adam(0.1))
        made, given = init(make), init(jax.jit(make)())
        jax.tree.map(np.testing.assert_array_equal, made, given)
        assert _lies(made) == _lies(given)
        program = jax.jit(lambda: init(make)).lower().compile()
        whole = made.params["kernel"].nbytes
        assert placed.temporary(program) <= 0.5 * whole  # of three of them

    def test_a_module_that_can_be_called_is_a_tree(self):
        init, step = _fsdp(lambda model, batch: {"fit": lo.mean(model(batch["x"]))})
        state = init(_Model(jnp.ones((placed.FEATURES, 64))))
        state, _ = step(state, placed.batch())
        mean = placed.batch()["x"].mean(0, dtype=np.float64) / 64
        np.testing.assert_allclose(
            state.params.kernel, 1 - 0.1 * np.stack([mean] * 64, 1), rtol=1e-6
        )

    @pytest.mark.parametrize("kind", placed.KINDS)
    def test_in_a_program_of_the_user(self, kind):
        init, step = _fsdp(kind=kind)
        batches = jax.tree.map(lambda x: np.stack([x] * 3), placed.batch())
        state, measured = jax.jit(lambda s, b: jax.lax.scan(step, s, b))(
            init(placed.params()), batches
        )
        alone = init(placed.params())
        for value in measured.value:
            alone, one = step(alone, placed.batch())
            np.testing.assert_allclose(value, one.value, rtol=1e-6)
        close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, state.params, alone.params)


def _on_lines(x):
    """In memory that begins where that of devices may, so that jax need not copy it."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    own = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    own[:] = x
    return own


@jax.numpy_rank_promotion("allow")
def test_statistics_of_nnx_in_shard_map():
    """Modules that write to themselves; each device normalizes its rows, then they are averaged."""
    own = nnx.BatchNorm(4, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    graph, statistics = nnx.split(own)

    def objective(params, batch, model_state):
        norm = nnx.merge(graph, model_state)
        loss = jnp.mean(params * norm(batch, use_running_average=False), axis=1)
        return {"fit": lo.mean(loss)}, {"model_state": nnx.state(norm, nnx.BatchStat)}

    options = {"mesh": lo.parallel.mesh(), "lowering": "shard_map", "has_aux": True}
    init, step = lo.train_step(objective, REMEMBERS, **options)
    batch = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    state, _ = step(init(np.ones(4, np.float32), statistics), batch)
    mean = 0.01 * batch.mean(0, dtype=np.float64)
    np.testing.assert_allclose(state.model_state["mean"][...], mean, atol=1e-7)


@partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=[])
@dataclass(frozen=True)
class _Model:
    kernel: jax.Array

    def __call__(self, x):
        return jnp.mean(x @ self.kernel, 1)


def _dropping(params, batch, *, key, model_state, hyperparameters):
    """Dropout, a running mean, a strength and a metric."""
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    hidden = hidden * jax.random.bernoulli(key, hyperparameters["keep"], hidden.shape)
    now = 0.9 * model_state["mean"] + 0.1 * jnp.mean(hidden, 0)
    errors = jnp.sum(
        jnp.square((hidden - model_state["mean"][None]) @ params["head"]["kernel"] - batch["y"]), 1
    )
    penalty = hyperparameters["strength"] * jnp.sum(params["hidden"]["bias"] ** 2)
    terms = {"fit": lo.mean(errors, batch["mask"]), "penalty": lo.constant(penalty)}
    return terms, {"metrics": {"used": lo.mean(hidden != 0)}, "model_state": {"mean": now}}


@pytest.mark.parametrize(
    ("partition", "lowering", "microbatches", "keep"),
    [("data", "auto", 1, 0.5), ("fsdp", "auto", 2, 0.5), ("fsdp", "shard_map", 1, 1.0)],
)
def test_dropout_states_and_numbers_are_those_of_one_device(
    partition, lowering, microbatches, keep
):
    """In `shard_map` each device has random numbers and a state between pieces of its own."""
    given = {"hyperparameters": {"strength": 0.3, "rate": 0.1, "keep": keep}}
    start = placed.params(), {"mean": np.zeros(placed.WIDTH, np.float32)}
    optimizer = lambda numbers: optax.adam(numbers["rate"])
    after = []
    for place in ({}, {"mesh": placed.mesh(), "partition": partition, "lowering": lowering}):
        init, step = lo.train_step(
            _dropping, optimizer, microbatches=microbatches, has_aux=True, **place
        )
        step = step if place else jax.jit(step)
        state = init(*start, **given)
        steps = partial(step, batch=placed.batch("last"), **given)
        for i in range(2):
            state, _ = steps(state, key=jax.random.key(i))
        state, measured = steps(state, key=jax.random.key(2))
        after.append((state, measured))
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, *after)


L1 = lo.regularizers.L1(1e-3)
OPTIMIZERS = {
    "adam with a regularizer, averaged": (
        lo.transforms.average(lo.transforms.adam(1e-2, regularizer=L1), decay=0.9),
        np.float32,
    ),
    "quantized": (lo.transforms.quantized(lo.transforms.adam(1e-2)), np.float32),
    "kahan": (lo.transforms.kahan(optax.adam(1e-2)), jnp.bfloat16),
}


def _regularized(params, batch):
    return placed.objective(params, batch) | {"l1": lo.constant(L1(params), gradient=False)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_lies_as_its_parameter_does(name):
    """What has its path and its shape; else it is spread by itself."""
    optimizer, dtype = OPTIMIZERS[name]
    objective = _regularized if "regularizer" in name else placed.objective
    states = []
    for partition in ("data", "fsdp"):
        init, step = lo.train_step(objective, optimizer, mesh=placed.mesh(), partition=partition)
        state = init(placed.params(dtype))
        for _ in range(3):
            state, _ = step(state, placed.batch())
        states.append(state)
    like = {x.shape: x.sharding for x in jax.tree.leaves(states[1].params)}
    found = [x for x in jax.tree.leaves(states[1].opt_state) if x.size >= 1024]
    assert found
    for x in found:
        assert not x.is_fully_replicated
        assert x.sharding == like.get(x.shape, x.sharding)
    spread = {x.shape for x in jax.tree.leaves(states[1].opt_state) if not x.is_fully_replicated}
    assert spread >= (set() if name == "quantized" else {(16, 64), (64, 24)})
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda x, y: close(np.float32(x), np.float32(y)), *[s.params for s in states])


@pytest.mark.parametrize("lowering", ["auto", "shard_map"])
def test_a_line_search_on_devices(lowering):
    """Its steps are those of one device."""
    rule = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))
    after = []
    for place in ({}, {"mesh": placed.mesh(), "lowering": lowering}):
        init, step = lo.train_step(placed.objective, rule, **place)
        step = step if place else jax.jit(step)
        state, values = init(placed.params()), []
        for _ in range(4):
            state, measured = step(state, placed.batch("all"))
            values.append(measured.value)
        after.append(values)
    assert after[0][-1] < 0.7 * after[0][0]
    np.testing.assert_allclose(*after, rtol=1e-5)


def test_a_loader_may_write_its_next_batch_where_the_last_one_was():
    """An array of jax shares memory that is aligned, on a CPU."""
    raw = np.zeros(4096 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    batch = raw[start : start + 4096].view(np.float32)
    init, step = lo.train_step(_still, optax.sgd(0.0), mesh=lo.parallel.mesh(data=1))
    state, values = init(0.0), []
    for number in range(5):
        batch[:] = number
        state, measured = step(state, batch)
        batch[:] = np.nan
        values.append(measured.value)
    assert list(map(round, map(float, values))) == [0, 1, 2, 3, 4]


def _still(w, batch):
    slow = jax.lax.fori_loop(0, 30, lambda _, x: jnp.sin(x) @ jnp.eye(400), jnp.ones((400, 400)))
    return {"fit": lo.mean(batch + 0 * w + 1e-30 * slow[0, 0])}
