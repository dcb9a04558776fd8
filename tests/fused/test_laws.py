"""What every fused loss must do: be the dense one, in value and in every derivative."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import lossopt as lo
from tests.fused import cases
from tests.xla import emitters

ROWS = pytest.mark.parametrize("row", cases.LOSSES.values(), ids=cases.LOSSES)
MEMBERS = pytest.mark.parametrize("row", cases.MEMBERS.values(), ids=cases.MEMBERS)


PLAIN = {"xla_backend_optimization_level": 0}  # LLVM would take longer than these small programs
FAST = PLAIN | emitters(False)
DISTINCT = {x: row for x, row in cases.MEMBERS.items() if "hinge" not in x and x != "lambda_rank"}


def run(fn, *args):
    return jax.jit(fn).lower(*args).compile(FAST)(*args)


def near(got, want, tolerance):
    """Every leaf, against its own largest number."""
    pairs = zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, one), other in pairs:
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        size = np.max(np.abs(other), initial=1e-3 if other.ndim else 1.0)  # numbers cancel
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, 0, tolerance * size, err_msg=str(path))


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def value_and_gradient(fn):
    """Total, weight and the total's gradient; without the slope of what may not be read."""

    def of(inputs, weights):
        mean = fn(inputs, weights)
        return mean.total, mean.weight

    def both(inputs, weights):
        value, (slopes, in_weights) = jax.value_and_grad(of, (0, 1), has_aux=True)(inputs, weights)
        return value, slopes, jnp.where(weights == 0, 0, in_weights)

    return both


def along_a_line(fn, inputs, weights, along):
    """The derivative of the gradient along a direction, forward over reverse."""
    return jax.jvp(_gradient(fn, weights), (inputs,), (along,))[1]


def second(fn, inputs, weights, along):
    """The same, and reverse over reverse."""
    gradient = _gradient(fn, weights)
    parts = lambda x: zip(*map(jax.tree.leaves, (gradient(x), along)), strict=True)
    reverse = jax.grad(lambda x: sum(jnp.vdot(g, a) for g, a in parts(x)))(inputs)
    return along_a_line(fn, inputs, weights, along), reverse


def _gradient(fn, weights):
    return jax.grad(lambda inputs: fn(inputs, weights).total)


def direction(inputs):
    return {name: np.cos(np.arange(x.size)).reshape(x.shape) for name, x in inputs.items()}


def poisoned(row):
    """The inputs, with NaN where the weight is 0."""
    nan = lambda x: np.where(row.weights.reshape(-1, *(1,) * (x.ndim - 1)) == 0, np.nan, x)
    poison = {name: nan(row.inputs[name]).astype(np.float32) for name in row.masked}
    return row.inputs | poison


@cache
def dense(name):
    """What the dense loss gives in float64."""
    row = cases.LOSSES[name]
    with jax.enable_x64(True):
        args = wide((row.inputs, row.weights))
        return jax.tree.map(np.asarray, run(value_and_gradient(row.dense), *args))


def test_every_member_has_cases_and_the_anatomy():
    public = {name: x for name, x in vars(lo.fused).items() if callable(x) and name[0].islower()}
    for name, member in public.items():
        for section in ("Args:", "Returns:", "Raises:", "Examples:"):
            assert section in inspect.getdoc(member), f"{name} has no {section}"
    assert set(cases.MEMBERS) == set(public) - {
        "cached_value_and_grad",
        "plan",
        "sequence_log_probs",
    }


@ROWS
def test_equals_the_dense_loss_in_float64(row):
    with jax.enable_x64(True):
        args = wide((row.inputs, row.weights))
        for chunks in row.chunks:
            got = run(value_and_gradient(partial(row.fn, memory=chunks)), *args)
            near(got, dense(row.name), 1e-11)


@ROWS
def test_float32_is_exact_and_never_reads_what_has_no_weight(row):
    want = dense(row.name)
    got = run(value_and_gradient(row.fn), poisoned(row), row.weights)
    near(got[0], want[0], 1e-6)
    near(got[1:], want[1:], 2e-6)


