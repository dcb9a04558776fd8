"""Losses between masks: what two sets of pixels fail to share."""

import jax.numpy as jnp
from jax.nn import one_hot, sigmoid, softmax

from lossopt import _checks
from lossopt._numerics import still
from lossopt._typing import Array, ArrayLike, Float, Int, Number
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


def softmax_dice(
    logits: Float[ArrayLike, "*batch pixels classes"],
    labels: Int[ArrayLike, "*batch pixels"] | Float[ArrayLike, "*batch pixels classes"],
    *,
    smooth: Number = 1.0,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Share by which the masks of several classes fail to overlap: the mean of `dice` over them.

    $$\ell(z, y) = \frac{1}{K} \sum_{j=1}^K \left(1 - \frac{\sum_i p_{ij} y_{ij} + s}
        {\frac12 \sum_i p_{ij} + \frac12 \sum_i y_{ij} + s}\right), \quad
        p_{ij} = \frac{e^{z_{ij}}}{\sum_k e^{z_{ik}}}$$

    A class counts as much as any other, however few its pixels.

    Args:
      logits: $z$, shape `[*batch, pixels, classes]`.
      labels: class numbers, shape `[*batch, pixels]`, or distributions $y$, shape
        `[*batch, pixels, classes]`, valid as in `softmax_cross_entropy`; NaN is the loss of a mask
        with a pixel that is not.
      smooth: $s$, at least 0, in pixels. Where a denominator is below 1e-12 its class adds 0.
      ignore_index: an integer label whose pixels do not count; they are not read, even if NaN.

    Returns:
      One loss per example, shape `[*batch]`.

    Raises:
      ValueError: if the shapes do not match, `smooth` is negative, or `ignore_index` is given with
        distributions.
      TypeError: if labels are neither integers nor floats.

    Examples:
      >>> logits, labels = 9 * jnp.eye(3)[jnp.array([0, 0, 1, 2])], jnp.array([0, 1, 1, 2])
      >>> print(np.array(lo.losses.softmax_dice(logits, labels)).round(3))
      0.133

    References:
      Isensee et al., "nnU-Net: A Self-configuring Method for Deep Learning-based Biomedical Image
      Segmentation", 2021.
    """
    _checks.at_least(0, smooth=smooth)
    _checks.rank_at_least(2, logits=logits)
    (logits,) = still(*_checks.floats(logits=logits))
    kept = jnp.ones(logits.shape, bool)
    y, valid = _labels.classes("softmax_dice", logits, labels, kept=kept, ignore_index=ignore_index)
    if y.ndim < logits.ndim:
        y = one_hot(y, logits.shape[-1], dtype=logits.dtype)
    unread = (
        jnp.zeros(valid.shape, bool) if ignore_index is None else jnp.equal(labels, ignore_index)
    )
    per_class = lambda x: jnp.swapaxes(jnp.where(unread[..., None], 0, x), -1, -2)
    p = softmax(jnp.where(unread[..., None], 0, logits), axis=-1)
    shares = _share(per_class(p), per_class(1 - p), per_class(y), 0.5, 0.5, smooth)
    return jnp.where(jnp.all(valid | unread, axis=-1), jnp.mean(shares, axis=-1), jnp.nan)


def _mismatch(name, logits, labels, alpha, beta, smooth):
    _checks.at_least(0, alpha=alpha, beta=beta, smooth=smooth)
    _checks.rank_at_least(1, logits=logits)
    logits, labels = _checks.same_shape(logits=logits, labels=labels)
    labels, valid = _labels.probabilities(name, labels)
    loss = _share(sigmoid(logits), sigmoid(-logits), labels, alpha, beta, smooth)
    return jnp.where(jnp.all(valid, axis=-1), loss, jnp.nan)


def _share(inside, outside, labels, alpha, beta, smooth):
    hit = jnp.sum(inside * labels, axis=-1) + smooth
    miss = jnp.sum(alpha * inside * (1 - labels) + beta * outside * labels, axis=-1)
    nothing = hit + miss < 1e-12  # whose third power, in second derivatives, is still a float32
    return jnp.where(nothing, 0, miss) / jnp.where(nothing, 1, hit + miss)
