"""Projections where one step of several is 0, and at the ends of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import lossopt as lo
from tests.compiled import compiled

r = lo.regularizers
X, STEPS, WEIGHTS = np.array([[0.3, 0.9, 0.4, -0.5], [0.0, 1.0, 1.0, 0.5], [1.0, 2.0, 3.0, -1.0]])
LARGEST = float(np.finfo(np.float32).max)
FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _root(fn, low=0.0):
    return brentq(fn, low, 1e3, xtol=1e-300, rtol=1e-15)


def _simplex(x, steps, total):
    excess = lambda price: np.maximum(x - price * steps, 0).sum() - total
    return np.maximum(x - _root(excess) * steps, 0)


def _sums(x, steps, radius):
    return np.sign(x) * _simplex(np.abs(x), steps, radius)


def _ball(x, steps, radius):
    return x / (1 + _root(lambda m: np.linalg.norm(x / (1 + m * steps)) - radius) * steps)


def _group(x, steps, strength):
    norm = _root(lambda n: 1 - np.linalg.norm(x / (n + strength * steps)), 1e-3)
    return x * norm / (norm + strength * steps)


# A member of a number, the number by bisection, and one that the fixed coordinate alone exceeds.
MEMBERS = {
    "Simplex": (r.Simplex, _simplex, 1.0, 0.2),
    "L1Ball": (r.L1Ball, _sums, 1.0, 0.2),
    "L2Ball": (r.L2Ball, _ball, 0.5, 0.2),
    "GroupLasso": (lambda s: r.GroupLasso(s, None), _group, 0.5, None),
}
EACH = pytest.mark.parametrize("name", MEMBERS)
BALLS = pytest.mark.parametrize("name", [name for name in MEMBERS if name != "GroupLasso"])


def _slopes(make, number, dtype, steps=STEPS):
    with jax.enable_x64(dtype == np.float64):
        x, t, s, w = (np.asarray(y, dtype) for y in (X, steps, number, WEIGHTS))
        fn = jax.jit(jax.grad(lambda x, t, s: jnp.sum(w * make(s).prox(x, t)), (0, 1, 2)))
        return np.concatenate([np.ravel(y) for y in fn(x, t, s)])


@EACH
@FLOATS
def test_gradients_beside_a_step_of_zero(name, dtype):
    make, reference, number, _ = MEMBERS[name]
    point = np.concatenate([X, STEPS, [number]])
    value = lambda p: WEIGHTS @ reference(p[:4], p[4:8], p[8])
    h = 1e-5 * np.eye(9)
    want = [(value(point + d) - value(point - d)) / 2e-5 for d in np.delete(h, 4, axis=0)]
    ahead = [value(point + k * h[4]) for k in range(3)]  # no step is below 0
    want.insert(4, (-3 * ahead[0] + 4 * ahead[1] - ahead[2]) / 2e-5)
    tol = 1e-5 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(_slopes(make, number, dtype), want, rtol=tol, atol=tol)
    assert abs(want[4]) > 0.1


@BALLS
@FLOATS
def test_gradients_where_what_cannot_move_has_all(name, dtype):
    make, _, _, number = MEMBERS[name]
    want = np.zeros(9)
    want[8] = WEIGHTS[0]
    if name == "L2Ball":  # the others grow with the step that they can be moved against
        want[4] = WEIGHTS[1:] @ (X[1:] / STEPS[1:]) / (X[0] / number - 1)
    np.testing.assert_allclose(_slopes(make, number, dtype), want, rtol=1e-5, atol=1e-6)
    two = _slopes(make, number, dtype, np.array([0.0, 0.0, 1.0, 0.5]))
    assert np.isfinite(two).all()


@BALLS
def test_gradients_where_nothing_moves(name):
    make, _, number, _ = MEMBERS[name]
    slopes = _slopes(make, number, np.float32, np.zeros(4))
    np.testing.assert_allclose(slopes[:4], _slopes(make, number, np.float32, np.ones(4))[:4])
    assert np.isfinite(slopes).all()


@compiled
def _shares(x, steps, total):
    moved, pull = jax.vjp(lambda x: r.Simplex(total).prox(x, steps), x)
    return moved, pull(jnp.where(jnp.isfinite(x), jnp.cos(x), 7))[0]


@pytest.mark.parametrize("low", [-np.inf, -LARGEST, -LARGEST / 2, -1e20])
def test_masked_coordinates_have_no_share(low):
    x, steps = np.float32([[0.5, -1.2, 1.0], [0.1, 2.0, 0.4]])
    more, mores = np.float32([[0.5, low, -1.2, 1.0, low], [0.1, 3.0, 2.0, 0.4, 1e-3]])
    for total in np.float32([1e-6, 1.0, 1e6]):
        for step, wide in ((0.3, 0.3), (steps, mores)):
            (got, slope), (want, alone) = _shares(more, wide, total), _shares(x, step, total)
            np.testing.assert_allclose(got[[0, 2, 3]], want, rtol=1e-6)
            np.testing.assert_allclose(slope[[0, 2, 3]], alone, rtol=1e-6, atol=1e-7)
            assert not got[[1, 4]].any()
        even = _shares(np.float32([0, 0, low]), 1.0, total)[0]
        np.testing.assert_array_equal(even, np.float32([total / 2, total / 2, 0]))


@pytest.mark.parametrize("step", [0.3, np.float32([0.3, 0.3, 0.3])])
def test_the_largest_numbers(step):
    x = np.float32([LARGEST, LARGEST, 1.0])
    np.testing.assert_allclose(r.Simplex(1.0).prox(x, step), [0.5, 0.5, 0])
    np.testing.assert_allclose(r.L1Ball(1.0).prox(-x, step), [-0.5, -0.5, 0])
    np.testing.assert_allclose(r.L2Ball(1.0).prox(x, step), [0.5**0.5, 0.5**0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(r.Simplex(1.0).prox(-x, step), [0, 0, 1])


def test_infinities_without_a_projection_are_nan():
    for x in ([np.inf, 0.0], [-np.inf, -np.inf]):
        assert np.isnan(r.Simplex().prox(np.float32(x), 0.1)).all()
    steps = np.float32([0.1, 0.3])
    for member in (r.L1Ball(1.0), r.L2Ball(1.0)):
        for step in (0.1, steps):
            assert np.isnan(member.prox(np.float32([np.inf, -np.inf]), step)).all()
    for member in (r.Simplex(), r.L1Ball(1.0), r.L2Ball(1.0)):
        assert np.isnan(member.prox(np.float32([3.0, 4.0]), np.float32([0.1, np.inf]))).all()
    for member in (r.L1(0.0), r.GroupLasso(0.0, None)):  # 0 times infinity
        assert np.isnan(member.prox(np.float32([3.0, 4.0]), np.inf)).all()
