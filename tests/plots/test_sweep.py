"""What is drawn of a sweep."""

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import lossopt as lo
from lossopt.plots import _axes, _ticks
from lossopt.sweeps._rulers import Ruler
from tests.plots.page import Page

RATES = np.float32([0.1, 0.01, 1.0, 0.001, 10.0])
LOSSES = [0.3, 0.2, 0.5, 0.4, np.nan]


def _table(columns, names, score="loss", **options):
    fixed = {"id", "setting", "status", "seconds", *names}
    scores = tuple(name for name in columns if name not in fixed)
    return lo.sweeps.Table(columns, score, names, scores, **options)


@pytest.fixture
def axis():
    return Figure().subplots()


@pytest.fixture
def table():
    """Five trials of three hyperparameters; one diverged."""
    columns = {
        "rate": RATES,
        "rule": np.array(["sgd", "adam", "sgd", "adam", "sgd"], object),
        "momentum": [0.5, np.nan, 0.9, np.nan, 0.7],
        "loss": LOSSES,
        "accuracy": [0.5, 0.9, 0.1, 0.6, np.nan],
    }
    return _table(columns, ("rate", "rule", "momentum"))


@pytest.fixture
def grid():
    """Rates times strengths; one cell diverged."""
    rates, strengths = np.meshgrid([1e-3, 1e-2, 1e-1], [0.0, 0.1, 0.5, 0.6], indexing="ij")
    losses = 1 + np.arange(12.0)[::-1]
    losses[3] = np.inf
    columns = {"rate": rates.ravel(), "strength": strengths.ravel(), "loss": losses}
    return _table(columns, ("rate", "strength"))


@pytest.fixture
def repeated():
    """Three rates under two keys, of which the last diverged once."""
    columns = {"rate": np.repeat([0.01, 0.1, 1.0], 2), "setting": np.repeat([0, 1, 2], 2)}
    return _table(columns | {"loss": [0.4, 0.6, 0.1, 0.3, np.nan, 0.0]}, ("rate",))


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def _lines(axis):
    """Segments and colors of the lines of trials: those that diverged, and the others."""
    lost, good = [x for x in axis.collections if isinstance(x, LineCollection)]
    return lost.get_segments(), good.get_segments(), [to_hex(x) for x in good.get_colors()]


class TestParallel:
    def test_lines_pass_each_scale_where_the_value_stands(self, table, axis):
        assert lo.plots.sweep(table, axis=axis) is axis
        (lost,), good, _ = _lines(axis)
        rates = [[line[0, 1] for line in good], [line[2, 1] for line in good]]
        # the worst first: rates 1, 0.001, 0.1, 0.01, on the decades from 0.001 to 10
        assert np.allclose(rates[0], [0.75, 0, 0.5, 0.25])
        absent = rates[1][1]
        assert absent < 0
        assert np.allclose(rates[1], [1, absent, 0, absent])
        assert np.allclose(lost[[0, 2], 1], [1, 0.5])
        assert np.allclose([line[3, 1] for line in good], [1, 2 / 3, 1 / 3, 0])

    def test_lines_through_an_option_lie_beside_each_other_the_best_above(self, table, axis):
        lo.plots.sweep(table, axis=axis)
        (lost,), good, _ = _lines(axis)
        rules = np.array([line[1, 1] for line in good])
        assert np.allclose(rules, [1, 0, 1, 0], atol=0.04)
        assert np.all(np.diff([lost[1, 1], rules[0], rules[2]]) > 0)

    def test_the_best_is_thick_and_last_and_the_others_have_the_colors_of_their_ranks(
        self, table, axis
    ):
        lo.plots.sweep(table, axis=axis)
        _, good, colors = _lines(axis)
        assert colors == [_axes.RAMP[i] for i in (6, 4, 2, 0)]
        best = max(axis.lines, key=lambda line: line.get_linewidth())
        assert np.array_equal(best.get_xydata(), good[-1])
        assert best.get_zorder() > max(x.get_zorder() for x in axis.collections)

    def test_what_diverged_ends_beyond_the_worst(self, table, axis):
        lo.plots.sweep(table, axis=axis)
        assert _lines(axis)[0][0][-1, 1] > 1
        highest = dataclasses.replace(table, score="accuracy", maximize=True)
        other = lo.plots.sweep(highest, axis=Figure().subplots())
        (lost,), good, _ = _lines(other)
        assert lost[-1, 1] < 0
        assert np.allclose([line[-1, 1] for line in good][-1], 1)

    def test_names_ticks_and_words(self, table, axis):
        lo.plots.sweep(table, axis=axis)
        names = [text.get_text() for text in axis.get_xticklabels()]
        assert names == ["rate", "rule", "momentum", "loss\n(lowest is best)"]
        words = {text.get_text() for text in axis.texts}
        assert {"0.001", "10", "adam", "sgd", "0.5", "0.9", "not set", "diverged"} <= words
        assert _labels(axis) == ["best: loss 0.2", "next best", "worst of 4", "diverged: 1"]

    def test_long_names_are_turned(self, table):
        narrow = lo.plots.sweep(table, axis=Figure((2, 3)).subplots())
        assert {text.get_rotation() for text in narrow.get_xticklabels()} == {25}
        wide = lo.plots.sweep(table, axis=Figure((9, 3)).subplots())
        assert {text.get_rotation() for text in wide.get_xticklabels()} == {0}

    def test_of_names_in_this_order(self, table, axis):
        lo.plots.sweep(table, ["rule", "rate"], kind="parallel", axis=axis)
        names = [text.get_text() for text in axis.get_xticklabels()]
        assert names[:2] == ["rule", "rate"]

    def test_where_all_diverged(self, table, axis):
        lost = dataclasses.replace(table, columns=table.columns | {"loss": np.full(5, np.nan)})
        lost.columns["status"][:] = "diverged"
        lo.plots.sweep(lost, axis=axis)
        assert _labels(axis) == ["diverged: 5"]


