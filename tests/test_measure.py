"""`measure` is the forward half of `value_and_grad`: one table of modes, one law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests import regression
from tests.maps import MAPS
from tests.programs import equations, products
from tests.regression import at, close, cut

# All numbers are small multiples of powers of two, and nothing is divided before the last step:
# sums are exact in float32, so that two programs agree to the bit however they are compiled.
ROWS = 40
RNG = np.random.default_rng(0)
QUARTERS = lambda *shape: RNG.integers(-8, 9, shape).astype(np.float32) / 4
BATCH = {"x": QUARTERS(ROWS, 3), "y": QUARTERS(ROWS), "mask": RNG.integers(0, 3, ROWS) / 2}
BATCH = jax.tree.map(np.float32, BATCH)
PARAMS = {"w": np.float32([0.5, -1, 0.25]), "b": np.float32(0.75)}
STATE = {"level": np.float32(0.5), "rows": np.int32(0)}
KEY = jax.random.key(3)
each_number = pytest.mark.parametrize("microbatches", [1, 3, 5])  # 40 and 5 rows: 3 is ragged


def _objective(params, batch, key, *, model_state):
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"] - model_state["level"]
    errors = errors + _noise(key, errors.shape)
    means = {
        "fit": lo.mean(errors**2, batch["mask"]),
        "heads": (0.25 * lo.mean(errors),),
        "penalty": lo.constant(0.5 * jnp.sum(params["w"] ** 2)),
    }
    level = batch["x"][0, 0] - model_state["level"]
    state = {"level": level, "rows": model_state["rows"] + len(batch["y"])}
    metrics = {"above": lo.mean(errors > 0, batch["mask"]), "large": lo.mean(errors**2)}
    return means, {"metrics": metrics, "model_state": state}


def _noise(key, shape):
    """Quarters below 4."""
    return (jax.random.bits(key, shape, "uint8") >> 4).astype(jnp.float32) / 4


def _plain(params, batch, key, *, model_state):
    return _objective(params, batch, key, model_state=model_state)[0]


def _by_hand(params, batch, microbatches, keys):
    """Of each device's own rows and key, in numpy float64: totals and weights, by term."""
    table, levels = {}, []
    devices = np.arange(ROWS).reshape(len(keys), -1)
    for places, key in zip(devices, keys):
        pieces, level = cut(at(jax.tree.map(np.float64, batch), places), microbatches), 0.5
        for number, piece in enumerate(pieces):
            fold = key if len(pieces) == 1 else jax.random.fold_in(key, number)
            errors = piece["x"] @ params["w"] + params["b"] - piece["y"] - level
            errors += np.float64(_noise(fold, errors.shape))
            one, mask = np.ones(len(errors)), piece["mask"]
            rows = {
                "fit": (errors**2 @ mask, mask.sum()),
                "heads": (0.25 * errors.sum(), one.sum()),
                "penalty": (0.5 * np.sum(np.float64(params["w"]) ** 2), 1),
                "above": ((errors > 0) @ mask, mask.sum()),
                "large": (errors**2 @ one, one.sum()),
            }
            for name, pair in rows.items():
                table[name] = np.add(table.get(name, 0), pair)
            level = piece["x"][0, 0] - level
        levels.append(level)
    state = {"level": np.mean(levels), "rows": ROWS // len(keys)}
    return {name: lo.Mean(*pair) for name, pair in table.items()}, state


def _both(microbatches, axis_name=(), objective=_objective, has_aux=True):
    """`measure`, and the first part of `value_and_grad`, whose gradient is needed, too."""
    options = {"microbatches": microbatches, "axis_name": axis_name, "has_aux": has_aux}
    ours, theirs = (verb(objective, **options) for verb in (lo.measure, lo.value_and_grad))

    def fn(params, batch):
        measured = ours(params, batch, KEY, model_state=STATE)
        return measured, theirs(params, batch, KEY, model_state=STATE)

    return fn


def _agree(measured, want, table, state):
    """To the bit with `value_and_grad`, and with the table by hand."""
    assert jax.tree.structure(measured) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, measured, want)
    types = lambda tree: [(jnp.shape(x), x.dtype) for x in jax.tree.leaves(tree)]
    assert types(measured) == types(want)
    value, means, aux = measured
    got = {"fit": means["fit"], "heads": means["heads"][0], "penalty": means["penalty"]}
    jax.tree.map(np.testing.assert_array_equal, got | aux["metrics"], table)
    jax.tree.map(np.testing.assert_array_equal, aux["model_state"], state)
    whole = sum(table[name].total / table[name].weight for name in got)
    np.testing.assert_allclose(value, whole, rtol=2e-7)


