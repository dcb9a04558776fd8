"""Singular values, and derivatives where some are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

Nuclear = lo.regularizers.Nuclear
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def _with_values(*values, shape):
    u, v = (np.linalg.qr(RNG.normal(size=(n, n)))[0] for n in shape)
    return u[:, : len(values)] * values @ v[:, : len(values)].T


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_moreau_the_rest_is_clipped_spectrally(shape):
    x = RNG.normal(size=shape)
    near = np.asarray(Nuclear(0.9).prox(x, 0.7))
    u, values, vt = np.linalg.svd(x / 0.7, full_matrices=False)
    rest = u * np.minimum(values, 0.9) @ vt
    np.testing.assert_allclose(near + 0.7 * rest, x, atol=1e-13)
    assert np.linalg.matrix_rank(Nuclear(3.0).prox(x, 0.7)) < min(shape)
    np.testing.assert_allclose(Nuclear(0.9)(x), 0.9 * np.linalg.norm(x, "nuc"), rtol=1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
@pytest.mark.parametrize("values", [(2.0, 2.0, 2.0), (2.0, 2.0, 0.3), (2.0, 0.3, 0.3), (0.2,) * 3])
def test_derivatives_with_equal_values(shape, values):
    x = _with_values(*values, shape=shape)
    dx, h = RNG.normal(size=shape), 1e-6
    prox = jax.jit(lambda x, s: Nuclear(s).prox(x, 0.7))
    _, forward = jax.jvp(prox, (x, 1.0), (dx, 0.4))
    want = (prox(x + h * dx, 1 + h * 0.4) - prox(x - h * dx, 1 - h * 0.4)) / (2 * h)
    np.testing.assert_allclose(forward, want, atol=1e-5)
    weights = RNG.normal(size=shape)
    slope = jax.vjp(prox, x, 1.0)[1](weights)
    pulled = np.sum(slope[0] * dx) + 0.4 * slope[1]
    np.testing.assert_allclose(pulled, np.sum(weights * forward), rtol=1e-10, atol=1e-12)


def test_leading_axes_count_matrices():
    x = RNG.normal(size=(2, 2, 4, 3))
    moved = Nuclear(0.5).prox(x, 0.7)
    for i in np.ndindex(2, 2):
        np.testing.assert_allclose(moved[i], Nuclear(0.5).prox(x[i], 0.7), atol=1e-14)
    total = sum(np.linalg.norm(x[i], "nuc") for i in np.ndindex(2, 2))
    np.testing.assert_allclose(Nuclear(0.5)(x), 0.5 * total, rtol=1e-13)


def test_the_gradient_is_the_product_of_the_factors():
    x = RNG.normal(size=(4, 3))
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(jax.grad(Nuclear(0.5))(x), 0.5 * u @ vt, atol=1e-13)
    assert jnp.isfinite(jax.grad(Nuclear(0.5))(jnp.eye(3))).all()
