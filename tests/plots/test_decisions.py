"""What is drawn of decisions."""

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import lossopt as lo

COSTS = np.array([[0.0, 10.0, 3.0], [100.0, 0.0, 30.0]])  # pass, block, ask; fraud is class 1


@pytest.fixture
def axis():
    return Figure().subplots()


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(4, 10, 2)).astype(np.float32) * 3


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_expected_costs_over_the_probability(axis, logits):
    assert lo.plots.decision(logits, COSTS, axis=axis) is axis
    lines = [line for line in axis.lines if line.get_label().startswith("decision")]
    assert [line.get_ydata().tolist() for line in lines] == COSTS.T.tolist()
    assert all(line.get_xdata().tolist() == [0, 1] for line in lines)
    assert axis.get_xlabel() == "probability of class 1"
    assert axis.get_ylabel() == "expected cost, in units of the costs"


def test_rows_stand_at_their_probabilities_below_their_decision(axis, logits):
    lo.plots.decision(logits, COSTS, axis=axis)
    decisions = np.asarray(lo.losses.decide(logits, COSTS)).ravel()
    shares = np.asarray(jax.nn.softmax(logits))[..., 1].ravel()
    rugs = [line for line in axis.lines if line.get_marker() == "|"]
    for number, rug in enumerate(rugs):
        assert np.allclose(rug.get_xdata(), shares[decisions == number], atol=1e-6)
        assert f"decision {number}, {np.sum(decisions == number)} rows" in _labels(axis)


def test_thresholds_are_where_the_cheapest_changes(axis, logits):
    lo.plots.decision(logits, COSTS, axis=axis)
    turns = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    shares = np.linspace(0, 1, 100_001)
    cheapest = np.argmin(np.stack([1 - shares, shares], axis=1) @ COSTS, axis=1)
    changes = shares[1:][np.diff(cheapest) != 0]
    assert np.allclose(turns, changes, atol=2e-5)
    assert "cheapest from 0.041 on: decision 2" in _labels(axis)
    assert "cheapest from 0.19 on: decision 1" in _labels(axis)


@pytest.mark.parametrize(
    ("costs", "turns"),
    [
        ([[0.0, 1.0], [0.0, 1.0]], []),  # one is always cheaper
        ([[0.0, 0.0], [2.0, 1.0]], []),  # equal at 0, then the second
        ([[0.0, 0.0], [1.0, 1.0]], []),  # equal
        ([[2.0, 0.0], [0.0, 2.0]], [0.5]),
        ([[0.0, 3.0, 3.0], [9.0, 3.0, 2.0]], [0.3]),  # three meet, the last is cheapest after it
    ],
)
def test_thresholds_of_special_costs(axis, costs, turns):
    lo.plots.decision(np.zeros((3, 2)), np.array(costs), axis=axis)
    got = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    assert np.allclose(got, turns)


def test_of_more_classes_rows_are_counted(axis):
    random = np.random.default_rng(1)
    logits, costs = random.normal(size=(200, 4)), random.random((4, 3))
    logits[:5] = np.nan
    lo.plots.decision(logits, costs, axis=axis)
    decisions, counts = np.asarray(lo.losses.decide(logits, costs)), np.zeros((4, 3), int)
    for row in range(5, 200):
        counts[np.argmax(logits[row]), decisions[row]] += 1
    assert axis.images[0].get_array().tolist() == counts.tolist()
    assert [int(text.get_text()) for text in axis.texts] == counts.ravel().tolist()
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("decision", "most probable class")


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="costs"):
        lo.plots.decision(np.zeros((3, 4)), COSTS)
