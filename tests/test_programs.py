"""Programs that outlive calls: what is found again, what is told apart, what is let go."""

import dataclasses
import enum
import gc
import threading
import weakref
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _programs
from lossopt._programs import call
from tests.counted import counted

X = np.arange(1.0, 4.0, dtype=np.float32)
W = jnp.asarray(X)


@pytest.fixture(autouse=True)
def _cold():
    _programs.clear()
    yield
    _programs.clear()


def apply(objective, *args):
    return objective(*args)


def planned(objective, *rest):
    """The objective at what comes last, after what the program is made for."""
    return objective(rest[-1])


def described(objective, what, x):
    return {repr(what): objective(x)}


def scaled(x, *, factor):
    return factor * x


def recipe_applied(recipe, x):
    return recipe.objective(x) * recipe.count


def stepped(objective, optimizer, x):
    return optimizer.update(objective(x), optimizer.init(x))


def times(factor):
    return lambda x: factor * x


def nested(table, numbers, factor=2.0):
    """Arrays closed over at every depth, checks, custom derivatives, and their gradient."""

    @jax.custom_vjp
    def custom(x):
        return x * table

    custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g * table,))

    @jax.jit
    def inner(x):
        checkify.debug_check(jnp.all(x < 1e9), "never {x}", x=x[0])
        return jax.nn.softplus(x * table) + numbers

    def body(carry, x):
        return jax.checkpoint(inner)(carry) * factor + lo.mean(table, x).total, carry[0]

    def forward(x):
        x, rows = jax.lax.scan(body, x, jnp.stack([table, x]), reverse=True)
        x = jax.lax.cond(x[0] > 0, inner, lambda x: inner(x) + table, -x)
        x = jax.lax.fori_loop(0, 2, lambda _, x: 0.1 * inner(custom(x)), x)
        return jnp.sum(x) + jnp.sum(rows)

    def objective(x):
        value, gradient = jax.value_and_grad(forward)(x)
        more = lambda y: jax.lax.while_loop(lambda y: y < table[1], lambda y: y + table[0], y)
        return {"value": value, "gradient": gradient, "until": jax.vmap(more)(x)}

    return objective


class TestFoundAgain:
    def test_other_numbers_neither_trace_nor_compile(self):
        objective, y = times(2.0), W + 1
        call(apply, (objective,), W)
        with counted() as count:
            out = call(apply, (objective,), y)
        assert (count.traces, count.lowered, count.compiled) == (0, 0, 0)
        np.testing.assert_array_equal(out, 2 * (X + 1))

    def test_equal_closures_trace_once_and_compile_nothing(self):
        calls = []

        def closure(i):
            def objective(x):
                calls.append(i)
                return fn(x)

            fn = nested(jnp.asarray(X + i), X * np.float32(i))
            return objective

        closures = [closure(i) for i in range(3)]
        wanted = [jax.jit(objective)(W) for objective in closures]
        calls.clear()
        for i, want in enumerate(wanted):
            with counted() as count:
                got = call(apply, (closures[i],), W)
            assert count.compiled == (i == 0)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, want)
        assert calls == [0, 1, 2]

    def test_numbers_of_python_are_literals(self):
        for factor in (2.0, 3.0):
            with counted() as count:
                out = call(apply, (times(factor),), W)
            assert count.compiled == 1
            np.testing.assert_array_equal(out, factor * X)

    def test_a_numpy_array_is_read_when_it_is_traced(self):
        table = X.copy()
        objective = lambda x: x * table
        call(apply, (objective,), W)
        table[:] = 0
        np.testing.assert_array_equal(call(apply, (objective,), W), X * X)

    def test_bound_methods_and_partials_are_what_they_are_made_of(self):
        model = _Model(3.0)
        for plan in ((model.loss,), (partial(scaled, factor=3.0),)):
            call(planned, plan, W)
            again = (model.loss,) if plan == (model.loss,) else (partial(scaled, factor=3.0),)
            with counted() as count:
                out = call(planned, again, W)
            assert count.traces == 0
            np.testing.assert_array_equal(out, 3 * X)
        np.testing.assert_array_equal(call(planned, (_Model(4.0).loss,), W), 4 * X)

    def test_a_recipe_is_what_it_holds(self):
        objective, optimizer = times(2.0), optax.sgd(0.1)
        recipe = lambda count: _Recipe(objective, optimizer, count, ("batch",), _Sizes(1))
        call(recipe_applied, (recipe(2),), W)
        for count, traces in ((2, 0), (3, 1)):
            with counted() as seen:
                call(recipe_applied, (recipe(count),), W)
            assert (seen.traces > 0) == traces

    def test_an_equal_optimizer_of_its_own_traces_but_compiles_nothing(self):
        objective = times(2.0)
        for compiled in (1, 0):
            with counted() as seen:
                call(stepped, (objective, optax.sgd(0.1)), W)
            assert seen.compiled == compiled


