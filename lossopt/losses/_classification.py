"""Cross entropy and its relatives: how surprised a model is by the label."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax, logsumexp, softplus

from lossopt import _checks
from lossopt._numerics import NO_LOGIT, share, still
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Number
from lossopt.losses import _labels


def sigmoid_cross_entropy(
    logits: Float[ArrayLike, "*batch"], labels: Float[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Surprise of a yes or no at the probability that the model gave it.

    $$\ell(z, y) = -y \log p - (1 - y) \log(1 - p), \quad p = \frac{1}{1 + e^{-z}}$$

    Its gradient in $z$ is $p - y$. Logarithms are natural.

    Args:
      logits: log-odds $z$ of label 1, shape `[*batch]`.
      labels: $y$, 0 or 1 or a probability between, shape `[*batch]`. Outside of $[0, 1]$ the loss
        is NaN.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ.

    Examples:
      >>> sure = jnp.log(jnp.array([0.9, 0.1]) / jnp.array([0.1, 0.9]))
      >>> print(np.array(lo.losses.sigmoid_cross_entropy(sure, jnp.ones(2))).round(3))
      [0.105 2.303]

    References:
      Cox, "The Regression Analysis of Binary Sequences", 1958.
    """
    logits, labels = _checks.same_shape(logits=logits, labels=labels)
    labels, valid = _labels.probabilities("sigmoid_cross_entropy", labels)
    loss = share(labels, softplus(-logits)) + share(1 - labels, softplus(logits))
    return jnp.where(valid, loss, jnp.nan)


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"] | Float[ArrayLike, "*batch classes"],
    *,
    label_smoothing: Number = 0.0,
    where: Bool[ArrayLike, "*batch classes"] | Bool[ArrayLike, " classes"] | None = None,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Surprise of one class among several, or of a distribution over them.

    $$\ell(z, y) = -\sum_{j \in C} \Big((1 - a) y_j + \frac{a}{|C|}\Big) \log p_j, \quad
        p_j = \frac{e^{z_j}}{\sum_{k \in C} e^{z_k}}$$

    with $C$ the classes that `where` keeps and $y$ one-hot for an integer label.

    Args:
      logits: $z$, shape `[*batch, classes]`.
      labels: integers are class numbers, shape `[*batch]`: NaN is the loss of those out of range
        or masked. Floats are distributions $y$, shape `[*batch, classes]`: NaN is the loss of those
        with a negative entry, with anything but 0 on a masked class, or with a sum further from 1
        than 1e-3 (or than the epsilon of their dtype, if larger).
      label_smoothing: $a$, from 0 to 1.
      where: True for classes to keep, shape `[*batch, classes]` or `[classes]`; None keeps all.
        Masked logits are not read, even if NaN, and have gradient 0.
      ignore_index: an integer label that is meant to be ignored. The loss of its rows is NaN too:
        weigh them 0, `lo.mean(loss, labels != ignore_index)`.

    Returns:
      One loss per row, shape `[*batch]`.

    Raises:
      ValueError: if shapes do not match, if `label_smoothing` is outside of [0, 1], or if
        `ignore_index` is given with distributions.
      TypeError: if labels are neither integers nor floats, or `where` is not boolean.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
      >>> print(np.array(lo.losses.softmax_cross_entropy(logits, jnp.array([0, 2]))).round(3))
      [0.357 2.303]

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
    """
    _checks.at_least(0, label_smoothing=label_smoothing)
    _checks.at_most(1, label_smoothing=label_smoothing)
    name = "softmax_cross_entropy"
    logits, labels, kept, valid = _read(name, logits, labels, where, ignore_index)
    loss, _ = _surprise(logits, labels)
    if not (isinstance(label_smoothing, float | int) and label_smoothing == 0):
        total = jnp.sum(jnp.where(kept, logits, 0), axis=-1)
        count = jnp.sum(kept, axis=-1, dtype=logits.dtype)
        uniform = logsumexp(logits, axis=-1) - total / jnp.maximum(count, 1)
        loss = share(1 - label_smoothing, loss) + share(label_smoothing, uniform)
    return jnp.where(valid, loss, jnp.nan)


def focal(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"] | Float[ArrayLike, "*batch classes"],
    *,
    gamma: Number = 2.0,
    where: Bool[ArrayLike, "*batch classes"] | Bool[ArrayLike, " classes"] | None = None,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross entropy that fades where the label is already likely.

    $$\ell(z, y) = -m^\gamma \sum_{j \in C} y_j \log p_j, \quad m = \sum_{j \in C} (1 - y_j)_+ p_j$$

    with $p$, $y$, $C$ as in `softmax_cross_entropy`, $x_+ = \max(0, x)$. One label: $m = 1 - p_y$.

    Args:
      logits: shape `[*batch, classes]`.
      labels: class numbers or distributions, as in `softmax_cross_entropy`.
      gamma: $\gamma$, at least 0, which gives cross entropy.
      where: classes to keep, as in `softmax_cross_entropy`.
      ignore_index: an integer label whose rows are NaN on purpose.

    Returns:
      One loss per row, shape `[*batch]`; NaN as in `softmax_cross_entropy`.

    Raises:
      ValueError, TypeError: as `softmax_cross_entropy`; also if `gamma` is negative.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]]))
      >>> print(np.array(lo.losses.focal(logits, jnp.array([0, 1]))).round(3))
      [0.009 1.03 ]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    _checks.at_least(0, gamma=gamma)
    logits, labels, _, valid = _read("focal", logits, labels, where, ignore_index)
    cross_entropy, log_miss = _surprise(logits, labels)
    return jnp.where(valid, jnp.exp(gamma * log_miss) * cross_entropy, jnp.nan)


def poly(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"] | Float[ArrayLike, "*batch classes"],
    *,
    epsilon: Number = 2.0,
    where: Bool[ArrayLike, "*batch classes"] | Bool[ArrayLike, " classes"] | None = None,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross entropy plus a multiple of the probability that missed the label.

    $$\ell(z, y) = -\sum_{j \in C} y_j \log p_j + \epsilon \, m, \quad
        m = \sum_{j \in C} (1 - y_j)_+ p_j$$

    with $p$, $y$ and $C$ as in `softmax_cross_entropy`.

    Args:
      logits: shape `[*batch, classes]`.
      labels: class numbers or distributions, as in `softmax_cross_entropy`.
      epsilon: $\epsilon$, of either sign; 2 is what its authors use for images.
      where: classes to keep, as in `softmax_cross_entropy`.
      ignore_index: an integer label whose rows are NaN on purpose.

    Returns:
      One loss per row, shape `[*batch]`; NaN as in `softmax_cross_entropy`.

    Raises:
      ValueError, TypeError: as `softmax_cross_entropy`.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
      >>> print(np.array(lo.losses.poly(logits, jnp.array([0, 1]), epsilon=1.0)).round(3))
      [0.205 3.203]

    References:
      Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
      Functions", 2022.
    """
    _checks.fits(epsilon=epsilon)
    logits, labels, _, valid = _read("poly", logits, labels, where, ignore_index)
    cross_entropy, log_miss = _surprise(logits, labels)
    return jnp.where(valid, cross_entropy + epsilon * jnp.exp(log_miss), jnp.nan)


