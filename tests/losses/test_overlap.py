import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt import losses
from tests.compiled import compiled

dice, tversky = compiled(losses.dice), compiled(losses.tversky)

sure = 1e4 * jnp.array([1.0, 1.0, -1.0, -1.0])  # a mask of two pixels of four
logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_dice_is_tversky_with_errors_at_one_half():
    labels = (logits > 0.2).astype(np.float32)
    halves = tversky(logits, labels, alpha=0.5, beta=0.5, smooth=0.3)
    assert (dice(logits, labels, smooth=0.3) == halves).all()


@pytest.mark.parametrize(
    ("labels", "share"),
    [([1, 1, 0, 0], 0), ([0, 0, 1, 1], 1), ([1, 0, 0, 0], 1 / 3), ([1, 1, 1, 1], 1 / 3)],
)
def test_without_smoothing_sure_masks_give_the_coefficient_of_dice(labels, share):
    close(dice(sure, jnp.array(labels), smooth=0), share)


def test_alpha_prices_false_positives_and_beta_false_negatives():
    small, large = jnp.array([1.0, 0, 0, 0]), jnp.array([1.0, 1, 1, 0])
    close(tversky(sure, small, alpha=3, beta=0, smooth=0), 3 / 4)
    close(tversky(sure, large, alpha=3, beta=0, smooth=0), 0)
    close(tversky(sure, large, alpha=0, beta=2, smooth=0), 2 / 4)


@pytest.mark.parametrize("z", [-1e4, -100.0, -80.0, -40.0, -20.0])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_an_empty_mask_found_empty_has_finite_derivatives(z, smooth):
    loss = lambda z: dice(z, jnp.zeros(4), smooth=smooth)
    x = jnp.full(4, z)
    for value in (loss(x), compiled(jax.grad(loss))(x), compiled(jax.hessian(loss))(x)):
        assert np.isfinite(value).all()
    assert z > -30 or loss(x) < 1e-6


def test_small_mistakes_are_small_but_not_zero():
    close(dice(jnp.array([20.0]), jnp.ones(1), smooth=0) * np.exp(20.0), 0.5)


def test_a_label_outside_of_zero_to_one_spoils_its_mask_only():
    labels = np.array([[0, 1, 0, 1], [0, 1, 0, 2], [0, 1, 0, np.nan]], np.float32)
    assert np.isnan(dice(logits, labels)).tolist() == [False, True, True]
    gradient = compiled(jax.grad(lambda z: dice(z, labels)[0]))(logits)
    assert np.isfinite(gradient).all()


def test_pixels_need_an_axis():
    with pytest.raises(ValueError, match="Expected logits with at least 1 axes"):
        dice(jnp.float32(0), jnp.float32(0))
