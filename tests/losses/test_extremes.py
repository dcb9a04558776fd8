"""Masked entries beside logits at the edge of the range, and infinite ones.

What stands for a masked logit is below all others and yet near enough for a finite difference.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

HUGE = 8e37  # float32 ends at 3.4e38
KEPT = np.array([True, True, False, True])
SCORES = {
    "high": [HUGE, HUGE, np.nan, HUGE],
    "low": [-HUGE, -HUGE, np.nan, -HUGE],
    "first high": [HUGE, -HUGE, np.nan, -HUGE],
    "first low": [-HUGE, HUGE, np.nan, HUGE],
    "last high": [-HUGE, -HUGE, np.nan, HUGE],
}
SOME = np.float32([0.25, 0, 0, 0.75])
GRADES, TIMES, OTHERS = np.array([2, 0, 9, 1]), np.array([-2, -1, 0, -3]), np.array([1, -1, 9, 0.5])


def classes(loss, label):
    """With the label among four classes, of which one is masked, or among the three left."""
    return lambda z, where: loss(z, label if len(z) == 4 else min(label, 2), where=where)


def lists(loss, *facts):
    """With facts of four items, of which one is masked, or of the three left."""
    left = lambda x, kept: x if kept is not None else x[KEPT]
    return lambda z, items: loss(z, *(left(x, items) for x in facts), items=items)


def pairs(z, y, items):
    return lo.losses.clip(z[:, None], y[:, None], 1.0, items=items)


LOSSES = {
    "softmax_cross_entropy of the first": classes(lo.losses.softmax_cross_entropy, 0),
    "softmax_cross_entropy of the last": classes(lo.losses.softmax_cross_entropy, 3),
    "focal": classes(lo.losses.focal, 0),
    "poly": classes(lo.losses.poly, 3),
    "kl_divergence": lambda z, where: lo.losses.kl_divergence(
        z, SOME if len(z) == 4 else SOME[KEPT], where=where
    ),
    "list_softmax": lists(lo.losses.list_softmax, GRADES),
    "list_mle": lists(lo.losses.list_mle, GRADES),
    "lambda_rank": lists(lo.losses.lambda_rank, GRADES),
    "cox": lists(lo.losses.cox, TIMES, np.ones(4)),
    "clip": lists(pairs, OTHERS),
}


@cache
def seen(loss):
    """The sum over those kept, and its gradient."""

    def total(z, kept):
        values = loss(z, kept)  # one for each item is NaN where masked
        return jnp.sum(values, where=True if kept is None or not values.ndim else kept)

    return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_mask_is_the_loss_of_those_kept(loss, scores):
    scores = np.float32(scores)
    value, gradient = jax.tree.map(np.asarray, seen(loss)(scores, KEPT))
    want, slope = jax.tree.map(np.asarray, seen(loss)(scores[KEPT], None))
    assert np.isfinite(want)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient[KEPT], slope, rtol=1e-6)
    assert gradient[~KEPT] == 0


@pytest.mark.parametrize("logit", [HUGE, -HUGE])
def test_what_is_impossible_beside_it_adds_nothing(logit):
    entropy = jax.jit(jax.value_and_grad(lo.losses.entropy))
    value, gradient = entropy(np.float32([logit, -np.inf, logit]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("logit", [HUGE, -HUGE])
def test_a_single_class_has_no_rival(logit):
    for loss in (lo.losses.multiclass_hinge, lo.losses.softmax_cross_entropy):
        value, gradient = jax.value_and_grad(loss)(np.float32([logit]), 0)
        assert value == gradient == 0


POSSIBLE = np.array([True, False, True])
SHARES, CERTAIN = np.float32([0.25, 0, 0.75]), np.float32([1, 0, 0])
COSTS = np.float32([[0, 1, 2], [3, 0, 4], [5, 6, 0]])


def labeled(loss, label, **numbers):
    """With a number of the last of three classes, or a distribution over them."""
    of_two = 1 if label is None else label[POSSIBLE]
    of_three = 2 if label is None else label
    return lambda z: loss(z, of_three if len(z) == 3 else of_two, **numbers)


def costly(z):
    return lo.losses.cost_sensitive(z, len(z) - 1, COSTS if len(z) == 3 else COSTS[::2, ::2])


def censored(z):
    facts = np.array([[3, 1, 1], [1, 0, 1]])
    return lo.losses.cox(z, *(facts if len(z) == 3 else facts[:, POSSIBLE])).sum()


IMPOSSIBLE = {
    f"{loss.__name__} of {kind}": labeled(loss, label)
    for loss in (lo.losses.softmax_cross_entropy, lo.losses.focal, lo.losses.poly)
    for kind, label in (("a number", None), ("shares", SHARES), ("one share", CERTAIN))
} | {
    "softmax_cross_entropy not smoothed": labeled(
        lo.losses.softmax_cross_entropy, None, label_smoothing=np.float32(0)
    ),
    "kl_divergence": labeled(lo.losses.kl_divergence, SHARES),
    "jensen_shannon": labeled(lo.losses.jensen_shannon, SHARES),
    "multiclass_hinge": labeled(lo.losses.multiclass_hinge, None),
    "cost_sensitive": costly,
    "entropy": lo.losses.entropy,
    "cox": censored,
}


@pytest.mark.parametrize("loss", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_class_is_one_that_does_not_exist(loss):
    logits, both = np.float32([1.0, -np.inf, 0.3]), jax.jit(jax.value_and_grad(loss))
    (value, slope), (want, true_slope) = both(logits), both(logits[POSSIBLE])
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope[POSSIBLE], true_slope, rtol=1e-5)
    assert slope[1] == 0


@pytest.mark.parametrize(
    "loss",
    [
        lo.losses.sigmoid_cross_entropy,
        lo.losses.sigmoid_focal,
        partial(lo.losses.sigmoid_focal, gamma=np.float32(0)),
        partial(lo.losses.sigmoid_poly, epsilon=1.0),
        lambda z, y: lo.losses.ordinal(z[:, None], y.astype(int)),
    ],
)
def test_certainty_costs_nothing_or_everything(loss):
    logits = np.float32([np.inf, -np.inf, np.inf, -np.inf])
    value, pull = jax.vjp(jax.jit(loss), logits, np.float32([1, 0, 0, 1]))
    np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf])
    assert pull(np.float32([1, 1, 0, 0]))[0][:2].tolist() == [0, 0]


LIKELIHOODS = {
    "poisson_nll": (lo.losses.poisson_nll, [np.inf, np.inf]),
    "tweedie_deviance": (partial(lo.losses.tweedie_deviance, power=1.5), [np.inf, np.inf]),
    "gamma_nll": (partial(lo.losses.gamma_nll, shape=2.0), [np.inf, np.inf]),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_mean_of_zero_or_infinity_is_the_limit(name):
    loss, limits = LIKELIHOODS[name]
    assert [loss(log_mean, 3.0) for log_mean in (-np.inf, np.inf)] == limits
    if name != "gamma_nll":  # whose targets are above 0
        np.testing.assert_allclose(jax.value_and_grad(loss)(-np.inf, 0.0), 0, atol=1e-6)


OTHERS_TOO = {
    "gaussian_nll": (lo.losses.gaussian_nll, [(2,)] * 3),
    "kl_divergence": (lo.losses.kl_divergence, [(2, 3)] * 2),
    "contrastive": (lambda a, b: lo.losses.contrastive(a, b, np.ones(2)), [(2, 3)] * 2),
    "triplet": (lo.losses.triplet, [(2, 3)] * 3),
    "clip": (lambda a, b: lo.losses.clip(a, b, 2.0), [(2, 2, 3)] * 2),
}


@pytest.mark.parametrize(("loss", "shapes"), OTHERS_TOO.values(), ids=OTHERS_TOO)
def test_impossible_padding_has_no_slope_in_any_input(loss, shapes):
    """The law of the contract sees the first input alone."""
    inputs = [np.full(shape, 0.5, np.float32) for shape in shapes]
    padded = [x + np.float32([0, -np.inf]).reshape(2, *[1] * (x.ndim - 1)) for x in inputs]
    weighed = lambda inputs, weights: lo.mean(loss(*inputs), weights).value
    slope = jax.jit(jax.grad(weighed))
    for i in range(len(inputs)):
        mixed = [*inputs[:i], padded[i], *inputs[i + 1 :]]
        for x in slope(mixed, np.float32([1, 0])):
            assert np.isfinite(x).all()
            assert not x[1].any()
