"""Weights are summed first: without the model, and only where the batch determines them."""

from collections import Counter
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from lossopt import _grad
from tests import regression
from tests.programs import equations, products
from tests.regression import close, cut, plain


def _weights_pass(objective):
    """The pass that sums the weights, alone."""

    means = lambda params, _, batch: objective(params, batch)
    return lambda params, batch: _grad.fixed_weights(means, params, None, batch)


def _compile(fn, *args):
    return jax.jit(fn).lower(*args).compile()


@jax.custom_vjp
def _layer(h, w):
    return jnp.tanh(h @ w)


_layer.defvjp(
    lambda h, w: (_layer(h, w), (h, w)),
    lambda saved, g: jax.vjp(lambda h, w: jnp.tanh(h @ w), *saved)[1](g),
)


@jax.custom_jvp
def _bounded(h):
    return jnp.tanh(h)


_bounded.defjvp(lambda h, t: (jnp.tanh(h[0]), t[0] * (1 - jnp.tanh(h[0]) ** 2)))


def _through_layers(step):
    return lambda layers, h: reduce(step, layers, h)


def _scan(layers, h):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, layers)[0]


def _printing(layers, h):
    def body(h, w):
        jax.debug.callback(lambda x: None, h[0, 0])
        jax.debug.print("{}", w[0, 0])
        return jnp.tanh(h @ w), None

    return jax.lax.scan(body, h, layers)[0]


@jax.checkpoint
def _checking(h, w):
    h = jnp.tanh(h @ w)
    checkify.debug_check(jnp.all(h < 1e9), "too large: {h}", h=h[0, 0])
    return h


def _branch(layers, h):
    for w in layers:
        h = jax.lax.cond(
            h[0, 0] > 0, lambda h, w: jnp.tanh(h @ w), lambda h, w: _bounded(h @ w), h, w
        )
    return h


def _loop(layers, h):
    return jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ layers[i]), h)


def _all_at_once(layers, h):
    @jax.jit
    def body(h, w):
        jax.debug.print("{}", h[0, 0])
        return _bounded(jax.checkpoint(_layer)(h, w)), None

    return jax.jit(jax.checkpoint(lambda h: jax.lax.scan(body, h, layers)[0]))(h)


MODELS = {
    "scan": _scan,
    "remat": _through_layers(jax.checkpoint(lambda h, w: jnp.tanh(h @ w))),
    "custom_vjp": _through_layers(_layer),
    "custom_jvp": _through_layers(lambda h, w: _bounded(h @ w)),
    "jit": jax.jit(_through_layers(jax.jit(lambda h, w: jnp.tanh(h @ w)))),
    "debug.print": _printing,
    "checkify.debug_check": _through_layers(_checking),
    "cond": _branch,
    "fori_loop": _loop,
    "all at once": _all_at_once,
}
LAYERS = (
    np.random.default_rng(1)
    .normal(size=(2, regression.FEATURES, regression.FEATURES))
    .astype(np.float32)
)


def _modelled(model):
    def objective(layers, batch):
        h = model(layers, batch["x"])
        mask = jax.jit(lambda m: 2 * m)(batch["mask"])
        checkify.debug_check(jnp.all(jnp.isfinite(h)), "not finite")
        return lo.mean(jnp.sum(h, -1) - batch["y"], mask), lo.mean(h**2, batch["heavy"])

    return objective


class TestOneModelPass:
    @pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
    def test_the_weights_cost_no_matrix_product(self, model):
        objective, batch = _modelled(model), regression.batch()
        weights_pass = _weights_pass(objective)
        assert products(_compile(weights_pass, LAYERS, batch)) == 0
        traced = jax.make_jaxpr(weights_pass)(LAYERS, batch)
        names = Counter(e.primitive.name for e in equations(traced.jaxpr))
        assert names["dot_general"] == names["tanh"] == names["debug_callback"] == 0

        whole = _compile(plain(objective), LAYERS, batch)
        ours = _compile(lo.value_and_grad(objective, microbatches=5), LAYERS, batch)
        assert products(ours) == 2 * products(whole) > 0  # a smaller last piece is traced anew
        (value, _), grads = ours(LAYERS, batch)
        want, want_grads = whole(LAYERS, batch)
        close(value, want, rtol=2e-6)
        close(grads, want_grads, rtol=5e-6, atol=1e-6)

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_nor_do_equal_pieces(self, microbatches):
        objective, batch = _modelled(_all_at_once), regression.batch()
        ours = _compile(lo.value_and_grad(objective, microbatches=microbatches), LAYERS, batch)
        assert products(ours) == products(_compile(plain(objective), LAYERS, batch)) > 0


