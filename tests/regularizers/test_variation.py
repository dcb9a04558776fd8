"""Total variation by what makes a sequence the best one, and by a dual solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

import lossopt as lo

TotalVariation = lo.regularizers.TotalVariation
RNG = np.random.default_rng(0)
SMALL = st.lists(st.integers(-4, 4), min_size=7, max_size=7).map(lambda x: np.array(x, float))


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@jax.jit
def _prox(x, strength):
    return TotalVariation(strength).prox(x, 1.0)


def _is_best(x, z, strength, tol=1e-11):
    """The sums of x - z stay within the strength, and are at its end wherever z jumps."""
    sums, jumps = np.cumsum(x - z), np.diff(z)
    scale = tol * max(1.0, np.abs(x).max()) * len(x)
    assert abs(sums[-1]) <= scale
    assert np.abs(sums[:-1]).max(initial=0) <= strength + scale
    at = np.abs(jumps) > scale
    np.testing.assert_allclose(sums[:-1][at], -strength * np.sign(jumps[at]), atol=scale)


@pytest.mark.parametrize("length", [1, 2, 3, 50, 2000])
@pytest.mark.parametrize("strength", [0.0, 0.05, 1.0, 40.0, 1e30])
def test_the_sequence_is_best(length, strength):
    for x in (RNG.normal(size=length), np.cumsum(RNG.normal(size=length)) + 100):
        z = np.asarray(_prox(x, strength))
        _is_best(x, z, strength)
        if strength == 0:
            np.testing.assert_array_equal(z, x)
        if strength == 1e30:
            np.testing.assert_allclose(z, x.mean(), rtol=1e-12, atol=1e-12)
            assert np.ptp(z) == 0


@settings(deadline=None, max_examples=100)
@given(x=SMALL, strength=st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]))
def test_ties_between_small_numbers(x, strength):
    """Whole numbers meet their knots exactly."""
    _is_best(x, np.asarray(_prox(x, strength)), strength)


@pytest.mark.parametrize(
    ("x", "want"),
    [
        ([0, 0, 1, 2, 0, -2, 1], [0.5, 0.5, 0.5, 0.5, 0, 0, 0]),
        ([1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]),
        ([2, 0, 2, 0, 2, 0, 2], [8 / 7] * 7),
    ],
)
def test_segments_that_tie_are_one(x, want):
    z = np.asarray(_prox(np.array(x, float), 1.0))
    np.testing.assert_allclose(z, want, atol=1e-15)
    assert (np.diff(z) != 0).tolist() == (np.diff(want) != 0).tolist()


def test_a_dual_solver_agrees():
    x = RNG.normal(size=12)
    jumps = np.diff(np.eye(12), axis=0)
    dual = lsq_linear(jumps.T, x, bounds=(-0.7, 0.7), tol=1e-15)
    np.testing.assert_allclose(_prox(x, 0.7), x - jumps.T @ dual.x, atol=1e-7)


def test_segments_are_exactly_constant():
    x = np.repeat([0.0, 5.0, -3.0, 1.0], 25) + 0.3 * RNG.normal(size=100)
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        z = TotalVariation(dtype(3.0)).prox(jnp.asarray(x, dtype), 1.0)
        assert (jnp.diff(z) != 0).sum() == 3


def test_float32_is_as_good_as_float64_far_from_zero():
    x = np.asarray(RNG.normal(size=500) + 1000, np.float32)
    narrow = TotalVariation(np.float32(1.0)).prox(x, np.float32(1.0))
    wide = TotalVariation(1.0).prox(x.astype(np.float64), 1.0)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=2e-4)
    np.testing.assert_array_equal(np.diff(narrow) != 0, np.diff(wide) != 0)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_each_line_is_by_itself(axis):
    x = RNG.normal(size=(4, 4, 3))
    moved = TotalVariation(0.3, axis=axis).prox(x, 1.0)
    want = np.apply_along_axis(
        lambda line: np.asarray(TotalVariation(0.3).prox(line, 1.0)), axis, x
    )
    np.testing.assert_allclose(moved, want, atol=1e-14)
    value = 0.3 * np.abs(np.diff(x, axis=axis)).sum()
    np.testing.assert_allclose(TotalVariation(0.3, axis=axis)(x), value, rtol=1e-13)


def test_a_derivative_is_shared_by_the_segment():
    x = np.array([0.0, 0.1, 5.0, 5.2, 5.1, 1.0])
    slope = np.asarray(jax.jacrev(lambda x: _prox(x, 0.3))(x))
    want = np.zeros((6, 6))
    for segment in ([0, 1], [2, 3, 4], [5]):
        want[np.ix_(segment, segment)] = 1 / len(segment)
    np.testing.assert_allclose(slope, want, atol=1e-14)
    pull = np.asarray(jax.jacfwd(lambda s: _prox(x, s))(0.3))
    np.testing.assert_allclose(pull, [0.5, 0.5, -2 / 3, -2 / 3, -2 / 3, 1.0], rtol=1e-12)
