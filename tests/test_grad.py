"""`value_and_grad`: the full batch's value and gradient, in any pieces, on any devices."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _grad, _pieces

ROWS, FEATURES = 24, 4
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=5e-7)


def _params():
    return {"w": np.array([0.3, -0.2, 0.5, 0.1], np.float32), "b": np.float32(0.1)}


def _batch(mask="ragged", heavy="fractional", rows=ROWS):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(rows, FEATURES)), random.normal(size=rows)
    uniform = random.uniform(0.1, 1, rows)
    weights = {
        "ragged": uniform < np.linspace(0.1, 1, rows),
        "fractional": uniform * 0.1,
        "zero": uniform * 0,
        "huge": uniform * 1e30,
        "tiny": uniform * 1e-30,
        "mixed": uniform * np.resize([1e30, 1, 0, 1e-30], rows),
    }
    return jax.tree.map(
        np.float32, {"x": x, "y": y, "mask": weights[mask], "heavy": weights[heavy]}
    )


def _objective(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    return {
        "fit": lo.mean(jnp.square(hidden - batch["y"]), batch["mask"]),
        "heads": (0.3 * lo.mean(jnp.square(hidden), batch["heavy"]),),
        "penalty": lo.constant(0.01 * jnp.sum(params["w"] ** 2)),
    }


def _reference(params, batch):
    """The same by hand in numpy float64."""
    params, batch = jax.tree.map(np.float64, (params, batch))
    hidden = np.tanh(batch["x"] @ params["w"] + params["b"])
    fit, heads = [batch[name] / (batch[name].sum() or 1) for name in ("mask", "heavy")]
    value = fit @ (hidden - batch["y"]) ** 2 + 0.3 * heads @ hidden**2
    slope = (fit * 2 * (hidden - batch["y"]) + 0.3 * heads * 2 * hidden) * (1 - hidden**2)
    gradient = {"w": batch["x"].T @ slope + 0.02 * params["w"], "b": slope.sum()}
    return value + 0.01 * np.sum(params["w"] ** 2), gradient


@functools.cache
def _compiled(microbatches):
    return jax.jit(lo.value_and_grad(_objective, microbatches=microbatches))


def _plain(objective):
    return jax.value_and_grad(lambda *args, **kwargs: lo.value(objective(*args, **kwargs)))


def _cut(tree, count):
    """Rows go round the full pieces; what is left over is a smaller last piece."""
    rows = len(jax.tree.leaves(tree)[0])
    size = -(-rows // count)
    full = rows // size
    cuts = [slice(i, full * size, full) for i in range(full)] + [slice(full * size, rows)]
    return [_at(tree, cut) for cut in cuts if len(range(rows)[cut])]


def _at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


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
        params, batch = _params(), _batch(mask, heavy)
        (value, means), grads = _compiled(microbatches)(params, batch)
        want, want_grads = _reference(params, batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)
        close(means["fit"].weight, np.sum(np.float64(batch["mask"])))
        close(means["heads"][0].weight, np.sum(np.float64(batch["heavy"])))

    @pytest.mark.parametrize("microbatches", range(1, 8))
    def test_microbatches_from_one_to_the_number_of_rows(self, microbatches):
        params, batch = _params(), _batch(rows=7)
        (value, means), grads = _compiled(microbatches)(params, batch)
        want, want_grads = _reference(params, batch)
        close(value, want)
        close(value, lo.value(means))
        jax.tree.map(close, grads, want_grads)

    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_eager_is_compiled(self, microbatches):
        params, batch = _params(), _batch()
        eager = lo.value_and_grad(_objective, microbatches=microbatches)(params, batch)
        jax.tree.map(close, eager, _compiled(microbatches)(params, batch))

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.sampled_from([0, 0, 0.1, 1, 7, 1e30, 1e-30]), min_size=24, max_size=24),
        st.lists(st.sampled_from([0, 0.25, 1]), min_size=24, max_size=24),
        st.sampled_from([4, 5]),
    )
    def test_any_weights(self, mask, heavy, microbatches):
        batch = _batch() | {"mask": np.float32(mask), "heavy": np.float32(heavy)}
        (value, _), grads = _compiled(microbatches)(_params(), batch)
        want, want_grads = _reference(_params(), batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)

    def test_the_mean_of_microbatch_means_is_another_number(self):
        params, batch = _params(), _batch()
        naive = np.mean([_reference(params, piece)[1]["w"] for piece in _cut(batch, 8)], axis=0)
        want = _reference(params, batch)[1]["w"]
        assert np.linalg.norm(naive - want) > 0.05 * np.linalg.norm(want)

    def test_maps_over_parameters(self):
        params, batch = jax.tree.map(lambda x: np.stack([x, -2 * x]), _params()), _batch()
        (values, _), grads = jax.jit(jax.vmap(_compiled(5), (0, None)))(params, batch)
        for i in range(2):
            want, want_grads = _reference(_at(params, i), batch)
            close(values[i], want)
            jax.tree.map(close, _at(grads, i), want_grads)

    def test_microbatches_may_be_a_numpy_number(self):
        fn = lo.value_and_grad(_objective, microbatches=np.int64(5))
        close(fn(_params(), _batch())[0][0], _reference(_params(), _batch())[0])


class TestPieces:
    @pytest.mark.parametrize("rows", range(1, 11))
    def test_never_more_than_asked_none_larger_never_padded(self, rows):
        for count in range(1, rows + 1):
            pieces, size = _pieces.strided(np.arange(rows), count), -(-rows // count)
            stacked = [piece for tree in pieces.stacked for piece in np.asarray(tree)]
            last = list(pieces.last)
            assert 1 <= len(stacked + last) <= count
            assert {len(piece) for piece in stacked} <= {size}
            assert all(0 < len(piece) <= size for piece in last)
            assert sorted(np.concatenate(stacked + last)) == list(range(rows))

    @pytest.mark.parametrize("microbatches", [1, 2, 3, 5])
    def test_the_objective_sees_pieces_of_the_batch_and_nothing_else(self, microbatches):
        shapes, rows, size = set(), 7, -(-7 // microbatches)

        def objective(w, x):
            shapes.add(x.shape)
            return {"rows": w * lo.mean(jnp.ones(len(x))), "pieces": lo.constant(0.0)}

        fn = jax.jit(lo.value_and_grad(objective, microbatches=microbatches))
        (_, means), _ = fn(1.0, jnp.zeros((rows, 2)))
        assert shapes == {(n, 2) for n in (size if size <= rows else rows, rows % size) if n}
        assert means["rows"].weight == rows
        assert means["pieces"].weight == len(_cut(np.zeros(rows), microbatches)) <= microbatches

    def test_rows_go_round(self):
        pieces = _pieces.strided({"x": np.arange(11)}, 4)
        np.testing.assert_array_equal(pieces.stacked[0]["x"], [[0, 3, 6], [1, 4, 7], [2, 5, 8]])
        np.testing.assert_array_equal(pieces.last[0]["x"], [9, 10])

    def test_the_order_of_pieces_is_the_order_of_states(self):
        def objective(w, x, *, model_state):
            state = model_state * 10 + x[0]
            return lo.mean(w * x), {"model_state": state}

        fn = lo.value_and_grad(objective, microbatches=3, has_aux=True)
        (_, _, aux), _ = fn(1.0, jnp.arange(1.0, 6.0), model_state=jnp.zeros(()))
        assert aux["model_state"] == 125  # rows (1, 3), (2, 4), (5,)

    @pytest.mark.parametrize("microbatches", [8, 100])
    def test_more_microbatches_than_rows_are_refused(self, microbatches):
        fn = lo.value_and_grad(_objective, microbatches=microbatches)
        with pytest.raises(ValueError, match=f"microbatches <= 7, got {microbatches}"):
            fn(_params(), _batch(rows=7))

    @pytest.mark.parametrize("microbatches", [0, -1])
    def test_no_microbatches_are_refused(self, microbatches):
        with pytest.raises(ValueError, match="microbatches >= 1"):
            lo.value_and_grad(_objective, microbatches=microbatches)

    @pytest.mark.parametrize(
        "batch",
        [
            {"x": np.ones(3), "y": np.ones(2)},
            {"x": np.ones(3), "y": 1.0},
            {"x": np.ones(3), "y": np.ones(())},
            np.float32(1),
        ],
    )
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_leaves_that_share_no_rows_are_refused(self, batch, microbatches):
        fn = lo.value_and_grad(lambda w, b: lo.constant(w), microbatches=microbatches)
        with pytest.raises(ValueError, match="share a leading axis of rows, got"):
            fn(1.0, batch)

    @pytest.mark.parametrize("batch", [{}, None])
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_batch_without_leaves_is_one_piece(self, batch, microbatches):
        seen = lambda w, b: {"seen": w * lo.mean(jnp.ones(2)), "none": lo.constant(b is batch)}
        (value, means), slope = lo.value_and_grad(seen, microbatches=microbatches)(3.0, batch)
        assert (value, means["seen"].weight, means["none"].weight, slope) == (4, 2, 1, 1)

    def test_the_refusal_names_leaves_and_shapes(self):
        with pytest.raises(ValueError, match=r"'x'\] \(3, 2\), .*'y'\] \(2,\)"):
            lo.value_and_grad(_objective)(_params(), {"x": np.ones((3, 2)), "y": np.ones(2)})


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


def _in_pmap_or_vmap(transform, make, params, *args):
    split = lambda x: x.reshape(8, -1, *x.shape[1:])
    mapped = transform(make("devices"), axis_name="devices", in_axes=(None, *[0] * len(args)))
    out = jax.jit(mapped)(params, *jax.tree.map(split, args))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.stack([x[0]] * 8)), out)
    return _at(out, 0)


def _in_shard_map(sizes, check, make, params, *args):
    axes = ("rows", "columns")[: len(sizes)]
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(sizes))
    fn = make(axes if len(axes) > 1 else axes[0])
    specs = (P(), *[P(axes)] * len(args))
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
    return jax.jit(mapped)(params, *args)


# Each calls make(axis_name)(params, *args), args split over 8 devices; all must give the same.
MAPS = {
    "pmap": functools.partial(_in_pmap_or_vmap, jax.pmap),
    "vmap": functools.partial(_in_pmap_or_vmap, jax.vmap),
    "shard_map": functools.partial(_in_shard_map, (8,), True),
    "shard_map, check off": functools.partial(_in_shard_map, (8,), False),
    "shard_map, two axes": functools.partial(_in_shard_map, (4, 2), True),
    "shard_map, two axes, check off": functools.partial(_in_shard_map, (4, 2), False),
}
each_map = pytest.mark.parametrize("on_devices", MAPS.values(), ids=MAPS)

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
        params, batch = _params(), _batch("mixed", "ragged")
        make = lambda axis_name: lo.value_and_grad(
            _objective, microbatches=microbatches, axis_name=axis_name
        )
        (value, means), grads = on_devices(make, params, batch)
        want, want_grads = _reference(params, batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)
        close(means["heads"][0].weight, batch["heavy"].sum())

    def test_one_device_without_weight_does_not_count(self):
        params, batch = _params(), _batch()
        batch["mask"][:6], batch["heavy"][3:] = 0, 0
        make = lambda axis_name: lo.value_and_grad(_objective, axis_name=axis_name)
        (value, _), grads = MAPS["shard_map"](make, params, batch)
        want, want_grads = _reference(params, batch)
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
            key = functools.reduce(jax.random.fold_in, index, jax.random.key(3))
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
        summed = [e for e in _equations(traced.jaxpr) if "psum" in e.primitive.name]
        assert summed
        assert {str(v.aval.dtype) for e in summed for v in e.invars} == {"float32"}

    def test_parameters_may_be_sharded_over_another_axis(self):
        mesh = jax.make_mesh((4, 2), ("rows", "features"), axis_types=(AxisType.Auto,) * 2)

        def objective(w, batch):
            hidden = jnp.tanh(batch["x"] @ w)
            return lo.mean(jnp.square(jax.lax.psum(jnp.sum(hidden, 1), "features")), batch["mask"])

        whole = lambda w, b: lo.mean(jnp.square(jnp.sum(jnp.tanh(b["x"] @ w), 1)), b["mask"])
        w, batch = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4), _batch()
        want, want_grad = _plain(whole)(w, batch)
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
        batch = _batch(rows=32)
        with jax.set_mesh(mesh):
            sharded = place(_params(), P()), place(batch, P("rows"))
            (value, _), grads = _compiled(microbatches)(*sharded)
        want, want_grads = _reference(_params(), batch)
        close(value, want)
        jax.tree.map(close, grads, want_grads)

    def test_the_batch_stays_where_it_is(self):
        _, place = self._sharded(AxisType.Auto)
        sharded = place(_params(), P()), place(_batch(rows=32), P("rows"))
        program = _compiled(4).lower(*sharded).compile().as_text()
        assert "all-reduce" in program
        for collective in ("all-gather", "all-to-all", "collective-permute"):
            assert collective not in program

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_sharded_parameters_on_an_explicit_mesh(self, microbatches):
        mesh, place = self._sharded(AxisType.Explicit)

        def objective(w, batch):
            w = jax.sharding.reshard(w, P())
            return lo.mean(jnp.tanh(batch["x"] @ w[:FEATURES]), batch["mask"])

        whole = lambda w, b: lo.mean(jnp.tanh(b["x"] @ w[:FEATURES]), b["mask"])
        w, batch = np.linspace(-1, 1, 8, dtype=np.float32), _batch(rows=32)
        fn = jax.jit(lo.value_and_grad(objective, microbatches=microbatches))
        with jax.set_mesh(mesh):
            _, grad = fn(place(w, P("rows")), place(batch, P("rows")))
        close(grad, jax.grad(lambda w: lo.value(whole(w, batch)))(w))


def _equations(jaxpr):
    """All equations at all depths."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_jaxpr(x):
    return hasattr(x, "eqns")


