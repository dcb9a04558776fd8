"""Gradient caching: the full batch's value and gradient, with an encoder that sees pieces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _pieces
from tests.fused.test_laws import FAST, near, run

ROWS, FEATURES, DEPTH = 14, 6, 4
_rng = np.random.default_rng(0)


def _params():
    params = {name: _rng.normal(size=(FEATURES, DEPTH)) for name in ("a", "b")}
    return jax.tree.map(np.float32, params | {"log_scale": 0.3})


def _batch(rows=ROWS):
    return {
        "x": _rng.normal(size=(rows, FEATURES)).astype(np.float32),
        "y": _rng.normal(size=(rows, FEATURES)).astype(np.float32),
        "labels": _rng.integers(0, 4, rows),
        "weights": np.where(np.arange(rows) % 5 == 2, 0, _rng.uniform(0.3, 2, rows)).astype("f"),
    }


def _encode(params, batch, *keys):
    x = batch["x"]
    for key in keys:
        x = x * jax.random.bernoulli(key, 0.7, x.shape)
    known = {name: batch[name] for name in ("labels", "weights")}
    return {"a": jnp.tanh(x @ params["a"]), "b": jnp.tanh(batch["y"] @ params["b"])} | known


def _loss(params, embeddings, *keys, axis_name=None):
    a, b, labels, weights = (embeddings[name] for name in ("a", "b", "labels", "weights"))
    shifted = jnp.where((labels == 0)[:, None], 0.5 * a, a)
    scale = jnp.exp(params["log_scale"])
    return {
        "pairs": _pairs(shifted, b, scale, weights, axis_name),
        "penalty": lo.constant(0.01 * jnp.sum(params["a"] ** 2)),
        **({"noise": lo.mean(jax.random.uniform(keys[0], (3,)))} if keys else {}),
    }


def _pairs(a, b, scale, weights, axis_name):
    if axis_name is not None:
        exist = {"weights": weights, "items": weights != 0}
        return lo.fused.sigmoid_pairs(a, b, scale, -1.0, **exist, axis_name=axis_name)
    each = lo.losses.sigmoid_pairs(a, b, scale, -1.0, items=weights != 0)
    return lo.mean(each, weights)


def _full(params, batch):
    return _loss(params, _encode(params, batch))


def test_pieces_give_the_gradient_of_the_whole():
    def compute(*args):
        cached = partial(lo.fused.cached_value_and_grad, _encode, _loss)
        got = [cached(microbatches=pieces)(*args) for pieces in (1, 4)]
        return got, lo.value_and_grad(_full)(*args)

    got, want = run(compute, _params(), _batch())
    near(got, [want, want], 2e-6)


def test_gradients_add_up_in_float32():
    encode = lambda param, x: jnp.float32(param) * x
    fn = lo.fused.cached_value_and_grad(encode, lambda _, x: lo.mean(x), microbatches=1024)
    _, gradient = run(fn, jnp.bfloat16(3), np.ones(1024, np.float32))
    assert gradient.dtype == jnp.bfloat16
    assert gradient == 1  # bfloat16 would stay at a quarter


def test_devices_give_the_gradient_of_the_whole():
    params, batch = _params(), _batch(20)
    loss = partial(_loss, axis_name="i")
    fn = lo.fused.cached_value_and_grad(_encode, loss, microbatches=2, axis_name="i")
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
    both = lambda *args: (mapped(*args), lo.value_and_grad(_full)(*args))
    ((value, means), gradient), ((whole, _), slopes) = run(both, params, batch)
    near((value, gradient), (whole, slopes), 2e-6)
    near(means["pairs"].weight, batch["weights"].sum(), 1e-6)
    split = jax.tree.map(lambda x: x.reshape(4, 5, *x.shape[1:]), batch)
    mapped = jax.pmap(fn, "i", in_axes=(None, 0), devices=jax.devices()[:4])
    (value, _), gradient = mapped.lower(params, split).compile(FAST)(params, split)
    near(jax.tree.map(lambda x: x[0], (value, gradient)), (whole, slopes), 2e-6)


def test_keys_are_replayed():
    """Pieces of the encoder have keys of their own, both times alike; the loss has the key."""

    def full(params, batch, key):
        pieces = _pieces.strided(batch, 3)  # of 5, 5 and 4 rows
        at = lambda i: jax.tree.map(lambda x: x[i], *pieces.stacked)
        each = [at(0), at(1), *pieces.last]
        parts = [_encode(params, x, jax.random.fold_in(key, i)) for i, x in enumerate(each)]
        order = np.concatenate([np.arange(0, 10, 2), np.arange(1, 10, 2), np.arange(10, 14)])
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs)[np.argsort(order)], *parts)
        return lo.value(_loss(params, joined, key))

    def both(*args):
        fn = lo.fused.cached_value_and_grad(_encode, _loss, microbatches=3)
        (value, _), gradient = fn(*args)
        return (value, gradient), jax.value_and_grad(full)(*args)

    near(*run(both, _params(), _batch(), jax.random.key(7)), 2e-6)


def test_activations_are_those_of_one_piece():
    layers, width, rows = 24, 64, 512
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)

    def encode(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]

    loss = lambda params, x: lo.mean(jnp.sum(x @ jnp.flip(x, 0).T, axis=1))

    def memory(microbatches):
        fn = lo.fused.cached_value_and_grad(encode, loss, microbatches=microbatches)
        lowered = jax.jit(fn).lower(shape(layers, width, width), shape(rows, width))
        return lowered.compile(FAST).memory_analysis().temp_size_in_bytes

    activations = layers * rows * width * 4  # 3 MiB, more than all else
    whole, pieces = memory(1), memory(16)
    assert whole - pieces > 0.85 * activations


def test_bad_input_is_refused():
    params, batch = _params(), _batch()
    make = partial(lo.fused.cached_value_and_grad, microbatches=2)
    traced = lambda fn: jax.eval_shape(fn, params, batch)
    with pytest.raises(ValueError, match="one row for each of 7"):
        traced(make(lambda params, batch: _encode(params, batch)["a"].mean(0), _loss))
    learned = lambda params, x: lo.mean(x["a"], jnp.abs(x["a"]))
    with pytest.raises(ValueError, match=r"weight of a term depends on params\['a'\]"):
        traced(make(_encode, learned))
    with pytest.raises(TypeError, match="Expected a tree of Mean"):
        traced(make(_encode, lambda params, x: jnp.sum(x["a"])))
    with pytest.raises(ValueError, match="microbatches"):
        lo.fused.cached_value_and_grad(_encode, _loss, microbatches=0)
    with pytest.raises(ValueError, match="microbatches"):
        traced(lo.fused.cached_value_and_grad(_encode, _loss, microbatches=15))
