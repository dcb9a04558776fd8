"""What the compiler makes of rows and columns that are spread over eight devices."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from tests.fused.test_laws import FAST, near, run

TOKENS, DEPTH, CLASSES, CHUNK = 256, 32, 320, 8
LINE, GRID = {"data": 8}, {"data": 4, "model": 2}
rng = np.random.default_rng(0)
INPUTS = (
    rng.normal(size=(TOKENS, DEPTH)).astype(np.float32),
    rng.normal(size=(DEPTH, CLASSES)).astype(np.float32),
    rng.integers(0, CLASSES, TOKENS),
    rng.uniform(size=TOKENS).astype(np.float32),
)
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def gradient(features, kernel, labels, weights, **options):
    options = {"memory": lo.fused.Chunks(rows=CHUNK)} | options
    loss = lambda features, kernel: lo.fused.linear_softmax_cross_entropy(
        features, kernel, labels, weights, **options
    )
    return jax.value_and_grad(lambda *pair: loss(*pair).value, (0, 1))(features, kernel)


@pytest.fixture(scope="module")
def want():
    return jax.jit(gradient)(*INPUTS)


def compiled(kind, sizes, specs, **options):
    """The program and its output on a mesh of this kind of axes."""
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    args = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(INPUTS, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        program = jax.jit(partial(gradient, **options)).lower(*args).compile(FAST)
        return program.as_text(), program(*args)


def collectives(text):
    """Each collective of the program: its kind, the shapes it moves, and whether in a loop."""
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    for computation in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \()", text):
        name = re.match(r"\s*(?:ENTRY )?%?([\w.\-]+)", computation)
        for result, kind in re.findall(rf"= (\S.*?) ({KINDS})(?:-start)?\(", computation):
            shapes = [
                tuple(map(int, filter(None, x.split(","))))
                for x in re.findall(r"\[([\d,]*)\]", result)
            ]
            yield kind, shapes, bool(name and name[1] in loops)


def products(text):
    """The shapes of all matrix products, sorted, and how often the loops run."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* dot\(", text)
    shapes = [tuple(int(x) for x in shape.split(",") if x != "1") for shape in shapes]
    trips = re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', text)
    return sorted(shapes), set(map(int, trips))


