"""What is drawn of learning rates."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import lossopt as lo

RATES = np.geomspace(1e-3, 1, 4)
VALUES = np.array([[4.0, 3.0, 1.0, 900.0], [4.2, 3.4, 1.2, np.nan]])
GRID = lo.training.RateGrid(RATES, VALUES, RATES[2])


@pytest.fixture
def axis():
    return Figure().subplots()


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_mean_each_seed_what_is_not_finite_and_the_pick(axis):
    assert lo.plots.learning_rates(GRID, axis=axis) is axis
    mean, seeds, lost, pick = axis.lines
    assert mean.get_xdata().tolist() == RATES.tolist()
    assert np.array_equal(mean.get_ydata(), VALUES.mean(axis=0), equal_nan=True)
    assert np.array_equal(seeds.get_ydata(), VALUES.ravel(), equal_nan=True)
    assert np.array_equal(seeds.get_xdata(), [*RATES, *RATES])
    assert lost.get_xdata().tolist() == [1.0]
    assert lost.get_transform() == axis.get_xaxis_transform()  # at the edge, whatever the values
    assert pick.get_xydata().tolist() == [[RATES[2], 1.1]]
    assert _labels(axis) == ["mean of 2 seeds", "not finite", "pick: 0.1"]


def test_scales_and_labels(axis):
    lo.plots.learning_rates(GRID, axis=axis)
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert axis.get_xlabel() == "learning rate"
    assert axis.get_ylabel() == "value of the objective"


def test_values_below_0_are_linear_and_all_in_the_picture(axis):
    lo.plots.learning_rates((RATES, VALUES - 5), axis=axis)
    assert axis.get_yscale() == "linear"
    assert axis.get_ylim()[1] > 895


def test_the_picture_ends_at_ten_times_what_the_lowest_rate_came_to(axis):
    lo.plots.learning_rates(GRID, axis=axis)
    low, high = axis.get_ylim()
    assert low < 1 < 4.2 < high == pytest.approx(42)


def test_a_pick_at_the_end_is_said(axis):
    lo.plots.learning_rates(GRID._replace(learning_rate=RATES[0]), axis=axis)
    assert "pick: 0.001 (at the end of the rates)" in _labels(axis)


def test_a_range_test_is_one_line_without_a_pick(axis):
    lo.plots.learning_rates((RATES, VALUES[0]), axis=axis)
    (line,) = axis.lines
    assert line.get_ydata().tolist() == VALUES[0].tolist()
    assert axis.get_legend() is None


def test_several_by_name_differ(axis):
    lo.plots.learning_rates({"a": (RATES, VALUES[0]), "b": (RATES, VALUES[0] + 1)}, axis=axis)
    first, second = axis.lines
    assert _labels(axis) == ["a", "b"]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first, look)() != getattr(second, look)()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"got \(4,\) and \(4, 2\)\. Transpose"):
        lo.plots.learning_rates((RATES, VALUES.T))
    with pytest.raises(ValueError, match="Expected rates > 0"):
        lo.plots.learning_rates((RATES - 1, VALUES))
    for wrong in (0.1, RATES, (RATES, VALUES, 0.1)):
        with pytest.raises(TypeError, match="find_learning_rate, or a pair"):
            lo.plots.learning_rates(wrong)
