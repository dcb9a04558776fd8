"""Losses between masks: what two sets of pixels fail to share."""

import jax.numpy as jnp
from jax.nn import sigmoid

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Number
from lossopt.losses import _labels


def dice(
    logits: Float[ArrayLike, "*batch pixels"],
    labels: Float[ArrayLike, "*batch pixels"],
    *,
    smooth: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Share by which two masks fail to overlap: `tversky` with both errors at one half.

    $$\ell(z, y) = 1 - \frac{\sum_i p_i y_i + s}{\frac12 \sum_i p_i + \frac12 \sum_i y_i + s},
        \quad p_i = \frac{1}{1 + e^{-z_i}}$$

    Args:
      logits: log-odds $z$ that a pixel is in the mask, shape `[*batch, pixels]`.
      labels: $y$, 0 or 1 or a share between, shape `[*batch, pixels]`; NaN is the loss of a row
        with a label outside of $[0, 1]$.
      smooth: $s$, at least 0, in pixels. Where the denominator is below 1e-12 the loss is 0.

    Returns:
      One loss per mask, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ, there is no axis of pixels, or `smooth` is negative.

    Examples:
      >>> logits = jnp.array([[9.0, 9.0, -9.0, -9.0]])
      >>> print(np.array(lo.losses.dice(logits, jnp.array([[1.0, 0.0, 0.0, 0.0]]))).round(3))
      [0.2]

    References:
      Milletari, Navab and Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric
      Medical Image Segmentation", 2016.
    """
    return _mismatch("dice", logits, labels, 0.5, 0.5, smooth)


def tversky(
    logits: Float[ArrayLike, "*batch pixels"],
    labels: Float[ArrayLike, "*batch pixels"],
    *,
    alpha: Number,
    beta: Number,
    smooth: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Share by which two masks fail to overlap, with a price for either kind of error.

    $$\ell(z, y) = 1 - \frac{T + s}{T + \alpha P + \beta N + s}, \quad
        T = \sum_i p_i y_i, \; P = \sum_i p_i (1 - y_i), \; N = \sum_i (1 - p_i) y_i$$

    with $p_i = 1 / (1 + e^{-z_i})$.

    Args:
      logits: log-odds $z$ that a pixel is in the mask, shape `[*batch, pixels]`.
      labels: $y$, 0 or 1 or a share between, shape `[*batch, pixels]`; NaN is the loss of a row
        with a label outside of $[0, 1]$.
      alpha: $\alpha$, price of a false positive, at least 0.
      beta: $\beta$, price of a false negative, at least 0.
      smooth: $s$, at least 0, in pixels. Where the denominator is below 1e-12 the loss is 0.

    Returns:
      One loss per mask, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ, there is no axis of pixels, or a number is negative.

    Examples:
      >>> logits = jnp.array([[9.0, 9.0, -9.0, -9.0]])
      >>> labels = jnp.array([[1.0, 0.0, 0.0, 0.0]])
      >>> print(np.array(lo.losses.tversky(logits, labels, alpha=2.0, beta=1.0)).round(3))
      [0.5]

    References:
      Salehi, Erdogmus and Gholipour, "Tversky Loss Function for Image Segmentation Using 3D Fully
      Convolutional Deep Networks", 2017.
    """
    return _mismatch("tversky", logits, labels, alpha, beta, smooth)


def _mismatch(name, logits, labels, alpha, beta, smooth):
    _checks.at_least(0, alpha=alpha, beta=beta, smooth=smooth)
    _checks.rank_at_least(1, logits=logits)
    logits, labels = _checks.same_shape(logits=logits, labels=labels)
    labels, valid = _labels.probabilities(name, labels)
    inside, outside = sigmoid(logits), sigmoid(-logits)
    hit = jnp.sum(inside * labels, axis=-1) + smooth
    miss = jnp.sum(alpha * inside * (1 - labels) + beta * outside * labels, axis=-1)
    nothing = hit + miss < 1e-12  # whose third power, in second derivatives, is still a float32
    loss = jnp.where(nothing, 0, miss) / jnp.where(nothing, 1, hit + miss)
    return jnp.where(jnp.all(valid, axis=-1), loss, jnp.nan)
