"""Projections against optax, and the simplex in a diagonal metric."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import lossopt as lo

r = lo.regularizers
RNG = np.random.default_rng(0)
POINTS = st.lists(st.floats(-5, 5), min_size=6, max_size=6).map(lambda x: np.round(x, 6))
PEERS = {
    "NonNegative": (r.NonNegative(), optax.projections.projection_non_negative),
    "Box": (r.Box(-0.4, 0.9), lambda x: optax.projections.projection_box(x, -0.4, 0.9)),
    "Simplex": (r.Simplex(1.7), lambda x: optax.projections.projection_simplex(x, 1.7)),
    "L1Ball": (r.L1Ball(1.7), lambda x: optax.projections.projection_l1_ball(x, 1.7)),
    "L2Ball": (r.L2Ball(1.7), lambda x: optax.projections.projection_l2_ball(x, 1.7)),
}


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", PEERS)
def test_equals_optax(name):
    member, theirs = PEERS[name]
    xs = RNG.normal(size=(50, 6)) * 10 ** RNG.uniform(-1, 1, (50, 1))
    got = jax.vmap(lambda x: member.prox(x, 0.3))(xs)
    np.testing.assert_allclose(got, jax.vmap(theirs)(xs), atol=1e-13)


@pytest.mark.parametrize("name", PEERS)
@settings(deadline=None, max_examples=25)
@given(x=POINTS)
def test_a_projection_is_its_own_fixed_point(name, x):
    member = PEERS[name][0]
    steps = np.linspace(0.1, 2.0, 6)
    for step in (0.3, steps):
        once = member.prox(x, step)
        np.testing.assert_allclose(member.prox(once, step), once, atol=1e-14)


def _simplex(x, steps, total):
    """By bisection on the price."""
    excess = lambda tau: np.maximum(x - tau * steps, 0).sum() - total
    low, high = ((x - total) / steps).max(), (x / steps).max()
    low, high = low - abs(low) / 2 - 1, high + abs(high) / 2 + 1
    tau = brentq(excess, low, high, xtol=1e-300, rtol=1e-15, maxiter=1000)
    return np.maximum(x - tau * steps, 0)


@pytest.mark.parametrize("decades", [0.5, 3, 12])
def test_a_wild_metric(decades):
    x = RNG.normal(size=(200, 6))
    steps = 10 ** RNG.uniform(-decades, decades, x.shape)
    x[::5, 1] = x[::5, 2]
    steps[::5, 1] = steps[::5, 2]
    simplex, ball = r.Simplex(1.3, axis=1).prox(x, steps), r.L1Ball(1.3, axis=1).prox(x, steps)
    np.testing.assert_allclose(np.sum(simplex, axis=1), 1.3, atol=1e-12)
    assert (np.asarray(simplex) >= 0).all()
    assert (np.abs(ball).sum(axis=1) <= 1.3 + 1e-12).all()
    for i in range(len(x)):
        np.testing.assert_allclose(simplex[i], _simplex(x[i], steps[i], 1.3), atol=1e-9)
        folded = np.sign(x[i]) * _simplex(np.abs(x[i]), steps[i], 1.3)
        want = x[i] if np.abs(x[i]).sum() <= 1.3 else folded
        np.testing.assert_allclose(ball[i], want, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e12])
@pytest.mark.parametrize("total", [1e-6, 1.0, 1e6])
def test_sums_are_right_far_away(offset, total):
    x = RNG.normal(size=8) + offset
    moved = np.asarray(r.Simplex(total).prox(x, 0.1))
    np.testing.assert_allclose(moved.sum(), total, rtol=1e-12)
    want = np.asarray(r.Simplex(total).prox(x - x.max(), 0.1))
    np.testing.assert_allclose(moved, want, atol=4e-16 * abs(offset) + 1e-13 * total)


def test_ties_are_shared():
    np.testing.assert_allclose(r.Simplex().prox(np.full(4, 7.0), 0.1), 0.25)
    huge = jnp.full(4, 1e30, jnp.float32).at[0].set(-1e30)
    np.testing.assert_allclose(r.Simplex().prox(huge, 0.1), [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(r.L1Ball(1.0).prox(np.array([2.0, -2.0]), 0.1), [0.5, -0.5])


def test_coordinates_that_cannot_move():
    x, steps = np.array([0.3, 0.9, 0.4]), np.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose(r.Simplex().prox(x, steps), [0.3, 0.6, 0.1], atol=1e-12)
    np.testing.assert_allclose(r.Simplex(0.2).prox(x, steps), [0.2, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(r.L1Ball(1.0).prox(x, steps), [0.3, 0.6, 0.1], atol=1e-12)


def test_nothing_is_left_of_an_empty_set():
    x = np.array([0.3, -0.9])
    for step in (0.5, np.array([0.5, 2.0])):
        assert not np.any(r.Simplex(0.0).prox(x, step))
        assert not np.any(r.L1Ball(0.0).prox(x, step))


@settings(deadline=None, max_examples=40)
@given(x=POINTS, radius=st.floats(0.1, 5))
def test_moreau_a_ball_of_sums_and_the_largest(x, radius):
    """x minus its projection clips what is largest: the prox of the maximum norm."""
    cut = x - np.asarray(r.L1Ball(radius).prox(x, 1.0))
    level = np.abs(cut).max()
    np.testing.assert_allclose(cut, np.clip(x, -level, level), atol=1e-12)
    if np.abs(x).sum() > radius:
        np.testing.assert_allclose(np.abs(x - cut).sum(), radius, rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(x=POINTS)
def test_moreau_signs(x):
    """A point is its positive part and its negative one, which are orthogonal."""
    rest = x - np.asarray(r.NonNegative().prox(x, 0.3))
    np.testing.assert_array_equal(rest, -np.asarray(r.NonNegative().prox(-x, 0.3)))


def test_bounds_may_be_open_and_traced():
    x = jnp.linspace(-3, 3, 7)
    np.testing.assert_array_equal(r.Box(-jnp.inf, 1.0).prox(x, 0.1), jnp.minimum(x, 1))
    lows = jnp.array([-1.0, 0.5])
    swept = jax.vmap(lambda box: box.prox(x, 0.1), in_axes=(r.Box(0, None),))(r.Box(lows, 2.0))
    np.testing.assert_array_equal(swept, jnp.stack([jnp.clip(x, low, 2.0) for low in lows]))
    assert jax.jit(lambda low: r.Box(low, 1.0)(x))(2.0) == 0