class TestToldApart:
    def test_objects_that_are_equal(self):
        models = [_Equal(value) for value in (1, 1.0, True)]
        assert models[0] == models[1] == models[2]
        dtypes = [call(apply, (model,), 1).dtype for model in models]
        assert dtypes == [jnp.int32, jnp.float32, jnp.int32]

    def test_numbers_that_are_equal(self):
        numbers = 1, 1.0, True, 0, 0.0, -0.0, False, "1", None, _Level.LOW
        objective = times(1.0)
        for number in numbers:
            assert list(call(described, (objective, number), 1.0)) == [repr(number)]
        for wrap in (lambda x: (x,), _Sizes, lambda x: partial(scaled, factor=x)):
            for what in map(wrap, (1, 1.0, True)):
                assert list(call(described, (objective, what), 1.0)) == [repr(what)]

    def test_a_model_that_cannot_be_hashed(self):
        model = _Model(2.0)
        with pytest.raises(TypeError, match="unhashable"):
            hash(model)
        np.testing.assert_array_equal(call(apply, (model,), W), 2 * X)
        np.testing.assert_array_equal(call(apply, (_Model(3.0),), W), 3 * X)
        np.testing.assert_array_equal(call(apply, (_Model(3.0).loss,), W), 3 * X)

    def test_what_has_the_place_of_another_in_memory(self):
        for factor in range(6):
            out = call(apply, (times(float(factor)),), W)
            np.testing.assert_array_equal(out, factor * X)
            gc.collect()

    def test_types_of_arguments_are_those_of_jit(self):
        objective = lambda x: jax.tree.map(lambda x: x + x, x)
        args = (1, 1.0, True, X, np.float32(1), np.arange(3), W, W.astype(jnp.bfloat16), None)
        for x in (*args, {"a": 1.0, "b": (W, None)}, {"a": np.float32(1), "b": (W, None)}):
            got, want = call(apply, (objective,), x), jax.jit(objective)(x)
            assert jax.tree.structure(got) == jax.tree.structure(want)
            assert list(map(jax.typeof, jax.tree.leaves(got))) == list(
                map(jax.typeof, jax.tree.leaves(want))
            )

    def test_results_that_nothing_computes(self):
        objective = lambda x: (x, 2.0, W, None, np.float32(3), jax.random.key(0))
        got, want = call(apply, (objective,), 1.0), jax.jit(objective)(1.0)
        assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)
        np.testing.assert_array_equal(got[2], X)
        assert len(_programs._shared) == 1
        key = call(apply, (lambda key: jax.random.split(key, 2),), jax.random.key(1))
        assert (key == jax.random.split(jax.random.key(1), 2)).all()

    def test_callbacks_are_never_shared(self):
        def objective(i):
            host = lambda x: np.asarray(x * i, np.float32)
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            called = jax.jit(lambda x: jax.pure_callback(host, shape, x))
            return lambda x: jax.lax.scan(lambda c, x: (c + called(x), None), 0.0, x)[0]

        for i in range(3):
            assert call(apply, (objective(i),), W) == 6 * i

    @pytest.mark.parametrize("ordered", [False, True])
    def test_what_is_printed_is_printed_by_each(self, capsys, ordered):
        table = jnp.ones(3)

        def objective(name):
            def fn(x):
                jax.debug.print(name + " {}", x[0], ordered=ordered)
                return x + table

            return fn

        for name in ("one", "other"):
            np.testing.assert_array_equal(call(apply, (objective(name),), W), X + 1)
        jax.effects_barrier()
        assert capsys.readouterr().out == "one 1.0\nother 1.0\n"

    def test_settings_of_jax(self):
        calls = []

        def objective(x):
            calls.append(jax.config.jax_default_matmul_precision)
            return jnp.sum(jnp.outer(x, x) @ x) + jnp.arange(2.0)[1]

        for _ in range(2):
            assert call(apply, (objective,), W).dtype == jnp.float32
            with jax.enable_x64(True):
                assert call(apply, (objective,), W).dtype == jnp.float64
            with jax.default_matmul_precision("highest"):
                call(apply, (objective,), W)
        assert calls == [None, None, "highest"]

    def test_devices_and_meshes(self):
        device, objective = jax.devices()[3], lambda x: jax.nn.softplus(x * W)
        want = call(apply, (objective,), W)
        assert call(apply, (times(2.0),), jax.device_put(W, device)).devices() == {device}
        with jax.default_device(device):
            assert call(apply, (times(2.0),), X).devices() == {device}
        assert call(apply, (times(2.0),), W).devices() == W.devices()
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((8,), ("i",), axis_types=(kind,))
            rows = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, P("i")))
            with jax.set_mesh(mesh):
                assert call(apply, (times(2.0),), rows).sharding == rows.sharding
                np.testing.assert_array_equal(call(apply, (objective,), X), want)

    def test_other_optimizations(self):
        with counted() as seen:
            call(apply, (times(2.0),), W)
            before = jax.config.values["jax_disable_most_optimizations"]
            jax.config.update("jax_disable_most_optimizations", not before)
            call(apply, (times(2.0),), W)
            jax.config.update("jax_disable_most_optimizations", before)
        assert seen.compiled == 2


