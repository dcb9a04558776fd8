"""Losses of single examples against optax, scipy, scikit-learn and torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from scipy.spatial import distance
from sklearn import metrics

from lossopt import losses

_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.normal(size=shape).astype(np.float32)


P, T, S = _normal(8), _normal(8), _normal(8)
VECTORS, OTHERS = _normal(8, 3), _normal(8, 3)
LOGITS, CLASSES = 2 * _normal(8, 5), np.array([0, 4, 2, 1, 3, 3, 0, 2], np.int32)
SHARES = _rng.dirichlet(np.ones(5), size=8).astype(np.float32)
BINARY = (T > 0).astype(np.float32)
SIGNS = 2 * BINARY - 1
SOFT = _rng.random(8).astype(np.float32)
COUNTS = _rng.poisson(3, size=8).astype(np.float32)
AMOUNTS = _rng.gamma(2, size=8).astype(np.float32)
KEPT = (_rng.random((8, 5)) < 0.5) | np.eye(5, dtype=bool)[CLASSES]
PIXELS, MASKS = _normal(8, 12), (_rng.random((8, 12)) < 0.4).astype(np.float32)

# Predictions, and of them our loss and theirs.
OPTAX = {
    "squared_error": (P, lambda p: losses.squared_error(p, T), lambda p: optax.squared_error(p, T)),
    "l2": (P, lambda p: losses.squared_error(p, T) / 2, lambda p: optax.l2_loss(p, T)),
    "huber": (
        P,
        lambda p: losses.huber(p, T, delta=0.7),
        lambda p: optax.huber_loss(p, T, delta=0.7),
    ),
    "log_cosh": (P, lambda p: losses.log_cosh(p, T), lambda p: optax.log_cosh(p, T)),
    "cosine_distance": (
        VECTORS,
        lambda p: losses.cosine_distance(p, OTHERS),
        lambda p: optax.cosine_distance(p, OTHERS),
    ),
    "cosine_similarity": (
        VECTORS,
        lambda p: 1 - losses.cosine_distance(p, OTHERS),
        lambda p: optax.cosine_similarity(p, OTHERS),
    ),
    "hinge": (P, lambda p: losses.hinge(p, BINARY), lambda p: optax.hinge_loss(p, SIGNS)),
    "multiclass_hinge": (
        LOGITS,
        lambda z: losses.multiclass_hinge(z, CLASSES),
        lambda z: optax.losses.multiclass_hinge_loss(z, CLASSES),
    ),
    "sigmoid_cross_entropy": (
        P,
        lambda z: losses.sigmoid_cross_entropy(z, SOFT),
        lambda z: optax.sigmoid_binary_cross_entropy(z, SOFT),
    ),
    "sigmoid_focal": (
        P,
        lambda z: losses.sigmoid_focal(z, BINARY, gamma=1.5),
        lambda z: optax.sigmoid_focal_loss(z, BINARY, gamma=1.5),
    ),
    "sigmoid_focal_alpha": (
        P,
        lambda z: losses.sigmoid_focal(z, SOFT, gamma=2.0, alpha=0.3),
        lambda z: optax.sigmoid_focal_loss(z, SOFT, gamma=2.0, alpha=0.3),
    ),
    "softmax_cross_entropy": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, CLASSES),
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, CLASSES),
    ),
    "softmax_cross_entropy_kept": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, CLASSES, where=KEPT),
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, CLASSES, where=KEPT),
    ),
    "softmax_cross_entropy_shares": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, SHARES),
        lambda z: optax.softmax_cross_entropy(z, SHARES),
    ),
    "softmax_cross_entropy_safe": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, SHARES),
        lambda z: optax.safe_softmax_cross_entropy(z, SHARES),
    ),
    "softmax_cross_entropy_smoothed": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, CLASSES, label_smoothing=0.2),
        lambda z: optax.softmax_cross_entropy(z, optax.smooth_labels(np.eye(5)[CLASSES], 0.2)),
    ),
    "poly": (
        LOGITS,
        lambda z: losses.poly(z, SHARES, epsilon=0.7),
        lambda z: optax.losses.poly_loss_cross_entropy(z, SHARES, epsilon=0.7),
    ),
    "poly_kept": (
        LOGITS,
        lambda z: losses.poly(z, CLASSES, where=KEPT),
        lambda z: optax.losses.poly_loss_cross_entropy(z, np.eye(5)[CLASSES], where=KEPT),
    ),
    "kl_divergence": (
        LOGITS,
        lambda z: losses.kl_divergence(z, SHARES),
        lambda z: optax.kl_divergence(jax.nn.log_softmax(z), SHARES),
    ),
    "kl_divergence_log": (
        LOGITS,
        lambda z: losses.kl_divergence(z, SHARES),
        lambda z: optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(z), np.log(SHARES)
        ),
    ),
    "kl_divergence_generalized": (
        LOGITS,
        lambda z: losses.kl_divergence(z, SHARES),
        lambda z: optax.losses.generalized_kl_divergence(jax.nn.log_softmax(z), SHARES),
    ),
    "dice": (
        PIXELS,
        lambda z: losses.dice(z, MASKS, smooth=0.5),
        lambda z: optax.losses.binary_dice_loss(z, MASKS, smooth=0.5),
    ),
    "tversky": (
        PIXELS,
        lambda z: losses.tversky(z, MASKS, alpha=0.3, beta=0.8),
        lambda z: optax.losses.dice_loss(z[..., None], MASKS[..., None], alpha=0.3, beta=0.8),
    ),
}


@pytest.mark.parametrize("pair", OPTAX.values(), ids=OPTAX)
def test_optax(pair):
    predictions, ours, theirs = pair
    look = lambda loss: jax.jit(lambda p: (loss(p), jax.grad(lambda p: loss(p).sum())(p)))
    value, slope = look(ours)(predictions)
    with jax.numpy_rank_promotion("allow"):
        want, wanted_slope = look(theirs)(predictions)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-4, atol=1e-6)


WIDE = np.float64(LOGITS)
MEANS = np.exp(np.float64(P))

# Our losses and theirs.
SCIPY = {
    "huber": lambda: (losses.huber(P, T, delta=0.7), scipy.special.huber(0.7, P - T)),
    "gaussian_nll": lambda: (
        losses.gaussian_nll(P, T, S),
        -scipy.stats.norm.logpdf(T, loc=P, scale=np.exp(S / 2)),
    ),
    "poisson_nll": lambda: (
        losses.poisson_nll(P, COUNTS),
        -scipy.stats.poisson.logpmf(COUNTS, mu=MEANS),
    ),
    "gamma_nll": lambda: (
        losses.gamma_nll(P, AMOUNTS, shape=1.7),
        -scipy.stats.gamma.logpdf(AMOUNTS, a=1.7, scale=MEANS / 1.7),
    ),
    "gamma_nll_exponential": lambda: (
        losses.gamma_nll(P, AMOUNTS, shape=1.0),
        -scipy.stats.expon.logpdf(AMOUNTS, scale=MEANS),
    ),
    "softmax_cross_entropy": lambda: (
        losses.softmax_cross_entropy(LOGITS, CLASSES),
        -scipy.stats.multinomial.logpmf(np.eye(5)[CLASSES], 1, scipy.special.softmax(WIDE, 1)),
    ),
    "sigmoid_cross_entropy": lambda: (
        losses.sigmoid_cross_entropy(P, BINARY),
        -scipy.stats.bernoulli.logpmf(BINARY, scipy.special.expit(P)),
    ),
    "kl_divergence": lambda: (
        losses.kl_divergence(LOGITS, SHARES),
        scipy.stats.entropy(SHARES, scipy.special.softmax(WIDE, 1), axis=1),
    ),
    "jensen_shannon": lambda: (
        losses.jensen_shannon(LOGITS, SHARES),
        distance.jensenshannon(SHARES, scipy.special.softmax(WIDE, 1), axis=1) ** 2,
    ),
    "cosine_distance": lambda: (
        losses.cosine_distance(VECTORS, OTHERS),
        [distance.cosine(a, b) for a, b in zip(VECTORS, OTHERS)],
    ),
    "dice": lambda: (
        losses.dice(jnp.where(PIXELS > 0, 99, -99), MASKS, smooth=0.0),
        [distance.dice(a, b == 1) for a, b in zip(PIXELS > 0, MASKS)],
    ),
}


@pytest.mark.parametrize("pair", SCIPY.values(), ids=SCIPY)
def test_scipy(pair):
    ours, theirs = pair()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_expectile_of_scipy_is_the_best_constant():
    best = scipy.stats.expectile(T, 0.8)
    slope = jax.grad(lambda p: losses.expectile(jnp.full(8, p), T, level=0.8).sum())(best)
    np.testing.assert_allclose(slope, 0, atol=1e-5)


def _above_best(loss, t):
    """How much more of a surprise than at the perfect prediction; twice that is a deviance."""
    return 2 * (loss(P, t) - loss(np.log(t), t))


# Our losses and their average.
SKLEARN = {
    "squared_error": lambda: (losses.squared_error(P, T), metrics.mean_squared_error(T, P)),
    "absolute_error": lambda: (losses.absolute_error(P, T), metrics.mean_absolute_error(T, P)),
    "quantile": lambda: (
        losses.quantile(P, T, level=0.8),
        metrics.mean_pinball_loss(T, P, alpha=0.8),
    ),
    "quantile_d2": lambda: (
        1
        - losses.quantile(P, T, level=0.8)
        / losses.quantile(
            jnp.full(8, np.quantile(T, 0.8, method="inverted_cdf")), T, level=0.8
        ).mean(),
        metrics.d2_pinball_score(T, P, alpha=0.8),
    ),
    "squared_log_error": lambda: (
        losses.squared_log_error(COUNTS, AMOUNTS),
        metrics.mean_squared_log_error(AMOUNTS, COUNTS),
    ),
    "absolute_percentage_error": lambda: (
        losses.absolute_percentage_error(P, T),
        metrics.mean_absolute_percentage_error(T, P),
    ),
    "tweedie_deviance": lambda: (
        losses.tweedie_deviance(P, COUNTS, power=1.3),
        metrics.mean_tweedie_deviance(COUNTS, MEANS, power=1.3),
    ),
    "tweedie_deviance_steep": lambda: (
        losses.tweedie_deviance(P, COUNTS, power=1.9),
        metrics.mean_tweedie_deviance(COUNTS, MEANS, power=1.9),
    ),
    "tweedie_deviance_d2": lambda: (
        1
        - losses.tweedie_deviance(P, COUNTS, power=1.5)
        / losses.tweedie_deviance(jnp.full(8, np.log(COUNTS.mean())), COUNTS, power=1.5).mean(),
        metrics.d2_tweedie_score(COUNTS, MEANS, power=1.5),
    ),
    "poisson_nll": lambda: (
        _above_best(losses.poisson_nll, AMOUNTS),
        metrics.mean_poisson_deviance(AMOUNTS, MEANS),
    ),
    "gamma_nll": lambda: (
        _above_best(partial(losses.gamma_nll, shape=1.0), AMOUNTS),
        metrics.mean_gamma_deviance(AMOUNTS, MEANS),
    ),
    "softmax_cross_entropy": lambda: (
        losses.softmax_cross_entropy(LOGITS, CLASSES),
        metrics.log_loss(CLASSES, scipy.special.softmax(WIDE, 1)),
    ),
    "sigmoid_cross_entropy": lambda: (
        losses.sigmoid_cross_entropy(P, BINARY),
        metrics.log_loss(BINARY, scipy.special.expit(np.float64(P))),
    ),
    "hinge": lambda: (losses.hinge(P, BINARY), metrics.hinge_loss(SIGNS, P)),
    "multiclass_hinge": lambda: (
        losses.multiclass_hinge(LOGITS, CLASSES),
        metrics.hinge_loss(CLASSES, LOGITS),
    ),
}


@pytest.mark.parametrize("pair", SKLEARN.values(), ids=SKLEARN)
def test_sklearn(pair):
    ours, theirs = pair()
    np.testing.assert_allclose(ours.mean(), theirs, rtol=1e-5)


RANKS = np.array([0, 1, 2, 3, 4, 5, 2, 3], np.int32)  # over five thresholds

# Predictions, and of them our loss and theirs, given torch, its functions and `tensor`.
TORCH = {
    "squared_error": (
        P,
        lambda p: losses.squared_error(p, T),
        lambda torch, F, of, p: F.mse_loss(p, of(T), reduction="none"),
    ),
    "absolute_error": (
        P,
        lambda p: losses.absolute_error(p, T),
        lambda torch, F, of, p: F.l1_loss(p, of(T), reduction="none"),
    ),
    "huber": (
        P,
        lambda p: losses.huber(p, T, delta=0.7),
        lambda torch, F, of, p: F.huber_loss(p, of(T), delta=0.7, reduction="none"),
    ),
    "cosine_distance": (
        VECTORS,
        lambda p: losses.cosine_distance(p, OTHERS),
        lambda torch, F, of, p: 1 - F.cosine_similarity(p, of(OTHERS)),
    ),
    "gaussian_nll": (
        P,
        lambda p: losses.gaussian_nll(p, T, S),
        lambda torch, F, of, p: F.gaussian_nll_loss(
            p, of(T), of(S).exp(), full=True, reduction="none"
        ),
    ),
    "poisson_nll": (
        P,
        lambda p: losses.poisson_nll(p, COUNTS),
        lambda torch, F, of, p: -torch.distributions.Poisson(p.exp()).log_prob(of(COUNTS)),
    ),
    "gamma_nll": (
        P,
        lambda p: losses.gamma_nll(p, AMOUNTS, shape=1.7),
        lambda torch, F, of, p: (
            -torch.distributions.Gamma(1.7, 1.7 / p.exp()).log_prob(of(AMOUNTS))
        ),
    ),
    "softmax_cross_entropy": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, CLASSES),
        lambda torch, F, of, z: F.cross_entropy(z, of(CLASSES).long(), reduction="none"),
    ),
    "softmax_cross_entropy_smoothed": (
        LOGITS,
        lambda z: losses.softmax_cross_entropy(z, SHARES, label_smoothing=0.2),
        lambda torch, F, of, z: F.cross_entropy(
            z, of(SHARES), label_smoothing=0.2, reduction="none"
        ),
    ),
    "sigmoid_cross_entropy": (
        P,
        lambda z: losses.sigmoid_cross_entropy(z, SOFT),
        lambda torch, F, of, z: F.binary_cross_entropy_with_logits(z, of(SOFT), reduction="none"),
    ),
    "ordinal": (
        LOGITS,
        lambda z: losses.ordinal(z, RANKS),
        lambda torch, F, of, z: F.binary_cross_entropy_with_logits(
            z, of(np.float32(RANKS[:, None] > np.arange(5))), reduction="none"
        ).sum(1),
    ),
    "kl_divergence": (
        LOGITS,
        lambda z: losses.kl_divergence(z, SHARES),
        lambda torch, F, of, z: F.kl_div(F.log_softmax(z, 1), of(SHARES), reduction="none").sum(1),
    ),
}


@pytest.mark.parametrize("pair", TORCH.values(), ids=TORCH)
def test_torch(pair):
    torch = pytest.importorskip("torch")
    predictions, ours, theirs = pair
    tensor = torch.tensor(predictions, requires_grad=True)
    want = theirs(torch, torch.nn.functional, torch.tensor, tensor)
    want.sum().backward()
    np.testing.assert_allclose(ours(predictions), want.detach().numpy(), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda p: ours(p).sum())(predictions)
    np.testing.assert_allclose(slope, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)
