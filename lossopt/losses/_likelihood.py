"""Negative log-likelihoods in nats, constants included. Overflow is +inf, never NaN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn import log_softmax
from jax.scipy.special import gammaln

from lossopt import _checks
from lossopt._numerics import NO_LOGIT, share
from lossopt._typing import Array, ArrayLike, Bool, Float, Num, Number
from lossopt.losses import _labels
from lossopt.losses._log_sums import lead, tails

Values = Num[ArrayLike, "*batch"]
Classes = Num[ArrayLike, "*batch classes"]
Lists = Num[ArrayLike, "*batch items"]
Mask = Bool[ArrayLike, "*batch items"] | None
Kept = Bool[ArrayLike, "*batch classes"] | Bool[ArrayLike, " classes"] | None


def gaussian_nll(mean: Values, targets: Values, log_variance: Values) -> Float[Array, "*batch"]:
    r"""Surprise of a target under a normal distribution whose variance is predicted too.

    $$\ell = \frac{1}{2} \Big(\log 2 \pi + s + \frac{(t - m)^2}{e^s}\Big)$$

    Args:
      mean: $m$, shape `[*batch]`.
      targets: $t$, shape `[*batch]`, the units of `mean`.
      log_variance: $s$, the natural logarithm of the variance, shape `[*batch]`.

    Returns:
      One loss per element in nats, shape `[*batch]`.

    Examples:
      >>> mean, log_variance = jnp.zeros(2), jnp.log(jnp.array([1.0, 4.0]))
      >>> print(lo.losses.gaussian_nll(mean, jnp.array([0.0, 2.0]), log_variance).round(3))
      [0.919 2.112]

    References:
      Nix and Weigend, "Estimating the Mean and Variance of the Target Probability Distribution",
      1994.
    """
    mean, targets, log_variance = _checks.same_shape(
        mean=mean, targets=targets, log_variance=log_variance
    )
    residual = targets - mean
    # At a residual of 0 the precision must stay finite: 0 times inf is NaN.
    lowest = jnp.where(residual == 0, math.log(jnp.finfo(log_variance.dtype).tiny), -jnp.inf)
    standardized = residual * jnp.exp(-jnp.maximum(log_variance, lowest) / 2)
    return (math.log(2 * math.pi) + log_variance + standardized**2) / 2


def poisson_nll(log_rate: Values, targets: Values) -> Float[Array, "*batch"]:
    r"""Surprise of a count under a Poisson distribution.

    $$\ell = e^z - t z + \log \Gamma(t + 1)$$

    The terms of large counts cancel: in float32 the value, not the gradient $e^z - t$, is only
    known to about $10^{-7} \, t \log t$.

    Args:
      log_rate: $z$, the natural logarithm of the expected count, shape `[*batch]`.
      targets: $t \ge 0$, counts, shape `[*batch]`; they need not be integers.

    Returns:
      One loss per element in nats, shape `[*batch]`: NaN where a target is negative.

    Examples:
      >>> print(lo.losses.poisson_nll(jnp.log(jnp.array([2.0, 2.0])), jnp.array([0, 2])).round(4))
      [2.     1.3069]

    References:
      Nelder and Wedderburn, "Generalized Linear Models", 1972.
    """
    log_rate, targets = _checks.same_shape(log_rate=log_rate, targets=targets)
    targets, valid = _targets("poisson_nll", ">= 0", targets, targets >= 0)
    rate = jnp.exp(log_rate)
    loss = jnp.where(jnp.isinf(rate), rate, rate - share(targets, log_rate)) + gammaln(targets + 1)
    return jnp.where(valid, loss, jnp.nan)


def gamma_nll(log_mean: Values, targets: Values, *, shape: Number) -> Float[Array, "*batch"]:
    r"""Surprise of a positive amount under a gamma distribution.

    $$\ell = k (d + e^{-d}) + \log t + \log \Gamma(k) - k \log k, \qquad d = z - \log t$$

    The distribution has mean $e^z$ and variance $e^{2z} / k$: its scale is $e^z / k$.

    Args:
      log_mean: $z$, the natural logarithm of the mean, shape `[*batch]`.
      targets: $t > 0$, shape `[*batch]`.
      shape: $k > 0$; 1 is the exponential distribution.

    Returns:
      One loss per element in nats, shape `[*batch]`: NaN where a target is 0 or negative.

    Raises:
      ValueError: if `shape` is not above 0.

    Examples:
      >>> print(lo.losses.gamma_nll(jnp.zeros(2), jnp.array([1.0, 3.0]), shape=1.0).round(4))
      [1. 3.]

    References:
      Nelder and Wedderburn, "Generalized Linear Models", 1972.
    """
    _checks.above(0, shape=shape)
    log_mean, targets = _checks.same_shape(log_mean=log_mean, targets=targets)
    targets, valid = _targets("gamma_nll", "> 0", targets, targets > 0)
    log_targets = jnp.log(targets)
    gap = jnp.maximum(log_mean - log_targets, NO_LOGIT[log_mean.dtype])  # a mean of 0 is +inf
    loss = shape * (gap + jnp.exp(-gap)) + log_targets + gammaln(shape) - shape * jnp.log(shape)
    return jnp.where(valid, loss, jnp.nan)


def tweedie_deviance(log_mean: Values, targets: Values, *, power: Number) -> Float[Array, "*batch"]:
    r"""Deviance of an amount that is often exactly 0 (compound Poisson and gamma).

    $$\ell = 2 \Big(\frac{\mu^{2 - q} - t^{2 - q}}{2 - q}
        - t \, \frac{\mu^{1 - q} - t^{1 - q}}{1 - q}\Big), \qquad \mu = e^z$$

    At $t = 0$ the second term is 0. Up to rounding it is at least 0, and 0 where $\mu = t$.

    Args:
      log_mean: $z$, the natural logarithm of the mean, shape `[*batch]`.
      targets: $t \ge 0$, shape `[*batch]`.
      power: $1 < q < 2$: the variance grows as $\mu^q$.

    Returns:
      One loss per element, shape `[*batch]`: NaN where a target is negative.

    Raises:
      ValueError: if `power` is not between 1 and 2.

    Examples:
      >>> print(lo.losses.tweedie_deviance(jnp.zeros(3), jnp.array([0, 1, 4]), power=1.5))
      [4. 0. 4.]

    References:
      Jørgensen, "Exponential Dispersion Models", 1987.
    """
    if not isinstance(power, Tracer) and not 1 < np.asarray(power) < 2:
        raise ValueError(
            f"Expected 1 < power < 2, got {power}. "
            "Take squared_error for power 0, poisson_nll for 1, gamma_nll for 2."
        )
    log_mean, targets = _checks.same_shape(log_mean=log_mean, targets=targets)
    targets, valid = _targets("tweedie_deviance", ">= 0", targets, targets >= 0)
    positive, a, b = targets > 0, 2 - power, 1 - power
    log_targets = jnp.log(jnp.where(positive, targets, 1))
    lowest = NO_LOGIT[log_mean.dtype]  # its exponential is 0
    first = _difference(a * log_mean, jnp.where(positive, a * log_targets, lowest)) / a
    second = _difference(b * jnp.where(positive, log_mean, 0), b * log_targets) / b
    return jnp.where(valid, 2 * (first - targets * second), jnp.nan)


def kl_divergence(
    logits: Classes, targets: Classes, *, where: Kept = None
) -> Float[Array, "*batch"]:
    r"""Cross entropy less what no model could save: the entropy of the targets.

    $$\ell = \sum_{j \in C} t_j (\log t_j - \log p_j), \qquad
        p_j = \frac{e^{z_j}}{\sum_{k \in C} e^{z_k}}$$

    That is KL(targets ‖ softmax) over the classes $C$ that `where` keeps, with $0 \log 0 = 0$ and
    natural logarithms.

    Args:
      logits: $z$, shape `[*batch, classes]`.
      targets: distributions $t$, shape `[*batch, classes]`.
      where: True for classes to keep, shape `[*batch, classes]` or `[classes]`; None keeps all.
        Masked logits are not read, even if NaN, and have gradient 0.

    Returns:
      One loss per row in nats, shape `[*batch]`: NaN where a target is negative, or not 0 on a
      masked class, or where they add up to something further from 1 than 1e-3 (or than the epsilon
      of their dtype, if larger).

    Examples:
      >>> logits, targets = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array([0.5, 0.5, 0.0])
      >>> print(lo.losses.kl_divergence(logits, targets).round(4))  # log(2) / 2
      0.3466

    References:
      Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    _, gap, targets, valid = _distributions("kl_divergence", logits, targets, where)
    terms = targets * jnp.where(targets > 0, gap, 0)
    return jnp.where(valid, jnp.sum(terms, axis=-1), jnp.nan)


