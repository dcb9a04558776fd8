"""`value_and_grad` on many devices: as on one."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from tests import regression
from tests.maps import MAPS, each_map
from tests.programs import equations
from tests.regression import close, plain

# Inside the mapped function, w replicated, device i with loss w * i: the true gradient is 28.
LOCAL, TRUE = np.arange(8.0), np.full(8, 28.0)
FORMS = {
    "grad(local)": lambda loss, w: jax.grad(loss)(w),
    "psum(grad(local))": lambda loss, w: jax.lax.psum(jax.grad(loss)(w), "i"),
    "grad(psum(local))": lambda loss, w: jax.grad(lambda w: jax.lax.psum(loss(w), "i"))(w),
    "varying": lambda loss, w: jax.lax.psum(jax.grad(loss)(_varying(w)), "i"),
}
TABLE = {  # pmap, shard_map check off, shard_map default, vmap
    "grad(local)": (LOCAL, LOCAL, TRUE, LOCAL),
    "psum(grad(local))": (TRUE, TRUE, 8 * TRUE, TRUE),
    "grad(psum(local))": (8 * LOCAL, 8 * LOCAL, TRUE, 8 * LOCAL),
    "varying": (TRUE, TRUE, TRUE, TRUE),
}


def _varying(w):
    try:
        return jax.lax.pcast(w, "i", to="varying")
    except ValueError:  # under vmap there is nothing to mark
        return w


def _four_maps(fn):
    """What `fn(w, x)` gives on each of 8 devices, by the kind of map."""
    mesh, specs = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,)), (P(), P("i"))
    w, x = jnp.float32(1), jnp.arange(8.0)
    over_shards = lambda check: jax.shard_map(
        lambda w, x: fn(w, x)[None], mesh=mesh, in_specs=specs, out_specs=P("i"), check_vma=check
    )
    maps = {"axis_name": "i", "in_axes": (None, 0)}
    row = lambda w, x: fn(w, x[None])
    mapped = jax.pmap(row, **maps), over_shards(False), over_shards(True), jax.vmap(row, **maps)
    return [jax.jit(fn)(w, x) for fn in mapped[:3]] + [mapped[3](w, x)]


class TestDevices:
    @pytest.mark.parametrize("form", FORMS)
    def test_the_factor_n_trap(self, form):
        got = _four_maps(lambda w, x: FORMS[form](lambda w: jnp.sum(w * x), w))
        np.testing.assert_array_equal(got, TABLE[form])

    def test_ours_is_the_truth_in_the_table(self):
        ours = lo.value_and_grad(lambda w, x: 8 * lo.mean(w * x), axis_name="i")
        both = _four_maps(lambda w, x: jnp.stack([ours(w, x)[0][0], ours(w, x)[1]]))
        np.testing.assert_array_equal(both, [np.stack([TRUE, TRUE], axis=1)] * 4)

    @each_map
    @pytest.mark.parametrize("microbatches", [1, 2])  # of three rows a device: a ragged last piece
    def test_devices_and_microbatches_do_not_change_the_gradient(self, on_devices, microbatches):
        params, batch = regression.params(), regression.batch("mixed", "ragged")
        make = lambda axis_name: lo.value_and_grad(
            regression.objective, microbatches=microbatches, axis_name=axis_name
        )
        (value, means), grads = on_devices(make, params, batch)
        want, want_grads = regression.reference(params, batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)
        close(means["heads"][0].weight, batch["heavy"].sum())

    def test_one_device_without_weight_does_not_count(self):
        params, batch = regression.params(), regression.batch()
        batch["mask"][:6], batch["heavy"][3:] = 0, 0
        make = lambda axis_name: lo.value_and_grad(regression.objective, axis_name=axis_name)
        (value, _), grads = MAPS["shard_map"](make, params, batch)
        want, want_grads = regression.reference(params, batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)

    @each_map
    def test_aux_and_keys(self, on_devices):
        """Metrics are pooled, floats of the state averaged, others the largest; keys differ."""

        def objective(w, x, key, *, model_state):
            x = x + jax.random.uniform(key, x.shape)
            state = {"average": model_state["average"] + jnp.mean(x), "seen": 3, "last": 7.0}
            return lo.mean(w * x, x), {
                "metrics": {"x": lo.mean(x)},
                "model_state": state
                | {"most": jnp.maximum(model_state["most"], x.astype(int)[-1])},
            }

        state = {"average": jnp.float32(2), "seen": 0, "last": 0.0, "most": -1}
        make = lambda axis_name: (
            lambda w, x: lo.value_and_grad(objective, axis_name=axis_name, has_aux=True)(
                w, x, jax.random.key(3), model_state=state
            )
        )
        x = np.linspace(0, 9, 16, dtype=np.float32)
        (value, _, aux), grad = on_devices(make, 0.5, x)
        sizes = (4, 2) if (4, 2) in on_devices.args else (8,)
        noise = []
        for index in np.ndindex(sizes):
            key = reduce(jax.random.fold_in, index, jax.random.key(3))
            noise.append(jax.random.uniform(key, (2,)))
        noisy = np.float64(x + np.concatenate(noise))
        close(grad, np.average(noisy, weights=noisy))
        close(value, 0.5 * grad)
        close(aux["metrics"]["x"].value, noisy.mean())
        close(aux["model_state"]["average"], 2 + noisy.mean())
        assert (aux["model_state"]["seen"], aux["model_state"]["last"]) == (3, 7)
        assert aux["model_state"]["most"] == int(noisy.max())

    @each_map
    def test_model_state_that_is_replaced_by_a_number(self, on_devices):
        def objective(w, x, *, model_state):
            return lo.mean(w * x), {"model_state": {"level": jnp.float32(4)}}

        make = lambda axis_name: (
            lambda w, x: lo.value_and_grad(
                objective, microbatches=2, axis_name=axis_name, has_aux=True
            )(w, x, model_state={"level": jnp.float32(0)})
        )
        (_, _, aux), grad = on_devices(make, 1.0, np.arange(24, dtype=np.float32))
        assert aux["model_state"]["level"] == 4
        close(grad, 11.5)

    @each_map
    def test_model_state_may_hold_a_key(self, on_devices):
        def objective(w, x, *, model_state):
            return lo.mean(w * x), {"model_state": jax.random.fold_in(model_state, 1)}

        def make(axis_name):
            fn = lo.value_and_grad(objective, microbatches=2, axis_name=axis_name, has_aux=True)

            def data(w, x):
                (_, _, aux), grad = fn(w, x, model_state=jax.random.key(0))
                return jax.random.key_data(aux["model_state"]), grad

            return data

        data, grad = on_devices(make, 1.0, np.arange(24, dtype=np.float32))
        want = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 1)
        np.testing.assert_array_equal(data, jax.random.key_data(want))
        close(grad, 11.5)

    def test_devices_add_in_float32(self):
        fn = lo.value_and_grad(lambda w, x: lo.mean(w * x), axis_name="rows")
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
        mapped = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P())
        traced = jax.make_jaxpr(mapped)(jnp.bfloat16(1), jnp.ones(8))
        summed = [e for e in equations(traced.jaxpr) if "psum" in e.primitive.name]
        assert summed
        assert {str(v.aval.dtype) for e in summed for v in e.invars} == {"float32"}

    def test_parameters_may_be_sharded_over_another_axis(self):
        mesh = jax.make_mesh((4, 2), ("rows", "features"), axis_types=(AxisType.Auto,) * 2)

        def objective(w, batch):
            hidden = jnp.tanh(batch["x"] @ w)
            return lo.mean(jnp.square(jax.lax.psum(jnp.sum(hidden, 1), "features")), batch["mask"])

        whole = lambda w, b: lo.mean(jnp.square(jnp.sum(jnp.tanh(b["x"] @ w), 1)), b["mask"])
        w, batch = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4), regression.batch()
        want, want_grad = plain(whole)(w, batch)
        for microbatches in (1, 2):
            fn = lo.value_and_grad(objective, microbatches=microbatches, axis_name="rows")
            spec = P(None, "features")
            mapped = jax.shard_map(fn, mesh=mesh, in_specs=(spec, P("rows")), out_specs=(P(), spec))
            (value, _), grad = jax.jit(mapped)(w, batch)
            close(value, want)
            close(grad, want_grad, rtol=5e-6, atol=1e-6)


class TestMeshes:
    """A batch sharded over 8 devices under jit, without axis_name."""

    def _sharded(self, kind):
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
        place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
        return mesh, place

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_a_sharded_batch(self, kind, microbatches):
        mesh, place = self._sharded(kind)
        batch = regression.batch(rows=32)
        with jax.set_mesh(mesh):
            sharded = place(regression.params(), P()), place(batch, P("rows"))
            (value, _), grads = regression.compiled(microbatches)(*sharded)
        want, want_grads = regression.reference(regression.params(), batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)

    def test_the_batch_stays_where_it_is(self):
        _, place = self._sharded(AxisType.Auto)
        sharded = place(regression.params(), P()), place(regression.batch(rows=32), P("rows"))
        program = regression.compiled(4).lower(*sharded).compile().as_text()
        assert "all-reduce" in program
        for collective in ("all-gather", "all-to-all", "collective-permute"):
            assert collective not in program

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_sharded_parameters_on_an_explicit_mesh(self, microbatches):
        mesh, place = self._sharded(AxisType.Explicit)

        def objective(w, batch):
            w = jax.sharding.reshard(w, P())
            return lo.mean(jnp.tanh(batch["x"] @ w[: regression.FEATURES]), batch["mask"])

        whole = lambda w, b: lo.mean(jnp.tanh(b["x"] @ w[: regression.FEATURES]), b["mask"])
        w, batch = np.linspace(-1, 1, 8, dtype=np.float32), regression.batch(rows=32)
        fn = jax.jit(lo.value_and_grad(objective, microbatches=microbatches))
        with jax.set_mesh(mesh):
            _, grad = fn(place(w, P("rows")), place(batch, P("rows")))
        close(grad, jax.grad(lambda w: lo.value(whole(w, batch)))(w))
