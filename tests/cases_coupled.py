"""One row per ranking, contrastive and policy loss: covers the branches, keeps off the kinks."""

from functools import partial

import numpy as np

import lossopt as lo
from tests import references_coupled as references
from tests.case import Loss, drawn, normal, unit


def _row(name, *inputs, **numbers):
    fn, reference = (
        partial(getattr(room, name.split("/")[0]), **numbers) for room in (lo.losses, references)
    )
    return Loss(name, fn, drawn(name, *inputs), reference)


def _log_probabilities(*shape, scale=1.0, most):
    """At most `most`."""
    draw = normal(*shape, scale=scale)
    return lambda rng: most - np.abs(draw(rng))


# Six lists of six items. Grades repeat, a list has one relevant item, one has none, one is all
# equal; with every third item masked from the second on there still are pairs in most.
_GRADES = np.array(
    [
        [2, 0, 1, 0, 3, 1],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [2, 2, 2, 2, 2, 2],
        [0, 1, 1, 4, 0, 2],
        [3, 2, 0, 1, 2, 0],
    ],
    np.int32,
)
_SHARES = np.where(_GRADES == 1, 0.6, _GRADES).astype(np.float32)  # relevance need not be whole
_ORDERS = np.argsort(*drawn("orders", normal(6, 6)), axis=1).astype(np.int32)  # without ties
_WEIGHTS = np.array(
    [
        [1.0, 0.5, 2.0, 1.0, 0.25, 3.0],
        [0.0, 1.0, 1.5, 2.0, 0.0, 1.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 2.0, 1.0, 2.0, 1.0, 2.0],
        [0.5, 0.0, 0.5, 1.0, 1.0, 1.0],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ],
    np.float32,
)
# Ratios within the clip range, above and below it, each with advantages of both signs.
_LOG_RATIOS = np.array([0.05, -0.07, 0.6, 0.5, -0.7, -0.4], np.float32)
_ADVANTAGES = np.array([1.3, -0.4, 0.8, -2.0, 1.1, -0.6], np.float32)
_OLD, _OLD_TOKENS = drawn(
    "old", _log_probabilities(6, most=-0.5), _log_probabilities(6, 5, 3, most=-0.5)
)
_REWARDS = np.array(
    [
        [1, 0, 0, 1, 1],
        [0, 3, 1, 2, 5],
        [2, 2, 2, 2, 2],  # a group of equal answers
        [0, 0, 0, 0, 1],
        [-1, 1, -1, 1, 4],
        [0.3, -1.2, 2.5, 0.7, 0.1],
    ],
    np.float32,
)

