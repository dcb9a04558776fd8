"""Scores of a whole predicted distribution in the units of its target: absolute error, widened."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Num

Values = Num[ArrayLike, "*batch"]


def gaussian_crps(mean: Values, targets: Values, log_variance: Values) -> Float[Array, "*batch"]:
    r"""Continuous ranked probability score of a normal distribution.

    $$\ell = \int \big(F(x) - [x \ge t]\big)^2 dx = \sigma \Big(z \big(2 \Phi(z) - 1\big)
        + 2 \phi(z) - \frac{1}{\sqrt{\pi}}\Big), \qquad z = \frac{t - m}{\sigma}, \quad
        \sigma = e^{s / 2}$$

    with $F$ the predicted distribution function, $\Phi$ and $\phi$ those of the standard normal
    distribution. A target far away costs its distance, where `gaussian_nll` squares it.

    Args:
      mean: $m$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `mean`.
      log_variance: $s$, the natural logarithm of the variance, shape `[*batch]`.

    Returns:
      One loss per element in the units of `targets`, shape `[*batch]`: the absolute error where
      the variance is 0.

    Examples:
      >>> mean, log_variance = jnp.zeros(2), jnp.log(jnp.array([1.0, 4.0]))
      >>> score = lo.losses.gaussian_crps(mean, jnp.array([0.0, 2.0]), log_variance)
      >>> print(np.array(score).round(3))
      [0.234 1.205]

    References:
      Gneiting et al., "Calibrated Probabilistic Forecasting Using Ensemble Model Output Statistics
      and Minimum CRPS Estimation", 2005.
    """
    mean, targets, log_variance = _checks.same_shape(
        mean=mean, targets=targets, log_variance=log_variance
    )
    return _gaussian(targets - mean, log_variance)


def ensemble_crps(
    predictions: Num[ArrayLike, "*batch members"], targets: Values, *, fair: bool
) -> Float[Array, "*batch"]:
    r"""Continuous ranked probability score of an ensemble, or its estimate for an endless one.

    $$\ell = \frac{1}{n} \sum_i |x_i - t| - \frac{1}{2 n k} \sum_{i, j} |x_i - x_j|, \qquad
        k = \begin{cases} n - 1 & \text{fair} \\ n & \text{otherwise} \end{cases}$$

    Args:
      predictions: $x$, shape `[*batch, members]`.
      targets: $t$, shape `[*batch]`, the units of `predictions`.
      fair: True for the unbiased estimate of the score of the distribution that the members are
        drawn from, for training; it may be negative. False for the score of these $n$ members as
        they are, which favors ensembles that are too narrow.

    Returns:
      One loss per target in its units, shape `[*batch]`. Members that are equal have no slope
      against each other, nor has one that equals the target.

    Raises:
      ValueError: if the shapes do not match, if there is no member, or a single one and `fair`.

    Examples:
      >>> members, targets = jnp.array([[0.0, 1.0, 5.0]]), jnp.array([2.0])
      >>> print(lo.losses.ensemble_crps(members, targets, fair=True).round(3))
      [0.333]

    References:
      Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007.
      Ferro, "Fair Scores for Ensemble Forecasts", 2014.
    """
    _checks.rank_at_least(1, predictions=predictions)
    predictions, targets = _checks.floats(predictions=predictions, targets=targets)
    *batch, count = predictions.shape
    _checks.exact_shape(tuple(batch), targets=targets)
    least, others = (2, count - 1) if fair else (1, count)
    if count < least:
        raise ValueError(f"Expected at least {least} members, got {count}. Draw more of them.")
    errors = predictions - targets[..., None]
    order = jnp.sort(errors, axis=-1)
    # The members below each, less those above: what its error is multiplied by in the second sum.
    below, beside = (_search(side)(order, errors) for side in ("left", "right"))
    leads = (below + beside - count).astype(errors.dtype)
    spread = jnp.sum(leads * errors, axis=-1) / (count * others)
    return jnp.mean(jnp.maximum(errors, -errors), axis=-1) - spread


def _search(side):
    search = partial(jnp.searchsorted, side=side)
    return jnp.vectorize(search, signature="(n),(n)->(n)")


@jax.custom_jvp
def _gaussian(residual, log_variance):
    error, width = _slopes(residual, log_variance)
    return residual * error + width


@_gaussian.defjvp
def _slope(primals, tangents):
    """What else the chain rule gives cancels."""
    error, width = _slopes(*primals)
    return _gaussian(*primals), error * tangents[0] + width / 2 * tangents[1]


def _slopes(residual, log_variance):
    """In the residual, and twice that in the logarithm of the variance."""
    lowest = 2 * math.log(jnp.finfo(log_variance.dtype).tiny)
    z = residual * jnp.exp(-jnp.maximum(log_variance, lowest) / 2)
    density = jnp.exp(-(jnp.minimum(jnp.abs(z), 100) ** 2) / 2) / math.sqrt(2 * math.pi)
    width = jnp.exp(log_variance / 2) * (2 * density - 1 / math.sqrt(math.pi))
    return erf(z / math.sqrt(2)), width