STATE = {"s": np.float32(2), "unused": np.float32(1)}
DEPENDENT = {
    "directly": lambda w, p, s: w * p["b"],
    "by value zero": lambda w, p, s: w + 0 * p["b"],
    "stop_gradient": lambda w, p, s: w * jax.lax.stop_gradient(p["b"]),
    "comparison": lambda w, p, s: jnp.where(p["b"] > 0, w, 0),
    "jit": lambda w, p, s: jax.jit(lambda w, b: w * b)(w, p["b"]),
    "scan": lambda w, p, s: jax.lax.scan(lambda w, b: (w * b, None), w, p["b"][None])[0],
    "remat": lambda w, p, s: jax.checkpoint(lambda w, b: w * b)(w, p["b"]),
    "custom_jvp": lambda w, p, s: _bounded(w * p["b"]),
    "cond": lambda w, p, s: jax.lax.cond(p["b"] > 0, lambda: w, lambda: 2 * w),
    "random": lambda w, p, s: w * jax.random.bernoulli(jax.random.key(0), p["b"], w.shape),
    "state": lambda w, p, s: w * s["s"],
    "state in jit": lambda w, p, s: jax.jit(lambda w: w + 0 * s["s"])(w),
}
INDEPENDENT = {
    "batch": lambda w, p, h: w,
    "shape of params": lambda w, p, h: w * jnp.sum(jnp.ones_like(p["w"])),
    "dead code on params": lambda w, p, h: jax.jit(lambda w, b: (w, w * b))(w, p["b"])[0],
    "hyperparameter": lambda w, p, h: w * h,
    "another network": lambda w, p, h: w * jax.nn.sigmoid(h * jnp.sum(w)),
}


class TestWeights:
    @pytest.mark.parametrize("name", DEPENDENT)
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_that_depend_on_params_or_state_are_refused_with_advice(self, name, microbatches):
        def objective(params, batch, *, model_state):
            weights = DEPENDENT[name](batch["mask"], params, model_state)
            return {"fit": lo.mean(batch["x"] @ params["w"], weights), "rest": lo.constant(0.0)}

        fn = lo.value_and_grad(objective, microbatches=microbatches)
        with pytest.raises(ValueError, match="weight of a term") as error:
            jax.eval_shape(fn, regression.params(), regression.batch(), model_state=STATE)
        assert "Move the factor into the values: mean(factor * values, weights)" in str(error.value)
        leaf = "model_state['s']" if name.startswith("state") else "params['b']"
        assert f"depends on {leaf}" in str(error.value)

    @pytest.mark.parametrize("weigh", INDEPENDENT.values(), ids=INDEPENDENT)
    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_that_the_batch_or_a_hyperparameter_determines_pass(self, weigh, microbatches):
        def objective(params, batch, strength):
            weights = weigh(batch["heavy"], params, strength)
            return lo.mean(jnp.square(batch["x"] @ params["w"]), weights)

        fn = lo.value_and_grad(objective, microbatches=microbatches)
        (value, _), grads = fn(regression.params(), regression.batch(), 0.5)
        # a weight that sums over its piece differs between pieces: only the average is compared
        weights = [
            np.broadcast_to(
                weigh(np.float64(b["heavy"]), regression.params(), 0.5), b["heavy"].shape
            )
            for b in cut(regression.batch(), microbatches)
        ]
        x = np.concatenate([np.float64(b["x"]) for b in cut(regression.batch(), microbatches)])
        weights, fit = np.concatenate(weights), x @ regression.params()["w"]
        close(value, np.average(fit**2, weights=weights))
        close(grads["w"], 2 * np.average(x * fit[:, None], axis=0, weights=weights))
        assert grads["b"] == 0

    def test_a_metric_may_be_weighed_by_params(self):
        def objective(params, batch):
            scores = batch["x"] @ params["w"]
            precision = lo.mean(batch["y"] > 0, scores > 0)
            return lo.mean(jnp.square(scores)), {"metrics": {"precision": precision}}

        for microbatches in (1, 5):
            fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
            (_, _, aux), _ = jax.jit(fn)(regression.params(), regression.batch())
            chosen = regression.batch()["x"] @ regression.params()["w"] > 0
            close(aux["metrics"]["precision"].value, np.mean(regression.batch()["y"][chosen] > 0))
            assert aux["metrics"]["precision"].weight == chosen.sum()

    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_meta_gradients_pass_through_the_weights(self, microbatches):
        def objective(params, batch, strength):
            hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
            return {
                "fit": lo.mean(
                    jnp.square(hidden - batch["y"]), jax.nn.sigmoid(strength * batch["y"])
                ),
                "rest": strength * lo.mean(hidden, batch["heavy"] ** strength),
            }

        direction = {"w": np.array([1.0, -1.0, 2.0, 0.5], np.float32), "b": np.float32(1)}
        dot = lambda grads: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, direction)))
        ours = lo.value_and_grad(objective, microbatches=microbatches)
        along = lambda fn: jax.grad(
            lambda h: dot(fn(regression.params(), regression.batch(), h)[1])
        )
        values = lambda fn: jax.grad(
            lambda h: jax.tree.leaves(fn(regression.params(), regression.batch(), h)[0])[0]
        )
        both = lambda fn: jax.jit(lambda h: (along(fn)(h), values(fn)(h)))(1.3)
        jax.tree.map(partial(close, rtol=5e-6), both(ours), both(plain(objective)))