@pytest.mark.parametrize("row", cases.SHIFTED.values(), ids=cases.SHIFTED)
def test_a_constant_in_all_logits_changes_nothing(row):
    """The numbers lie on a grid, so that adding it rounds nothing away."""

    def gradient(fn):
        def value(arrays, weights, more):
            return fn(cases.shifted(row.inputs | arrays, more), weights).total

        return jax.value_and_grad(value, (0, 2))

    grid = {name: np.round(2 * x) / 2 for name, x in row.inputs.items() if x.ndim}
    with jax.enable_x64(True):
        args = *wide((grid, row.weights)), jnp.zeros(row.weights.shape)
        value, (slopes, sums) = run(gradient(row.dense), *args)
    for chunks in row.chunks:
        fn = gradient(partial(row.fn, memory=chunks))
        for offset in (0.0, 1e4, 1e6):
            more = np.full_like(row.weights, offset)
            got, (rises, rows) = run(fn, grid, row.weights, more)
            near((got, rises), (value, slopes), 2e-6)
            np.testing.assert_allclose(rows, sums, 0, 1e-5, err_msg=str(offset))


@pytest.mark.parametrize("row", cases.RICHEST.values(), ids=cases.RICHEST)
def test_second_derivatives_equal_those_of_the_dense_loss(row):
    with jax.enable_x64(True):
        args = wide((row.inputs, row.weights, direction(row.inputs)))
        want = run(partial(along_a_line, row.dense), *args)
        fn = partial(row.fn, memory=row.chunks[0])
        near(run(partial(second, fn), *args), (want, want), 1e-10)


@pytest.mark.parametrize("row", DISTINCT.values(), ids=DISTINCT)  # others share their code
def test_the_other_form_also_goes_forward(row):
    with jax.enable_x64(True):
        args = wide((row.inputs, row.weights, direction(row.inputs)))

        def both(fn, inputs, weights, along):
            forward = jax.jvp(lambda x: fn(x, weights).total, (inputs,), (along,))
            return forward, value_and_gradient(fn)(inputs, weights)

        fn = partial(row.fn, memory=row.chunks[0], differentiable="jvp")
        near(run(partial(both, fn), *args), run(partial(both, row.dense), *args), 1e-11)


@MEMBERS
def test_values_of_examples_with_any_cotangent(row):
    def read(values, inputs, weights):
        shown = values(inputs, weights)
        return jnp.where(weights == 0, 0, shown) if shown.shape == weights.shape else shown

    def pulled(values, inputs, weights):
        shown, pull = jax.vjp(lambda x: read(values, x, weights), inputs)
        return shown, pull(jnp.cos(jnp.arange(shown.size)).reshape(shown.shape))

    with jax.enable_x64(True):
        args = wide((row.inputs, row.weights))
        want = run(lambda *args: pulled(row.values, *args), *args)
        for chunks in row.chunks:
            fn = partial(row.fn, memory=chunks, per_example=True)
            near(run(partial(pulled, fn), *args), want, 1e-11)


@pytest.mark.parametrize("memory", ["auto", lo.fused.Chunks(rows=8)])  # at once, in turns
@pytest.mark.parametrize("name", ["linear_softmax_cross_entropy", "clip", "approximate_ndcg"])
def test_many_at_once_are_each_the_same(name, memory):
    row = cases.MEMBERS[name]
    many = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), row.inputs)
    gradient = value_and_gradient(partial(row.fn, memory=memory))
    both = run(jax.vmap(gradient, (0, None)), many, row.weights)
    want = run(value_and_gradient(row.dense), row.inputs, row.weights)
    near(jax.tree.map(lambda x: x[0], both), want, 5e-6)  # of the dense one in float32, too


@ROWS
def test_nothing_as_large_as_the_matrix_is_ever_made(row):
    others = ({"per_example": True}, {"differentiable": "jvp"}) if row.name in cases.MEMBERS else ()
    for chunks in row.chunks:
        for options in ({}, *others):
            fn = partial(row.fn, weights=row.weights, memory=chunks, **options)
            assert largest(jax.grad(partial(_total, fn)), row.inputs) < row.matrix
    assert largest(row.dense, row.inputs, row.weights) >= row.matrix


def _total(fn, inputs):
    return jnp.sum(jax.tree.leaves(fn(inputs))[0])


def largest(fn, *args):
    """The size of the largest array that the program makes, at any depth."""

    def within(jaxpr):
        sizes = [out.aval.size for equation in jaxpr.eqns for out in equation.outvars]
        return max(sizes + [within(inner) for inner in core.subjaxprs(jaxpr)], default=0)

    return within(jax.make_jaxpr(fn)(*args).jaxpr)
