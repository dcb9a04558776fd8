"""Traced programs: what is deleted from them, and convolutions in the order of fast kernels."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lossopt import _jaxprs
from tests.programs import equations

CANONICAL = {  # of data, of kernels, of results
    3: ((0, 2, 1), (2, 1, 0), (0, 2, 1)),
    4: ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    5: ((0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 4, 1, 2, 3)),
}


def _names(fn, *args):
    return Counter(e.primitive.name for e in equations(jax.make_jaxpr(fn)(*args).jaxpr))


def _orders(fn, *args):
    """How many convolutions are in canonical order, and how many are not."""
    traced = equations(jax.make_jaxpr(fn)(*args).jaxpr)
    convolutions = [e for e in traced if e.primitive.name == "conv_general_dilated"]
    orders = [tuple(e.params["dimension_numbers"]) for e in convolutions]
    inside = sum(order == CANONICAL[len(order[0])] for order in orders)
    return inside, len(orders) - inside


def _draw(*shape, dtype="float32"):
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.normal(size=shape), dtype)


class TestPrune:
    def test_result_and_dependence(self):
        def fn(params, batch):
            return {"weight": jnp.sum(batch["mask"]) * params["used"], "one": jnp.ones(2)}

        params = {"used": jnp.float32(3), "unused": jnp.ones((2, 2))}
        batch = {"mask": np.array([1.0, 0.5], np.float32), "x": jnp.ones(2)}
        result, used = _jaxprs.prune(fn, params, batch)
        np.testing.assert_array_equal(result()["weight"], 4.5)
        np.testing.assert_array_equal(result()["one"], np.ones(2))
        assert used == ({"used": True, "unused": False}, {"mask": True, "x": False})

    def test_what_the_result_does_not_need_is_deleted(self):
        def fn(w, x):
            w @ x
            return jnp.sum(x)

        result, used = _jaxprs.prune(fn, jnp.ones((3, 3)), jnp.ones((3, 3)))
        assert "dot_general" not in _names(result)
        assert used == (False, True)
        assert result() == 9

    @pytest.mark.parametrize("lead", [jnp.float32(2), 2.0, np.float64(2)])
    def test_closed_over_values_are_kept(self, lead):
        table = jnp.arange(4.0)
        result, used = _jaxprs.prune(lambda x: lead * table[1] * x, 3.0)
        assert result() == 6
        assert used == (True,)

    def test_closed_over_tracers_keep_their_gradients(self):
        def fn(h):
            result, _ = _jaxprs.prune(lambda x: jnp.sum(x * h**2), jnp.ones(3))
            return result()

        assert jax.grad(fn)(2.0) == 12
        assert jax.jit(jax.grad(fn))(2.0) == 12

    def test_leaves_that_are_none(self):
        result, used = _jaxprs.prune(
            lambda x, nothing: (x["a"], nothing), {"a": 1.0, "b": None}, None
        )
        assert result() == (1, None)
        assert used == ({"a": True, "b": None}, None)

    def test_keys_may_be_arguments_and_results(self):
        fn = lambda key: (jax.random.fold_in(key, 1), jax.random.uniform(key))
        result, used = _jaxprs.prune(fn, jax.random.key(0))
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
            jax.lax.custom_linear_solve(branch, w, lambda _, w: branch(w), symmetric=True)
            return count

        result, used = _jaxprs.prune(fn, 2.0, jnp.ones(3))
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

        result, used = _jaxprs.prune(fn, jnp.ones(3))
        assert result() == 3
        assert used == (True,)


FLAT = {"window_strides": (1, 1), "padding": "SAME"}
LAST = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
CONVOLUTIONS = {  # data, kernel, and how
    "channels first": (_draw(2, 3, 5, 4), _draw(2, 3, 3, 3), FLAT),
    "channels last": (_draw(2, 5, 4, 3), _draw(3, 3, 3, 2), FLAT | LAST),
    "mixed": (
        _draw(3, 5, 4, 2),
        _draw(2, 3, 3, 3),
        FLAT | {"dimension_numbers": ("CHWN", "OHWI", "HNCW")},
    ),
    "strides": (_draw(2, 3, 5, 4), _draw(2, 3, 3, 3), FLAT | {"window_strides": (2, 1)}),
    "padding": (_draw(2, 3, 5, 4), _draw(2, 3, 3, 2), FLAT | {"padding": ((2, 0), (1, 3))}),
    "dilated": (_draw(2, 3, 6, 5), _draw(2, 3, 2, 2), FLAT | {"rhs_dilation": (2, 3)}),
    "transposed": (
        _draw(2, 3, 3, 2),
        _draw(2, 3, 3, 3),
        FLAT | {"padding": ((1, 1), (2, 0)), "lhs_dilation": (2, 3)},
    ),
    "groups": (_draw(2, 6, 5, 4), _draw(4, 3, 3, 3), FLAT | {"feature_group_count": 2}),
    "depthwise": (
        _draw(2, 5, 4, 3),
        _draw(3, 3, 1, 6),
        FLAT | LAST | {"feature_group_count": 3},
    ),
    "groups of the batch": (_draw(4, 3, 5, 4), _draw(6, 3, 3, 3), FLAT | {"batch_group_count": 2}),
    "one axis": (_draw(2, 3, 7), _draw(4, 3, 3), {"window_strides": (2,), "padding": "VALID"}),
    "three axes": (
        _draw(2, 2, 3, 4, 3),
        _draw(3, 2, 2, 3, 2),
        {"window_strides": (1, 2, 1), "padding": "SAME"},
    ),
    "bfloat16": (_draw(2, 3, 5, 4, dtype="bfloat16"), _draw(2, 3, 3, 3, dtype="bfloat16"), FLAT),
    "bfloat16 summed in float32": (
        _draw(2, 3, 5, 4, dtype="bfloat16"),
        _draw(2, 3, 3, 3, dtype="bfloat16"),
        FLAT | {"preferred_element_type": jnp.float32},
    ),
    "complex": (_draw(2, 3, 5, 4, dtype="complex64"), _draw(2, 3, 3, 3, dtype="complex64"), FLAT),
}


def _convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME")


def _layer(x, kernel):
    return jnp.tanh(_convolve(x, kernel))


@jax.custom_jvp
def _with_own_tangent(x, kernel):
    return _layer(x, kernel)


@_with_own_tangent.defjvp
def _(primals, tangents):
    return jax.jvp(_layer, primals, tangents)


@jax.custom_vjp
def _with_own_gradient(x, kernel):
    return _layer(x, kernel)


_with_own_gradient.defvjp(lambda *args: jax.vjp(_layer, *args), lambda pull, g: pull(g))


def _solved(x, kernel):
    """Its derivative solves with the kernel, too."""
    system = lambda x: x + 0.01 * _convolve(x, kernel)
    solve = lambda system, b: lax.fori_loop(0, 3, lambda _, x: b + x - system(x), b)
    return lax.custom_linear_solve(system, x, solve, transpose_solve=solve)


def _counted(x, kernel):
    """A loop of unknown length has no gradient in reverse."""
    x, kernel = lax.stop_gradient((x, kernel))
    grow = lambda state: (state[0] + 1, _layer(state[1], kernel))
    return lax.while_loop(lambda state: jnp.sum(state[1] ** 2) < 1e9 * state[0] - 1e9, grow, (0, x))


NESTINGS = {
    "call": _layer,
    "jit": jax.jit(_layer),
    "jit twice": lambda x, k: jax.jit(lambda x: jax.jit(_layer)(jax.jit(_layer)(x, k), k))(x),
    "scan": lambda x, k: lax.scan(lambda x, _: (_layer(x, k), None), x, length=2)[0],
    "fori_loop": lambda x, k: lax.fori_loop(0, 2, lambda _, x: _layer(x, k), x),
    "while": lambda x, k: _counted(x, k)[1],
    "map": lambda x, k: lax.map(lambda row: _layer(row[None], k)[0], x),
    "cond": lambda x, k: lax.cond(x[0, 0, 0, 0] > 0, _layer, lambda x, k: -_layer(x, k), x, k),
    "checkpoint": jax.checkpoint(_layer),
    "scanned checkpoint": lambda x, k: lax.scan(
        jax.checkpoint(lambda x, _: (_layer(x, k), None)), x, length=2
    )[0],
    "custom_jvp": _with_own_tangent,
    "custom_vjp": _with_own_gradient,
    "vmap": lambda x, k: jax.vmap(_layer, in_axes=(None, 0))(x, jnp.stack([k, -2 * k])),
    "solve": _solved,
}
X, KERNEL = _draw(8, 3, 4, 3), 0.3 * _draw(3, 3, 3, 3)


def _close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        assert x.dtype == y.dtype
        few = jnp.dtype(x.dtype).itemsize == 2
        scale = float(jnp.max(jnp.abs(y)))
        np.testing.assert_allclose(x, y, rtol=0, atol=(1e-2 if few else 1e-5) * scale)


def _on(mesh, *spec):
    return jax.NamedSharding(mesh, P(*spec))


class TestCanonical:
    def test_every_convolution_and_its_gradient(self):
        def fn(arrays):
            out = {
                name: lax.conv_general_dilated(*xk, **CONVOLUTIONS[name][2])
                for name, xk in arrays.items()
            }
            return sum(jnp.sum(jnp.abs(x) ** 2).astype(jnp.float32) for x in out.values()), out

        arrays = {name: (x, kernel) for name, (x, kernel, _) in CONVOLUTIONS.items()}
        step = jax.grad(fn, has_aux=True)
        canonical = _jaxprs.canonical(step)
        assert sum(_orders(step, arrays)) == 3 * len(CONVOLUTIONS)
        assert _orders(canonical, arrays) == (3 * len(CONVOLUTIONS), 0)
        _close(jax.jit(canonical)(arrays), jax.jit(step)(arrays))

    def test_integers(self):
        convolve = lambda x, k: lax.conv(x, k, (1, 1), "SAME", preferred_element_type=jnp.int32)
        x, kernel = (
            (10 * _draw(2, 3, 5, 4)).astype(jnp.int8),
            (10 * _draw(2, 3, 3, 3)).astype(jnp.int8),
        )
        got, wanted = _jaxprs.canonical(convolve)(x, kernel), convolve(x, kernel)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, wanted)

    def test_every_nesting_and_its_gradient(self):
        """With the gradient inside, where all is in order, and with the gradient of the whole."""

        def fn(kernel, x):
            sums = {name: jnp.sum(nesting(x, kernel) ** 2) for name, nesting in NESTINGS.items()}
            return sum(sums.values()), sums

        gradient = lambda fn: jax.grad(fn, argnums=(0, 1), has_aux=True)
        step, canonical = gradient(fn), _jaxprs.canonical(gradient(fn))
        inside, outside = _orders(step, KERNEL, X)
        assert inside == 0
        with jax.enable_checks(True):
            assert _orders(canonical, KERNEL, X) == (outside, 0)
        wanted = jax.jit(step)(KERNEL, X)
        _close(jax.jit(canonical)(KERNEL, X), wanted)
        _close(jax.jit(gradient(_jaxprs.canonical(fn)))(KERNEL, X), wanted)

    def test_it_may_be_mapped(self):
        def fn(kernel, x):
            value = sum(jnp.sum(NESTINGS[name](x, kernel)) for name in ("fori_loop", "cond"))
            return lax.psum(value, "i")

        mapped = [jax.vmap(f, axis_name="i", in_axes=(0, None)) for f in _both(fn)]
        wanted, got = (jax.jit(f)(jnp.stack([KERNEL, 2 * KERNEL]), X) for f in mapped)
        _close(got, wanted)

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    @pytest.mark.parametrize("check", [True, False])
    def test_around_shard_map_and_inside_of_it(self, kind, check):
        def loss(kernel, x):
            nestings = map(NESTINGS.get, ["map", "scanned checkpoint", "jit twice"])
            return sum(jnp.sum(fn(x, kernel) ** 2) for fn in nestings)

        def sharded(wrap):
            def local(kernel, x):
                kernel = lax.pcast(kernel, "i", to="varying") if check else kernel
                value, (kernel, x) = wrap(jax.value_and_grad(loss, (0, 1)))(kernel, x)
                return lax.psum((value, kernel), "i"), x

            specs = {"in_specs": (P(), P("i")), "out_specs": (P(), P("i"))}
            return jax.shard_map(local, mesh=mesh, **specs, check_vma=check)

        mesh = jax.make_mesh((8,), ("i",), axis_types=(kind,))
        args = jax.device_put((KERNEL, X), (_on(mesh), _on(mesh, "i")))
        plain, inside = sharded(lambda fn: fn), sharded(_jaxprs.canonical)
        around = _jaxprs.canonical(plain)
        all_of_them = sum(_orders(plain, *args))
        with jax.enable_checks(True):
            assert _orders(around, *args) == _orders(inside, *args) == (all_of_them, 0)
        (value, kernel), x = jax.jit(around)(*args)
        _close((value, (kernel, x)), jax.jit(jax.value_and_grad(loss, (0, 1)))(KERNEL, X))

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    def test_of_sharded_arrays(self, kind):
        def loss(kernel, x):
            order = ("CNHW", "OIHW", "CNHW")
            return jnp.sum(
                lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order) ** 2
            )

        mesh = jax.make_mesh((8,), ("i",), axis_types=(kind,))
        args = jax.device_put((KERNEL, jnp.swapaxes(X, 0, 1)), (_on(mesh), _on(mesh, None, "i")))
        fn = jax.grad(loss, (0, 1))
        with jax.set_mesh(mesh), jax.enable_checks(True):
            got, wanted = jax.jit(_jaxprs.canonical(fn))(*args), jax.jit(fn)(*args)
        _close(got, wanted)
        assert [x.sharding for x in got] == [x.sharding for x in wanted]

    def test_effects_stay(self):
        seen = []

        def body(x, _):
            x = _layer(x, KERNEL)
            jax.debug.callback(seen.append, x[0, 0, 0, 0], ordered=True)
            checkify.check(jnp.all(x < 2), "too large")
            checkify.check(x[0, 0, 0, 0] > 2, "too small")
            return x, None

        def fn(x):
            total = jax.new_ref(jnp.zeros(()))
            jax.ref.addupdate(total, (), jnp.sum(lax.scan(body, x, length=2)[0]))
            return total[...]

        canonical = _jaxprs.canonical(fn)
        error, total = jax.jit(checkify.checkify(canonical))(X)
        assert error.get().startswith("too small")
        jax.effects_barrier()
        assert len(seen) == 2
        _close(total, jax.jit(checkify.checkify(fn))(X)[1])

    def test_trees_donation_and_results_that_are_arguments(self):
        calls = []

        def step(state, batch):
            calls.append(None)
            value, gradient = jax.value_and_grad(lambda k: jnp.sum(_layer(batch["x"], k) ** 2))(
                state["kernel"]
            )
            return {"kernel": state["kernel"] - gradient, "none": state["none"], "count": 3}, (
                value,
                batch,
            )

        canonical = _jaxprs.canonical(step)
        state, batch = {"kernel": KERNEL + 0, "none": None}, {"x": X}
        got = jax.jit(canonical, donate_argnums=0)(state, batch)
        assert len(calls) == 1
        assert state["kernel"].is_deleted()
        _close(got, jax.jit(step)({"kernel": KERNEL, "none": None}, batch))

    def test_a_function_that_is_called_twice_stays_one(self):
        @jax.jit
        def block(x, kernel):
            return _layer(x, kernel)

        def fn(x, kernel):
            return block(block(block(x, kernel), kernel), kernel)

        text = jax.jit(_jaxprs.canonical(fn)).lower(X, KERNEL).as_text()
        assert text.count("stablehlo.convolution") == 1

    def test_names_and_metadata_stay(self):
        @_jaxprs.canonical
        @jax.jit
        def fn(x, kernel):
            with jax.named_scope("stem"), set_xla_metadata(part="first"):
                return _convolve(x, kernel)

        assert fn.__name__ == "fn"
        text = jax.jit(fn).lower(X, KERNEL).as_text(debug_info=True)
        assert "stem/conv_general_dilated" in text
        assert text.count('part = "first"') == 4

    def test_a_program_without_convolutions_is_not_touched(self):
        fn = jax.grad(lambda w, x: jnp.sum(jax.nn.gelu(x @ w) @ w.T))
        texts = {jax.jit(f).lower(jnp.ones((4, 4)), jnp.ones((2, 4))).as_text() for f in _both(fn)}
        assert len(texts) == 1

    def test_other_platforms_are_not_touched(self, monkeypatch):
        fn = jax.grad(lambda kernel, x: jnp.sum(_layer(x, kernel)))
        texts = lambda: [
            jax.jit(f).trace(KERNEL, X).lower(lowering_platforms=("cuda",)).as_text()
            for f in _both(fn)
        ]
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert len(set(texts())) == 1
        with jax.default_device("cpu"):
            assert len(set(texts())) == 2
        with jax.default_device(jax.devices("cpu")[0]):
            assert len(set(texts())) == 2


def _both(fn):
    return fn, _jaxprs.canonical(fn)


class TestRewritten:
    def test_nothing_new_is_the_same_object(self):
        traced = jax.make_jaxpr(NESTINGS["scanned checkpoint"])(X, KERNEL)
        assert _jaxprs.rewritten(traced, lambda equation: None) is traced
        assert _jaxprs.rewritten(traced.jaxpr, lambda equation: None) is traced.jaxpr
        assert _jaxprs.without_mere_effects(traced) is traced

    def test_the_rule_sees_each_equation_once_and_none_below_what_it_replaces(self):
        def fn(x):
            twice = jax.jit(jnp.sin)
            return lax.cond(x > 0, lambda x: twice(twice(x)), jnp.cos, x)

        seen = []
        traced = jax.make_jaxpr(fn)(1.0)
        _jaxprs.rewritten(traced, lambda e: seen.append(e.primitive.name))
        assert Counter(seen) == Counter(gt=1, convert_element_type=1, cond=1, jit=2, sin=1, cos=1)
        seen.clear()
        _jaxprs.rewritten(traced, lambda e: seen.append(e.primitive.name) or [e])
        assert seen == ["gt", "convert_element_type", "cond"]
