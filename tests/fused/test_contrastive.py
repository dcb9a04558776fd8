"""Contrastive losses in blocks, beyond the laws: devices, precision, memory, refusals."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo
from tests.fused.test_laws import FAST, near, run

ITEMS, FEATURES = 13, 5
RAGGED = lo.fused.Chunks(rows=5)
_rng = np.random.default_rng(0)
LABELS = _rng.integers(0, 5, 24)
WEIGHTS = np.where(np.arange(24) % 4 == 1, 0, _rng.uniform(0.2, 2, 24))


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss `fn(a, b, scale, bias, labels, weights, **options)` and its dense reference."""

    name: str
    fn: Callable
    dense: Callable

    def reference(self, *args):
        """The `Mean` of the dense loss; items of weight 0 do not exist."""
        *inputs, weights = args
        return lo.mean(self.dense(*inputs, items=weights != 0), weights)


CASES = [
    Case(
        "clip",
        lambda a, b, s, h, y, w, **o: lo.fused.clip(a, b, s, w, items=w != 0, **o),
        lambda a, b, s, h, y, **o: lo.losses.clip(a, b, s, **o),
    ),
    Case(
        "sigmoid_pairs",
        lambda a, b, s, h, y, w, **o: lo.fused.sigmoid_pairs(a, b, s, h, w, items=w != 0, **o),
        lambda a, b, s, h, y, **o: lo.losses.sigmoid_pairs(a, b, s, h, **o),
    ),
    Case(
        "supervised_contrastive",
        lambda a, b, s, h, y, w, **o: lo.fused.supervised_contrastive(
            a, y, w, items=w != 0, temperature=1 / s, **o
        ),
        lambda a, b, s, h, y, **o: lo.losses.supervised_contrastive(a, y, temperature=1 / s, **o),
    ),
]
CLIP, SIGMOID, SUPERVISED = CASES
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _inputs(items=ITEMS, dtype=np.float64):
    """Embeddings, NaN where they do not exist, scale and bias; labels and weights."""
    random = np.random.default_rng(1)
    weights = WEIGHTS[:items]
    a, b = (random.normal(size=(items, FEATURES)).astype(dtype) for _ in range(2))
    a[weights == 0], b[weights == 0] = np.nan, np.nan
    return (a, b, dtype(1.7), dtype(-2.0)), (LABELS[:items], weights.astype(dtype))


@every_loss
def test_nobody_there_is_zero(case):
    learned, (labels, weights) = _inputs(dtype=np.float32)

    def compute(*learned):
        fn = lambda *learned: case.fn(*learned, labels, np.zeros_like(weights), memory=RAGGED)
        value = lambda *learned: (fn(*learned).value, fn(*learned))
        return jax.grad(value, (0, 1, 2, 3), has_aux=True)(*learned)

    assert not any(np.any(x) for x in jax.tree.leaves(run(compute, *learned)))


@every_loss
def test_no_items_are_zero(case):
    (*pair, scale, bias), (labels, weights) = _inputs(dtype=np.float32)
    none = [x[:0] for x in (*pair, labels, weights)]

    def compute(a, b, labels, weights):
        def total(a, scale):
            mean = case.fn(a, b, scale, bias, labels, weights)
            return mean.value, mean

        each = case.fn(a, b, scale, bias, labels, weights, per_example=True)
        return jax.grad(total, (0, 1), has_aux=True)(a, scale), each

    ((to_a, to_scale), mean), each = run(compute, *none)
    assert (to_a.shape, each.shape) == ((0, FEATURES), (0,))
    assert (float(to_scale), float(mean.total), float(mean.weight)) == (0.0, 0.0, 0.0)


def test_bfloat16_is_summed_in_float32():
    (*pair, scale, bias), (labels, weights) = _inputs(dtype=np.float32)
    low = [jnp.asarray(x, jnp.bfloat16) for x in pair]

    def compute(low):
        def gradient(case, pair):
            fn = lambda pair: case.fn(*pair, scale, bias, labels, weights, memory=RAGGED)
            return jax.value_and_grad(lambda pair: fn(pair).value)(pair)

        pair = [x.astype(jnp.float32) for x in low]
        return [[gradient(case, x) for case in (CLIP, SIGMOID)] for x in (low, pair)]

    got, want = run(compute, low)
    assert all(value.dtype == jnp.float32 for value, _ in got)
    assert all(g.dtype == jnp.bfloat16 for _, gradient in got for g in gradient)
    near([value for value, _ in got], [value for value, _ in want], 2e-6)
    near([gradient for _, gradient in got], [gradient for _, gradient in want], 8e-3)


@every_loss
def test_bad_input_is_refused(case):
    (a, b, scale, bias), (labels, weights) = _inputs(dtype=np.float32)
    call = lambda a=a, b=b, y=labels, w=weights, **options: case.fn(
        a, b, scale, bias, y, w, **options
    )
    for wrong in (weights[:-1], -weights):
        with pytest.raises(ValueError, match=r"weights >= 0|items of shape"):
            call(w=wrong)
    with pytest.raises(ValueError, match="shape"):
        call(a=a[:-1])
    with pytest.raises(ValueError, match=r"least that works is (1248|1664) bytes"):
        call(memory=100)
    with pytest.raises(ValueError, match="'vjp' or 'jvp'"):
        call(differentiable="both")
    with pytest.raises(ValueError, match="Chunks of rows"):
        call(memory=lo.fused.Chunks(columns=4))


