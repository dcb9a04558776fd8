"""The secular equation behind groups and balls in a diagonal metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import lossopt as lo

r = lo.regularizers
RNG = np.random.default_rng(0)
NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 6))


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def _group(x, steps, strength):
    """By bisection on the norm of the result."""
    live = x != 0
    if np.linalg.norm(x[live] / (strength * steps[live])) <= 1:
        return np.zeros_like(x)
    excess = lambda s: np.linalg.norm(x[live] / (s + strength * steps[live])) - 1
    norm = brentq(excess, 0, np.linalg.norm(x), xtol=1e-300, rtol=1e-15)
    return x * norm / (norm + strength * steps)


def _ball(x, steps, radius):
    """By bisection on the price."""
    if np.linalg.norm(x) <= radius:
        return x
    excess = lambda m: np.linalg.norm(x / (1 + m * steps)) - radius
    most = np.linalg.norm(x) / radius / steps.min()
    return x / (1 + brentq(excess, 0, most, xtol=1e-300, rtol=1e-15) * steps)


@pytest.mark.parametrize("decades", [0.5, 3, 12])
def test_a_wild_metric(decades):
    x = RNG.normal(size=(200, 6)) * 10 ** RNG.uniform(-decades / 4, decades / 4, (200, 6))
    steps = 10 ** RNG.uniform(-decades, decades, x.shape)
    x[::7, 2] = 0
    moved = jax.jit(lambda x, t: (r.GroupLasso(0.9, 1).prox(x, t), r.L2Ball(0.9, 1).prox(x, t)))
    groups, balls = map(np.asarray, moved(x, steps))
    for i in range(len(x)):
        want = _group(x[i], steps[i], 0.9)
        np.testing.assert_allclose(groups[i], want, rtol=1e-11)
        np.testing.assert_allclose(balls[i], _ball(x[i], steps[i], 0.9), rtol=1e-10, atol=1e-16)
    assert np.linalg.norm(balls, axis=1).max() <= 0.9 + 1e-12
    zero = (groups == 0).all(axis=1)
    assert 0 < zero.sum() < len(x)


def test_a_wild_metric_in_float32():
    x = RNG.normal(size=(200, 6))
    steps = 10 ** RNG.uniform(-12, 12, x.shape)
    narrow = lambda y: jnp.asarray(y, jnp.float32)
    strength, radius = jnp.float32(0.9), jnp.float32(0.9)
    groups = r.GroupLasso(strength, 1).prox(narrow(x), narrow(steps))
    balls = r.L2Ball(radius, 1).prox(narrow(x), narrow(steps))
    for i in range(len(x)):
        np.testing.assert_allclose(groups[i], _group(x[i], steps[i], 0.9), rtol=2e-5)
        np.testing.assert_allclose(balls[i], _ball(x[i], steps[i], 0.9), rtol=2e-5, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(x=st.lists(NUMBERS, min_size=5, max_size=5), strength=st.floats(0.01, 5))
def test_moreau_a_group_and_a_ball(x, strength):
    """The conjugate of a norm is the indicator of its ball."""
    x = np.array(x)
    near = r.GroupLasso(strength, axis=0).prox(x, 0.7)
    norm = np.linalg.norm(x / 0.7)
    rest = x / 0.7 * min(1, strength / norm) if norm else x
    np.testing.assert_allclose(near + 0.7 * rest, x, atol=1e-13)
    np.testing.assert_allclose(r.L2Ball(strength).prox(x / 0.7, 1.0), rest, atol=1e-13)


def test_a_group_survives_by_its_dual_norm():
    x, steps = np.array([1.0, 2.0, -2.0]), np.array([0.5, 1.0, 2.0])
    edge = np.linalg.norm(x / steps)
    assert (r.GroupLasso(edge * 1.0000001, 0).prox(x, steps) == 0).all()
    assert (r.GroupLasso(edge * 0.9999999, 0).prox(x, steps) != 0).all()
    norm = np.linalg.norm(x)
    assert (r.GroupLasso(norm * 1.0000001, 0).prox(x, 1.0) == 0).all()
    assert (r.GroupLasso(norm * 0.9999999, 0).prox(x, 1.0) != 0).all()


def test_a_ball_keeps_what_it_holds():
    x, steps = np.array([0.3, -0.4]), np.array([0.1, 3.0])
    for step in (0.5, steps):
        np.testing.assert_array_equal(r.L2Ball(0.51).prox(x, step), x)
        assert np.linalg.norm(r.L2Ball(0.0).prox(x, step)) == 0


def test_coordinates_that_cannot_move():
    x, steps = np.array([3.0, 4.0, 0.5]), np.array([0.0, 1.0, 1.0])
    inside = r.L2Ball(4.0).prox(x, steps)
    np.testing.assert_allclose(inside[0], 3.0, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(inside), 4.0, rtol=1e-12)
    outside = r.L2Ball(1.0).prox(x, steps)
    np.testing.assert_allclose(outside, [1.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(r.GroupLasso(2.0, 0).prox(x, steps)[0], 3.0, rtol=1e-15)


def test_the_zero_group_is_free_of_nan():
    x = np.zeros(3)
    for step in (0.0, 0.5, np.zeros(3), np.array([0.0, 1.0, 2.0])):
        for member in (r.GroupLasso(1.0, 0), r.GroupLasso(0.0, 0), r.L2Ball(1.0), r.L2Ball(0.0)):
            assert (member.prox(x, step) == 0).all()


def test_the_norm_of_a_group_that_holds_nan_is_nan():
    rows = jax.value_and_grad(r.GroupLasso(1.0, axis=1))
    value, gradient = rows(jnp.array([[np.nan, 1.0], [3.0, 4.0], [0.0, 0.0]]))
    assert np.isnan(value)
    np.testing.assert_allclose(gradient[1:], [[0.6, 0.8], [0.0, 0.0]], rtol=1e-12)


def test_a_solution_follows_the_strength():
    """A row's norm against its strength, by finite differences through a whole descent."""
    data, targets = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 3))

    @jax.jit
    def solution(strength):
        member, step = r.GroupLasso(strength, axis=1), 0.02
        slope = jax.grad(lambda w: jnp.sum((data @ w - targets) ** 2) / 2)
        walk = lambda w, _: (member.prox(w - step * slope(w), step), None)
        return jax.lax.scan(walk, jnp.zeros((4, 3)), length=300)[0]

    forward = jax.jacfwd(solution)(5.0)
    want = (solution(5.0 + 1e-5) - solution(5.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(forward, want, rtol=1e-5, atol=1e-8)
    assert jnp.abs(want).max() > 1e-3
    backward = jax.grad(lambda s: jnp.sum(solution(s) ** 2))(5.0)
    np.testing.assert_allclose(backward, jnp.sum(2 * solution(5.0) * want), rtol=1e-5)