def _compile(fn, *args):
    return jax.jit(fn).lower(*args).compile()


def _products(compiled):
    """Matrix products in a compiled program."""
    return sum(compiled.as_text().count(name) for name in (" dot(", "matmul", "gemm"))


def _weights_pass(objective):
    """The pass that sums the weights, alone."""

    def fn(params, batch):
        call = functools.partial(_grad._call, objective, False, ((), {}))
        return _grad.fixed_weights(call, params, None, None, batch)

    return fn


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
    return lambda layers, h: functools.reduce(step, layers, h)


def _scan(layers, h):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, layers)[0]


def _scan_that_carries_the_weights(layers, h, weights):
    body = lambda carry, w: ((jnp.tanh(carry[0] @ w), carry[1] * 0.5), None)
    return jax.lax.scan(body, (h, weights), layers)[0]


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
LAYERS = np.random.default_rng(1).normal(size=(2, FEATURES, FEATURES)).astype(np.float32)


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
        objective, batch = _modelled(model), _batch()
        weights_pass = _weights_pass(objective)
        assert _products(_compile(weights_pass, LAYERS, batch)) == 0
        traced = jax.make_jaxpr(weights_pass)(LAYERS, batch)
        names = collections.Counter(e.primitive.name for e in _equations(traced.jaxpr))
        assert names["dot_general"] == names["tanh"] == names["debug_callback"] == 0

        plain = _compile(_plain(objective), LAYERS, batch)
        ours = _compile(lo.value_and_grad(objective, microbatches=5), LAYERS, batch)
        assert _products(ours) == 2 * _products(plain) > 0  # a smaller last piece is traced anew
        (value, _), grads = ours(LAYERS, batch)
        want, want_grads = plain(LAYERS, batch)
        close(value, want, rtol=2e-6)
        close(grads, want_grads, rtol=5e-6, atol=1e-6)

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_nor_do_equal_pieces(self, microbatches):
        objective, batch = _modelled(_all_at_once), _batch()
        ours = _compile(lo.value_and_grad(objective, microbatches=microbatches), LAYERS, batch)
        assert _products(ours) == _products(_compile(_plain(objective), LAYERS, batch)) > 0


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
            jax.eval_shape(fn, _params(), _batch(), model_state=STATE)
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
        (value, _), grads = fn(_params(), _batch(), 0.5)
        # a weight that sums over its piece differs between pieces: only the average is compared
        weights = [
            np.broadcast_to(weigh(np.float64(b["heavy"]), _params(), 0.5), b["heavy"].shape)
            for b in _cut(_batch(), microbatches)
        ]
        x = np.concatenate([np.float64(b["x"]) for b in _cut(_batch(), microbatches)])
        weights, fit = np.concatenate(weights), x @ _params()["w"]
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
            (_, _, aux), _ = jax.jit(fn)(_params(), _batch())
            chosen = _batch()["x"] @ _params()["w"] > 0
            close(aux["metrics"]["precision"].value, np.mean(_batch()["y"][chosen] > 0))
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
        along = lambda fn: jax.grad(lambda h: dot(fn(_params(), _batch(), h)[1]))
        values = lambda fn: jax.grad(lambda h: jax.tree.leaves(fn(_params(), _batch(), h)[0])[0])
        both = lambda fn: jax.jit(lambda h: (along(fn)(h), values(fn)(h)))(1.3)
        jax.tree.map(functools.partial(close, rtol=5e-6), both(ours), both(_plain(objective)))


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
        params, batch, state = _params(), _batch(), {"running": np.float32(2), "count": 3}
        (value, means, aux), grads = fn(params, batch, model_state=state)

        total, slope, running = 0, 0, 2.0
        pieces = _cut(jax.tree.map(np.float64, batch), microbatches)
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
        assert aux["metrics"]["y"][0].weight == ROWS

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

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ((lo.constant(1.0), {"metrics": {}, "accuracy": 1}), "metrics' and 'model_state"),
            ((lo.constant(1.0), {"state": 1}), "metrics' and 'model_state"),
            ((lo.constant(1.0), [lo.constant(1.0)]), "returns \\(means, aux\\)"),
            ((lo.constant(1.0), None), "returns \\(means, aux\\)"),
            (lo.constant(1.0), "returns \\(means, aux\\)"),
            ([lo.constant(1.0), {}], "returns \\(means, aux\\)"),
            ((lo.constant(1.0), {}, {}), "returns \\(means, aux\\)"),
            ((jnp.ones(()), {}), "Expected a tree of Mean"),
            ((lo.constant(1.0), {"metrics": {"accuracy": 0.5}}), "at 'accuracy'"),
        ],
    )
    def test_other_returns_are_refused(self, returned, message):
        fn = lo.value_and_grad(lambda w, x: returned, has_aux=True)
        with pytest.raises(TypeError, match=message):
            fn(1.0, jnp.ones(2))

    @pytest.mark.parametrize("microbatches", [1, 2])
    @pytest.mark.parametrize(
        "returned", [1.0, {"a": jnp.ones(3)}, (lo.constant(1.0), {"x": 1.0}), None]
    )
    def test_an_objective_returns_means(self, returned, microbatches):
        fn = lo.value_and_grad(lambda w, x: returned, microbatches=microbatches)
        with pytest.raises(TypeError, match="Mean"):
            fn(1.0, jnp.ones(2))

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_state_that_was_not_given_is_refused(self, microbatches):
        objective = lambda w, x, *rest: (lo.mean(w * x), {"model_state": 1})
        fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
        with pytest.raises(ValueError, match="pass the first one by its keyword"):
            fn(1.0, jnp.ones(2), 1)


