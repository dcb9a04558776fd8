"""`value_and_grad`: the full batch's value and gradient, in any pieces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

import lossopt as lo
from tests import regression
from tests.regression import at, close, cut, plain


class TestExactness:
    @pytest.mark.parametrize("microbatches", [1, 4, 5])
    @pytest.mark.parametrize(
        ("mask", "heavy"),
        [
            ("ragged", "fractional"),
            ("fractional", "huge"),
            ("huge", "tiny"),
            ("mixed", "ragged"),
            ("zero", "tiny"),
            ("zero", "zero"),
        ],
    )
    def test_terms_of_different_weights(self, mask, heavy, microbatches):
        params, batch = regression.params(), regression.batch(mask, heavy)
        (value, means), grads = regression.compiled(microbatches)(params, batch)
        want, want_grads = regression.reference(params, batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)
        close(means["fit"].weight, np.sum(np.float64(batch["mask"])))
        close(means["heads"][0].weight, np.sum(np.float64(batch["heavy"])))

    @pytest.mark.parametrize("microbatches", range(1, 8))
    def test_microbatches_from_one_to_the_number_of_rows(self, microbatches):
        params, batch = regression.params(), regression.batch(rows=7)
        (value, means), grads = regression.compiled(microbatches)(params, batch)
        want, want_grads = regression.reference(params, batch)
        close(value, want)
        close(value, lo.value(means))
        jax.tree.map(close, grads, want_grads)

    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_eager_is_compiled(self, microbatches):
        params, batch = regression.params(), regression.batch()
        eager = lo.value_and_grad(regression.objective, microbatches=microbatches)(params, batch)
        jax.tree.map(close, eager, regression.compiled(microbatches)(params, batch))

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.sampled_from([0, 0, 0.1, 1, 7, 1e30, 1e-30]), min_size=24, max_size=24),
        st.lists(st.sampled_from([0, 0.25, 1]), min_size=24, max_size=24),
        st.sampled_from([4, 5]),
    )
    def test_any_weights(self, mask, heavy, microbatches):
        batch = regression.batch() | {"mask": np.float32(mask), "heavy": np.float32(heavy)}
        (value, _), grads = regression.compiled(microbatches)(regression.params(), batch)
        want, want_grads = regression.reference(regression.params(), batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)

    @pytest.mark.parametrize("count", [1, 2, 9])
    def test_any_number_of_terms(self, count):
        x, weights = np.arange(7.0), np.random.default_rng(0).uniform(size=(7, count))
        objective = lambda w, batch: [
            lo.mean((w - batch[0]) ** 2, batch[1][:, k]) for k in range(count)
        ]
        batch = np.float32(x), np.float32(weights)
        (value, _), grad = lo.value_and_grad(objective, microbatches=3)(1.5, batch)
        shares = weights / weights.sum(axis=0)
        close(value, ((1.5 - x) ** 2 @ shares).sum())
        close(grad, (2 * (1.5 - x) @ shares).sum())

    @pytest.mark.parametrize(
        "make",
        [
            lambda a, b: (a, b),
            lambda a, b: {"a": a, "b": {"c": [b, None]}},
            lambda a, b: optax.MaskedState({"x": (a,), "y": b}),
        ],
    )
    @pytest.mark.parametrize("verb", [lo.measure, lo.value_and_grad])
    def test_any_tree_of_means(self, verb, make):
        objective = lambda w, x: make(lo.mean((w - x) ** 2), lo.constant(w**2))
        got = verb(objective, microbatches=2)(1.0, jnp.array([0.0, 2.0, 4.0]))
        value, means = got if verb is lo.measure else got[0]
        close(value, 11 / 3 + 1)
        term = lo.constant(1.0)
        assert jax.tree.structure(means) == jax.tree.structure(make(term, term))

    def test_the_mean_of_microbatch_means_is_another_number(self):
        params, batch = regression.params(), regression.batch()
        naive = np.mean(
            [regression.reference(params, piece)[1]["w"] for piece in cut(batch, 8)], axis=0
        )
        want = regression.reference(params, batch)[1]["w"]
        assert np.linalg.norm(naive - want) > 0.05 * np.linalg.norm(want)

    def test_maps_over_parameters(self):
        params, batch = (
            jax.tree.map(lambda x: np.stack([x, -2 * x]), regression.params()),
            regression.batch(),
        )
        (values, _), grads = jax.jit(jax.vmap(regression.compiled(5), (0, None)))(params, batch)
        for i in range(2):
            want, want_grads = regression.reference(at(params, i), batch)
            close(values[i], want)
            jax.tree.map(close, at(grads, i), want_grads)

    def test_microbatches_may_be_a_numpy_number(self):
        fn = lo.value_and_grad(regression.objective, microbatches=np.int64(5))
        close(
            fn(regression.params(), regression.batch())[0][0],
            regression.reference(regression.params(), regression.batch())[0],
        )


class TestBatches:
    """What a batch may be made of."""

    @pytest.mark.parametrize("microbatches", [1, 3])
    @pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
    def test_integers_and_booleans_in_a_tuple(self, convert, microbatches):
        x, labels = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3), [2, 0, 1, 1, 0]
        batch = tuple(map(convert, (x, np.int32(labels), np.array([1, 1, 0, 1, 1], bool))))

        def objective(w, batch):
            x, labels, mask = batch
            picked = jnp.take_along_axis(x * w, labels[:, None], axis=1)[:, 0]
            return lo.mean(jnp.square(picked), mask)

        got = lo.value_and_grad(objective, microbatches=microbatches)(1.5, batch)
        picked = np.float64(x[np.arange(5), labels])[batch[2]]
        close(got[0][0], np.mean((1.5 * picked) ** 2))
        close(got[1], np.mean(3 * picked**2))

    def test_a_bare_array(self):
        (value, _), grad = lo.value_and_grad(lambda w, x: lo.mean(w * x), microbatches=2)(
            2.0, np.arange(5, dtype=np.float32)
        )
        assert (value, grad) == (4, 2)

    @pytest.mark.parametrize("microbatches", [1, 2, 3])
    def test_keys_go_with_their_rows(self, microbatches):
        keys, x = jax.random.split(jax.random.key(0), 5), jnp.arange(5.0)
        uniform = jax.vmap(jax.random.uniform)

        def objective(w, batch):
            return lo.mean(jnp.sin(w * batch["x"]), uniform(batch["key"]))

        fn = lo.value_and_grad(objective, microbatches=microbatches)
        got = fn(0.5, {"x": x, "key": keys})
        weights = np.float64(uniform(keys))
        close(got[0][0], np.average(np.sin(0.5 * x), weights=weights))
        close(got[1], np.average(x * np.cos(0.5 * x), weights=weights))


class TestAux:
    @pytest.mark.parametrize("microbatches", [1, 5, 24])
    def test_metrics_are_pooled_and_the_state_is_passed_on(self, microbatches):
        def objective(params, batch, *, model_state):
            scores = batch["x"] @ params["w"]
            running = 0.9 * model_state["running"] + 0.1 * jnp.mean(scores)
            return {"fit": lo.mean(jnp.square(scores - model_state["running"]), batch["mask"])}, {
                "metrics": {"hit": lo.mean(scores > 0, batch["heavy"]), "y": [lo.mean(batch["y"])]},
                "model_state": {"running": running, "count": model_state["count"] + 1},
            }

        fn = jax.jit(lo.value_and_grad(objective, microbatches=microbatches, has_aux=True))
        params, batch, state = (
            regression.params(),
            regression.batch(),
            {"running": np.float32(2), "count": 3},
        )
        (value, means, aux), grads = fn(params, batch, model_state=state)

        total, slope, running = 0, 0, 2.0
        pieces = cut(jax.tree.map(np.float64, batch), microbatches)
        for piece in pieces:
            scores = piece["x"] @ params["w"]
            total += piece["mask"] @ (scores - running) ** 2
            slope += 2 * (piece["mask"] * (scores - running)) @ piece["x"]
            running = 0.9 * running + 0.1 * scores.mean()
        weight = batch["mask"].sum()
        close(value, total / weight)
        close(means["fit"].total, total)
        close(grads["w"], slope / weight)
        close(aux["model_state"]["running"], running)
        assert aux["model_state"]["count"] == 3 + len(pieces)
        hit = np.average(batch["x"] @ params["w"] > 0, weights=batch["heavy"])
        close(aux["metrics"]["hit"].value, hit)
        close(aux["metrics"]["y"][0].value, batch["y"].mean())
        assert aux["metrics"]["y"][0].weight == regression.ROWS

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_either_part_is_optional(self, microbatches):
        run = lambda aux, **kwargs: lo.value_and_grad(
            lambda w, x, **kwargs: (lo.mean(w * x), aux), microbatches=microbatches, has_aux=True
        )(1.0, jnp.arange(4.0), **kwargs)[0][2]
        assert run({}) == {}
        assert run({"metrics": {"one": lo.constant(1.0)}})["metrics"]["one"].value == 1
        assert run({}, model_state=7) == {"model_state": 7}
        assert run({"model_state": jnp.int32(8)}, model_state=7) == {"model_state": 8}
        assert run({"metrics": {}}) == {"metrics": {}}


class TestPrecision:
    @pytest.mark.parametrize(("dtype", "rows"), [(jnp.bfloat16, 1024), (jnp.float16, 4096)])
    def test_gradients_are_added_in_float32(self, dtype, rows):
        """In `dtype` the sum of so many equal parts would stall at a quarter or a half."""
        fn = jax.jit(lo.value_and_grad(lambda w, x: lo.mean(w * x), microbatches=rows))
        (value, _), grad = fn(jnp.ones((), dtype), jnp.ones(rows, dtype))
        assert (value, grad) == (1, 1)
        assert (value.dtype, grad.dtype) == (jnp.float32, dtype)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_the_error_does_not_grow_with_microbatches(self, dtype):
        low = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
        params, batch = low((regression.params(), regression.batch(rows=512)))
        want = regression.reference(params, batch)[1]["w"]
        error = {}
        for microbatches in (1, 64):
            (_, means), grads = regression.compiled(microbatches)(params, batch)
            assert {x.dtype for x in jax.tree.leaves(means)} == {jnp.dtype("float32")}
            assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
            error[microbatches] = np.max(np.abs(np.float64(grads["w"]) - want))
        assert error[64] <= 2 * error[1] + jnp.finfo(dtype).eps * np.max(np.abs(want))

    def test_gradients_have_the_dtypes_of_their_params(self):
        params = {"a": jnp.bfloat16(1), "b": [jnp.float32(2), jnp.float16(3)], "c": 2.0}
        objective = lambda p, x: lo.mean(x * sum(jax.tree.leaves(p)))
        for microbatches in (1, 3):
            _, grads = lo.value_and_grad(objective, microbatches=microbatches)(params, jnp.ones(5))
            want = jax.tree.map(jnp.result_type, params)
            assert jax.tree.map(lambda g: g.dtype, grads) == want

    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_float64(self, microbatches):
        with jax.enable_x64(True):
            params, batch = jax.tree.map(
                np.float64, (regression.params(), regression.batch("fractional", "mixed"))
            )
            fn = jax.jit(lo.value_and_grad(regression.objective, microbatches=microbatches))
            (value, means), grads = fn(params, batch)
            want, want_grads = regression.reference(params, batch)
            assert {x.dtype for x in jax.tree.leaves((value, means, grads))} == {
                np.dtype("float64")
            }
            np.testing.assert_allclose(value, want, rtol=1e-14)
            tight = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-15)
            jax.tree.map(tight, grads, want_grads)

    def test_float32_where_float64_is_allowed(self):
        with jax.enable_x64(True):
            for microbatches in (1, 5):
                fn = jax.jit(lo.value_and_grad(regression.objective, microbatches=microbatches))
                out = fn(regression.params(), regression.batch())
                assert {x.dtype for x in jax.tree.leaves(out)} == {np.dtype("float32")}

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_jax_may_be_told_to_promote_nothing(self, microbatches):
        """All that is added is brought to one dtype by us: gradients, metrics and the state."""

        def objective(w, batch, *, model_state):
            x, y = batch
            fit = lo.mean(lo.losses.squared_error(x * w.astype(x.dtype), y), y)
            state = model_state + jnp.sum(y)
            return {"fit": fit, "penalty": 2 * lo.constant(w**2)}, {
                "metrics": {"y": lo.mean(y)},
                "model_state": state,
            }

        batch = jnp.arange(3, dtype=jnp.float16), jnp.int32([1, 1, 2])
        run = lambda verb: verb(objective, microbatches=microbatches, has_aux=True)(
            jnp.bfloat16(2), batch, model_state=jnp.int32(1)
        )
        with jax.numpy_dtype_promotion("strict"):
            (value, _, aux), grad = run(lo.value_and_grad)
            assert run(lo.measure)[0] == value
        assert value == (1 * 1 + 1 * 1 + 2 * 2**2) / 4 + 2 * 2**2
        assert grad == (1 * 2 * 1 + 2 * 2 * 2 * 2) / 4 + 4 * 2
        assert (grad.dtype, aux["model_state"]) == (jnp.bfloat16, 5)
        close(aux["metrics"]["y"].value, 4 / 3)


class TestDerivatives:
    params, batch = regression.params(), regression.batch("fractional", "mixed")
    ours = staticmethod(lo.value_and_grad(regression.objective))

    def test_hessian(self):
        ways = (
            jax.hessian(lambda p: lo.value(regression.objective(p, self.batch))),
            jax.hessian(lambda p: self.ours(p, self.batch)[0][0]),
            jax.jacfwd(lambda p: self.ours(p, self.batch)[1]),
            jax.jacrev(lambda p: self.ours(p, self.batch)[1]),
        )
        want, *others = jax.jit(lambda p: [way(p) for way in ways])(self.params)
        for got in others:
            jax.tree.map(partial(close, rtol=5e-6, atol=1e-6), got, want)

    def test_jvp(self):
        tangent = {"w": np.array([1, 0, -1, 2], np.float32), "b": np.float32(0.5)}
        whole = lambda p: plain(regression.objective)(p, self.batch)
        ours = lambda p: (lambda out: (out[0][0], out[1]))(self.ours(p, self.batch))
        along = jax.jit(lambda p, t: [jax.jvp(fn, (p,), (t,)) for fn in (ours, whole)])
        got, want = along(self.params, tangent)
        jax.tree.map(partial(close, rtol=5e-6, atol=1e-6), got, want)

    def test_grad_of_the_norm_of_the_gradient(self):
        norm = lambda grads: sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))
        slope = lambda fn: jax.grad(lambda p: norm(fn(p, self.batch)[1]))
        slopes = jax.jit(
            lambda p: [slope(fn)(p) for fn in (self.ours, plain(regression.objective))]
        )
        got, want = slopes(self.params)
        jax.tree.map(partial(close, rtol=5e-6, atol=1e-6), got, want)


class TestEffects:
    @pytest.mark.parametrize("microbatches", [1, 4, 5])
    def test_a_callback_runs_once_a_piece(self, microbatches):
        seen = []

        def objective(w, x):
            jax.debug.callback(lambda x: seen.append(x.shape), x)
            return lo.mean(w * x)

        jax.block_until_ready(
            lo.value_and_grad(objective, microbatches=microbatches)(1.0, jnp.ones(9))
        )
        jax.effects_barrier()
        assert sorted(seen) == sorted(x.shape for x in cut(np.ones(9), microbatches))

    @pytest.mark.parametrize("microbatches", [1, 4, 5])
    def test_conditions_speak_under_checkify(self, microbatches):
        def objective(w, x):
            checkify.debug_check(jnp.all(x < 8), "expected x < 8, got {x}", x=jnp.max(x))
            return lo.mean(w * x)

        fn = checkify.checkify(jax.jit(lo.value_and_grad(objective, microbatches=microbatches)))
        assert fn(1.0, jnp.arange(8.0))[0].get() is None
        assert "expected x < 8, got 8.0" in fn(1.0, jnp.arange(9.0))[0].get()
