"""What is drawn of schedules and losses."""

from functools import partial

import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import lossopt as lo


@pytest.fixture
def axis():
    return Figure().subplots()


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_schedule_at_all_of_its_counts(axis):
    assert lo.plots.schedules(lo.schedules.linear(2.0, 1.0, 4), 6, axis=axis) is axis
    (line,) = axis.lines
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert line.get_ydata().tolist() == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
    assert axis.get_xlabel() == "count of steps, from 0"
    assert axis.get_ylabel() == "value of the schedule"


def test_a_long_schedule_has_a_thousand_whole_counts(axis):
    lo.plots.schedules(optax.linear_schedule(1.0, 0.0, 10**6), 10**6, axis=axis)
    x, y = axis.lines[0].get_data()
    assert len(x) == 1025
    assert (x[0], x[-1]) == (0, 10**6)
    assert x.dtype.kind == "i"
    assert np.allclose(y, 1 - x / 1e6, atol=1e-6)


def test_a_constant_and_several_by_name(axis):
    both = {"half": lambda count: 0.5, "rising": lambda count: count / 4}
    lo.plots.schedules(both, 4, axis=axis)
    half, rising = axis.lines
    assert half.get_ydata().tolist() == [0.5] * 5
    assert rising.get_ydata().tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert _labels(axis) == ["half", "rising"]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(half, look)() != getattr(rising, look)()


@pytest.mark.parametrize(
    ("schedule", "scale"),
    [
        (lo.schedules.step(0.1, 30, factor=0.1), "log"),
        (lo.schedules.cosine(0.1, 90), "linear"),  # it ends at 0
        (lo.schedules.cosine_restarts(0.1, 45), "linear"),  # it rises again
        (lo.schedules.warmup(lo.schedules.constant(0.1), 80), "linear"),  # it rises
    ],
)
def test_the_scale_is_logarithmic_where_values_fall_far(axis, schedule, scale):
    lo.plots.schedules(schedule, 90, axis=axis)
    assert axis.get_yscale() == scale


def test_a_loss_and_its_slope(axis):
    lo.plots.losses(lo.losses.squared_error, 1.0, low=-2, high=4, axis=axis)
    loss, slope = axis.lines
    x = loss.get_xdata()
    assert (x[0], x[-1]) == (-2, 4)
    assert np.allclose(loss.get_ydata(), (x - 1) ** 2, atol=1e-5)
    assert np.allclose(slope.get_ydata(), 2 * (x - 1), atol=1e-5)
    assert _labels(axis) == ["loss", "slope"]
    assert loss.get_linestyle() != slope.get_linestyle()
    assert axis.get_xlabel() == "prediction, where the target is 1"
    assert axis.get_ylabel() == "loss, and its slope"


@pytest.mark.parametrize("draw", ["loss", "slope"])
def test_several_losses_or_their_slopes(axis, draw):
    fns = {"low": partial(lo.losses.quantile, level=0.1), "square": lo.losses.squared_error}
    lo.plots.losses(fns, draw=draw, axis=axis)
    low, square = axis.lines
    x = low.get_xdata()
    wanted = {"loss": (np.where(x > 0, 0.9, -0.1) * x, x**2), "slope": (None, 2 * x)}[draw]
    assert np.allclose(square.get_ydata(), wanted[1], atol=1e-5)
    if draw == "loss":
        assert np.allclose(low.get_ydata(), wanted[0], atol=1e-6)
    else:
        assert np.allclose(low.get_ydata()[x != 0], np.where(x > 0, 0.9, -0.1)[x != 0])
    assert _labels(axis) == ["low", "square"]
    assert low.get_linestyle() != square.get_linestyle()


def test_a_label_of_a_logit(axis):
    lo.plots.losses(lo.losses.sigmoid_cross_entropy, 1.0, axis=axis)
    x, y = axis.lines[0].get_data()
    assert np.allclose(y, np.log1p(np.exp(-x)), atol=1e-6)


def test_what_cannot_be_drawn_is_refused():
    huber, cosine = lo.losses.huber, lo.schedules.cosine(1.0, 9)
    with pytest.raises(ValueError, match="Expected high > 3"):
        lo.plots.losses(huber, low=3, high=3)
    with pytest.raises(ValueError, match="Expected draw as one of 'both', 'loss', 'slope'"):
        lo.plots.losses(huber, draw="value")
    with pytest.raises(ValueError, match=r"one number of the loss for each, .* shape \(2,\)"):
        lo.plots.losses(lambda x, y: x * np.ones(2))
    with pytest.raises(TypeError, match="the loss as a function, got 0"):
        lo.plots.losses({"a": 0.5})
    with pytest.raises(TypeError, match="the schedule as a function, got 0"):
        lo.plots.schedules(0.1, 9)
    with pytest.raises(ValueError, match="Expected steps >= 1"):
        lo.plots.schedules(cosine, 0)
    with pytest.raises(TypeError, match="steps as a whole number"):
        lo.plots.schedules(cosine, 9.5)