class TestIsTheForwardHalf:
    @pytest.mark.parametrize(
        ("run", "microbatches"), [(jax.jit, 1), (jax.jit, 3), (jax.jit, 5), (lambda f: f, 1)]
    )
    def test_on_one_device(self, run, microbatches):
        measured, (want, _) = run(_both(microbatches))(PARAMS, BATCH)
        _agree(measured, want, *_by_hand(PARAMS, BATCH, microbatches, [KEY]))

    @pytest.mark.parametrize(
        ("name", "microbatches"),
        [
            *((name, 3) for name in MAPS),
            *((name, 1) for name in ("pmap", "vmap", "shard_map", "shard_map, check off")),
            *((name, 5) for name in ("pmap", "shard_map")),
        ],
    )
    def test_on_many_devices(self, name, microbatches):
        make = lambda axis_name: _both(microbatches, axis_name)
        measured, (want, _) = MAPS[name](make, PARAMS, BATCH)
        sizes = (4, 2) if "two axes" in name else (8,)
        keys = [KEY] * 8
        for device, places in enumerate(np.ndindex(sizes)):
            for place in places:
                keys[device] = jax.random.fold_in(keys[device], place)
        _agree(measured, want, *_by_hand(PARAMS, BATCH, microbatches, keys))

    def test_without_aux(self):
        fn = jax.jit(_both(3, objective=_plain, has_aux=False))
        measured, (want, _) = fn(PARAMS, BATCH)
        assert len(measured) == 2
        jax.tree.map(np.testing.assert_array_equal, measured, want)

    def test_of_any_weights_and_curved_terms(self):
        """Here the two programs may add in another order."""
        params, batch = regression.params(), regression.batch("mixed", "fractional")
        fn = jax.jit(lo.measure(regression.objective, microbatches=5))
        measured = fn(params, batch)
        jax.tree.map(close, measured, regression.compiled(5)(params, batch)[0])
        close(measured[0], regression.reference(params, batch)[0])

    def test_in_float64(self):
        with jax.enable_x64(True):
            given = jax.tree.map(np.float64, (regression.params(), regression.batch()))
            measured = jax.jit(lo.measure(regression.objective, microbatches=5))(*given)
            assert {x.dtype for x in jax.tree.leaves(measured)} == {np.dtype("float64")}
            want, _ = regression.reference(*given)
            np.testing.assert_allclose(measured[0], want, rtol=1e-14)

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_either_part_of_aux_is_optional(self, microbatches):
        run = lambda aux, **kwargs: lo.measure(
            lambda w, x, **kwargs: (lo.mean(w * x), aux), microbatches=microbatches, has_aux=True
        )(1.0, jnp.arange(4.0), **kwargs)[2]
        assert run({}) == {}
        assert run({"metrics": {"one": lo.constant(1.0)}})["metrics"]["one"].value == 1
        assert run({}, model_state=7) == {"model_state": 7}
        assert run({"model_state": jnp.int32(8)}, model_state=7) == {"model_state": 8}


