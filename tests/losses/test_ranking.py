"""What is particular to losses of lists; the family contract is in `tests/contract`."""

import itertools
from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

import lossopt as lo

pairwise_logistic = jax.jit(lo.losses.pairwise_logistic)
list_softmax, list_mle = jax.jit(lo.losses.list_softmax), jax.jit(lo.losses.list_mle)
lambda_rank = jax.jit(lo.losses.lambda_rank)
PAIRWISE = {
    "pairwise_logistic": pairwise_logistic,
    "pairwise_hinge": jax.jit(lo.losses.pairwise_hinge),
    "pairwise_squared_hinge": jax.jit(lo.losses.pairwise_squared_hinge),
}
GRADED = {
    "list_softmax": list_softmax,
    "lambda_rank": lambda_rank,
    "approximate_ndcg": jax.jit(partial(lo.losses.approximate_ndcg, temperature=0.5)),
}
LISTS = PAIRWISE | GRADED | {"list_mle": list_mle}

SCORES = np.array([[0.3, -1.2, 0.8, 2.0], [1.0, 0.1, -0.4, 0.9]], np.float32)
GRADES = np.array([[2, 0, 3, 1], [0, 1, 3, 2]], np.float32)


def each(losses):
    return pytest.mark.parametrize("loss", losses.values(), ids=losses)


@cache
def with_slope(loss):
    """The sum over lists, and its gradient in the scores."""
    return jax.jit(jax.value_and_grad(lambda *args, **kwargs: loss(*args, **kwargs).sum()))


@each(LISTS)
def test_only_differences_of_scores_and_no_positions_count(loss):
    order = np.array([2, 0, 3, 1])
    for scores in (SCORES, np.round(SCORES), np.zeros_like(SCORES)):  # with ties
        moved = loss(scores[:, order] + 7, GRADES[:, order])
        np.testing.assert_allclose(moved, loss(scores, GRADES), rtol=1e-5)


