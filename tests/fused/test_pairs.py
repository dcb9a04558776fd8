"""Losses of pairs and of lists, beyond the laws: batches, ties, sorting, extremes, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from lossopt.fused._sorted import hinges, weight_of_pairs
from tests.fused.test_laws import FAST, near, run

RAGGED = lo.fused.Chunks(rows=4)
PHI = {
    "pairwise_logistic": lambda d: np.log1p(np.exp(-d)),
    "pairwise_hinge": lambda d: np.maximum(0, 1 - d),
    "pairwise_squared_hinge": lambda d: np.maximum(0, 1 - d) ** 2,
}
LISTS = {"lambda_rank": {}, "approximate_ndcg": {"temperature": 0.4}}
KINDS = {  # the last list is graded, or has two numbers that are not those of the others
    "graded": lambda grades: 1.0 * grades,
    "two numbers": lambda grades: (grades > 1) * 2.0 - np.arange(5)[:, None],
    "two numbers but for a list": lambda grades: np.r_[grades[:4] > 1, grades[4:]] * 1.0,
}


def batch(lists=5, items=11):
    """Scores with ties, exact at the margin too; grades; weights with zeros."""
    rng = np.random.default_rng(7)
    scores = np.round(rng.normal(size=(lists, items)) * 4) / 4
    weights = rng.uniform(0.1, 2, scores.shape) * (rng.random(scores.shape) < 0.8)
    return scores, rng.integers(0, 4, scores.shape), weights


def slopes(loss, *args):
    """One loss per list, and the gradient under a cotangent."""
    values, pull = jax.vjp(loss, *args)
    return values, pull(jnp.arange(1.0, 6.0))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pairwise_logistic", "graded"),
        ("pairwise_hinge", "two numbers"),
        ("pairwise_squared_hinge", "two numbers but for a list"),
    ],
)
def test_lists_of_a_batch_are_each_the_dense_one(name, kind):
    scores, grades, weights = batch()
    grades[1], weights[2] = 3, 0  # nothing to compare
    relevance, kept = KINDS[kind](grades), weights != 0
    hole, unknown = (np.where(kept, x, np.nan) for x in (scores, relevance))
    loss = partial(getattr(lo.fused, name), memory=RAGGED)

    def compute(scores, hole, weights):
        each = lambda s, w: loss(s, unknown, w, per_example=True)
        dense = lambda s, w: getattr(lo.losses, name)(s, relevance, w)
        got, want = slopes(each, hole, weights), slopes(dense, scores, weights)
        return (
            got,
            jax.tree.map(lambda x: jnp.where(x.ndim == 1 or kept, x, 0), want),
            loss(hole, unknown, weights),
        )

    with jax.enable_x64(True):
        got, want, mean = run(compute, scores, hole, weights)
    near(got, want, 1e-12)
    pairs = weights[:, :, None] * weights[:, None, :]
    pairs = pairs * (relevance[:, :, None] > relevance[:, None, :])
    leads = scores[:, :, None] - scores[:, None, :]
    total, weight = (np.sum(x, axis=(1, 2)) for x in (pairs * PHI[name](leads), pairs))
    losses = total / np.where(weight == 0, 1, weight)
    near((mean.total, mean.weight), (losses.sum(), 5.0), 1e-12)


def test_the_jvp_form_and_small_budgets_of_many_lists():
    scores, grades, weights = (x.astype(np.float32) for x in batch())
    along = np.cos(scores)
    loss = partial(lo.fused.pairwise_logistic, per_example=True)

    def compute(scores):
        dense = lambda s: lo.losses.pairwise_logistic(s, grades, weights)
        form = lambda s: loss(s, grades, weights, memory=RAGGED, differentiable="jvp")
        # Two lists at once; eight rows of one.
        some = [loss(scores, grades, weights, memory=2 * 4 * 11 * n) for n in (2 * 11, 8)]
        (value, slope), got = (jax.jvp(f, (scores,), (along,)) for f in (dense, form))
        return (got, some), ((value, slope), [value] * 2)

    near(*run(compute, scores), 1e-6)


def test_nothing_to_compare_and_unknown_relevance():
    scores, grades, _ = (x.astype(np.float32) for x in batch())
    grades[3, 2] = np.nan
    losses = lo.fused.pairwise_logistic, lo.fused.pairwise_hinge
    one, none = np.ones(1, np.float32), np.ones((2, 0), np.float32)

    def compute(scores, one, none):
        each = [f(x, x, per_example=True) for f in losses for x in (one, none)]
        means = [jax.value_and_grad(lambda x: losses[0](x, x).value)(x) for x in (one, none)]
        means.append(jax.value_and_grad(lambda x: losses[1](x, x > 2).value)(one))
        unknown = [f(scores, grades, per_example=True) for f in losses]
        return each, means, unknown, losses[0](scores, grades).value

    each, means, unknown, mean = run(compute, scores, one, none)
    assert [x.shape for x in each] == [(), (2,)] * 2
    assert not any(np.any(x) for x in jax.tree.leaves((each, means)))
    assert all(np.isnan(x).tolist() == [False, False, False, True, False] for x in unknown)
    assert np.isnan(mean)


def test_sorting_cancels_nothing():
    rng = np.random.default_rng(3)
    better = rng.random(400) < 0.3

    def compute(scores, weights):
        both = lambda power: jax.value_and_grad(partial(hinges, power), (0, 1))
        each = [both(power)(scores, weights, jnp.asarray(better)) for power in (1, 2)]
        return each, weight_of_pairs(jnp.asarray(better), weights)

    program = jax.jit(compute, compiler_options=FAST)
    spreads = (0, 1e-2, 2), (0, 1, 2), (0, 1e2, 2), (1e3, 1e-2, 2), (1e3, 1, 2), (1e3, 1e2, 2)
    for offset, spread, lead in (*spreads, (-1, 1e-5, 1e5)):  # the last one is all at the margin
        exact = offset + spread * lead * better + spread * rng.normal(size=400)
        scores = exact.astype(np.float32)
        weights = rng.random(400).astype(np.float32)
        exact, heavy = scores.astype(float), weights.astype(float)
        margin = 1 - (exact[better][:, None] - exact[~better])
        pairs = heavy[better][:, None] * heavy[~better]
        want = []
        for power in (1, 2):
            loss = np.maximum(0, margin) ** power
            bend = np.where(margin == 0, 0.5, margin > 0)  # the slope of a maximum of equals
            slope = power * pairs * bend * np.maximum(0, margin) ** (power - 1)
            to_scores, to_weights = np.empty(400), np.empty(400)
            to_scores[better], to_scores[~better] = -slope.sum(1), slope.sum(0)
            to_weights[better] = loss @ heavy[~better]
            to_weights[~better] = heavy[better] @ loss
            want.append(((pairs * loss).sum(), (to_scores, to_weights)))
        near(program(scores, weights), (want, pairs.sum()), 1e-6)


def test_infinite_scores():
    relevance = np.array([[True, False, True, False], [False] * 4])  # the latter has no pairs
    losses = lo.fused.pairwise_hinge, lo.fused.pairwise_squared_hinge

    def both(scores):
        total = lambda scores, loss: loss(jnp.stack([scores, scores]), relevance).total * 4  # pairs
        return [jax.value_and_grad(total)(scores, loss) for loss in losses]

    program = jax.jit(both, compiler_options=FAST)
    (one, to_one), (two, to_two) = program(np.array([np.inf, 0.5, 1, -np.inf], np.float32))
    assert (one, two) == (0.5, 0.25)
    assert to_one.tolist() == to_two.tolist() == [0, 1, -1, 0]
    assert all(np.isinf(value) for value, _ in program(np.array([0, np.inf, 1, 0], np.float32)))
    for unknown in ([0, np.nan, 1, 0], [np.nan, -np.inf, 1, -np.inf], [np.inf, np.nan, np.inf, 0]):
        assert all(np.isnan(value) for value, _ in program(np.array(unknown, np.float32)))
    same = [-np.inf, -np.inf, 3, -np.inf], [np.inf, np.inf, np.inf, 1], [-np.inf] * 4
    for scores in map(np.float32, same):
        got = np.array([value for value, _ in program(scores)])
        dense = lo.losses.pairwise_hinge, lo.losses.pairwise_squared_hinge
        np.testing.assert_array_equal(got, [4 * loss(scores, relevance[0]) for loss in dense])


def test_large_weights_small_losses_and_low_precision():
    scores, grades, weights = (x.astype(np.float32) for x in batch())
    names = "pairwise_logistic", "pairwise_squared_hinge"

    def compute(scores):
        low = scores.astype(jnp.bfloat16)  # exactly
        fused = [partial(getattr(lo.fused, name), relevance=grades) for name in names]
        heavy = fused[0](scores, weights=1e30 * weights, per_example=True)
        want = lo.losses.pairwise_logistic(scores, grades, weights)
        gradient = lambda f, x: jax.value_and_grad(lambda s: f(s).value)(x)
        pairs = [[gradient(f, x) for f in fused] for x in (low, scores)]
        near_zero = fused[0](20 * jnp.arange(2.0), relevance=np.arange(2)).value
        return (heavy, want), near_zero, pairs

    heavy, near_zero, (got, want) = run(compute, scores)
    np.testing.assert_allclose(near_zero, np.exp(-20), rtol=1e-6)
    near(*heavy, 1e-6)
    assert all((v.dtype, g.dtype) == (jnp.float32, jnp.bfloat16) for v, g in got)
    near([v for v, _ in got], [v for v, _ in want], 1e-6)
    near([g for _, g in got], [g for _, g in want], 4e-3)


@pytest.mark.parametrize("name", LISTS)
def test_lists_by_rank_of_a_batch_are_each_the_dense_one(name):
    scores, grades, weights = batch()
    grades[1] = 0  # nothing is relevant
    kept = weights != 0
    hole, unknown = (np.where(kept, x, np.nan) for x in (scores, grades))
    below = grades - 1 * (np.arange(11) == [[20], [20], [0], [20], [20]]) * (1 + grades)
    fused, dense = (partial(getattr(x, name), **LISTS[name]) for x in (lo.fused, lo.losses))

    def compute(scores, hole):
        of = lambda relevance, **known: (
            lambda s: fused(s, relevance, memory=RAGGED, per_example=True, **known)
        )
        got = slopes(of(unknown, items=kept), hole)
        whole, empty = fused(hole, unknown, items=kept), fused(np.zeros((2, 0)), np.zeros((2, 0)))
        want = slopes(lambda s: dense(s, grades, items=kept), scores)
        means = (whole.total, whole.weight), (empty.total, empty.weight)
        return (got, means), (want, ((want[0].sum(), 5.0), (0.0, 2.0))), of(below)(scores)

    with jax.enable_x64(True):
        got, want, refused = run(compute, scores, hole)
    near(got, want, 1e-11)
    assert np.isnan(refused).tolist() == [False, False, True, False, False]


def test_temperature_has_a_slope_and_maps():
    scores, grades, _ = batch()

    def compute(temperatures):
        fused = lambda t: lo.fused.approximate_ndcg(scores, grades, temperature=t).value
        dense = lambda t: lo.losses.approximate_ndcg(scores, grades, temperature=t).mean()
        return [jax.vmap(jax.value_and_grad(f))(temperatures) for f in (fused, dense)]

    with jax.enable_x64(True):
        near(*run(compute, np.array([0.1, 0.5, 2.0])), 1e-12)


def test_refusals():
    scores, grades, weights = batch()
    loss = lo.fused.pairwise_hinge
    with pytest.raises(ValueError, match="equal shapes"):
        loss(scores, grades[0])
    with pytest.raises(ValueError, match="weights >= 0"):
        loss(scores, grades, weights - 1)
    with pytest.raises(ValueError, match="equal shapes"):
        loss(scores, grades, weights[:, 0])
    with pytest.raises(ValueError, match="memory=704 or more"):
        jax.eval_shape(partial(loss, memory=100), scores, grades, weights)
    for name in (*PHI, "lambda_rank"):
        with pytest.raises(ValueError, match="'vjp' or 'jvp'"):
            getattr(lo.fused, name)(scores, grades, differentiable="both")
    with pytest.raises(ValueError, match="Chunks of rows"):
        jax.eval_shape(
            partial(lo.fused.lambda_rank, memory=lo.fused.Chunks(columns=4)), scores, grades
        )
    with pytest.raises(ValueError, match="temperature > 0"):
        lo.fused.approximate_ndcg(scores, grades, temperature=0.0)
    with pytest.raises(ValueError, match="items of shape"):
        lo.fused.lambda_rank(scores, grades, items=np.ones(3, bool))


def test_values_are_checked_within_programs():
    scores, grades, weights = batch()
    loss = lambda weights: lo.fused.pairwise_hinge(scores, grades > 1, weights)
    error, _ = run(checkify.checkify(loss), -weights)
    assert "pairwise_hinge: expected weights >= 0" in str(error.get())
