"""Where pictures are drawn, and without matplotlib."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import lossopt as lo
from lossopt.plots import _axes

SCHEDULE = lo.schedules.cosine(1.0, 10)


def test_a_figure_of_pyplot_is_made_and_nothing_set():
    settings, before = dict(matplotlib.rcParams), pyplot.get_fignums()
    axis = lo.plots.schedules(SCHEDULE, 10)
    assert len(pyplot.get_fignums()) == len(before) + 1
    assert axis.figure is pyplot.gcf()
    assert dict(matplotlib.rcParams) == settings
    pyplot.close(axis.figure)


def test_an_axis_that_is_given_makes_no_figure():
    before = pyplot.get_fignums()
    axis = Figure().subplots()
    assert lo.plots.schedules(SCHEDULE, 10, axis=axis) is axis
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("wrong", [Figure(), Figure().subplots(2), pyplot])
def test_what_is_no_axis_is_refused(wrong):
    with pytest.raises(TypeError, match=r"Expected axis as one Axes of matplotlib, got \w+\."):
        lo.plots.schedules(SCHEDULE, 10, axis=wrong)


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import lossopt as lo\n"
        "try: lo.plots.schedules(lambda count: 1.0, 3)\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib, which is not installed" in out.stdout
    assert "pip install 'lossopt[plots]'" in out.stdout


def test_neighbors_differ_in_grey_and_no_two_styles_are_the_same():
    luminance = [np.dot(to_rgb(color), [0.2126, 0.7152, 0.0722]) for color in _axes.COLORS]
    assert np.all(np.abs(np.diff(luminance)) > 0.08)
    assert len(_axes.COLORS) == len(_axes.DASHES) == len(_axes.MARKERS)
    assert len(set(_axes.COLORS)) == len(set(_axes.DASHES)) == len(set(_axes.MARKERS))


def test_markers_of_curves_on_each_other_do_not_cover_each_other():
    starts = [_axes.style(number, points=100)["markevery"][0] for number in range(7)]
    assert len(set(starts)) == 7


def test_dollars_in_names_are_dollars():
    axis = Figure().subplots()
    axis.plot([1, 2], label=r"$\frac$")
    _axes.explained(axis, "$a$", "$b$")
    axis.figure.draw_without_rendering()
    assert axis.get_legend().get_texts()[0].get_text() == r"$\frac$"
