"""What a loss does not take: numbers out of their range, and inputs out of their domain."""

import inspect

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests import cases

WRONG = {  # just outside, or the open end itself; NaN is wrong everywhere
    "huber": {"delta": [0.0]},
    "quantile": {"level": [0.0, 1.0]},
    "expectile": {"level": [0.0, 1.0]},
    "gamma_nll": {"shape": [0.0]},
    "tweedie_deviance": {"power": [1.0, 2.0]},
    "softmax_cross_entropy": {"label_smoothing": [-0.1, 1.1]},
    "focal": {"gamma": [-0.1]},
    "sigmoid_focal": {"gamma": [-0.1], "alpha": [-0.1, 1.1]},
    "dice": {"smooth": [-0.1]},
    "softmax_dice": {"smooth": [-0.1]},
    "nt_xent": {"temperature": [0.0]},
    "tversky": {"alpha": [-0.1], "beta": [-0.1], "smooth": [-0.1]},
    "lambda_rank": {"top": [0, -1]},
    "approximate_ndcg": {"temperature": [0.0], "top": [0]},
    "ndcg": {"top": [0]},
    "reciprocal_rank": {"top": [0]},
    "margin_ranking": {"margin": [-0.1]},
    "contrastive": {"margin": [-0.1]},
    "triplet": {"margin": [-0.1]},
    "info_nce": {"temperature": [0.0]},
    "supervised_contrastive": {"temperature": [0.0]},
    "clipped_surrogate": {"clip_range": [0.0, 1.1, (1.1, 0.2), (0.2, 0.0), (0.2,)]},
    "group_relative": {"clip_range": [0.0, 1.1, (1.1, 0.2), (0.2, 0.0)], "scale": [0.0]},
    "value_clipped": {"clip_range": [0.0, np.float32([0.1, 0.2])]},
    "direct_preference": {"strength": [0.0], "label_smoothing": [-0.1, 0.6]},
    "identity_preference": {"strength": [0.0]},
    "sampled_kl": {"estimator": ["k4"]},
}
NO_RANGE = {"items", "where", "ignore_index", "epsilon", "fair"}  # no numbers, or of either sign


@pytest.mark.parametrize("row", cases.LOSSES.values(), ids=cases.LOSSES)
def test_every_number_has_a_range(row):
    parameters = inspect.signature(getattr(lo.losses, row.name)).parameters.values()
    numbers = {x.name for x in parameters if x.kind is x.KEYWORD_ONLY} - NO_RANGE
    assert numbers == set(WRONG.get(row.name, {}))
    for number in numbers:
        for wrong in [*WRONG[row.name][number], np.nan]:
            with pytest.raises(ValueError, match=f"Expected .*{number}"):
                row.fn(*row.inputs, **{number: wrong})


@pytest.mark.parametrize("row", cases.LOSSES.values(), ids=cases.LOSSES)
def test_a_preflight_refuses_what_is_nan_and_nothing_else(row):
    """What comes after the predictions is out of many domains here, though not out of all."""
    first, *rest = row.inputs
    loss = jax.jit(checkify.checkify(row.fn))
    error, out = loss(first, *rest)
    assert error.get() is None
    assert not np.isnan(out).any()
    for i, x in enumerate(rest):
        strange = x.copy()
        strange[0] = -7
        error, out = loss(first, *rest[:i], strange, *rest[i + 1 :])
        message = error.get()
        weighs = message is not None and "weights" in message  # below 0 they are not made NaN
        assert np.isnan(out[0]).any() == (message is not None and not weighs)
        assert not np.isnan(out[1:]).any()
        assert message is None or row.name in message