def _mapped(kind, fn):
    """`fn` on four devices, of inputs that are split and of some that are not."""
    if kind == "pmap":
        split = lambda tree: jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), tree)
        mapped = jax.pmap(fn, "i", in_axes=(0, None), devices=jax.devices()[:4])
        return lambda spread, same: jax.tree.map(lambda x: x[0], mapped(split(spread), same))
    sizes, names = ((2, 2), ("i", "j")) if "two" in kind else ((4,), ("i",))
    mesh = jax.make_mesh(
        sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[:4]
    )
    return jax.shard_map(
        fn, mesh=mesh, in_specs=(P(names), P()), out_specs=P(), check_vma="off" not in kind
    )


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        (CLIP, ("pmap", "shard_map, two axes")),
        (SIGMOID, ("shard_map",)),
        (SUPERVISED, ("shard_map, check off",)),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_rivals_come_from_all_devices(case, kinds):
    learned, known = _inputs(24)
    # The embeddings are made by parameters, and one device has no items at all.
    factor = _rng.normal(size=(FEATURES, FEATURES))
    spread = (*learned[:2], known[0], np.where(np.arange(24) // 6 == 2, 0, known[1]))
    params = {"factor": factor, "scale": learned[2], "bias": learned[3]}

    def objective(fn, params, batch):
        a, b, labels, weights = batch
        a = jnp.where((weights != 0)[:, None], a, 0) @ params["factor"]
        return fn(a, b, params["scale"], params["bias"], labels, weights)

    def everywhere(kind, batch, params):
        axis_name = ("i", "j") if "two" in kind else "i"
        fn = partial(case.fn, axis_name=axis_name, memory=lo.fused.Chunks(rows=4))
        step = lo.value_and_grad(partial(objective, fn), axis_name=axis_name)
        return _mapped(kind, lambda batch, params: step(params, batch))(batch, params)

    def compute(batch, params):
        dense = lo.value_and_grad(partial(objective, case.reference))
        return [everywhere(kind, batch, params) for kind in kinds], dense(params, batch)

    with jax.enable_x64(True):
        got, want = run(compute, spread, params)
        near(got, [want] * len(kinds), 1e-12)


def test_the_matrix_is_never_whole():
    shape = jax.ShapeDtypeStruct((1024, 8), jnp.float32)
    fn = lambda a, b: lo.fused.clip(a, b, 2.0, memory="512KiB").value
    compiled = jax.jit(jax.value_and_grad(fn, (0, 1))).lower(shape, shape).compile(FAST)
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20  # the matrix has 4 MiB


def test_no_device_holds_all_pairs():
    step = lambda a, b: lo.fused.clip(a, b, 2.0, axis_name="i", memory=lo.fused.Chunks(rows=4))
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(
        lambda a, b: jax.lax.psum(step(a, b).value, "i"), mesh=mesh, in_specs=P("i"), out_specs=P()
    )
    shape = jax.ShapeDtypeStruct((64, 3), jnp.float32)
    text = jax.jit(jax.grad(mapped)).lower(shape, shape).compile(FAST).as_text()
    assert "f32[4,64]" in text
    assert "f32[64,64]" not in text
    assert "f32[16,64]" not in text


def test_a_loss_near_zero_keeps_its_digits():
    scale = np.float32(9.0)
    eye = np.eye(ITEMS, dtype=np.float32)
    pairs = np.repeat(eye[:6], 2, axis=0)
    tail = np.exp(-np.float64(scale))

    def compute(eye, pairs):
        a = lo.fused.clip(eye, eye, scale, memory=RAGGED)
        labels = np.arange(12) // 2
        b = lo.fused.supervised_contrastive(pairs, labels, temperature=1 / scale, memory=RAGGED)
        c = lo.fused.sigmoid_pairs(eye, eye, 2 * scale, -scale, memory=RAGGED)
        return a.value, b.value, c.value

    want = np.log1p((ITEMS - 1) * tail), np.log1p(10 * tail), ITEMS * np.log1p(tail)
    np.testing.assert_allclose(run(compute, eye, pairs), want, rtol=1e-5)


def test_weights_are_checked_within_programs():
    x = np.ones((3, 2), np.float32)
    total = lambda weights: lo.fused.sigmoid_pairs(x, x, 1.0, 0.0, weights).total
    error, _ = run(checkify.checkify(total), np.array([1.0, -1.0, 1.0], np.float32))
    assert "sigmoid_pairs: expected weights >= 0" in str(error.get())


def test_what_learns_is_checked():
    x, labels = np.ones((3, 2), np.float32), np.arange(3)
    with pytest.raises(ValueError, match="temperature"):
        lo.fused.supervised_contrastive(x, labels, temperature=0.0)
    with pytest.raises(TypeError, match="integer labels"):
        lo.fused.supervised_contrastive(x, labels / 2, temperature=1.0)
    with pytest.raises(ValueError, match="scale"):
        lo.fused.clip(x, x, np.ones(3))
    with pytest.raises(ValueError, match="bias"):
        lo.fused.sigmoid_pairs(x, x, 1.0, np.ones(3))
