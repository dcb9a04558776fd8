"""What is drawn of regularizers."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import lossopt as lo

L1 = lo.regularizers.L1(0.5)


@pytest.fixture
def axis():
    return Figure().subplots()


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def _soft(x, by):
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


def test_penalty_and_prox_of_one_weight(axis):
    assert lo.plots.regularizers(L1, step_size=2.0, axis=axis) is axis
    penalty, prox, none = axis.lines
    x = penalty.get_xdata()
    assert (x[0], x[-1]) == (-3, 3)
    assert np.allclose(penalty.get_ydata(), np.abs(x) / 2)
    assert np.allclose(prox.get_ydata(), _soft(x, 1.0), atol=1e-6)
    assert none.get_ydata().tolist() == x.tolist()
    assert _labels(axis) == ["penalty", "prox of step size 2", "no prox"]
    assert axis.get_xlabel() == "weight"
    assert axis.get_ylabel() == "penalty, and weight after a prox"


@pytest.mark.parametrize("draw", ["value", "prox"])
def test_several_by_name(axis, draw):
    both = {"sum": L1, "squares": lo.regularizers.L2(1.0)}
    lo.plots.regularizers(both, draw=draw, reach=2.0, axis=axis)
    first, second, *none = axis.lines
    x = first.get_xdata()
    assert x[-1] == 2
    wanted = (np.abs(x) / 2, x**2) if draw == "value" else (_soft(x, 0.5), x / 3)
    assert np.allclose(first.get_ydata(), wanted[0], atol=1e-6)
    assert np.allclose(second.get_ydata(), wanted[1], atol=1e-6)
    assert _labels(axis) == ["sum", "squares", *["no prox"] * len(none)]
    assert len(none) == (draw == "prox")
    assert first.get_linestyle() != second.get_linestyle()


def test_level_sets_and_arrows_to_proximal_points(axis):
    lo.plots.regularizers(lo.regularizers.L2(1.0), draw="levels", reach=2.0, axis=axis)
    (levels,) = (x for x in axis.collections if isinstance(x, QuadContourSet))
    for level, segments in zip(levels.levels, levels.allsegs):
        for points in segments:
            assert np.allclose(np.sum(points**2, axis=1), level, atol=0.01)
    (arrows,) = (x for x in axis.collections if isinstance(x, Quiver))
    begin, step = np.stack([arrows.X, arrows.Y]), np.stack([arrows.U, arrows.V])
    assert np.allclose(begin + step, begin / 3, atol=1e-6)
    assert np.allclose(axis.lines[0].get_data(), begin / 3, atol=1e-6)
    assert axis.get_aspect() == 1
    assert axis.get_title() == "arrows: a prox of step size 1"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("first weight", "second weight")


def test_the_inside_of_a_constraint_is_grey(axis):
    lo.plots.regularizers(lo.regularizers.L2Ball(1.0), draw="levels", axis=axis)
    (inside,) = (x for x in axis.collections if isinstance(x, QuadContourSet))
    assert inside.filled
    edge = np.concatenate(inside.allsegs[0])
    assert np.allclose(np.linalg.norm(edge, axis=1), 1, atol=0.06)  # the grid is 0.05 wide
    moved = np.stack(axis.lines[0].get_data())
    assert np.linalg.norm(moved, axis=0).max() <= 1 + 1e-6


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="Expected draw as one of 'both', 'value', 'prox'"):
        lo.plots.regularizers(L1, draw="loss")
    with pytest.raises(ValueError, match="one regularizer to draw its level sets, got a, b"):
        lo.plots.regularizers({"a": L1, "b": L1}, draw="levels")
    with pytest.raises(TypeError, match="Expected a regularizer, got "):
        lo.plots.regularizers(jnp.abs)
    with pytest.raises(ValueError, match="Expected step_size > 0"):
        lo.plots.regularizers(L1, step_size=0.0)
    with pytest.raises(ValueError, match="Expected reach > 0"):
        lo.plots.regularizers(L1, reach=0.0)