class TestLetGo:
    @pytest.mark.parametrize("host", [False, True])
    def test_eight_objectives_hold_four_of_their_arrays(self, host):
        def once(i):
            table = jnp.full(2**20, float(i))

            @jax.jit
            def inner(x):
                if host:
                    jax.debug.callback(lambda x: None, x)
                return x + jnp.sum(table[:2])

            @jax.custom_jvp
            def custom(x):
                return x * table[0]

            custom.defjvp(lambda p, t: (custom(*p), t[0] * table[0]))
            objective = lambda x: inner(x) + custom(x)
            assert call(apply, (objective,), 1.0) == 1 + 3 * i
            assert call(apply, (objective,), jnp.ones(2))[1] == 1 + 3 * i
            return weakref.ref(objective), weakref.ref(inner)

        alive = [once(i) for i in range(8)]
        for most in (4, 0):
            jax.effects_barrier()
            gc.collect()
            assert sum(x() is not None for x, _ in alive) == most
            assert sum(x() is not None for _, x in alive) == most
            big = [x for x in jax.live_arrays() if x.size == 2**20]
            assert len(big) <= most * (1 + host)  # jax itself copies what it has for a constant
            del big
            _programs.clear()

    def test_the_last_four_are_kept(self):
        objectives = [times(float(i)) for i in range(5)]
        for objective in objectives:
            call(apply, (objective,), W)
        with counted() as seen:
            call(apply, (objectives[1],), W)
        assert seen.traces == 0
        with counted() as seen:
            call(apply, (objectives[0],), W)
        assert (seen.traces > 0, seen.compiled) == (True, 0)

    def test_caches_are_bounded(self, monkeypatch):
        monkeypatch.setattr(_programs, "_PROGRAMS", 2)
        monkeypatch.setattr(_programs, "_SHARED", 3)
        for factor in range(5):
            objective = times(float(factor))
            for count in range(3):
                call(planned, (objective, count), 1.0)
        assert len(_programs._programs) == _programs._OBJECTIVES
        assert {len(programs) for programs in _programs._programs.values()} == {2}
        assert len(_programs._shared) == 3

    def test_errors_pass_and_leave_nothing(self):
        answers = [ValueError("once")]

        def objective(x):
            if answers:
                raise answers[0]
            return x

        with pytest.raises(ValueError, match=r"^once"):
            call(apply, (objective,), W)
        assert not _programs._programs
        answers.clear()
        np.testing.assert_array_equal(call(apply, (objective,), W), X)

    def test_a_check_that_is_no_condition_is_refused_as_by_jit(self):
        objective = lambda x: (checkify.check(jnp.all(x > 0), "negative"), x)[1]
        with pytest.raises(ValueError, match="checkify"):
            call(apply, (objective,), W)

    def test_after_clear_caches(self):
        objective = times(2.0)
        call(apply, (objective,), W)
        jax.clear_caches()
        np.testing.assert_array_equal(call(apply, (objective,), W), 2 * X)


class TestInline:
    def test_where_something_is_traced_it_is_the_call_itself(self):
        cube = lambda x: call(apply, (lambda x: x**3,), x)
        assert jax.grad(cube)(2.0) == 12
        assert jax.jit(jax.grad(cube))(2.0) == 12
        np.testing.assert_allclose(jax.vmap(jax.grad(cube))(W), 3 * X**2, rtol=1e-6)
        assert not _programs._programs

    @pytest.mark.parametrize("transform", [jax.grad, jax.jit, jax.vmap])
    def test_tracers_that_are_closed_over(self, transform):
        closed = lambda w: call(apply, (lambda x: w * x,), 3.0)
        x = W if transform is jax.vmap else 2.0
        want = {jax.grad: 3.0, jax.jit: 6.0, jax.vmap: 3 * X}[transform]
        np.testing.assert_array_equal(transform(closed)(x), want)
        assert not _programs._programs

    def test_conditions_reach_checkify(self):
        objective = lambda x: lo.losses.poisson_nll(x, -jnp.ones(3))
        checked = checkify.checkify(lambda x: call(apply, (objective,), x))
        assert "expected" in checked(W)[0].get()

    def test_without_jit_there_is_none(self):
        kinds = []
        with jax.disable_jit():
            call(apply, (lambda x: kinds.append(type(x)),), W)
        assert kinds == [type(W)]


def test_threads():
    objectives, wrong = [times(W + i) for i in range(6)], []
    wanted = [objective(X) for objective in objectives]

    def work():
        for _ in range(5):
            for objective, want in zip(objectives, wanted):
                got = call(apply, (objective,), W)
                if not np.array_equal(got, want):
                    wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@dataclasses.dataclass(frozen=True)
class _Sizes:
    rows: Any


class _Level(enum.Enum):
    LOW = 1


class _Recipe(NamedTuple):
    objective: Any
    optimizer: optax.GradientTransformation
    count: int
    axes: tuple
    sizes: _Sizes


class _Model:
    __hash__ = None

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x

    loss = __call__


@dataclasses.dataclass(unsafe_hash=True)
class _Equal:
    factor: Any

    def __call__(self, x):
        return self.factor * x