@each(LISTS)
def test_a_list_with_nothing_to_compare_is_zero(loss):
    nothing = np.zeros(SCORES.shape, bool)
    single = np.arange(4) == [[1], [2]]
    for items in (nothing, single):
        value, gradient = with_slope(loss)(SCORES, GRADES, items=items)
        assert value == 0
        assert not np.asarray(gradient).any()
    assert loss(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0, 0]
    assert loss(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


@each(PAIRWISE | GRADED)
def test_equal_relevance_is_nothing_to_compare(loss):
    value, gradient = with_slope(loss)(SCORES[0], np.zeros(4))
    assert value == 0
    assert not np.asarray(gradient).any()


@each(LISTS)
def test_masked_relevance_need_not_be_in_range(loss):
    items = np.array([True, False, True, True])
    kept = loss(SCORES[0][items], GRADES[0][items])
    for rubbish in (np.nan, np.inf, -np.inf, -5.0):
        scores, grades = np.where(items, SCORES[0], rubbish), np.where(items, GRADES[0], rubbish)
        value, gradient = jax.tree.map(np.asarray, with_slope(loss)(scores, grades, items=items))
        np.testing.assert_allclose(value, kept, rtol=1e-6)
        assert np.isfinite(gradient).all()
        assert gradient[1] == 0


@each(LISTS)
def test_an_impossible_item_is_one_far_behind(loss):
    """Scores of -inf of items that are not relevant, or of all."""
    grades = np.array([[2, 0, 3, 0, 1, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    impossible = np.array([[0, 0, 0, 1, 0, 1], [1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]], bool)
    scores = np.random.default_rng(1).normal(size=grades.shape).astype(np.float32)
    far, gone = (np.where(impossible, x, scores).astype(np.float32) for x in (-1e5, -np.inf))
    (want, slope), (got, rise) = (with_slope(loss)(x, grades) for x in (far, gone))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(rise, np.where(impossible, 0, slope), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "bad"),
    [(loss, np.nan) for loss in LISTS.values()] + [(loss, -1.0) for loss in GRADED.values()],
)
def test_relevance_out_of_range_spoils_its_own_list_only(loss, bad):
    grades = GRADES.copy()
    grades[0, 1] = bad
    values = loss(SCORES, grades)
    assert np.isnan(values).tolist() == [True, False]
    assert np.isfinite(_slope_of_the_second(loss)(SCORES, grades)).all()
    error, _ = checkify.checkify(loss)(SCORES, grades)
    with pytest.raises(checkify.JaxRuntimeError, match=f"expected relevance >= .*, got {bad}"):
        error.throw()


@cache
def _slope_of_the_second(loss):
    weights = np.array([0, 1])
    return jax.jit(jax.grad(lambda scores, grades: lo.mean(loss(scores, grades), weights).value))


@each(PAIRWISE | {"list_mle": list_mle})
def test_losses_of_an_order_take_any_real_relevance(loss):
    np.testing.assert_allclose(loss(SCORES, GRADES - 10), loss(SCORES, GRADES), rtol=1e-6)


@each(LISTS)
def test_masks_are_boolean_and_shaped_as_the_scores(loss):
    with pytest.raises(TypeError, match="boolean items"):
        loss(SCORES, GRADES, items=np.ones((2, 4)))
    with pytest.raises(ValueError, match="Expected items of shape"):
        loss(SCORES, GRADES, items=np.ones(4, bool))


class TestPairwise:
    @each(PAIRWISE)
    def test_a_weight_of_zero_is_a_mask(self, loss):
        scores, weights = np.array([0.3, np.nan, 0.8, 2.0]), np.array([1.0, 0.0, 2.0, 0.5])
        value, gradient = with_slope(loss)(scores, GRADES[0], weights)
        kept = weights > 0
        want = loss(scores[kept], GRADES[0][kept], weights[kept])
        np.testing.assert_allclose(value, want, rtol=1e-6)
        assert gradient[1] == 0

    @each(PAIRWISE)
    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_only_ratios_of_weights_count(self, loss, scale):
        weights = np.array([1.0, 0.3, 2.0, 0.5], np.float32)
        want = loss(SCORES[0], GRADES[0], weights)
        np.testing.assert_allclose(loss(SCORES[0], GRADES[0], scale * weights), want, rtol=1e-5)

    @each(PAIRWISE)
    def test_a_weight_of_two_is_the_item_twice(self, loss):
        twice = np.array([0, 1, 1, 2, 3])
        want = loss(SCORES[0][twice], GRADES[0][twice])
        np.testing.assert_allclose(
            loss(SCORES[0], GRADES[0], np.array([1, 2, 1, 1])), want, rtol=1e-6
        )

    def test_weights_have_gradients(self):
        weights = np.array([1.0, 0.3, 2.0, 0.5], np.float32)
        loss = jax.jit(partial(lo.losses.pairwise_logistic, SCORES[0], GRADES[0]))
        # The value does not change along the weights themselves.
        assert abs(weights @ np.asarray(jax.jit(jax.grad(loss))(weights))) < 1e-6
        check_grads(loss, (weights,), order=2, rtol=2e-2, atol=2e-2)

    @pytest.mark.parametrize("bad", [-0.5, np.nan])
    def test_states_that_weights_are_at_least_zero(self, bad):
        loss = checkify.checkify(lo.losses.pairwise_hinge)
        error, _ = loss(SCORES[0], GRADES[0], np.array([1.0, bad, 2.0, 0.0]))
        assert f"pairwise_hinge: expected weights >= 0, got {bad}" in str(error.get())
        masked = np.array([True, False, True, True])
        error, _ = loss(SCORES[0], GRADES[0], np.array([1.0, bad, 2.0, 0.0]), items=masked)
        assert error.get() is None

    def test_refuses_weights_of_another_shape(self):
        with pytest.raises(ValueError, match="Expected equal shapes"):
            lo.losses.pairwise_hinge(SCORES, GRADES, np.ones(2))


class TestListSoftmax:
    def test_is_least_at_the_log_of_the_shares(self):
        grades = np.array([1.0, 2.0, 5.0], np.float32)
        value, gradient = with_slope(list_softmax)(np.log(grades), grades)
        share = grades / grades.sum()
        np.testing.assert_allclose(value, -(share * np.log(share)).sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


class TestListMle:
    def test_the_probabilities_of_all_orders_sum_to_one(self):
        orders = np.array(list(itertools.permutations(range(4))), np.float32)
        scores = np.broadcast_to(SCORES[0], orders.shape)
        np.testing.assert_allclose(np.exp(-list_mle(scores, orders)).sum(), 1, rtol=1e-5)

    def test_ties_keep_their_positions(self):
        tied = list_mle(SCORES[0], np.array([1, 0, 1, 1]))
        np.testing.assert_allclose(tied, list_mle(SCORES[0], np.array([3, 0, 2, 1])))

    def test_is_precise_near_zero(self):
        loss = list_mle(np.array([20.0, 0.0]), np.array([1, 0]))
        np.testing.assert_allclose(loss, np.log1p(np.exp(-20.0)), rtol=1e-6)


def one_minus_ndcg(scores, grades):
    discounts = 1 / np.log2(np.arange(2, 2 + scores.shape[-1]))
    ranked = np.take_along_axis(grades, np.argsort(-scores, axis=-1, kind="stable"), axis=-1)
    ideal = -np.sort(-grades, axis=-1)
    return 1 - ((2**ranked - 1) @ discounts) / ((2**ideal - 1) @ discounts)


def many_lists():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 6)).astype(np.float32)
    return scores, rng.integers(0, 4, size=(50, 6)).astype(np.float32) + (np.arange(6) == 0)


class TestLambdaRank:
    def test_bounds_what_is_lost_in_ndcg(self):
        scores, grades = many_lists()
        bound = np.asarray(lambda_rank(scores, grades)) / np.log(2)
        assert (bound >= one_minus_ndcg(scores, grades) - 1e-6).all()

    def test_weighs_the_top(self):
        scores = np.array([3.0, 2.0, 1.0, 0.0])
        top = lambda_rank(scores, np.array([2, 3, 1, 0]))
        bottom = lambda_rank(scores, np.array([3, 2, 0, 1]))
        assert top > bottom

    def test_masked_items_take_no_rank(self):
        items = np.array([False, True, True])
        loss = lambda_rank(np.array([9.0, 1.0, 2.0]), np.array([3, 1, 0]), items=items)
        np.testing.assert_allclose(loss, lambda_rank(np.array([1.0, 2.0]), np.array([1, 0])))


class TestApproximateNdcg:
    def test_is_ndcg_in_the_cold(self):
        scores, grades = many_lists()
        loss = jax.jit(partial(lo.losses.approximate_ndcg, temperature=1e-6))(scores, grades)
        np.testing.assert_allclose(loss, one_minus_ndcg(scores, grades), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
    def test_lies_between_zero_and_one(self, temperature):
        loss = jax.jit(partial(lo.losses.approximate_ndcg, temperature=temperature))
        loss = np.asarray(loss(*many_lists()))
        assert loss.min() >= -1e-6
        assert loss.max() < 1


@each({name: GRADED[name] for name in ("lambda_rank", "approximate_ndcg")})
def test_large_grades_stay_finite(loss):
    value, gradient = with_slope(loss)(SCORES[0], np.array([1000, 0, 998, 3]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_margin_ranking_is_zero_beyond_the_margin():
    better, worse = np.array([3.0, 1.5, 0.0]), np.array([1.0, 1.0, 1.0])
    loss = lo.losses.margin_ranking(better, worse, margin=1.0)
    np.testing.assert_allclose(loss, [0.0, 0.5, 2.0])
    ends = np.array([1.0, -np.inf, -np.inf]), np.array([-np.inf, -np.inf, 1.0])
    np.testing.assert_allclose(lo.losses.margin_ranking(*ends, margin=1.0), [0.0, 1.0, np.inf])