SPREAD = P("data", None), None, P("data"), P("data")
LAYOUTS = {
    "batch": (LINE, P(None, None), 1),
    "fsdp along depth": (LINE, P("data", None), 1),
    "fsdp along classes": (LINE, P(None, "data"), 1),
    "vocabulary": (GRID, P(None, "model"), 2),
    "vocabulary and fsdp": (GRID, P("data", "model"), 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=("auto", "explicit"))
def test_the_kernel_gradient_is_reduced_once_and_all_devices_share_the_work(kind, layout, want):
    sizes, kernel, parts = LAYOUTS[layout]
    given = {"token_shards": sizes["data"]} if kind == AxisType.Auto and len(sizes) > 1 else {}
    text, got = compiled(kind, sizes, (SPREAD[0], kernel, *SPREAD[2:]), **given)
    near(got, want, 2e-6)
    share, moved = (DEPTH, CLASSES // parts), list(collectives(text))
    in_loop = [loop for kind, shapes, loop in moved if kind == "all-reduce" and share in shapes]
    assert in_loop == [False]
    gathered = [shapes for kind, shapes, loop in moved if kind != "all-reduce"]
    assert all(shapes == [share] for shapes in gathered)  # FSDP: the kernel, where it is used
    assert bool(gathered) == ("fsdp" in layout)
    looped = [math.prod(shape) for _, shapes, loop in moved for shape in shapes if loop]
    assert bool(looped) == (parts > 1)  # numbers of each row, and the features' gradient
    assert all(size <= CHUNK * DEPTH for size in looped)
    wanted = sorted([(CHUNK, DEPTH), (CHUNK, CLASSES // parts), share])
    assert products(text) == (wanted, {TOKENS // sizes["data"] // CHUNK})


def test_a_vocabulary_is_never_gathered_where_tokens_are_whole(want):
    layout = P(None, None), P(None, "data"), P(None), P(None)
    for kind, given in ((AxisType.Auto, {"token_shards": 1}), (AxisType.Explicit, {})):
        text, got = compiled(kind, LINE, layout, **given)
        near(got, want, 2e-6)
        moved = list(collectives(text))
        assert {kind for kind, _, _ in moved} == {"all-reduce"}
        assert all(math.prod(x) <= CHUNK * DEPTH for _, shapes, _ in moved for x in shapes)
        shapes, _ = products(text)
        assert shapes == sorted([(CHUNK, DEPTH), (CHUNK, CLASSES // 8), (DEPTH, CLASSES // 8)])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=("auto", "explicit"))
def test_blocks_of_classes_are_reduced_once_too(kind, want):
    chunks = lo.fused.Chunks(columns=64)
    text, got = compiled(kind, LINE, (SPREAD[0], P(None, None), *SPREAD[2:]), memory=chunks)
    near(got, want, 2e-6)
    moved = list(collectives(text))
    assert not any(loop for _, _, loop in moved)
    assert {kind for kind, _, _ in moved} == {"all-reduce"}
    assert sum((DEPTH, CLASSES) in shapes for _, shapes, _ in moved) == 1


def test_a_step_on_two_axes_of_rows_says_how_they_lie(want):
    """Blocks of rows are cut from each device's own, which no type shows on Auto axes."""
    features, kernel, labels, weights = INPUTS

    def objective(kernel, batch):
        features, labels, weights = batch
        memory = lo.fused.Chunks(rows=CHUNK)
        return lo.fused.linear_softmax_cross_entropy(
            features, kernel, labels, weights, memory=memory
        )

    mesh = lo.parallel.mesh(data=2, fsdp=4)
    init, step = lo.train_step(objective, optax.sgd(1.0), mesh=mesh)
    args = init(kernel), (features, labels, weights)
    text = jax.jit(step).lower(*args).compile(FAST).as_text()
    assert {kind for kind, _, _ in collectives(text)} == {"all-reduce"}
    state, _ = step(*args)
    near(kernel - state.params, want[1][1], 1e-5)


def test_values_of_examples_keep_the_layout_of_tokens():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    features, kernel, labels, weights = INPUTS
    batch = [features.reshape(32, 8, DEPTH), labels.reshape(32, 8), weights.reshape(32, 8)]

    def fn(*args):
        each = lo.fused.linear_softmax_cross_entropy(*args, per_example=True)
        return each, *lo.fused.sequence_log_probs(*args, entropy=True)

    want = jax.jit(fn)(batch[0], kernel, *batch[1:])
    with jax.set_mesh(mesh):
        spread = [jax.device_put(x, P("data")) for x in batch]
        whole = jax.device_put(kernel, P(None, "model"))
        got = jax.jit(fn)(spread[0], whole, *spread[1:])
    assert {jax.typeof(x).sharding.spec for x in got} == {P("data", None)}
    near(got[:2], want[:2], 1e-6)
    near(got[2], want[2], 5e-6)  # logits of 25 are rounded by 1e-6


@pytest.mark.parametrize("memory", [lo.fused.Chunks(rows=8), lo.fused.Chunks(columns=64)])
@pytest.mark.parametrize("checks", [True, False])
def test_inside_shard_map(checks, memory, want):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    wrapped = jax.shard_map(
        partial(_mapped, axis_name="data", memory=memory),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
        check_vma=checks,
    )
    batch = INPUTS[0], *INPUTS[2:]
    program = jax.jit(wrapped).lower(INPUTS[1], batch).compile(FAST)
    near(program(INPUTS[1], batch), (want[0], want[1][1]), 2e-6)
    moved = list(collectives(program.as_text()))
    assert {kind for kind, _, _ in moved} == {"all-reduce"}
    assert not any(loop for _, _, loop in moved)
    assert sum((DEPTH, CLASSES) in shapes for _, shapes, _ in moved) == 1


def test_inside_pmap(want):
    split = [x.reshape(8, -1, *x.shape[1:]) for x in (INPUTS[0], *INPUTS[2:])]
    mapped = jax.pmap(partial(_mapped, axis_name="data"), axis_name="data", in_axes=(None, 0))
    got = mapped(INPUTS[1], split)
    near(jax.tree.map(lambda x: x[0], got), (want[0], want[1][1]), 2e-6)


def _mapped(kernel, batch, axis_name, memory="auto"):
    def objective(kernel, batch):
        features, labels, weights = batch
        return lo.fused.linear_softmax_cross_entropy(
            features, kernel, labels, weights, memory=memory
        )

    (value, _), gradient = lo.value_and_grad(objective, axis_name=axis_name)(kernel, batch)
    return value, gradient


def test_shards_that_do_not_divide_are_refused():
    features, kernel, labels, _ = INPUTS
    with pytest.raises(ValueError, match="token_shards that divide 256 rows, got 3"):
        lo.fused.linear_softmax_cross_entropy(features, kernel, labels, token_shards=3)


ITEMS = rng.normal(size=(2, 64, 8)).astype(np.float32)
CUT = lo.fused.Chunks(rows=4)
COUPLED = {
    "clip": lambda a, b, w: lo.fused.clip(a, b, 2.0, w, memory=CUT).value,
    "sigmoid_pairs": lambda a, b, w: (
        lo.fused.sigmoid_pairs(a, b, 2.0, -1.0, w, items=w > 0.6, memory=CUT).value
    ),
    "supervised_contrastive": lambda a, b, w: (
        lo.fused.supervised_contrastive(
            a, (b[:, 0] > 0).astype(np.int32), w, temperature=0.5, memory=CUT
        ).value
    ),
    "pairwise_logistic": lambda a, b, w: lo.fused.pairwise_logistic(a[:, 0], b[:, 0], w).value,
    "pairwise_hinge": lambda a, b, w: lo.fused.pairwise_hinge(a[:, 0], b[:, 0] > 0, w).value,
    "lambda_rank": lambda a, b, w: lo.fused.lambda_rank(a[:, 0] * w, jnp.abs(b[:, 0]), top=9).value,
    "approximate_ndcg": lambda a, b, w: (
        lo.fused.approximate_ndcg(a[:, 0], jnp.abs(b[:, 0]) + 0 * w, temperature=0.5, top=9).value
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_items_on_an_explicit_mesh(name):
    args = *ITEMS, rng.uniform(0.5, 1.0, 64).astype(np.float32)
    fn = jax.value_and_grad(COUPLED[name], (0, 2))
    want = run(fn, *args)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    args = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in args]
    program = jax.jit(fn).lower(*args).compile(FAST)  # the mesh is read from the types
    near(program(*args), want, 2e-6)
    shapes, _ = products(program.as_text())
    assert shapes == [] or shapes[0] == (4, 8)  # rows of one device in blocks
    assert max(map(math.prod, shapes), default=0) <= 64 * 8
