"""Losses of decisions: margins, thresholds, and what an error costs."""

import jax.numpy as jnp
from jax import lax
from jax.nn import one_hot, relu, softmax, softplus

from lossopt import _checks
from lossopt._numerics import NO_LOGIT, still
from lossopt._typing import Array, ArrayLike, Float, Int, Number
from lossopt.losses import _labels


def hinge(
    scores: Float[ArrayLike, "*batch"], labels: Float[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    r"""How far a score is from the right side of its margin.

    $$\ell(s, y) = \max(0, \; 1 - (2 y - 1) s)$$

    Args:
      scores: $s$, positive for label 1, shape `[*batch]`.
      labels: $y$, 0 or 1, shape `[*batch]`; NaN is the loss of others.

    Returns:
      One loss per element, shape `[*batch]`. At the kink the slope is 0.

    Raises:
      ValueError: if the shapes differ.

    Examples:
      >>> print(lo.losses.hinge(jnp.array([2.0, 0.5, -1.0]), jnp.ones(3)))
      [0.  0.5 2. ]

    References:
      Cortes and Vapnik, "Support-Vector Networks", 1995.
    """
    return _shortfall("hinge", scores, labels)


def squared_hinge(
    scores: Float[ArrayLike, "*batch"], labels: Float[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Squared distance of a score from the right side of its margin.

    $$\ell(s, y) = \max(0, \; 1 - (2 y - 1) s)^2$$

    Args:
      scores: $s$, positive for label 1, shape `[*batch]`.
      labels: $y$, 0 or 1, shape `[*batch]`; NaN is the loss of others.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if the shapes differ.

    Examples:
      >>> print(lo.losses.squared_hinge(jnp.array([2.0, 0.5, -1.0]), jnp.ones(3)))
      [0.   0.25 4.  ]

    References:
      Chang, Hsieh and Lin, "Coordinate Descent Method for Large-scale L2-loss Linear Support
      Vector Machines", 2008.
    """
    return _shortfall("squared_hinge", scores, labels) ** 2


def multiclass_hinge(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""How far the label's score is from leading its best rival by 1.

    $$\ell(s, y) = \max\big(0, \; 1 + \max_{j \ne y} s_j - s_y\big)$$

    Args:
      scores: $s$, shape `[*batch, classes]`. A class without rivals has loss 0.
      labels: class numbers $y$, shape `[*batch]`; NaN is the loss of those out of range.
      ignore_index: a label whose rows are NaN on purpose: weigh them 0.

    Returns:
      One loss per row, shape `[*batch]`. At the kink the slope is 0; tied rivals share theirs.

    Raises:
      ValueError: if the shapes do not match.
      TypeError: if labels are not integers.

    Examples:
      >>> scores = jnp.array([[3.0, 1.0, 0.0], [3.0, 2.5, 0.0]])
      >>> print(lo.losses.multiclass_hinge(scores, jnp.array([0, 1])))
      [0.  1.5]

    References:
      Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
      Machines", 2001.
    """
    scores, labels, valid = _scored("multiclass_hinge", ignore_index, labels, scores=scores)
    own = one_hot(labels, scores.shape[-1], dtype=bool)
    rival = jnp.max(jnp.where(own, NO_LOGIT[scores.dtype], scores), axis=-1)
    gap = rival - jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    return jnp.where(valid, relu(1 + gap), jnp.nan)


def ordinal(
    logits: Float[ArrayLike, "*batch thresholds"],
    labels: Int[ArrayLike, "*batch"],
    *,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""Surprise at whether an ordered label lies above each of its thresholds.

    $$\ell(z, y) = -\sum_{k=0}^{K-1} \big([y > k] \log \sigma(z_k)
        + [y \le k] \log(1 - \sigma(z_k))\big), \quad \sigma(z) = \frac{1}{1 + e^{-z}}$$

    Logits that share their features and differ by a bias alone give consistent ranks.

    Args:
      logits: log-odds $z_k$ that the label is above $k$, shape `[*batch, thresholds]`.
      labels: ranks $y$ from 0 to $K$, the number of thresholds, shape `[*batch]`; NaN is the loss
        of others.
      ignore_index: a label whose rows are NaN on purpose: weigh them 0.

    Returns:
      One loss per row, shape `[*batch]`; the predicted rank is `jnp.sum(logits > 0, axis=-1)`.

    Raises:
      ValueError: if the shapes do not match.
      TypeError: if labels are not integers.

    Examples:
      >>> logits = jnp.array([[2.0, -2.0], [2.0, -2.0]])  # rank 1 of 0, 1, 2
      >>> print(np.array(lo.losses.ordinal(logits, jnp.array([1, 0]))).round(3))
      [0.254 2.254]

    References:
      Niu et al., "Ordinal Regression with Multiple Output CNN for Age Estimation", 2016.
      Cao, Mirjalili and Raschka, "Rank Consistent Ordinal Regression for Neural Networks with
      Application to Age Estimation", 2020.
    """
    logits, labels, valid = _scored("ordinal", ignore_index, labels, extra=1, logits=logits)
    above = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < labels[..., None]
    loss = jnp.sum(softplus(jnp.where(above, -logits, logits)), axis=-1)
    return jnp.where(valid, loss, jnp.nan)


def cost_sensitive(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    costs: Float[ArrayLike, "classes classes"],
    *,
    ignore_index: Number | None = None,
) -> Float[Array, "*batch"]:
    r"""What it costs on average to decide at random with the model's probabilities.

    $$\ell(z, y) = \sum_j p_j \, C_{y j}, \quad p_j = \frac{e^{z_j}}{\sum_k e^{z_k}}$$

    A model trained with it puts its mass on the cheapest decision: decide by argmax. Its softmax
    is not the probability of a class; for that train with cross entropy and use `decide`.

    Args:
      logits: $z$, one per decision, shape `[*batch, classes]`.
      labels: class numbers $y$, shape `[*batch]`; NaN is the loss of those out of range.
      costs: $C_{yj}$, finite cost of decision $j$ when the label is $y$, of either sign, shape
        `[classes, decisions]` with as many decisions as classes.
      ignore_index: a label whose rows are NaN on purpose: weigh them 0.

    Returns:
      One expected cost per row, shape `[*batch]`, in the unit of `costs`.

    Raises:
      ValueError: if the shapes do not match.
      TypeError: if labels are not integers.

    Examples:
      >>> costs = jnp.array([[0.0, 10.0], [1000.0, 0.0]])  # false alarm 10, missed fraud 1000
      >>> print(lo.losses.cost_sensitive(jnp.zeros((2, 2)), jnp.array([0, 1]), costs))
      [  5. 500.]

    References:
      Elkan, "The Foundations of Cost-Sensitive Learning", 2001.
    """
    logits, labels, valid = _scored("cost_sensitive", ignore_index, labels, logits=logits)
    _checks.exact_shape(2 * logits.shape[-1:], costs=costs)
    (costs,) = _checks.floats(costs=costs)
    loss = jnp.sum(softmax(logits) * costs[labels], axis=-1)
    return jnp.where(valid, loss, jnp.nan)


def decide(
    logits: Float[ArrayLike, "*batch classes"], costs: Float[ArrayLike, "classes decisions"]
) -> Int[Array, "*batch"]:
    r"""Cheapest decision for a model trained with cross entropy.

    $$d(z) = \arg\min_j \sum_i p_i \, C_{i j}, \quad p_i = \frac{e^{z_i}}{\sum_k e^{z_k}}$$

    Args:
      logits: $z$, log-probabilities of the classes up to a constant, shape `[*batch, classes]`.
      costs: $C_{ij}$, finite cost of decision $j$ in class $i$, shape `[classes, decisions]`.

    Returns:
      One decision per row, int32 of shape `[*batch]`: the first of equally cheap ones, -1 where a
      logit is NaN.

    Raises:
      ValueError: if the shapes do not match.

    Examples:
      >>> costs = jnp.array([[0.0, 10.0], [1000.0, 0.0]])  # false alarm 10, missed fraud 1000
      >>> print(lo.losses.decide(jnp.log(jnp.array([[0.98, 0.02], [0.999, 0.001]])), costs))
      [1 0]

    References:
      Elkan, "The Foundations of Cost-Sensitive Learning", 2001.
    """
    _checks.rank_at_least(1, logits=logits)
    _checks.rank_at_least(2, costs=costs)
    logits, costs = _checks.floats(logits=logits, costs=costs)
    _checks.exact_shape((logits.shape[-1], costs.shape[-1]), costs=costs)
    expected = jnp.matmul(softmax(logits), costs, precision="highest")
    cheapest = jnp.argmin(expected, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(expected), axis=-1), -1, cheapest)


def _scored(name, ignore_index, labels, extra=0, **scores):
    """Scores in float32 or wider, one per class but `extra`; safe labels; valid rows."""
    _checks.rank_at_least(1, **scores)
    (x,) = still(*_checks.floats(**scores))
    *batch, count = x.shape
    labels, valid = _labels.numbers(
        name, labels, shape=tuple(batch), classes=count + extra, ignore_index=ignore_index
    )
    return x, labels, valid


def _shortfall(name, scores, labels):
    scores, labels = _checks.same_shape(scores=scores, labels=labels)
    labels, valid = _labels.binary(name, labels)
    return jnp.where(valid, relu(1 - (2 * labels - 1) * scores), jnp.nan)