def sigmoid_focal(
    logits: Float[ArrayLike, "*batch"],
    labels: Float[ArrayLike, "*batch"],
    *,
    gamma: Number = 2.0,
    alpha: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross entropy that fades where the label is already likely.

    $$\ell(z, y) = -w \, m^\gamma \big(y \log p + (1 - y) \log(1 - p)\big), \; p = 1 / (1 + e^{-z}),
        \; m = y (1 - p) + (1 - y) p, \; w = \alpha y + (1 - \alpha)(1 - y)$$

    Args:
      logits: log-odds $z$ of label 1, shape `[*batch]`.
      labels: $y$, 0 or 1 or a probability between, shape `[*batch]`; outside the loss is NaN.
      gamma: $\gamma$, at least 0, which gives cross entropy.
      alpha: $\alpha$, the share of label 1, from 0 to 1. None leaves $w = 1$.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ, `gamma` is negative or `alpha` is outside of [0, 1].

    Examples:
      >>> sure = jnp.log(jnp.array([0.8, 0.2]) / jnp.array([0.2, 0.8]))
      >>> print(np.array(lo.losses.sigmoid_focal(sure, jnp.ones(2))).round(3))
      [0.009 1.03 ]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    _checks.at_least(0, gamma=gamma)
    logits, labels = _checks.same_shape(logits=logits, labels=labels)
    labels, valid = _labels.probabilities("sigmoid_focal", labels)
    cross_entropy, log_miss = _sigmoid_surprise(logits, labels)
    loss = jnp.exp(gamma * log_miss) * cross_entropy
    if alpha is not None:
        _checks.at_least(0, alpha=alpha)
        _checks.at_most(1, alpha=alpha)
        loss *= alpha * labels + (1 - alpha) * (1 - labels)
    return jnp.where(valid, loss, jnp.nan)


def sigmoid_poly(
    logits: Float[ArrayLike, "*batch"], labels: Float[ArrayLike, "*batch"], *, epsilon: Number
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross entropy plus a multiple of the probability that missed the label.

    $$\ell(z, y) = -y \log p - (1 - y) \log(1 - p) + \epsilon \, m, \; p = 1 / (1 + e^{-z}),
        \; m = y (1 - p) + (1 - y) p$$

    Args:
      logits: log-odds $z$ of label 1, shape `[*batch]`.
      labels: $y$, 0 or 1 or a probability between, shape `[*batch]`; outside the loss is NaN.
      epsilon: $\epsilon$, of either sign.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ.

    Examples:
      >>> sure = jnp.log(jnp.array([0.9, 0.1]) / jnp.array([0.1, 0.9]))
      >>> print(np.array(lo.losses.sigmoid_poly(sure, jnp.ones(2), epsilon=1.0)).round(3))
      [0.205 3.203]

    References:
      Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
      Functions", 2022.
    """
    _checks.fits(epsilon=epsilon)
    logits, labels = _checks.same_shape(logits=logits, labels=labels)
    labels, valid = _labels.probabilities("sigmoid_poly", labels)
    cross_entropy, log_miss = _sigmoid_surprise(logits, labels)
    return jnp.where(valid, cross_entropy + epsilon * jnp.exp(log_miss), jnp.nan)


def _read(name, logits, labels, where, ignore_index):
    """Logits less the highest, safe labels, classes kept, valid rows; masked logits are lowest."""
    _checks.rank_at_least(1, logits=logits)
    (logits,) = still(*_checks.floats(logits=logits))
    kept = _checks.mask("where", where, logits.shape, logits.shape[-1:])
    labels, valid = _labels.classes(name, logits, labels, kept=kept, ignore_index=ignore_index)
    top = jnp.max(logits, axis=-1, keepdims=True, where=kept, initial=NO_LOGIT[logits.dtype])
    logits = logits - jax.lax.stop_gradient(top)  # keeps the digits of large logits
    return jnp.where(kept, logits, NO_LOGIT[logits.dtype]), labels, kept, valid


def _surprise(logits, labels):
    """Cross entropy, and the log of the probability that missed the label."""
    if labels.ndim == logits.ndim:
        return _mixed_surprise(log_softmax(logits), labels)
    # The log-odds of the label keep full precision where 1 - p rounds to 0.
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    rivals = logsumexp(jnp.where(own, NO_LOGIT[logits.dtype], logits), axis=-1)
    log_odds = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0] - rivals
    return softplus(-log_odds), -softplus(log_odds)


def _sigmoid_surprise(logits, labels):
    log_p = jnp.stack([log_sigmoid(-logits), log_sigmoid(logits)], axis=-1)
    return _mixed_surprise(log_p, jnp.stack([1 - labels, labels], axis=-1))


def _mixed_surprise(log_p, labels):
    """As `_surprise`, for distributions: the miss is the sum of `(1 - labels) * p`."""
    certain = labels >= 1
    log_rest = jnp.log1p(-jnp.where(certain, 0, labels))
    log_missed = jnp.where(certain, NO_LOGIT[log_p.dtype], log_rest + log_p)
    return -jnp.sum(share(labels, log_p), axis=-1), logsumexp(log_missed, axis=-1)
