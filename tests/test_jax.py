"""What rests on jax's inner workings: pruning a program, and values that vary over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lossopt import _jax


def _types(jaxpr):
    return [equation.primitive.name for equation in jaxpr.eqns]


class TestPrune:
    def test_result_and_dependence(self):
        def fn(params, batch):
            return {"weight": jnp.sum(batch["mask"]) * params["used"], "one": jnp.ones(2)}

        params = {"used": jnp.float32(3), "unused": jnp.ones((2, 2))}
        batch = {"mask": np.array([1.0, 0.5], np.float32), "x": jnp.ones(2)}
        result, used = _jax.prune(fn, params, batch)
        np.testing.assert_array_equal(result()["weight"], 4.5)
        np.testing.assert_array_equal(result()["one"], np.ones(2))
        assert used == ({"used": True, "unused": False}, {"mask": True, "x": False})

    def test_what_the_result_does_not_need_is_deleted(self):
        def fn(w, x):
            w @ x
            return jnp.sum(x)

        result, used = _jax.prune(fn, jnp.ones((3, 3)), jnp.ones((3, 3)))
        assert "dot_general" not in _types(jax.make_jaxpr(result)().jaxpr)
        assert used == (False, True)
        assert result() == 9

    @pytest.mark.parametrize("lead", [jnp.float32(2), 2.0, np.float64(2)])
    def test_closed_over_values_are_kept(self, lead):
        table = jnp.arange(4.0)
        result, used = _jax.prune(lambda x: lead * table[1] * x, 3.0)
        assert result() == 6
        assert used == (True,)

    def test_closed_over_tracers_keep_their_gradients(self):
        def fn(h):
            result, _ = _jax.prune(lambda x: jnp.sum(x * h**2), jnp.ones(3))
            return result()

        assert jax.grad(fn)(2.0) == 12
        assert jax.jit(jax.grad(fn))(2.0) == 12

    def test_leaves_that_are_none(self):
        result, used = _jax.prune(lambda x, nothing: (x["a"], nothing), {"a": 1.0, "b": None}, None)
        assert result() == (1, None)
        assert used == ({"a": True, "b": None}, None)

    def test_keys_may_be_arguments_and_results(self):
        fn = lambda key: (jax.random.fold_in(key, 1), jax.random.uniform(key))
        result, used = _jax.prune(fn, jax.random.key(0))
        assert used == (True,)
        assert result()[0] == jax.random.fold_in(jax.random.key(0), 1)
        assert result()[1] == jax.random.uniform(jax.random.key(0))

    @pytest.mark.parametrize("ordered", [False, True])
    def test_effects_without_results_are_deleted_at_every_depth(self, ordered):
        seen = []

        def body(carry, x):
            jax.debug.callback(seen.append, carry[0], ordered=ordered)
            checkify.debug_check(carry[0] < 0, "never")
            return (carry[0] * x, carry[1] + 1), None

        def branch(w):
            jax.debug.print("{}", w, ordered=ordered)
            return w

        def fn(w, xs):
            (_, count), _ = jax.jit(lambda w: jax.lax.scan(body, (w, 0), xs))(w)
            jax.lax.cond(w > 0, branch, lambda w: w, w)
            jax.lax.while_loop(lambda i: i < 2, lambda i: (jax.debug.print("{}", w), i + 1)[1], 0)
            return count

        result, used = _jax.prune(fn, 2.0, jnp.ones(3))
        assert result() == 3
        assert used == (False, False)
        assert jax.make_jaxpr(result)().effects == set()
        jax.effects_barrier()
        assert seen == []

    def test_writes_to_a_mutable_array_are_not_mere_effects(self):
        def fn(x):
            total = jax.new_ref(jnp.zeros(()))
            jax.ref.addupdate(total, (), jnp.sum(x))
            return total[...]

        result, used = _jax.prune(fn, jnp.ones(3))
        assert result() == 3
        assert used == (True,)


class TestVarying:
    @pytest.mark.parametrize("leaf", [jnp.ones(2), 2.0, 3, None])
    def test_outside_of_maps_nothing_changes(self, leaf):
        assert _jax.varying({"leaf": leaf}, ())["leaf"] is leaf

    @pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
    @pytest.mark.parametrize("inside", [False, True])
    def test_vmap_is_left_alone(self, jit, inside):
        def fn(w, x):
            if not inside:
                return _jax.varying(w, ("i",)) * x
            return jax.lax.scan(
                lambda c, x: (c + _jax.varying(w, ("i",)) * x, None), 0 * x, x[None]
            )[0]

        mapped = jit(jax.vmap(fn, axis_name="i", in_axes=(None, 0)))
        np.testing.assert_array_equal(mapped(2.0, jnp.arange(3.0)), [0, 2, 4])

    @pytest.mark.parametrize("check", [True, False])
    def test_shard_map_differentiates_locally(self, check):
        def fn(w, x):
            twice = _jax.varying(_jax.varying(w, ("i",)), ("i",))
            return jax.grad(lambda w: jnp.sum(w * x))(twice)[None]

        mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
        specs = {"in_specs": (P(), P("i")), "out_specs": P("i"), "check_vma": check}
        local = jax.jit(jax.shard_map(fn, mesh=mesh, **specs))(1.0, jnp.arange(8.0))
        np.testing.assert_array_equal(local, np.arange(8))


TRACES = {
    "jit": lambda fn: jax.jit(fn)(1.0),
    "vmap": lambda fn: jax.vmap(fn)(jnp.ones(2)),
    "grad": lambda fn: jax.grad(fn)(1.0),
    "eval_shape": lambda fn: jax.eval_shape(fn, 1.0),
}


@pytest.mark.parametrize("case", TRACES)
def test_what_is_traced_is_known_without_a_tracer_in_hand(case):
    seen = []
    TRACES[case](lambda x: (seen.append(_jax.traced()), x)[1])
    assert seen == [True]
    with jax.set_mesh(jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))):
        assert not _jax.traced()