def _noisy(w, x, key, *, noise, rest=()):
    """Weights and values both drawn from keys."""
    weights = jax.random.uniform(noise["weights"], x.shape)
    values = jnp.tanh(w * x + jax.random.normal(key, x.shape))
    return lo.mean(values, weights), lo.mean(values**2, jax.random.bernoulli(key, 0.5, x.shape))


class TestKeys:
    x = np.linspace(-2, 2, 13, dtype=np.float32)

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_are_folded_with_the_number_of_the_piece_in_both_passes(self, microbatches):
        key, noise = jax.random.key(1), {"weights": jax.random.key(2)}
        fn = jax.jit(lo.value_and_grad(_noisy, microbatches=microbatches))
        (value, means), grad = fn(0.7, self.x, key, noise=noise)

        def whole(w):
            parts = []
            for i, piece in enumerate(_cut(self.x, microbatches)):
                fold = lambda k, i=i: k if microbatches == 1 else jax.random.fold_in(k, i)
                parts.append(_noisy(w, piece, fold(key), noise=jax.tree.map(fold, noise)))
            pooled = lo.pool(*parts)
            return lo.value(pooled), pooled

        (want, want_means), want_grad = jax.jit(jax.value_and_grad(whole, has_aux=True))(0.7)
        close(value, want)
        close(grad, want_grad)
        jax.tree.map(close, means, want_means)

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_batches_of_keys_are_folded_one_by_one(self, microbatches):
        keys = jax.random.split(jax.random.key(0), (2, 3))
        draw = jax.vmap(jax.vmap(jax.random.uniform))

        def objective(w, x, keys):
            return lo.mean(w * x), {"metrics": lo.Mean(draw(keys), 1.0)}

        fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
        (_, _, aux), _ = fn(1.0, jnp.ones(2), keys)
        fold = lambda i: jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, i)))(keys)
        want = draw(keys) if microbatches == 1 else draw(fold(0)) + draw(fold(1))
        close(aux["metrics"].total, want)

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_raw_key_is_refused_and_none_passes(self, microbatches):
        fn = lo.value_and_grad(lambda w, x, key: lo.mean(w * x), microbatches=microbatches)
        with pytest.raises(TypeError, match=r"typed PRNG key, got uint32.*jax.random.key"):
            fn(1.0, jnp.ones(2), key=jax.random.PRNGKey(0))
        assert fn(1.0, jnp.ones(2), key=None)[0][0] == 1

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_other_arguments_are_passed_on_as_they_are(self, microbatches):
        seen, sentinel = [], object()

        def objective(w, x, *args, **kwargs):
            seen.append((args, kwargs))
            return args[0](w * x), {}

        fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
        (value, _, _), _ = fn(1.0, jnp.ones(2), lo.mean, "float32", mode="train", it=sentinel, n=3)
        assert value == 1
        assert seen
        for args, kwargs in seen:
            assert args == (lo.mean, "float32")
            assert kwargs == {"mode": "train", "it": sentinel, "n": 3}


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
        params, batch = low((_params(), _batch(rows=512)))
        want = _reference(params, batch)[1]["w"]
        error = {}
        for microbatches in (1, 64):
            (_, means), grads = _compiled(microbatches)(params, batch)
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
            params, batch = jax.tree.map(np.float64, (_params(), _batch("fractional", "mixed")))
            fn = jax.jit(lo.value_and_grad(_objective, microbatches=microbatches))
            (value, means), grads = fn(params, batch)
            want, want_grads = _reference(params, batch)
            assert {x.dtype for x in jax.tree.leaves((value, means, grads))} == {
                np.dtype("float64")
            }
            np.testing.assert_allclose(value, want, rtol=1e-14)
            tight = functools.partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-15)
            jax.tree.map(tight, grads, want_grads)

    def test_float32_where_float64_is_allowed(self):
        with jax.enable_x64(True):
            for microbatches in (1, 5):
                fn = jax.jit(lo.value_and_grad(_objective, microbatches=microbatches))
                out = fn(_params(), _batch())
                assert {x.dtype for x in jax.tree.leaves(out)} == {np.dtype("float32")}