class TestIsAFunction:
    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_its_gradient_is_that_of_value_and_grad(self, microbatches):
        params, batch = regression.params(), regression.batch("mixed", "ragged")
        measured = lo.measure(regression.objective, microbatches=microbatches)
        got = jax.jit(jax.grad(lambda p: measured(p, batch)[0]))(params)
        jax.tree.map(close, got, regression.reference(params, batch)[1])

    @pytest.mark.parametrize("name", ["shard_map", "shard_map, check off"])
    def test_a_map_over_devices_is_differentiated_from_outside(self, name):
        params, batch = regression.params(), regression.batch()
        make = lambda axis: lo.measure(regression.objective, microbatches=2, axis_name=axis)
        got = jax.grad(lambda params: MAPS[name](make, params, batch)[0])(params)
        jax.tree.map(close, got, regression.reference(params, batch)[1])

    def test_it_maps_over_parameters(self):
        many, batch = jax.tree.map(lambda x: np.stack([x, -2 * x]), PARAMS), BATCH
        fn = lambda params: lo.measure(_plain, microbatches=3)(
            params, batch, KEY, model_state=STATE
        )
        values, means = jax.jit(jax.vmap(fn))(many)
        for i in range(2):
            value, each = jax.jit(fn)(at(many, i))
            np.testing.assert_allclose(values[i], value, rtol=2e-7)  # a quotient may be a product
            jax.tree.map(np.testing.assert_array_equal, at(means, i), each)

    @pytest.mark.parametrize("microbatches", [1, 5])
    def test_weights_may_depend_on_params_and_state(self, microbatches):
        """Pooled pairs are exact; a gradient taken piece by piece, which is refused, is not."""

        def objective(params, batch, *, model_state):
            scores = batch["x"] @ params["w"]
            return lo.mean(batch["y"], (scores > 0) + model_state["level"]), {}

        given = PARAMS, BATCH
        measured = lo.measure(objective, microbatches=microbatches, has_aux=True)
        value, _, _ = jax.jit(partial(measured, model_state=STATE))(*given)
        weights = (BATCH["x"] @ PARAMS["w"] > 0) + 0.5
        np.testing.assert_allclose(value, np.average(BATCH["y"], weights=weights), rtol=1e-6)
        with pytest.raises(ValueError, match="weight of a term depends on"):
            lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)(
                *given, model_state=STATE
            )

    def test_its_shapes_are_known_without_running_it(self):
        def objective(w, x):
            return {"fit": lo.mean(w * x)}, {"metrics": {"m": lo.mean(x)}}

        fn = lo.measure(objective, microbatches=2, has_aux=True)
        value, means, aux = jax.eval_shape(fn, 1.0, jax.ShapeDtypeStruct((5,), jnp.float32))
        assert (value.shape, value.dtype) == ((), jnp.float32)
        assert (list(means), list(aux)) == (["fit"], ["metrics"])

    def test_it_makes_no_gradient(self):
        objective = lambda w, x: lo.mean(jnp.tanh(x @ w))
        fn = lo.measure(objective, microbatches=3)
        traced = jax.make_jaxpr(fn)(np.ones((3, 3)), np.ones((7, 3)))
        names = [equation.primitive.name for equation in equations(traced.jaxpr)]
        assert names.count("dot_general") == names.count("tanh") == 2  # equal pieces, and the last

    def test_its_memory_is_that_of_one_piece(self):
        shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
        objective = lambda w, x: lo.mean(jnp.tanh(x @ w) @ w.T)

        def memory(microbatches):
            fn = jax.jit(lo.measure(objective, microbatches=microbatches))
            program = fn.lower(shape(4, 1024), shape(512, 4)).compile()
            return program.memory_analysis().temp_size_in_bytes

        hidden = 512 * 1024 * 4
        assert memory(1) >= hidden
        assert memory(16) <= hidden / 8


class TestEffects:
    @each_number
    def test_a_callback_runs_once_a_piece(self, microbatches):
        seen = []

        def objective(w, x):
            jax.debug.callback(lambda x: seen.append(x.shape), x)
            return lo.mean(w * x)

        jax.block_until_ready(lo.measure(objective, microbatches=microbatches)(1.0, jnp.ones(11)))
        jax.effects_barrier()
        assert sorted(seen) == sorted(x.shape for x in cut(np.ones(11), microbatches))

    @each_number
    def test_conditions_speak_and_cost_no_model(self, microbatches):
        def objective(w, x):
            checkify.debug_check(jnp.all(x < 8), "expected x < 8, got {x}", x=jnp.max(x))
            return lo.mean(jnp.tanh(x[:, None] @ w))

        measured = checkify.checkify(lo.measure(objective, microbatches=microbatches))
        fn = jax.jit(lambda *args: measured(*args)[0])
        w, x = np.ones((1, 3), np.float32), np.arange(8, dtype=np.float32)
        program = fn.lower(w, x).compile()
        assert products(program) == 0
        assert program(w, x).get() is None
        assert "expected x < 8, got 8.0" in program(w, x + 1).get()


@pytest.mark.parametrize("options", [{}, {"microbatches": 3}])
def test_other_arguments_are_passed_on_as_they_are(options):
    seen = []

    def objective(w, x, *args, **kwargs):
        seen.append((args, kwargs))
        return args[0](w * x)

    value, _ = lo.measure(objective, **options)(1.0, jnp.ones(4), lo.mean, "float32", mode="train")
    assert value == 1
    assert all(each == ((lo.mean, "float32"), {"mode": "train"}) for each in seen)
    assert seen