def jensen_shannon(logits: Classes, targets: Classes) -> Float[Array, "*batch"]:
    r"""Mean divergence of the softmax and of the targets from their average: at most log 2.

    $$\ell = \frac{1}{2} \sum_j \Big(p_j \log \frac{p_j}{m_j} + t_j \log \frac{t_j}{m_j}\Big),
        \qquad m = \frac{p + t}{2}, \quad p_j = \frac{e^{z_j}}{\sum_k e^{z_k}}$$

    Args:
      logits: $z$, shape `[*batch, classes]`.
      targets: distributions $t$, as in `kl_divergence`.

    Returns:
      One loss per row in nats, shape `[*batch]`, not its square root, the distance: $0 \log 0$ is 0
      and rows are NaN as in `kl_divergence`.

    Examples:
      >>> logits, targets = jnp.array([[0.0, 0.0], [-1e4, 1e4]]), jnp.array([[0.5, 0.5], [1, 0]])
      >>> print(lo.losses.jensen_shannon(logits, targets).round(4))  # 0 and log(2)
      [0.     0.6931]

    References:
      Lin, "Divergence Measures Based on the Shannon Entropy", 1991.
    """
    probs, gap, targets, valid = _distributions("jensen_shannon", logits, targets)
    # log(p / m) from log(t / p); beyond e^40 the share that it multiplies is below rounding.
    excess = lambda x: -jnp.log1p(jnp.expm1(jnp.minimum(x, 40)) / 2)
    terms = probs * excess(gap) + targets * excess(-gap)
    return jnp.where(valid, jnp.sum(terms, axis=-1) / 2, jnp.nan)