class TestDerivatives:
    params, batch = _params(), _batch("fractional", "mixed")
    ours = staticmethod(lo.value_and_grad(_objective))

    def test_hessian(self):
        ways = (
            jax.hessian(lambda p: lo.value(_objective(p, self.batch))),
            jax.hessian(lambda p: self.ours(p, self.batch)[0][0]),
            jax.jacfwd(lambda p: self.ours(p, self.batch)[1]),
            jax.jacrev(lambda p: self.ours(p, self.batch)[1]),
        )
        want, *others = jax.jit(lambda p: [way(p) for way in ways])(self.params)
        for got in others:
            jax.tree.map(functools.partial(close, rtol=5e-6, atol=1e-6), got, want)

    def test_jvp(self):
        tangent = {"w": np.array([1, 0, -1, 2], np.float32), "b": np.float32(0.5)}
        plain = lambda p: _plain(_objective)(p, self.batch)
        ours = lambda p: (lambda out: (out[0][0], out[1]))(self.ours(p, self.batch))
        along = jax.jit(lambda p, t: [jax.jvp(fn, (p,), (t,)) for fn in (ours, plain)])
        got, want = along(self.params, tangent)
        jax.tree.map(functools.partial(close, rtol=5e-6, atol=1e-6), got, want)

    def test_grad_of_the_norm_of_the_gradient(self):
        norm = lambda grads: sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))
        slope = lambda fn: jax.grad(lambda p: norm(fn(p, self.batch)[1]))
        slopes = jax.jit(lambda p: [slope(fn)(p) for fn in (self.ours, _plain(_objective))])
        got, want = slopes(self.params)
        jax.tree.map(functools.partial(close, rtol=5e-6, atol=1e-6), got, want)


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
        assert sorted(seen) == sorted(x.shape for x in _cut(np.ones(9), microbatches))

    @pytest.mark.parametrize("microbatches", [1, 4, 5])
    def test_conditions_speak_under_checkify(self, microbatches):
        def objective(w, x):
            checkify.debug_check(jnp.all(x < 8), "expected x < 8, got {x}", x=jnp.max(x))
            return lo.mean(w * x)

        fn = checkify.checkify(jax.jit(lo.value_and_grad(objective, microbatches=microbatches)))
        assert fn(1.0, jnp.arange(8.0))[0].get() is None
        assert "expected x < 8, got 8.0" in fn(1.0, jnp.arange(9.0))[0].get()
