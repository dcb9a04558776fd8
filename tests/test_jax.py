"""What rests on jax's inner workings: values that vary over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lossopt import _jax


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
