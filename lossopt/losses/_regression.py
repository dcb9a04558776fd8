"""Distances between real-valued predictions and targets."""

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Num, Number

Values = Num[ArrayLike, "*batch"]
Vectors = Num[ArrayLike, "*batch features"]


def squared_error(predictions: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Square of the residual: its best constant is the mean.

    $$\ell = (p - t)^2$$

    An error of 10 counts 100, an error of 1 counts 1, and opposite signs do not cancel.

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.

    Returns:
      One loss per element, shape `[*batch]`, without a factor of one half.

    Examples:
      >>> print(lo.losses.squared_error(jnp.array([10.0, 1.0, -1.0]), jnp.zeros(3)))
      [100.   1.   1.]
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    return (predictions - targets) ** 2


def absolute_error(predictions: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Size of the residual: its best constant is the median.

    $$\ell = |p - t|$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.

    Returns:
      One loss per element, shape `[*batch]`. Its gradient at 0 is 0.

    Examples:
      >>> print(lo.losses.absolute_error(jnp.array([10.0, 1.0, -1.0]), jnp.zeros(3)))
      [10.  1.  1.]
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    return _size(predictions - targets)


def huber(predictions: Values, targets: Values, *, delta: Number = 1.0) -> Float[Array, "*batch"]:
    r"""Half the squared error near zero, a multiple of the absolute error beyond `delta`.

    $$\ell = \begin{cases} r^2 / 2 & |r| \le \delta \\
        \delta (|r| - \delta / 2) & \text{otherwise} \end{cases}, \qquad r = p - t$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.
      delta: $\delta > 0$, the residual at which the slope stops growing.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if `delta` is not above 0.

    Examples:
      >>> print(lo.losses.huber(jnp.array([0.5, 3.0]), jnp.zeros(2)))
      [0.125 2.5  ]

    References:
      Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    _checks.above(0, delta=delta)
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    residual = predictions - targets
    slope = jnp.clip(residual, jnp.negative(delta), delta)
    return slope * (residual - slope / 2)


def log_cosh(predictions: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Half the squared error near zero, the absolute error less log 2 far away, smooth between.

    $$\ell = \log \cosh(p - t)$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.

    Returns:
      One loss per element, shape `[*batch]`.

    Examples:
      >>> print(lo.losses.log_cosh(jnp.array([0.0, 1e4]), jnp.zeros(2)).round(1))  # 1e4 - log(2)
      [   0.  9999.3]

    References:
      Green, "Bayesian Reconstructions from Emission Tomography Data Using a Modified EM
      Algorithm", 1990.
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    residual = predictions - targets
    distance = jnp.abs(residual)
    # Far away cosh overflows; near 0 subtracting log 2 would leave only rounding.
    near = jnp.log1p(2 * jnp.sinh(jnp.clip(residual, -1, 1) / 2) ** 2)
    far = distance + jax.nn.softplus(-2 * distance) - jnp.log(2.0)
    return jnp.where(distance < 1, near, far)


def quantile(predictions: Values, targets: Values, *, level: Number) -> Float[Array, "*batch"]:
    r"""Absolute error with two slopes (pinball): its best constant is the quantile of that level.

    $$\ell = \max\big(\alpha (t - p), \; (\alpha - 1)(t - p)\big)$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.
      level: $0 < \alpha < 1$, the share of targets that should lie below; 1/2 is half the
        absolute error.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if `level` is not between 0 and 1.

    Examples:
      >>> print(lo.losses.quantile(jnp.zeros(2), jnp.array([1.0, -1.0]), level=0.75))
      [0.75 0.25]

    References:
      Koenker and Bassett, "Regression Quantiles", 1978.
    """
    _checks.above(0, level=level)
    _checks.below(1, level=level)
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    residual = targets - predictions
    return jnp.maximum(level * residual, (level - 1) * residual)


def expectile(predictions: Values, targets: Values, *, level: Number) -> Float[Array, "*batch"]:
    r"""Squared error with two weights: its best constant is the expectile of that level.

    $$\ell = \begin{cases} \alpha (t - p)^2 & t \ge p \\ (1 - \alpha)(t - p)^2 & t < p
        \end{cases}$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.
      level: $0 < \alpha < 1$; 1/2 is half the squared error, whose best constant is the mean.

    Returns:
      One loss per element, shape `[*batch]`.

    Raises:
      ValueError: if `level` is not between 0 and 1.

    Examples:
      >>> print(lo.losses.expectile(jnp.zeros(2), jnp.array([2.0, -2.0]), level=0.75))
      [3. 1.]

    References:
      Newey and Powell, "Asymmetric Least Squares Estimation and Testing", 1987.
    """
    _checks.above(0, level=level)
    _checks.below(1, level=level)
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    residual = targets - predictions
    return jnp.where(residual < 0, 1 - level, level) * residual**2


def squared_log_error(predictions: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Squared error of logarithms, for sizes and counts whose ratio matters.

    $$\ell = \big(\log(1 + p) - \log(1 + t)\big)^2$$

    Logarithms are natural.

    Args:
      predictions: $p > -1$, shape `[*batch]`.
      targets: $t > -1$, shape `[*batch]`, the units of `predictions`.

    Returns:
      One loss per element, shape `[*batch]`, NaN where either is -1 or less.

    Examples:
      >>> print(lo.losses.squared_log_error(jnp.array([9.0, 999.0]), jnp.array([0, 99])).round(3))
      [5.302 5.302]
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    lower = jnp.minimum(predictions, targets)
    valid = lower > -1
    message = "squared_log_error: expected predictions and targets > -1, got {low}."
    _checks.condition(valid, message, low=jnp.min(lower, initial=0))
    log = lambda x: jnp.log1p(jnp.where(valid, x, 0))
    return jnp.where(valid, (log(predictions) - log(targets)) ** 2, jnp.nan)


def absolute_percentage_error(predictions: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Absolute error as a fraction of the target: 0.1 is ten percent.

    $$\ell = \frac{|p - t|}{|t|}$$

    Args:
      predictions: $p$, shape `[*batch]`.
      targets: $t \ne 0$, shape `[*batch]`, the units of `predictions`.

    Returns:
      One loss per element, shape `[*batch]`, NaN where the target is 0.

    Examples:
      >>> print(lo.losses.absolute_percentage_error(jnp.array([90.0, 3.0]), jnp.array([100, -2])))
      [0.1 2.5]

    References:
      Hyndman and Koehler, "Another Look at Measures of Forecast Accuracy", 2006.
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    valid = targets != 0
    message = "absolute_percentage_error: expected targets other than 0, got {zeros} that are 0."
    _checks.condition(valid, message, zeros=jnp.sum(~valid))
    targets = jnp.where(valid, targets, 1)
    return jnp.where(valid, _size((predictions - targets) / targets), jnp.nan)


def cosine_distance(predictions: Vectors, targets: Vectors) -> Float[Array, "*batch"]:
    r"""One minus the cosine of the angle between two vectors: lengths do not count.

    $$\ell = 1 - \frac{p \cdot t}{\lVert p \rVert_2 \lVert t \rVert_2}$$

    Args:
      predictions: $p$, shape `[*batch, features]`.
      targets: $t$, shape `[*batch, features]`.

    Returns:
      One loss per vector, shape `[*batch]`, from 0 to 2. A vector of zeros has no angle: the loss
      is 1, as at a right angle, and its gradients are 0.

    Examples:
      >>> p, t = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0]] * 3)
      >>> print(lo.losses.cosine_distance(p, t))
      [0. 1. 1.]
    """
    predictions, targets = _checks.same_shape(predictions=predictions, targets=targets)
    _checks.rank_at_least(1, predictions=predictions)
    nonzero = jnp.any(predictions != 0, axis=-1) & jnp.any(targets != 0, axis=-1)
    # Half the squared chord is 1 - cosine without the subtraction.
    chord = _unit(predictions, nonzero) - _unit(targets, nonzero)
    return jnp.where(nonzero, jnp.sum(chord**2, axis=-1) / 2, 1)


def _size(x):
    """The absolute value, with slope 0 at 0, where that of `jnp.abs` is 1."""
    return jnp.maximum(x, -x)


def _unit(vectors, nonzero):
    """Vectors of length 1; scaled first, because squares of very long or short ones are lost."""
    vectors = jnp.where(nonzero[..., None], vectors, 1)
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True, initial=0)
    vectors = vectors / jax.lax.stop_gradient(largest)
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
