"""One row per member of a family: covers the branches, keeps off the kinks.

`LOSSES` has one row per loss, `VARIANTS` further forms of some: other labels, numbers or masks.
"""

from functools import partial

import numpy as np

import lossopt as lo
from tests import references
from tests.case import Loss, drawn, normal
from tests.cases_coupled import COUPLED as COUPLED
from tests.cases_coupled import COUPLED_LISTS, COUPLED_VARIANTS
from tests.schedule_cases import SCHEDULES as SCHEDULES
from tests.transform_cases import TRANSFORMS as TRANSFORMS


def _floats(*rows):
    return np.array(rows, np.float32)


def _row(name, *inputs, **numbers):
    loss = name.split("/")[0]
    fn, reference = (partial(getattr(room, loss), **numbers) for room in (lo.losses, references))
    return Loss(name, fn, drawn(name, *inputs), reference)


def _masked_row(name, *inputs, **numbers):
    """A mask of classes with a row per example is an input, the last one."""
    row = _row(name, *inputs, **numbers)
    masked = lambda loss: lambda z, y, kept: loss(z, y, where=kept)
    return row._replace(fn=masked(row.fn), reference=masked(row.reference))


def _costly_row(name, *inputs, costs, **numbers):
    """Costs have no row per example."""
    row = _row(name, *inputs, **numbers)
    priced = lambda loss: lambda *xs: loss(*xs, costs)
    return row._replace(fn=priced(row.fn), reference=priced(row.reference))


_TARGETS = _floats(0.7, -1.3, 2.0, 5.0, -0.4, 3.0)
_PREDICTIONS = _TARGETS + _floats(0.3, -0.4, 2.5, -3.2, 0.05, -1.2)  # |r| on either side of 1
_POSITIVE = _floats(0.2, 1.7, 30.0, 4.0, 0.01, 9.5)
_COUNTS = _floats(0, 1, 40, 0, 2.5, 7)  # need not be whole
_LOG_MEANS = _floats(-0.3, 0.9, 3.1, 1.2, -2.0, 2.5)

