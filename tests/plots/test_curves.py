"""What is drawn of runs: lines against their history, marks, labels, scales, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import lossopt as lo

ROWS = np.linspace(-1, 1, 10, dtype=np.float32)
COMMON = {
    "key": jax.random.key(0),
    "progress": False,
    "validation": ROWS[:5] - 15,
}  # the best is early


def objective(w, batch):
    return {"fit": lo.mean((w - batch - 30) ** 2), "penalty": lo.constant(0.1 * w**2)}


@pytest.fixture(scope="module")
def run():
    return lo.fit(objective, 0.0, ROWS, optax.sgd(0.1), batch_size=4, epochs=7, **COMMON)


@pytest.fixture
def axis():
    return Figure().subplots()


def _ended(run, reason, rows=None):
    history = {name: column[:rows] for name, column in run.history.items()}
    return dataclasses.replace(run, history=history, status=jnp.int32(reason.code))


def _line(axis, label):
    (line,) = (line for line in axis.lines if line.get_label() == label)
    return line


def _legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_lines_are_the_columns_over_epochs_from_1(run, axis):
    assert lo.plots.loss_curves(run, axis=axis) is axis
    for part, label in (("train", "training"), ("validation", "validation")):
        x, y = _line(axis, label).get_data()
        assert x.tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert y.tolist() == run.history[f"{part}/value"].tolist()
    assert axis.get_xlabel() == "epoch"
    assert axis.get_ylabel() == "value of the objective"


def test_any_term_is_drawn(run, axis):
    lo.plots.loss_curves(run, "penalty", axis=axis)
    assert _line(axis, "training").get_ydata().tolist() == run.history["train/penalty"].tolist()
    assert axis.get_ylabel() == "penalty"


def test_the_training_set_after_the_row_is_a_curve_of_its_own(run, axis):
    judged = dataclasses.replace(
        run, history=run.history | {"trained/value": run.history["train/value"] / 2}
    )
    lo.plots.loss_curves(judged, axis=axis)
    y = _line(axis, "training set, after the row").get_ydata()
    assert y.tolist() == judged.history["trained/value"].tolist()


def test_the_best_epoch_is_a_star_on_the_curve_that_decided(run, axis):
    at = int(run.best_epoch)
    value = run.history["validation/value"][at]
    assert value == run.history["validation/value"].min()
    lo.plots.loss_curves(run, axis=axis)
    star = _line(axis, f"best: epoch {at + 1}, {value:.4g}")
    assert star.get_marker() == "*"
    assert star.get_xydata().tolist() == [[at + 1, value]]


def test_a_best_of_another_column_is_named(run, axis):
    other = dataclasses.replace(run, judge="validation/penalty", best_epoch=jnp.int32(2))
    lo.plots.loss_curves(other, axis=axis)
    (star,) = (line for line in axis.lines if line.get_marker() == "*")
    assert star.get_label().startswith("best by validation/penalty: epoch 3, ")
    assert star.get_xydata().tolist() == [[3, run.history["validation/value"][2]]]


@pytest.mark.parametrize("best", [None, jnp.int32(-1)])
def test_what_has_no_best_has_no_star(run, axis, best):
    lo.plots.loss_curves(dataclasses.replace(run, best_epoch=best), axis=axis)
    assert not any(line.get_marker() == "*" for line in axis.lines)


def test_an_early_end_is_a_cross_with_its_reason(run, axis):
    stopped = _ended(run, lo.training.Stopped.PATIENCE, 5)
    lo.plots.loss_curves(stopped, axis=axis)
    cross = _line(axis, "stopped after epoch 5: the value stopped falling")
    assert cross.get_marker() == "X"
    assert cross.get_xydata().tolist() == [[5, run.history["validation/value"][4]]]


def test_a_run_that_took_all_steps_has_no_cross(run, axis):
    lo.plots.loss_curves(run, axis=axis)
    assert not any(line.get_marker() == "X" for line in axis.lines)
    assert len(_legend(axis)) == 3


def test_a_cross_stands_at_the_last_finite_row(run, axis):
    broken = _ended(run, lo.training.Stopped.NONFINITE_LOSS)
    column = np.array(run.history["validation/value"])
    column[-2:] = np.nan
    broken = dataclasses.replace(broken, history=run.history | {"validation/value": column})
    lo.plots.loss_curves(broken, axis=axis)
    cross = _line(axis, "stopped after epoch 7: the loss became non-finite")
    assert cross.get_xydata().tolist() == [[5, column[4]]]


def test_a_run_that_ended_before_its_first_row_says_so(run, axis):
    lo.plots.loss_curves(
        _ended(dataclasses.replace(run, best_epoch=None), lo.training.Stopped.TIME, 0), axis=axis
    )
    assert "stopped before its first row: the time was up" in _legend(axis)


def test_rows_after_a_stop_are_not_drawn(run, axis):
    history = {name: np.append(x, [np.nan, np.nan]) for name, x in run.history.items()}
    history["step"] = np.append(run.history["step"], [0, 0])
    lo.plots.loss_curves(dataclasses.replace(run, history=history), axis=axis)
    assert _line(axis, "training").get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_rows_that_are_no_epochs_stand_at_parts_of_them(run, axis):
    history = {name: column[:3] for name, column in run.history.items()}
    history["step"] = np.array([2, 4, 5])  # an epoch has 3 steps
    lo.plots.loss_curves(dataclasses.replace(run, history=history), axis=axis)
    assert np.allclose(_line(axis, "training").get_xdata(), [2 / 3, 4 / 3, 5 / 3])


def test_rows_of_a_stream_stand_at_their_steps(run, axis):
    facts = {name: x for name, x in run.origin["identity"].items() if name != "source.rows"}
    streamed = dataclasses.replace(run, origin=run.origin | {"identity": facts})
    lo.plots.history({"stream": streamed, "memory": run}, "train/fit", axis=axis)
    assert axis.get_xlabel() == "step"
    for name in ("stream", "memory"):
        assert _line(axis, name).get_xdata().tolist() == run.history["step"].tolist()


def test_a_row_of_a_run_without_origin_is_an_epoch(run, axis):
    lo.plots.loss_curves(jax.tree.map(lambda x: x, run), axis=axis)
    assert _line(axis, "training").get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_several_runs_differ_in_color_and_marker_and_parts_in_dashes(run, axis):
    other = _ended(run, lo.training.Stopped.PATIENCE, 5)
    lo.plots.loss_curves({"long": run, "short": other}, axis=axis)
    told = ["long", "short: the value stopped falling", "training", "validation"]
    assert _legend(axis) == [*told, "best", "stopped early"]
    first, second = _line(axis, told[0]), _line(axis, told[1])
    assert first.get_ydata().tolist() == run.history["validation/value"].tolist()
    assert second.get_ydata().tolist() == run.history["validation/value"][:5].tolist()
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() == second.get_linestyle() != axis.lines[0].get_linestyle()
    assert axis.lines[0].get_ydata().tolist() == run.history["train/value"].tolist()


def test_one_that_diverges_does_not_hide_the_others(run, axis):
    far = {"train/fit": np.geomspace(1e3, 1e30, 7)}
    bad = dataclasses.replace(run, history=run.history | far)
    lo.plots.history({"good": run, "bad": bad}, "train/fit", axis=axis)
    low, high = axis.get_ylim()
    good = run.history["train/fit"]
    assert low < good.min() < good.max() < high == pytest.approx(1000 * good.max())


def test_the_scale_is_logarithmic_where_it_helps(run):
    for factor, wanted in ((9.9, "linear"), (10.1, "log")):
        for sign in (1, -1):
            column = sign * np.geomspace(1, factor, 7)
            one = dataclasses.replace(run, history=run.history | {"x": column})
            axis = lo.plots.history(one, "x", axis=Figure().subplots())
            assert axis.get_yscale() == (wanted if sign > 0 else "linear")


def test_columns_of_the_history(run, axis):
    names = ["train/gradient_norm", "train/update_ratio"]
    assert lo.plots.history(run, names, axis=axis) is axis
    for name in names:
        assert _line(axis, name).get_ydata().tolist() == run.history[name].tolist()
    assert _legend(axis) == names
    first, second = axis.lines
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()


def test_one_column_is_the_label_of_the_axis(run, axis):
    lo.plots.history(run, "seconds", axis=axis)
    assert axis.get_ylabel() == "seconds"
    assert axis.get_legend() is None


def test_columns_of_several_runs(run, axis):
    lo.plots.history({"a": run, "b": run}, ["train/fit", "seconds"], axis=axis)
    assert _legend(axis) == ["a, train/fit", "a, seconds", "b, train/fit", "b, seconds"]


def test_a_column_that_is_missing_is_named_beside_what_there_is(run):
    with pytest.raises(ValueError, match=r"'train/acuracy', and the run has none") as error:
        lo.plots.history(run, "train/acuracy")
    assert "There are step, " in str(error.value)
    assert "train/fit" in str(error.value)
    with pytest.raises(ValueError, match=r"Expected a column 'train/acuracy'"):
        lo.plots.loss_curves(run, "acuracy")


def test_runs_of_unequal_columns_are_refused_by_name(run):
    kept = {name: x for name, x in run.history.items() if not name.startswith("validation")}
    runs = {"a": run, "b": dataclasses.replace(run, history=kept)}
    for draw in (lo.plots.loss_curves, lambda x: lo.plots.history(x, "validation/value")):
        with pytest.raises(ValueError, match=r"'validation/value', and the run 'b' has") as error:
            draw(runs)
        assert "All runs have step, " in str(error.value)
        assert "validation" not in str(error.value).split("All runs have")[1]


def test_several_runs_at_once_are_refused(run):
    runs = jax.tree.map(lambda x: jnp.stack([x, x]), run)
    with pytest.raises(ValueError, match=r"A curve is of one run, .* has the shape \(2, 7\)"):
        lo.plots.loss_curves(runs)

    @jax.jit
    def drawn(runs):
        lo.plots.loss_curves(runs)

    with pytest.raises(ValueError, match="while it is traced"):
        drawn(run)


def test_what_is_no_run_is_refused(run):
    with pytest.raises(TypeError, match=r"got list\."):
        lo.plots.loss_curves([run])
    with pytest.raises(TypeError, match=r"got dict of the name 'a'\."):
        lo.plots.history({"a": run.history}, "train/fit")
    with pytest.raises(ValueError, match="empty mapping"):
        lo.plots.history({}, "train/fit")


def test_nothing_is_left_behind_by_a_refusal(run):
    before = pyplot.get_fignums()
    with pytest.raises(ValueError, match="Expected a column"):
        lo.plots.loss_curves(run, "acuracy")
    assert pyplot.get_fignums() == before
