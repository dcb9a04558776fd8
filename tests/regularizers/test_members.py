"""What every member does with unusual numbers, shapes and dtypes, and how it refuses."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

r = lo.regularizers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
STEPS = np.exp(RNG.uniform(-1, 1, size=X.shape))

# What makes a member of a number, and the number.
MAKE = {
    "L1": (r.L1, 0.3),
    "L2": (r.L2, 0.3),
    "ElasticNet": (lambda s: r.ElasticNet(0.8, s), 0.3),
    "GroupLasso": (lambda s: r.GroupLasso(s, axis=1), 1.1),
    "SparseGroupLasso": (lambda s: r.SparseGroupLasso(s, s / 2, axis=1), 0.9),
    "Nuclear": (r.Nuclear, 0.9),
    "TotalVariation": (lambda s: r.TotalVariation(s, axis=0), 0.3),
    "Box": (lambda s: r.Box(-s, 2 * s), 0.3),
    "Simplex": (lambda s: r.Simplex(s, axis=0), 1.3),
    "L1Ball": (lambda s: r.L1Ball(s, axis=0), 0.9),
    "L2Ball": (lambda s: r.L2Ball(s, axis=1), 0.8),
}
MEMBERS = {name: make(number) for name, (make, number) in MAKE.items()}
MEMBERS["NonNegative"] = r.NonNegative()
PENALTIES = [name for name in MEMBERS if hasattr(MEMBERS[name], "strength")]
WITH_AXIS = [name for name in MEMBERS if hasattr(MEMBERS[name], "axis")]
ONE_STEP = ["Nuclear", "TotalVariation"]
METRIC = [name for name in MEMBERS if name not in ONE_STEP]
ZEROS = np.zeros((3, 3), np.float32), np.float32([[1] * 3, [0] * 3, [1] * 3])
EACH = pytest.mark.parametrize("name", MEMBERS)


DERIVATIVES = [(name, metric) for name in MAKE for metric in (False, True)]


@pytest.mark.parametrize(
    ("name", "metric"), [(n, metric) for n, metric in DERIVATIVES if not (metric and n in ONE_STEP)]
)
def test_derivatives_are_right(name, metric):
    moved = lambda x, t, s: MAKE[name][0](s).prox(x, t)
    with jax.enable_x64(True):
        point = jnp.asarray(X), jnp.asarray(STEPS if metric else 0.4), jnp.asarray(MAKE[name][1])
        ahead = tuple(RNG.normal(size=x.shape) for x in point)
        weights = RNG.normal(size=X.shape)

        @jax.jit
        def look(point, ahead, weights):
            forward = jax.jvp(moved, point, ahead)[1]
            backward = jax.vjp(moved, *point)[1](weights)
            h = jnp.array([1e-6, -1e-6])
            sides = jax.vmap(lambda h: moved(*(x + h * d for x, d in zip(point, ahead))))(h)
            return forward, backward, (sides[0] - sides[1]) / 2e-6

        forward, backward, want = jax.tree.map(np.asarray, look(point, ahead, weights))
        np.testing.assert_allclose(forward, want, rtol=1e-6, atol=1e-8)
        pulled = sum(np.sum(x * d) for x, d in zip(backward, ahead))
        np.testing.assert_allclose(pulled, np.sum(weights * want), rtol=1e-6)
        assert np.abs(want).max() > 0.1


@EACH
def test_values_have_finite_slopes_at_zero(name):
    slope_at = jax.jit(jax.grad(MEMBERS[name].__call__))
    for x in ZEROS:
        slope = np.asarray(slope_at(x))
        assert np.isfinite(slope).all()
        assert name == "TotalVariation" or not slope[x == 0].any() or name == "Nuclear"
    assert not slope_at(ZEROS[0]).any()


@EACH
def test_derivatives_at_zero_are_finite(name):
    slope = jax.jit(jax.grad(lambda x, step: jnp.sum(MEMBERS[name].prox(x, step) ** 2)))
    some = 0.3 * np.float32(np.arange(3) > 0)[:, None] * np.ones((3, 3), np.float32)
    for step in [0.3] if name in ONE_STEP else [0.3, some]:
        for x in ZEROS:
            assert np.isfinite(slope(x, step)).all()


@pytest.mark.parametrize("name", METRIC)
def test_equal_steps_are_one_step(name):
    with jax.enable_x64(True):
        for step in (0.0, 1e-3, 0.4, 50.0):
            got = MEMBERS[name].prox(X, np.full(X.shape, step))
            np.testing.assert_allclose(got, MEMBERS[name].prox(X, step), rtol=1e-13, atol=1e-14)


@EACH
def test_a_step_of_zero(name):
    member = MEMBERS[name]
    moved = member.prox(X.astype(np.float32), 0.0)
    if name in PENALTIES:
        np.testing.assert_allclose(moved, X.astype(np.float32), rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(moved, member.prox(X.astype(np.float32), 0.7))


@pytest.mark.parametrize("name", METRIC)
def test_some_steps_of_zero(name):
    steps = np.where(np.arange(X.size).reshape(X.shape) % 4 == 0, 0, STEPS)
    with jax.enable_x64(True):
        moved = np.asarray(MEMBERS[name].prox(X, steps))
        near = np.asarray(MEMBERS[name].prox(X, np.maximum(steps, 1e-11)))
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(moved, near, atol=1e-9)
    if name in PENALTIES:
        np.testing.assert_allclose(moved[steps == 0], X[steps == 0], rtol=1e-14)


HOMOGENEOUS = {name: make for name, (make, _) in MAKE.items()} | {
    "L2": lambda s: r.L2(0.3),
    "ElasticNet": lambda s: r.ElasticNet(s, mix=1.0),
    "SparseGroupLasso": lambda s: r.SparseGroupLasso(s, 0.4, axis=1),
    "NonNegative": lambda s: r.NonNegative(),
}


@EACH
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extremes_of_float32(name, size):
    x, size = jnp.asarray(X, jnp.float32), jnp.float32(size)
    number = MAKE[name][1] if name in MAKE else 1.0
    small, large = (HOMOGENEOUS[name](number * s) for s in (1, size))
    for steps in [0.4] if name in ONE_STEP else [0.4, jnp.asarray(STEPS, jnp.float32)]:
        got = large.prox(x * size, steps) / size
        np.testing.assert_allclose(got, small.prox(x, steps), rtol=2e-5, atol=2e-6)
    if name not in ("L2", "ElasticNet"):  # whose squares overflow
        np.testing.assert_allclose(small(x * size) / size, small(x), rtol=1e-5)


@EACH
def test_leaves_keep_their_dtypes(name):
    params = {"a": jnp.asarray(X, jnp.bfloat16), "b": jnp.asarray(X, jnp.float16)}
    moved = MEMBERS[name].prox(params, jnp.bfloat16(0.5))
    assert {k: x.dtype for k, x in moved.items()} == {"a": jnp.bfloat16, "b": jnp.float16}
    assert MEMBERS[name](params).dtype == jnp.float32
    wide = MEMBERS[name].prox(params["a"].astype(jnp.float32), 0.5)
    np.testing.assert_array_equal(moved["a"], wide.astype(jnp.bfloat16))


@EACH
def test_empty_leaves_stay(name):
    member = MEMBERS[name]
    for shape in ((0, 3), (3, 0), (2, 0, 3)):
        assert member.prox(jnp.zeros(shape), 0.5).shape == shape
        assert member(jnp.zeros(shape)) == 0
    assert member.prox({}, 0.5) == {}
    assert member({}) == 0


@EACH
def test_compiled_with_every_number_traced(name):
    member = MEMBERS[name]
    value, moved = jax.jit(lambda m, x, t: (m(x), m.prox(x, t)))(member, X, 0.4)
    np.testing.assert_allclose(value, member(X), rtol=1e-6)
    np.testing.assert_allclose(moved, member.prox(X, 0.4), rtol=1e-5, atol=1e-6)


@EACH
def test_each_leaf_is_by_itself(name):
    member, params = MEMBERS[name], {"a": X, "b": [2 * X[::-1], X[:2]]}
    moved = member.prox(params, {"a": 0.3, "b": 0.6})
    alone = {"a": member.prox(X, 0.3), "b": [member.prox(y, 0.6) for y in params["b"]]}
    jax.tree.map(np.testing.assert_array_equal, moved, alone)
    np.testing.assert_allclose(member(params), sum(map(member, jax.tree.leaves(params))), rtol=1e-6)


@pytest.mark.parametrize("axis", [2, -1, -3, (1, 2), (2, -2), (0, 2), (), None])
def test_axes_name_groups(axis):
    x = RNG.normal(size=(2, 3, 4))
    norm = np.sqrt(np.sum(x**2, axis=axis, keepdims=True))
    group, ball = r.GroupLasso(0.7, axis), r.L2Ball(0.7, axis)
    with jax.enable_x64(True):
        look = jax.jit(lambda x: (group.prox(x, 0.4), ball.prox(x, 0.4), group(x)))
        shrunk, cut, value = look(x)
    np.testing.assert_allclose(shrunk, x * np.maximum(1 - 0.28 / norm, 0), rtol=1e-12)
    np.testing.assert_allclose(cut, x * np.minimum(0.7 / norm, 1), rtol=1e-12)
    np.testing.assert_allclose(value, 0.7 * norm.sum(), rtol=1e-12)


def test_a_number_alone_is_a_group():
    for member, want in [(r.GroupLasso(0.5, None), 2.5), (r.L2Ball(2.0), 2), (r.L1Ball(2.0), 2)]:
        assert member.prox(jnp.float32(3.0), 1.0) == want
    assert r.Simplex(2.0).prox(jnp.float32(-3.0), 1.0) == 2


# Refusals


@pytest.mark.parametrize("name", WITH_AXIS)
def test_axes_that_a_leaf_does_not_have_are_refused(name):
    member = {"GroupLasso": lambda: r.GroupLasso(1.0, 2), "L2Ball": lambda: r.L2Ball(1.0, -3)}
    member |= {"L1Ball": lambda: r.L1Ball(1.0, (0, 0)), "Simplex": lambda: r.Simplex(1.0, (1, -1))}
    member |= {"SparseGroupLasso": lambda: r.SparseGroupLasso(1.0, 0.5, 2)}
    member |= {"TotalVariation": lambda: r.TotalVariation(1.0, 2)}
    with pytest.raises(ValueError, match=r"axis .* shape \(4, 3\), each once, got .*by_path"):
        member[name]().prox(X, 0.1)
    if name in PENALTIES:
        with pytest.raises(ValueError, match="axis"):
            member[name]()(X)


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_metric_is_refused(name):
    for prox in (MEMBERS[name].prox, jax.jit(MEMBERS[name].prox)):
        with pytest.raises(ValueError, match=rf"shape \(4, 3\).*{name}.*sgd or momentum"):
            prox(X, STEPS)
    with pytest.raises(ValueError, match="one step_size for each leaf"):
        (MEMBERS[name] + r.L2(0.1)).prox(X, STEPS)


def test_what_is_no_matrix_is_refused():
    for use in (r.Nuclear(1.0), lambda x: r.Nuclear(1.0).prox(x, 0.1)):
        with pytest.raises(
            ValueError, match=r"two axes or more for Nuclear, got shape \(3,\).*by_"
        ):
            use(jnp.ones(3))


@EACH
def test_integers_are_refused(name):
    for use in (MEMBERS[name], lambda x: MEMBERS[name].prox(x, 0.1)):
        with pytest.raises(ValueError, match="floating params, got int32"):
            use({"a": jnp.ones((2, 2), jnp.int32)})


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (r.ElasticNet(-1.0, 0.5), "strength >= 0, got -1"),
        (r.ElasticNet(1.0, 1.1), "mix <= 1, got 1.1"),
        (r.ElasticNet(1.0, -0.1), "mix >= 0, got -0.1"),
        (r.GroupLasso(-1.0, 1), "strength >= 0"),
        (r.SparseGroupLasso(1.0, 2.0, 1), "mix <= 1, got 2"),
        (r.SparseGroupLasso(-1.0, 0.5, 1), "strength >= 0"),
        (r.Nuclear(-1.0), "strength >= 0"),
        (r.TotalVariation(-1.0), "strength >= 0"),
        (r.Box(2.0, 1.0), "low <= high, got 2.0 and 1.0. Swap them"),
        (r.Box(jnp.zeros(2), 1.0), r"low of shape \(4, 3\), got \(2,\)"),
        (r.Simplex(-1.0), "total >= 0"),
        (r.L1Ball(-1.0), "radius >= 0"),
        (r.L2Ball(-1.0), "radius >= 0"),
        (r.L2Ball(jnp.ones(3)), r"radius of shape \(\)"),
    ],
)
def test_numbers_out_of_range_are_refused(member, message):
    for use in (member, lambda x: member.prox(x, 0.1)):
        with pytest.raises(ValueError, match=message):
            use(X)


@EACH
def test_steps_are_checked(name):
    with pytest.raises(ValueError, match=r"step_size >= 0, got -0\.1"):
        MEMBERS[name].prox(X, step_size=-0.1)
    with pytest.raises(ValueError, match=r"step_size of shape \(4, 3\), got \(3,\)"):
        MEMBERS[name].prox(X, np.ones(3))


def test_which_regularizer_names_every_one():
    page = (Path(__file__).parents[2] / "docs" / "regularizers.md").read_text()
    table = page.split("## Which regularizer?")[1].split("\n## ")[0]
    shown, linked = zip(*re.findall(r"\[`(\w+)`\]\[lossopt\.regularizers\.(\w+)\]", table))
    assert shown == linked
    assert set(shown) == {*MEMBERS, "by_path"}