(_LOGITS,) = drawn("logits", normal(6, 4, scale=2.0))
_CLASSES = np.array([0, 3, 1, 2, 3, 0], np.int32)
_SHARES = _floats(
    [0.1, 0.2, 0.3, 0.4],
    [0.0, 0.5, 0.5, 0.0],
    [0.0, 0.0, 1.0, 0.0],
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.0, 0.1, 0.2],
    [0.0, 0.0, 0.05, 0.95],
)
_KEPT = np.array(
    [
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 0],
        [0, 0, 1, 0],  # the label alone
        [1, 0, 1, 1],
        [1, 0, 1, 1],
    ],
    bool,
)
_KEPT_SHARES = _floats(
    [0.1, 0.2, 0.3, 0.4],
    [0.0, 0.5, 0.5, 0.0],
    [0.0, 0.3, 0.7, 0.0],
    [0.0, 0.0, 1.0, 0.0],
    [0.7, 0.0, 0.1, 0.2],
    [0.0, 0.0, 0.05, 0.95],
)
_LOG_ODDS = _floats(1.3, -0.6, -2.5, 0.4, 3.0, -1.1)
_ANSWERS = _floats(1, 0, 1, 0, 1, 0)
_SOFT_ANSWERS = _floats(1, 0, 0.3, 0.9, 0.5, 0.01)
_COSTS = _floats([0, 10, 1, 2], [100, -5, 3, 0.5], [7, 0, -1, 2], [1, 1, 4, 0])
_MASKS = _floats(
    [1, 0, 0, 1, 1],
    [0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1],
    [0.5, 0.1, 0, 1, 0.9],
    [0, 0, 1, 0, 0],
    [0, 1, 1, 1, 0],
)
# Lists of six: ties among events, between an event and a censored item, one without events.
_TIMES = _floats(
    [3, 1, 2, 2, 5, 4],
    [1, 1, 1, 2, 2, 2],
    [7, 7, 7, 7, 7, 7],
    [0.5, 6, -1, 3, 2, 9],
    [1, 2, 3, 4, 5, 6],
    [6, 5, 4, 3, 2, 1],
)
_EVENTS = np.array(
    [
        [1, 0, 1, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 0, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
    ],
    np.int32,
)


def _and_zeros(draw):
    return lambda rng: np.concatenate([x := draw(rng), np.zeros_like(x[:1])])


_REGRESSION = [
    _row("squared_error", _PREDICTIONS, _TARGETS),
    _row("absolute_error", _PREDICTIONS, _TARGETS),
    _row("huber", _PREDICTIONS, _TARGETS, delta=0.8),
    _row("log_cosh", _PREDICTIONS, _TARGETS),
    _row("quantile", _PREDICTIONS, _TARGETS, level=0.85),
    _row("expectile", _PREDICTIONS, _TARGETS, level=0.15),
    _row("squared_log_error", _floats(0.3, 4.0, -0.6, 50, 0.9, 2), _floats(1, 2, 0, 70, -0.5, 2.5)),
    _row("absolute_percentage_error", _PREDICTIONS, _TARGETS),
    _row("cosine_distance", normal(6, 3), _and_zeros(normal(5, 3))),
]
_LIKELIHOOD = [
    _row("gaussian_nll", _PREDICTIONS, _TARGETS, _floats(0.2, -1.5, 2.0, 0.7, -3.0, 0.0)),
    _row("poisson_nll", _LOG_MEANS, _COUNTS),
    _row("gamma_nll", _LOG_MEANS, _POSITIVE, shape=2.5),
    _row("tweedie_deviance", _LOG_MEANS, _COUNTS, power=1.3),
    _row("kl_divergence", _LOGITS, _SHARES),
    _row("jensen_shannon", _LOGITS, _SHARES),
    _row("cox", normal(6, 6), _TIMES, _EVENTS),
]
_CLASSIFICATION = [
    _row("softmax_cross_entropy", _LOGITS, _CLASSES),
    _row("focal", _LOGITS, _CLASSES, gamma=1.5),
    _row("poly", _LOGITS, _CLASSES, epsilon=0.7),
    _row("sigmoid_cross_entropy", _LOG_ODDS, _SOFT_ANSWERS),
    _row("sigmoid_focal", _LOG_ODDS, _SOFT_ANSWERS, gamma=1.5, alpha=0.3),
    _row("sigmoid_poly", _LOG_ODDS, _SOFT_ANSWERS, epsilon=0.7),
    _row("hinge", _LOG_ODDS, _ANSWERS),
    _row("squared_hinge", _LOG_ODDS, _ANSWERS),
    _row("multiclass_hinge", _LOGITS, _CLASSES),
    _row("ordinal", _LOGITS, np.array([0, 4, 1, 2, 3, 4], np.int32)),
    _costly_row("cost_sensitive", _LOGITS, _CLASSES, costs=_COSTS),
    _row("dice", normal(6, 5, scale=2.0), _MASKS, smooth=0.6),
    _row("tversky", normal(6, 5, scale=2.0), _MASKS, alpha=0.3, beta=1.7, smooth=0.4),
]
_FURTHER = [
    _row("squared_error/table", normal(6, 3), normal(6, 3)),
    _row("huber/wide", _PREDICTIONS, _TARGETS, delta=3.0),
    _row("quantile/low", _PREDICTIONS, _TARGETS, level=0.1),
    _row("expectile/high", _PREDICTIONS, _TARGETS, level=0.9),
    _row("cosine_distance/table", normal(6, 2, 3), normal(6, 2, 3)),
    _row("poisson_nll/integers", _LOG_MEANS, np.array([0, 1, 40, 0, 2, 7], np.int32)),
    _row("gamma_nll/exponential", _LOG_MEANS, _POSITIVE, shape=1.0),
    _row("gamma_nll/flat", _LOG_MEANS, _POSITIVE, shape=0.3),
    _row("tweedie_deviance/nearly_poisson", _LOG_MEANS, _COUNTS, power=1.05),
    _row("tweedie_deviance/nearly_gamma", _LOG_MEANS, _COUNTS, power=1.95),
    _row("cox/booleans", normal(6, 6), _TIMES, _EVENTS == 1),
    _row("softmax_cross_entropy/tokens", normal(6, 2, 4), np.stack([_CLASSES] * 2, axis=1)),
    _row("softmax_cross_entropy/distributions", _LOGITS, _SHARES),
    _row("softmax_cross_entropy/smoothed", _LOGITS, _CLASSES, label_smoothing=0.1),
    _row("softmax_cross_entropy/all_smooth", _LOGITS, _SHARES, label_smoothing=1.0),
    _row("softmax_cross_entropy/ignoring", _LOGITS, _CLASSES, ignore_index=-1),
    _row("softmax_cross_entropy/kept", _LOGITS, _CLASSES % 2, where=np.array([1, 1, 0, 1], bool)),
    _masked_row("softmax_cross_entropy/masked", _LOGITS, _CLASSES, _KEPT),
    _masked_row(
        "softmax_cross_entropy/masked_smoothed", _LOGITS, _CLASSES, _KEPT, label_smoothing=0.2
    ),
    _masked_row(
        "softmax_cross_entropy/masked_distributions",
        _LOGITS,
        _KEPT_SHARES,
        _KEPT,
        label_smoothing=0.3,
    ),
    _row("focal/distributions", _LOGITS, _SHARES),
    _row("focal/root", _LOGITS, _CLASSES, gamma=0.5),
    _row("focal/cross_entropy", _LOGITS, _CLASSES, gamma=0.0),
    _row("focal/ignoring", _LOGITS, _CLASSES, ignore_index=-1),
    _masked_row("focal/masked", _LOGITS, _CLASSES, _KEPT),
    _masked_row("focal/masked_distributions", _LOGITS, _KEPT_SHARES, _KEPT),
    _row("poly/distributions", _LOGITS, _SHARES),
    _row("poly/negative", _LOGITS, _CLASSES, epsilon=-0.9, ignore_index=-1),
    _masked_row("poly/masked", _LOGITS, _CLASSES, _KEPT),
    _masked_row("poly/masked_distributions", _LOGITS, _KEPT_SHARES, _KEPT),
    _row("sigmoid_cross_entropy/hard", _LOG_ODDS, _ANSWERS),
    _row("sigmoid_cross_entropy/table", normal(6, 3), np.stack([_SOFT_ANSWERS] * 3, axis=1)),
    _row("sigmoid_focal/hard", _LOG_ODDS, _ANSWERS),
    _row("sigmoid_focal/root", _LOG_ODDS, _SOFT_ANSWERS, gamma=0.5),
    _row("sigmoid_focal/cross_entropy", _LOG_ODDS, _SOFT_ANSWERS, gamma=0.0, alpha=1.0),
    _row("sigmoid_poly/negative", _LOG_ODDS, _ANSWERS, epsilon=-0.9),
    _row("multiclass_hinge/ignoring", _LOGITS, _CLASSES, ignore_index=-1),
    _row("multiclass_hinge/alone", normal(6, 1), np.zeros(6, np.int32)),
    _row("ordinal/ignoring", _LOGITS, _CLASSES, ignore_index=-1),
    _costly_row("cost_sensitive/ignoring", _LOGITS, _CLASSES, costs=_COSTS, ignore_index=-1),
    _row("dice/rough", normal(6, 5, scale=2.0), _MASKS, smooth=0.0),
    _row("tversky/rough", normal(6, 5), _MASKS, alpha=0.5, beta=0.5, smooth=0.0),
    _row("tversky/recall", normal(6, 5), _MASKS, alpha=0.0, beta=1.0),
]

ALONE = {row.name: row for row in [*_REGRESSION, *_LIKELIHOOD, *_CLASSIFICATION]}

LOSSES = ALONE | COUPLED
VARIANTS = {row.name: row for row in _FURTHER} | COUPLED_VARIANTS
DECISIONS = {"decide": _costly_row("decide", _LOGITS, costs=_COSTS[:, :3])}
LISTS = COUPLED_LISTS | {"cox": LOSSES["cox"]}

(_KERNEL,) = drawn("kernel", normal(4, 3))


def _rows(x):
    return np.sqrt((x**2).sum(axis=1)).sum()


# A member, parameters that fit it, and its value on them; that of a constraint is 0.
REGULARIZERS = {
    "L1": (lo.regularizers.L1(0.3), _KERNEL, lambda x: 0.3 * abs(x).sum()),
    "L2": (lo.regularizers.L2(0.3), _KERNEL, lambda x: 0.3 * (x**2).sum()),
    "ElasticNet": (
        lo.regularizers.ElasticNet(0.5, mix=0.2),
        _KERNEL,
        lambda x: 0.5 * (0.2 * abs(x).sum() + 0.8 * (x**2).sum()),
    ),
    "GroupLasso": (lo.regularizers.GroupLasso(1.5, axis=1), _KERNEL, lambda x: 1.5 * _rows(x)),
    "SparseGroupLasso": (
        lo.regularizers.SparseGroupLasso(1.5, mix=0.4, axis=1),
        _KERNEL,
        lambda x: 1.5 * (0.4 * abs(x).sum() + 0.6 * _rows(x)),
    ),
    "Nuclear": (
        lo.regularizers.Nuclear(0.8),
        _KERNEL,
        lambda x: 0.8 * np.sqrt(np.linalg.eigvalsh(x.T @ x)).sum(),
    ),
    "TotalVariation": (
        lo.regularizers.TotalVariation(0.7, axis=0),
        _KERNEL,
        lambda x: 0.7 * abs(x[1:] - x[:-1]).sum(),
    ),
    "NonNegative": (lo.regularizers.NonNegative(), _KERNEL, lambda x: 0),
    "Box": (lo.regularizers.Box(-0.3, 0.5), _KERNEL, lambda x: 0),
    "Simplex": (lo.regularizers.Simplex(1.5), _KERNEL, lambda x: 0),
    "L1Ball": (lo.regularizers.L1Ball(0.7, axis=0), _KERNEL, lambda x: 0),
    "L2Ball": (lo.regularizers.L2Ball(0.6, axis=1), _KERNEL, lambda x: 0),
    "by_path": (
        lo.regularizers.by_path({r"^kernel$": lo.regularizers.L1(0.4)}),
        {"kernel": _KERNEL, "bias": _KERNEL[0]},
        lambda params: 0.4 * abs(params["kernel"]).sum(),
    ),
}
