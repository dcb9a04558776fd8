import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt import losses
from tests.compiled import compiled

dice, tversky = compiled(losses.dice), compiled(losses.tversky)
softmax_dice = compiled(losses.softmax_dice)

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


class TestSoftmaxDice:
    logits = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    labels = np.array([[0, 1, 2, 4], [1, 1, 1, 1], [3, 0, 3, 0]])

    @pytest.mark.parametrize("smooth", [0.3, 1.0])
    def test_is_that_of_optax(self, smooth):
        want = optax.losses.dice_loss(self.logits, jax.nn.one_hot(self.labels, 5), smooth=smooth)
        close(softmax_dice(self.logits, self.labels, smooth=smooth), want)

    def test_two_classes_are_a_mask_and_the_rest(self):
        z, labels = logits, (logits > 0.2).astype(np.float32)
        both = np.stack([np.zeros_like(z), z], axis=-1)
        want = (dice(z, labels) + dice(-z, 1 - labels)) / 2
        close(softmax_dice(both, labels.astype(int)), want)

    def test_a_class_neither_there_nor_found_adds_nothing_without_smoothing(self):
        sure = 1e4 * jax.nn.one_hot(self.labels, 5)
        assert softmax_dice(sure, self.labels, smooth=0.0).tolist() == [0, 0, 0]
        others = np.where(self.labels == 1, 2, 1)
        close(softmax_dice(sure[1], others[1], smooth=0.0), 2 / 5)

    def test_ignored_pixels_do_not_count(self):
        counted = np.arange(4) != 2
        labels = np.where(counted, self.labels, -100)
        loss = lambda z: softmax_dice(z, labels, ignore_index=-100)
        padded = np.where(counted[:, None], self.logits, np.nan)
        close(loss(padded), softmax_dice(self.logits[:, counted], self.labels[:, counted]))
        slope = compiled(jax.grad(lambda z: loss(z).sum()))(padded)
        assert np.isfinite(slope).all()
        assert not slope[:, 2].any()

    def test_a_wrong_label_spoils_its_mask_only(self):
        wrong = np.where(np.arange(12).reshape(3, 4) == 5, 7, self.labels)
        assert np.isnan(softmax_dice(self.logits, wrong)).tolist() == [False, True, False]
        slope = compiled(jax.grad(lambda z: softmax_dice(z, wrong)[::2].sum()))(self.logits)
        assert np.isfinite(slope).all()
        assert not slope[1].any()