class TestMap:
    def test_a_grid_has_cells_of_one_size(self, grid, axis):
        lo.plots.sweep(grid, axis=axis)
        (cells,) = axis.collections
        values = cells.get_array()
        wanted = grid["loss"].reshape(3, 4).T
        assert np.array_equal(values.mask, ~np.isfinite(wanted))
        assert np.array_equal(values[~values.mask], wanted[np.isfinite(wanted)])
        assert np.array_equal(cells.get_coordinates()[0, :, 0], [-0.5, 0.5, 1.5, 2.5])
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0.001", "0.01", "0.1"]
        assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "0.1", "0.5", "0.6"]
        assert sorted(float(text.get_text()) for text in axis.texts) == sorted(
            wanted[np.isfinite(wanted)]
        )

    def test_the_best_and_what_diverged(self, grid, axis):
        lo.plots.sweep(grid, axis=axis)
        best, _, lost = axis.lines
        assert best.get_xydata().tolist() == [[2, 3]]
        assert lost.get_xydata().tolist() == [[0, 3]]
        assert _labels(axis) == ["best: 1", "diverged: 1"]

    def test_dark_is_good(self, grid, axis):
        brightness = []
        for maximize in (False, True):
            given = dataclasses.replace(grid, maximize=maximize)
            (cells,) = lo.plots.sweep(given, axis=Figure().subplots()).collections
            best = given.best["loss"]
            brightness.append(sum(cells.get_cmap()(cells.norm(best))[:3]))
        assert max(brightness) < 0.9

    def test_pairs_that_are_no_grid_are_dots(self, axis):
        draws = np.random.default_rng(0)
        columns = {"a": draws.uniform(size=20), "b": draws.uniform(size=20)}
        table = _table(columns | {"loss": draws.uniform(size=20)}, ("a", "b"))
        lo.plots.sweep(table, axis=axis)
        (dots,) = axis.collections
        places = np.asarray(dots.get_offsets())
        order = table.rank()[::-1]
        a = columns["a"]
        assert np.allclose(places[:, 0], ((a - a.min()) / np.ptp(a))[order], atol=1e-5)
        assert list(axis.texts) == []  # nothing is interpolated, nothing is written

    def test_of_other_hyperparameters_the_best_is_shown(self, axis):
        rates, rules, seeds = np.array(list(itertools.product([1.0, 2.0], "ab", [0, 1])), object).T
        columns = {"rate": rates.astype(float), "rule": rules, "width": seeds.astype(float)}
        columns["loss"] = np.array([8.0, 1.0, 2.0, 7.0, 3.0, np.nan, 5.0, 4.0])
        table = _table(columns, ("rate", "rule", "width"))
        lo.plots.sweep(table, ["rate", "rule"], axis=axis)
        assert axis.collections[0].get_array().tolist() == [[1, 3], [2, 4]]
        bar = axis.figure.axes[1].get_ylabel()
        assert bar == "loss (lowest is best, and shown, of the others)"


