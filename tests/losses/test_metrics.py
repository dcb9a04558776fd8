"""Metrics of lists and losses of their tops: ties, places that count, other libraries."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

import lossopt as lo
from tests import references_coupled as references

RNG = np.random.default_rng(4)
LOW = -np.inf
TIED = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [2, 1, 1, 0, LOW, LOW]], np.float32)
GRADES = np.array([[0, 2, 3, 0, 1, 0], [3, 0, 0, 1, 0, 0], [0, 1, 2, 0, 0, 0]], np.float32)
KEPT = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
TOPPED = ("lambda_rank", "ndcg", "reciprocal_rank")


@pytest.mark.parametrize("name", [*TOPPED, "average_precision"])
def test_ties_are_the_mean_over_their_orders(name):
    loss, reference = (getattr(room, name) for room in (lo.losses, references))
    tops = [1, 2, 4, 9] if name in TOPPED else [None]

    @jax.jit
    def each(scores, grades, kept):
        numbers = [{"top": top} if top else {} for top in tops]
        whole = [loss(scores, grades, items=kept, **number) for number in numbers]
        order = np.array([3, 0, 5, 1, 4, 2])
        moved = loss(scores[:, order], grades[:, order], items=kept[:, order], **numbers[0])
        return whole, moved

    whole, moved = each(TIED, GRADES, KEPT)
    for top, got in zip(tops, whole):
        number = {"top": top} if top else {}
        want = reference(TIED.astype(float), GRADES, items=KEPT, **number)
        np.testing.assert_allclose(got, want, rtol=2e-6)
    np.testing.assert_allclose(moved, whole[0], rtol=1e-6)


@pytest.mark.parametrize("room", [lo.losses, lo.fused], ids=("losses", "fused"))
def test_lambda_rank_learns_from_equal_scores(room):
    """At a head of zeros; all orders of the items as the mean of losses of scores that differ."""
    grades = np.array([2, 0, 1, 0])
    loss = jax.jit(jax.value_and_grad(lambda s: jnp.sum(_value(room.lambda_rank(s, grades)))))
    value, slope = loss(np.zeros(4, np.float32))
    each = [loss(1e-6 * np.array(order, np.float32)) for order in permutations(range(4))]
    np.testing.assert_allclose(value, np.mean([x for x, _ in each]), rtol=1e-5)
    np.testing.assert_allclose(slope, np.mean([x for _, x in each], axis=0), rtol=1e-4, atol=1e-6)
    assert slope[0] < 0 < slope[1]


def _value(x):
    return x.value if isinstance(x, lo.Mean) else x


def test_metrics_of_scikit_learn():
    scores, grades = RNG.normal(size=(20, 8)).astype(np.float32), RNG.integers(0, 3, (20, 8))
    scores[::2] = np.round(scores[::2])  # with ties
    gains = 2.0**grades - 1
    got = jax.jit(lo.losses.ndcg)(scores, grades)
    np.testing.assert_allclose(
        got, [ndcg_score([g], [s]) for g, s in zip(gains, scores)], rtol=2e-6
    )
    got = jax.jit(partial(lo.losses.ndcg, top=3))(scores, grades)
    want = [ndcg_score([g], [s], k=3) for g, s in zip(gains, scores)]
    np.testing.assert_allclose(got, want, rtol=2e-6)
    got = jax.jit(lo.losses.average_precision)(scores[1::2], grades[1::2])
    want = [average_precision_score(g > 0, s) for g, s in zip(grades[1::2], scores[1::2])]
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_approximate_ndcg_is_ndcg_of_the_first_in_the_cold():
    scores, grades = RNG.normal(size=(30, 7)).astype(np.float32), RNG.integers(0, 3, (30, 7))
    grades[:, 0] += 1

    @jax.jit
    def both(tops):
        cold = partial(lo.losses.approximate_ndcg, scores, grades, temperature=1e-5)
        return jax.vmap(lambda k: (cold(top=k), 1 - lo.losses.ndcg(scores, grades, top=k)))(tops)

    got, want = both(np.array([1, 3, 6, 7, 20]))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_approximate_ndcg_of_the_first_lies_between_zero_and_one(temperature):
    """Also where all scores are equal, and a threshold on them would count too many by half."""
    scores, grades = RNG.normal(size=(60, 8)).astype(np.float32), RNG.integers(0, 3, (60, 8))
    grades[:, 0] += 1
    scores[::3], grades[1::3] = 0, 1

    @jax.jit
    def compute(scores):
        loss = lambda s: lo.losses.approximate_ndcg(s, grades, temperature=temperature, top=2)
        values, pull = jax.vjp(loss, scores)
        return values, *pull(jnp.ones_like(values))

    values, slope = compute(scores + 1e4)
    assert np.min(values) >= -1e-6
    assert np.max(values) <= 1
    assert np.isfinite(slope).all()
    sizes = np.abs(slope).sum(axis=1)
    np.testing.assert_allclose(slope.sum(axis=1), 0, atol=1e-7 / temperature + 1e-6)
    assert temperature < 1 or sizes[::3].all()


def test_a_score_of_nan_is_no_rank():
    cold = partial(lo.losses.approximate_ndcg, temperature=0.1)
    losses = [*(getattr(lo.losses, x) for x in (*TOPPED, "average_precision")), cold]
    each = jax.jit(lambda scores: [loss(scores, np.array([1, 0, 0])) for loss in losses])
    assert np.isnan(each(np.array([1.0, np.nan, 0.0]))).all()