def cox(
    scores: Lists, times: Lists, events: Lists, *, items: Mask = None
) -> Float[Array, "*batch items"]:
    r"""Negative log partial likelihood of proportional hazards, ties after Breslow.

    $$\ell_i = e_i \Big(\log \sum_{j: \tau_j \ge \tau_i} e^{s_j} - s_i\Big)$$

    Args:
      scores: $s$, log hazards, shape `[*batch, items]`; only their differences count.
      times: $\tau$, of the event or of the end of observation, shape `[*batch, items]`, any unit;
        only their order counts. A NaN makes its list NaN.
      events: $e$, 1 or True if the event was seen, 0 or False if the item was censored, shape
        `[*batch, items]`. Other values make the item NaN.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item, shape `[*batch, items]`: 0 for censored items, NaN for masked ones. Average
      it over events, `lo.mean(lo.losses.cox(s, t, e), e)`, with weight 0 for masked items. Risk
      sets couple the items of a list: microbatches never cut it.

    Examples:
      >>> scores, times = jnp.zeros(4), jnp.array([1.0, 2.0, 2.0, 3.0])
      >>> print(lo.losses.cox(scores, times, jnp.array([1, 1, 0, 1])).round(4))  # log 4, 3, 1
      [1.3863 1.0986 0.     0.    ]

    References:
      Cox, "Regression Models and Life-Tables", 1972.
      Breslow, "Covariance Analysis of Censored Survival Data", 1974.
    """
    scores, _, events = _checks.same_shape(scores=scores, times=times, events=events)
    _checks.fits(times=times)
    when = jnp.asarray(times)  # in its own dtype: in float32 distant integers would tie
    _checks.rank_at_least(1, scores=scores)
    present = _checks.mask("items", items, scores.shape)
    ordered, binary = (when == when) | ~present, (events == 0) | (events == 1)
    known = ordered & (binary | ~present)
    message = "cox: expected times other than NaN and events 0 or 1, not so in {wrong} items."
    _checks.condition(known, message, wrong=jnp.sum(~known))
    scores = jnp.where(present, scores, 0)
    top, rest = _risk(scores, jnp.where(present & ordered, when, 0), present)
    valid = present & known & jnp.all(ordered, axis=-1, keepdims=True)
    return jnp.where(valid, jnp.where(events == 1, lead(top, scores) + rest, 0), jnp.nan)


def _targets(name, wanted, targets, valid):
    """The targets, 1 where they are out of range so that no NaN enters a gradient there."""
    low = jnp.min(targets, initial=jnp.inf)
    _checks.condition(valid, f"{name}: expected targets {wanted}, got {{low}}.", low=low)
    return jnp.where(valid, targets, 1), valid


@jax.custom_jvp
def _difference(x, y):
    """exp(x) - exp(y), precise where they are close, and with derivatives never inf - inf."""
    high, low = jnp.maximum(x, y), jnp.minimum(x, y)
    return jnp.sign(y - x) * jnp.exp(high) * jnp.expm1(low - high)


_difference.defjvp(lambda x, d: (_difference(*x), jnp.exp(x[0]) * d[0] - jnp.exp(x[1]) * d[1]))


def _distributions(name, logits, targets, where=None):
    """The softmax p, log(t / p), finite targets t, and the rows in which these add up to 1."""
    _checks.rank_at_least(1, logits=logits, targets=targets)
    kept = _checks.mask("where", where, jnp.shape(logits), jnp.shape(logits)[-1:])
    logits, _ = _checks.same_shape(logits=logits, targets=targets)
    safe, valid = _labels.distributions(name, targets, kept)
    logits, targets = _checks.same_shape(logits=jnp.where(kept, logits, 0), targets=safe)
    lowest = NO_LOGIT[logits.dtype]
    top = jnp.max(logits, axis=-1, keepdims=True, where=kept, initial=lowest)
    logits = logits - jax.lax.stop_gradient(top)
    log_probs = log_softmax(jnp.where(kept, logits, lowest), axis=-1)
    gap = jnp.log(jnp.where(targets > 0, targets, 1)) - log_probs
    return jnp.exp(log_probs), jnp.where(targets > 0, gap, -jnp.inf), targets, valid


def _risk(scores, times, present):
    """Of all who last as long or longer: the top score, and the log of the rest."""
    order = jnp.argsort(times, axis=-1)
    top, rest = tails(*(jnp.take_along_axis(x, order, axis=-1) for x in (scores, present)))
    # The risk set of an item begins with the first of those that tie with it.
    search = jnp.vectorize(jnp.searchsorted, signature="(n),(n)->(n)")
    first = search(jnp.take_along_axis(times, order, axis=-1), times)
    return (jnp.take_along_axis(x, first, axis=-1) for x in (top, rest))