class TestScore:
    def test_dots_the_best_and_the_interval(self, table, axis):
        lo.plots.sweep(table, "rate", within=0.6, axis=axis)
        dots = np.asarray(axis.collections[0].get_offsets())
        assert np.allclose(dots, [[1.0, 0.5], [0.001, 0.4], [0.1, 0.3], [0.01, 0.2]])
        (span,) = axis.patches
        good = table.interval("rate", within=0.6)
        assert np.allclose([span.get_x(), span.get_x() + span.get_width()], [good.low, good.high])
        assert (good.low, good.high) == (0.01, 0.1)
        (limit,) = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert np.allclose(limit.get_ydata(), good.limit)
        assert axis.get_xscale() == "log"
        assert axis.get_yscale() == "linear"
        assert axis.get_ylabel() == "loss (lowest is best)"
        labels = ["best: 0.2 at 0.01", "good, at most 0.32: 0.01 to 0.1", "diverged: 1"]
        assert _labels(axis) == labels

    def test_of_repeated_settings_means_and_their_errors(self, repeated, axis):
        lo.plots.sweep(repeated, axis=axis)
        dots = axis.collections[1].get_offsets()  # behind them the bars
        assert np.allclose(dots, [[0.01, 0.5], [0.1, 0.2]])
        bars = axis.containers[0].lines[2][0].get_segments()
        assert np.allclose([bar[:, 1] for bar in bars], [[0.1, 0.3], [0.4, 0.6]])
        lost = axis.lines[-1]
        assert lost.get_xdata().tolist() == [1.0]
        assert (
            lost.get_transform() == axis.get_xaxis_transform()
        )  # at the edge, whatever scores are

    def test_a_line_only_where_nothing_else_differs(self, repeated, table, axis):
        grey = lambda axis: [line for line in axis.lines if line.get_color() == "0.7"]
        (line,) = grey(lo.plots.sweep(repeated, axis=axis))
        assert np.allclose(line.get_xydata(), [[0.01, 0.5], [0.1, 0.2]])
        assert grey(lo.plots.sweep(table, "rate", axis=Figure().subplots())) == []

    def test_options_stand_beside_each_other(self, table, axis):
        lo.plots.sweep(table, "rule", axis=axis)
        assert [text.get_text() for text in axis.get_xticklabels()] == ["adam", "sgd"]
        dots = axis.collections[0].get_offsets()
        assert np.allclose(dots[:, 0], [1, 0, 1, 0])
        assert list(axis.patches) == []
        assert _labels(axis)[0] == "best: 0.2 at adam"

    def test_what_has_no_such_hyperparameter_is_left_out(self, table, axis):
        lo.plots.sweep(table, "momentum", within=1.0, axis=axis)
        assert np.allclose(axis.collections[0].get_offsets(), [[0.9, 0.5], [0.5, 0.3]])
        assert _labels(axis)[0] == "best: 0.3 at 0.5"

    def test_stopped_trials_are_hollow(self, axis):
        columns = {
            "rate": np.array([1.0, 2, 3, 4]),
            "loss": np.array([3.0, 1.0, 2.0, np.nan]),
            "loss@5": np.array([4.0, 1.0, 2.0, np.nan]),
            "steps": np.array([9, 5, 5, 5]),
            "status": np.array(["finished", "stopped", "stopped", "diverged"], object),
        }
        table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss",))
        lo.plots.sweep(table, axis=axis)
        words = axis.get_legend_handles_labels()[1]
        assert words[0] == "best: 3 at 1"
        assert "stopped at a rung: 2, with the last score" in words
        assert "diverged: 1" in words
        hollow = axis.collections[-1].get_offsets()
        np.testing.assert_allclose(hollow, [[2, 1], [3, 2]])
        lo.plots.sweep(table.at(5), axis=axis)
        assert axis.get_legend_handles_labels()[1][-1] == "diverged: 1"

    def test_a_score_far_worse_stands_at_the_end_of_the_scale(self, axis):
        losses = [-1.0, -0.9, -0.8, -0.7, -0.6, 1e9]
        table = _table({"rate": [1.0, 2, 3, 4, 5, 6], "loss": losses}, ("rate",))
        lo.plots.sweep(table, axis=axis)
        assert axis.get_ylim()[1] < 1
        ((x, y),) = axis.collections[-1].get_offsets()
        assert x == 6
        assert y < 1
        assert "beyond the picture: 1" in _labels(axis)

    def test_trials_that_wait_are_left_out(self, table, axis):
        status = np.array(["finished", "waiting", "finished", "finished", "diverged"], object)
        table = dataclasses.replace(table, columns=table.columns | {"status": status})
        lo.plots.sweep(table, "rate", axis=axis)
        assert len(axis.collections[0].get_offsets()) == 3
        assert _labels(axis)[0] == "best: 0.3 at 0.1"