_ROWS = [
    _row(
        "margin_ranking",
        np.array([2.0, 0.3, -1.0, 0.5, 1.4, -0.2], np.float32),
        np.array([0.1, 0.5, -0.6, -1.5, 1.0, 0.9], np.float32),
        margin=0.7,
    ),
    _row("pairwise_logistic", normal(6, 6), _GRADES, _WEIGHTS),
    _row("pairwise_hinge", normal(6, 6), _GRADES, _WEIGHTS),
    _row("pairwise_squared_hinge", normal(6, 6), _GRADES, _WEIGHTS),
    _row("list_softmax", normal(6, 6), _SHARES),
    _row("list_mle", normal(6, 6), _ORDERS),
    _row("lambda_rank", normal(6, 6), _GRADES),
    _row("approximate_ndcg", normal(6, 6), _GRADES, temperature=0.4),
    _row("ndcg", normal(6, 6), _GRADES),
    _row("reciprocal_rank", normal(6, 6), _GRADES),
    _row("average_precision", normal(6, 6), _GRADES),
    _row(
        "contrastive",
        normal(6, 3, scale=0.8),
        normal(6, 3, scale=0.8),
        np.array([1, 0, 0, 0, 0.3, 0.75], np.float32),
        margin=1.5,
    ),
    _row(
        "triplet",
        normal(6, 3),
        normal(6, 3),
        normal(6, 3),
        margin=0.4,
    ),
    _row("info_nce", unit(6, 5, 4), unit(6, 5, 4), temperature=0.3),
    _row("nt_xent", unit(6, 5, 4), unit(6, 5, 4), temperature=0.3),
    _row("clip", unit(6, 5, 4), unit(6, 5, 4), scale=3.5),
    _row("sigmoid_pairs", unit(6, 5, 4), unit(6, 5, 4), scale=5.0, bias=-2.0),
    _row(
        "supervised_contrastive",
        unit(6, 6, 4),
        np.array(
            [
                [0, 1, 0, 0, 1, 2],  # two, one and no partner
                [0, 1, 2, 3, 4, 5],  # no partners at all
                [7, 7, 7, 7, 7, 7],  # all others
                [3, 3, -1, -1, 4, 4],
                [0, 0, 1, 0, 9, 0],
                [5, 2, 5, 2, 1, 2],
            ],
            np.int32,
        ),
        temperature=0.5,
    ),
    _row("policy_gradient", _OLD, _ADVANTAGES),
    _row("clipped_surrogate", _OLD + _LOG_RATIOS, _OLD, _ADVANTAGES, clip_range=0.2),
    _row(
        "group_relative",
        lambda rng: _OLD_TOKENS + normal(6, 5, 3, scale=0.4)(rng),
        _OLD_TOKENS,
        _REWARDS,
        clip_range=0.3,
    ),
    _row(
        "value_clipped",
        np.array([1.5, 0.5, -0.2, 1.1, 0.3, 2.2], np.float32),
        np.array([1.0, 1.0, -0.9, 1.2, 0.25, 1.0], np.float32),
        np.array([2.0, 2.0, 0.4, 0.0, 1.5, -1.0], np.float32),
        clip_range=0.25,
    ),
    _row("entropy", normal(6, 5, scale=2.0)),
    _row(
        "direct_preference",
        *[_log_probabilities(6, scale=5.0, most=-5)] * 4,
        strength=0.3,
    ),
    _row(
        "identity_preference",
        *[_log_probabilities(6, scale=5.0, most=-5)] * 4,
        strength=0.3,
    ),
    _row("sampled_kl", _OLD + _LOG_RATIOS, _OLD, estimator="k3"),
]

_FURTHER_POLICIES = [
    _row("sampled_kl/direct", _OLD + _LOG_RATIOS, _OLD, estimator="k1"),
    _row("sampled_kl/squared", _OLD + _LOG_RATIOS, _OLD, estimator="k2"),
    _row(
        "direct_preference/smoothed",
        *[_log_probabilities(6, scale=5.0, most=-5)] * 4,
        strength=0.3,
        label_smoothing=0.2,
    ),
    _row("clipped_surrogate/pair", _OLD + _LOG_RATIOS, _OLD, _ADVANTAGES, clip_range=(0.45, 0.7)),
    _row(
        "group_relative/pair",
        lambda rng: _OLD_TOKENS + normal(6, 5, 3, scale=0.4)(rng),
        _OLD_TOKENS,
        _REWARDS,
        clip_range=(0.3, 0.45),
    ),
    _row(
        "group_relative/scaled",
        lambda rng: _OLD_TOKENS + normal(6, 5, 3, scale=0.4)(rng),
        _OLD_TOKENS,
        _REWARDS,
        scale=2.5,
    ),
]

_FURTHER = [
    _row("lambda_rank/top", normal(6, 6), _GRADES, top=2),
    _row("approximate_ndcg/top", normal(6, 6), _GRADES, temperature=0.4, top=2),
    _row("ndcg/top", normal(6, 6), _GRADES, top=3),
    _row("reciprocal_rank/top", normal(6, 6), _GRADES, top=2),
]

COUPLED = {row.name: row for row in _ROWS}
COUPLED_VARIANTS = {row.name: row for row in _FURTHER_POLICIES + _FURTHER}

COUPLED_LISTS = {
    name: COUPLED[name]
    for name in (
        "pairwise_logistic",
        "pairwise_hinge",
        "pairwise_squared_hinge",
        "list_softmax",
        "list_mle",
        "lambda_rank",
        "approximate_ndcg",
        "ndcg",
        "reciprocal_rank",
        "average_precision",
        "info_nce",
        "nt_xent",
        "clip",
        "sigmoid_pairs",
        "supervised_contrastive",
        "group_relative",
    )
}
