"""Masked entries beside logits at the edge of the range.

What stands for a masked logit is below all others and yet near enough for a finite difference.
"""

from functools import cache

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