class TestScales:
    @pytest.mark.parametrize(
        ("on", "words"),
        [
            (Ruler("log", 2e-5, 0.3), ["1e-4", "0.001", "0.01", "0.1"]),
            (Ruler("log", 0.2, 2.5), ["0.2", "0.5", "1", "2"]),
            (Ruler("linear", 0.03, 0.97), ["0.25", "0.5", "0.75"]),
            (Ruler("linear", 7.0, 7.0), ["7"]),
            (Ruler("options", 0.0, 1.0, (np.tanh, None)), ["tanh", "None"]),
        ],
    )
    def test_ticks(self, on, words):
        places, told = _ticks.ticks(on)
        assert told == words
        assert np.all((places >= -1e-9) & (places <= 1 + 1e-9))

    def test_few_values_have_a_tick_each(self):
        places, words = _ticks.ticks(Ruler("log", 16.0, 256.0), np.array([256, 16, 64, 16]))
        assert words == ["16", "64", "256"]
        assert np.allclose(places, [0, 0.5, 1])

    def test_scores_are_logarithmic_where_the_lowest_is_best_and_they_span_much(self):
        columns = {"rate": np.arange(1.0, 5.0), "loss": np.array([0.01, 0.1, 1.0, 10.0])}
        table = _table(columns, ("rate",))
        assert _ticks.of_scores(table).scale == "log"
        assert _ticks.of_scores(dataclasses.replace(table, maximize=True)).scale == "linear"


class TestRefusals:
    def test_what_is_no_table(self, table):
        with pytest.raises(
            TypeError, match=r"Expected table as a lossopt\.sweeps\.Table, got dict"
        ):
            lo.plots.sweep(table.columns)

    def test_names(self, table):
        for name in ("loss", "other"):
            with pytest.raises(ValueError, match=f"got {name!r}. There are 'rate', 'rule', 'mom"):
                lo.plots.sweep(table, name)

    def test_kinds(self, table):
        with pytest.raises(ValueError, match="Expected kind as one of 'auto'"):
            lo.plots.sweep(table, kind="lines")
        with pytest.raises(
            ValueError, match="Expected 1 name for kind='score', got rate, rule, mo"
        ):
            lo.plots.sweep(table, kind="score")
        with pytest.raises(ValueError, match="Expected 2 names for kind='map', got rate"):
            lo.plots.sweep(table, "rate", kind="map")

    def test_nothing_to_draw(self, table):
        waiting = np.full(5, "waiting", object)
        with pytest.raises(ValueError, match="Expected a trial that has run, and none"):
            lo.plots.sweep(dataclasses.replace(table, columns=table.columns | {"status": waiting}))
        with pytest.raises(ValueError, match="differs among the trials: none does"):
            lo.plots.sweep(table[:1])


class TestReport:
    @pytest.fixture
    def read(self, tmp_path):
        def reader(table, **options):
            lo.plots.report(table, tmp_path / "report.html", **options)
            return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

        return reader

    def test_what_ran_the_best_and_the_rows(self, table, read):
        page = read(table, title="Rates", notes="As they are.", hyperparameters={"epochs": 20})
        assert "5 trials: 4 finished, 1 diverged." in page.text
        assert ["rate", "0.01", "0.01 to 0.01, 1 of 1", "0.001 to 10"] in page.rows
        assert ["rule", "adam", "adam", "adam, sgd"] in page.rows
        assert ["momentum", "-", "0.5 to 0.5, 1 of 1", "0.5 to 0.9"] in page.rows
        assert "Good is a loss of at most 0.22, within 10% of the best" in page.text
        assert "Importance needs 8 trials that finished." in page.text
        assert page.cells("epochs") == ["20"]
        labels = [value for name, value in page.attributes if name == "aria-label"]
        assert labels == ["all trials", "loss over rate", "loss over rule", "loss over momentum"]
        assert all(words in page.text for words in ("Rates", "As they are.", "fold_in(key, id)"))
        lines = [row for row in page.rows if len(row) == 6]
        assert lines[0] == ["id", "loss", "rate", "rule", "momentum", "accuracy"]
        assert lines[1] == ["1", "0.2", "0.01", "adam", "-", "0.9"]
        assert [row[0] for row in lines[2:5]] == ["0", "3", "2"]
        assert lines[6] == ["4", "-", "10", "sgd", "0.7", "-"]

    def test_what_a_population_used_before_was_tried(self, table, read):
        used = {"rate@5": np.array([50.0, 0.01, 0.2, 0.3, np.nan]), "steps": np.full(5, 9)}
        page = read(dataclasses.replace(table, columns=table.columns | used))
        assert ["rate", "0.01", "0.01 to 0.01, 1 of 1", "0.001 to 50"] in page.rows

    def test_importance(self, grid, read, monkeypatch):
        found = {"strength": (0.5, 0.25), "rate": (0.0, 0.0)}
        monkeypatch.setattr(lo.sweeps.Table, "importance", lambda table: found)
        page = read(grid)
        (row,) = [row for row in page.rows if row[0] == "strength" and len(row) == 5]
        assert row[-1] == "0.50 ± 0.25"
        labels = [value for name, value in page.attributes if name == "aria-label"]
        assert labels[-1] == "loss over rate and strength"

    def test_what_waits_and_repetitions(self, repeated, read):
        status = np.array(["finished"] * 4 + ["diverged", "waiting"], object)
        columns = repeated.columns | {"status": status, "seconds": np.full(6, 0.5)}
        page = read(dataclasses.replace(repeated, columns=columns))
        assert "6 trials of 3 settings: 4 finished, 1 diverged, 1 waiting." in page.text
        assert "its standard error" in page.text
        assert "seconds, of all trials" in page.text

    def test_where_nothing_is_finite(self, read):
        columns = {"rate": RATES, "loss": np.full(5, np.nan)}
        page = read(table := _table(columns, ("rate",)))
        assert ("class", "lead alarm") in page.attributes
        assert "All 5 that diverged." in page.text
        columns = table.columns | {"status": np.full(5, "waiting", object)}
        page = read(dataclasses.replace(table, columns=columns))
        assert "5 have not run: id 0, 1, 2, 3, 4." in page.text
        assert "svg" not in page.tags

    def test_names_are_text(self, read):
        name = "<script>alert(1)</script>"
        page = read(_table({name: [1.0, 2.0], "$loss$": [1.0, 2.0]}, (name,), "$loss$"))
        assert "script" not in page.tags
        assert page.text.count(name) >= 4
        assert page.text.count("$loss$") >= 4

    def test_without_matplotlib(self, read, monkeypatch):
        found = lo.plots._sweep_report.importlib.util.find_spec
        missing = {"matplotlib", "sklearn"}
        monkeypatch.setattr(
            lo.plots._sweep_report.importlib.util,
            "find_spec",
            lambda name: None if name in missing else found(name),
        )
        page = read(_table({"a": np.arange(9.0), "loss": np.arange(9.0)}, ("a",)))
        assert "pip install 'lossopt[plots]'" in page.text
        assert "pip install 'lossopt[sweeps]'" in page.text
        assert "svg" not in page.tags
