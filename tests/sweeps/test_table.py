"""What came of a sweep: ranks, means over repetitions, intervals, importance, files."""

import csv
import dataclasses
import sys

import numpy as np
import pytest

import lossopt as lo
from lossopt.sweeps import _cells
from lossopt.sweeps._importance import ranks
from lossopt.sweeps._rulers import ruler


def _table(columns, score="loss", scores=("loss",), **options):
    fixed = {"id", "setting", "status", "seconds", "steps", *scores}
    names = tuple(name for name in columns if name not in fixed and "@" not in name)
    return lo.sweeps.Table(columns, score, names, scores, **options)


LOSSES = [0.5, np.nan, 0.2, -np.inf, 0.2, 0.9, np.nan]


@pytest.fixture
def table():
    """Seven trials: two diverged, one waits, two are equally good."""
    status = ["finished", "diverged", "finished", "diverged", "finished", "finished", "waiting"]
    return _table(
        {
            "id": np.array([3, 4, 9, 6, 7, 8, 5]),
            "rate": np.float32([0.1, 10, 0.03, 3, 0.01, 0.3, 1]),
            "rule": np.array(["adam", "sgd", None, "sgd", np.tanh, "adam", "sgd"], object),
            "momentum": [np.nan, 0.9, np.nan, 0.5, np.nan, np.nan, 0.1],
            "loss": LOSSES,
            "accuracy": [0.7, 0.1, 0.8, 0.2, 0.9, 0.6, np.nan],
            "status": np.array(status, object),
        },
        scores=("loss", "accuracy"),
    )


@pytest.fixture
def repeated():
    """Four settings under three keys; one diverged once, one waits once."""
    draws = np.random.default_rng(0)
    losses = draws.uniform(1, 2, (4, 3)) + np.array([[0.5], [0.0], [3.0], [0.2]])
    losses[1, 0] = 0.1  # the luckiest key of a setting that is not the best
    losses[1, 1] = 9.0
    losses[2, 1], losses[3, 2] = np.inf, np.nan
    status = np.full((4, 3), "finished", object)
    status[2, 1], status[3, 2] = "diverged", "waiting"
    settings = np.array([5, 2, 7, 0])
    columns = {
        "id": (settings[:, None] + 8 * np.arange(3)).ravel(),
        "setting": np.repeat(settings, 3),
        "rate": np.repeat([0.1, 0.2, 0.3, 0.4], 3),
        "rule": np.repeat(np.array(["a", "b", "c", "d"], object), 3),
        "fold": np.tile([0, 1, 2], 4),
        "mask": np.tile(np.eye(3, dtype=bool), (4, 1)),
        "loss": losses.ravel(),
        "status": status.ravel(),
        "seconds": np.arange(12.0),
    }
    return _table(columns), losses


@pytest.fixture(scope="module")
def draws():
    draws = np.random.default_rng(0)
    rules = np.array(["adam", "sgd", "lion"], object)
    columns = {name: draws.uniform(size=48) for name in ("a", "b")}
    return columns | {"rule": rules[draws.integers(0, 3, 48)]}


class TestRank:
    def test_lowest_first_equals_by_id_then_diverged_then_waiting(self, table):
        assert table["id"][table.rank()].tolist() == [7, 9, 3, 8, 4, 6, 5]

    def test_highest_first(self, table):
        highest = dataclasses.replace(table, maximize=True)
        assert highest["id"][highest.rank()].tolist() == [8, 3, 7, 9, 4, 6, 5]

    def test_by_another_score(self, table):
        other = dataclasses.replace(table, score="accuracy", maximize=True)
        assert other["id"][other.rank()].tolist() == [7, 9, 3, 8, 4, 6, 5]
        lost = table.columns | {"accuracy": np.where(table["id"] == 8, np.inf, table["accuracy"])}
        other = dataclasses.replace(other, columns=lost)
        assert other["id"][other.rank()].tolist() == [7, 9, 3, 4, 6, 8, 5]

    def test_sort_leaves_the_table_as_it_is(self, table):
        ordered = table.sort()
        assert ordered["loss"][:4].tolist() == [0.2, 0.2, 0.5, 0.9]
        assert ordered["rate"][0] == np.float32(0.01)
        assert table["id"].tolist() == [3, 4, 9, 6, 7, 8, 5]

    def test_sort_by_a_column(self, table):
        assert table.sort("rate")["id"].tolist() == [7, 9, 3, 8, 5, 6, 4]
        assert table.sort("momentum")["id"].tolist() == [5, 6, 4, 3, 7, 8, 9]
        assert table.sort("status")["status"].tolist()[:3] == ["diverged", "diverged", "finished"]
        apart = _table({"rate": [1, 2, 3], "loss": [-1e10, 2e-12, 1e-12]})
        assert apart.sort("loss")["rate"].tolist() == [1, 3, 2]
        with pytest.raises(ValueError, match="'mask' of arrays"):
            _table({"mask": np.eye(2), "loss": [1.0, 2.0]}).sort("mask")


class TestBest:
    def test_python_numbers_of_the_fewest_digits_without_what_is_missing(self, table):
        best = table.best
        assert best["rate"] == 0.01
        assert type(best["rate"]) is float
        assert type(best["id"]) is int
        assert best["rule"] is np.tanh
        assert "momentum" not in best
        assert best["accuracy"] == 0.9

    def test_an_option_may_be_none(self, table):
        assert table[2]["rule"] is None

    def test_with_repetitions_the_luckiest_key_does_not_win(self, repeated):
        table, losses = repeated
        assert np.argmin(np.where(np.isfinite(losses), losses, np.inf).min(axis=1)) == 1
        best = table.best
        assert best["rate"] == 0.1
        assert best["loss"] == pytest.approx(losses[0].mean())
        assert best["repeats"] == 3

    def test_where_nothing_is_finite(self, table):
        with pytest.raises(ValueError, match="finite loss, got 2 that diverged and 1 that wait"):
            table[[1, 3, 6]].best  # noqa: B018 -- that it raises is what is tested

    def test_the_state(self, table):
        assert dataclasses.replace(table, state={"w": 1}).best_state == {"w": 1}
        with pytest.raises(ValueError, match=r"lossopt\.sweeps\.Task"):
            table.best_state  # noqa: B018 -- that it raises is what is tested

    def test_a_part_has_no_state_of_another_row(self, table):
        table = dataclasses.replace(table, state={"w": 1}, state_id=7)
        assert table.sort().best_state == table[2:].best_state == {"w": 1}
        for other in (table[:3], dataclasses.replace(table, maximize=True)):
            with pytest.raises(ValueError, match="state of trial"):
                other.best_state  # noqa: B018 -- that it raises is what is tested

    def test_the_state_of_the_best_repetition_of_the_best_setting(self, repeated):
        table, losses = repeated
        best = 5 + 8 * int(np.argmin(losses[0]))
        table = dataclasses.replace(table, state={"w": 1}, state_id=best)
        assert table.best_state == table.mean().best_state == {"w": 1}
        lucky = dataclasses.replace(table, state_id=2)
        for other in (lucky, lucky.mean(), dataclasses.replace(table, state_id=best % 24 + 8)):
            with pytest.raises(ValueError, match=r"Run trial \d+ again"):
                other.best_state  # noqa: B018 -- that it raises is what is tested


class TestMean:
    def test_equals_numpy(self, repeated):
        table, losses = repeated
        mean = table.mean()
        assert mean["id"].tolist() == [5, 2, 7, 0]
        wanted = [*losses[:2].mean(axis=1), np.inf, losses[3, :2].mean()]
        assert np.allclose(mean["loss"], wanted)
        errors = np.std(losses[:2], axis=1, ddof=1) / np.sqrt(3)
        assert np.allclose(mean["loss/error"][:2], errors)
        assert np.isclose(mean["loss/error"][3], abs(losses[3, 0] - losses[3, 1]) / 2)
        assert mean["repeats"].tolist() == [3, 3, 3, 2]
        assert mean["status"].tolist() == ["finished", "finished", "diverged", "waiting"]
        assert mean["seconds"].tolist() == [3, 12, 21, 19]

    def test_what_diverged_and_waits_has_diverged(self):
        status = np.array(["waiting", "diverged"], object)
        losses = {"setting": [0, 0], "loss": [np.nan, np.nan], "status": status}
        assert _table(losses).mean()["status"].tolist() == ["diverged"]

    def test_what_waits_at_a_rung_has_not_come_to_its_end(self):
        """Of repetitions one came to the second rung, so that the setting did not."""
        columns = {
            "setting": [0, 0, 1, 1],
            "loss": [1.0, 2.0, 3.0, 4.0],
            "loss@1": [1.0, 2.0, 3.0, 4.0],
            "loss@3": [0.5, np.nan, np.nan, np.nan],
            "steps": [3, 1, 1, 1],
            "status": np.array(["waiting", "stopped", "waiting", "waiting"], object),
        }
        mean = _table({name: np.asarray(x) for name, x in columns.items()}).mean()
        assert mean["status"].tolist() == ["waiting", "waiting"]
        assert mean["steps"].tolist() == [1, 1]
        assert mean["loss@1"].tolist() == [1.5, 3.5]
        assert len(mean.at(3)) == 0
        assert mean["repeats"].tolist() == [1, 0]
        assert np.isnan(mean["seconds"]).all()

    def test_ranks_what_waits_behind(self, repeated):
        assert repeated[0].mean().sort()["id"].tolist() == [5, 2, 7, 0]

    def test_what_differs_among_repetitions_is_left_out(self, repeated):
        assert repeated[0].mean().names == ("rate", "rule")
        assert not {"fold", "mask"} & set(repeated[0].best)

    def test_without_repetitions(self, table):
        mean = table.mean()
        assert np.array_equal(
            mean["loss"], np.where(mean["id"] == 5, np.nan, LOSSES), equal_nan=True
        )
        assert np.all(np.isnan(mean["loss/error"]))
        assert mean.names == table.names  # NaN is NaN, a setting is one

    def test_what_none_of_a_setting_has_is_shared(self):
        columns = {"setting": [0, 0, 1, 1], "rate": [1.0, 1.0, 2.0, 2.0], "loss": np.ones(4)}
        columns |= {"momentum": [np.nan, np.nan, 0.5, 0.5]}
        mean = _table(columns, scales={"rate": "log"}).mean()
        assert mean.names == ("rate", "momentum")
        assert mean.scales["rate"] == "log"

    def test_again_is_the_same(self, repeated):
        mean = repeated[0].mean()
        assert not mean.repeated
        assert mean.best == repeated[0].best


class TestColumns:
    def test_ids_statuses_and_seconds_may_be_left_out(self):
        table = _table({"loss": [1.0, np.nan], "rate": [1.0, 2.0]})
        assert list(table.columns) == ["id", "rate", "loss", "status", "seconds"]
        assert table["id"].tolist() == [0, 1]
        assert table["status"].tolist() == ["finished", "diverged"]
        assert table["status"].dtype == object

    def test_rows(self, table):
        assert table[2:4]["id"].tolist() == [9, 6]
        assert table[table["status"] == "waiting"]["id"].tolist() == [5]
        assert table[np.array([5, 0])]["id"].tolist() == [8, 3]
        assert table[-1]["id"] == table[6]["id"] == 5
        assert len(table[:0]) == 0

    def test_a_part_keeps_its_scales(self):
        table = _table({"rate": [1e-4, 1e-2, 1.0], "loss": [1.0, 2.0, 3.0]})
        assert table.scales == table[:1].scales == {"rate": "log"}

    def test_a_scale_may_be_given(self):
        table = _table({"rate": [1.0, 2.0], "loss": [1.0, 2.0]}, scales={"rate": "log"})
        assert table.scales == {"rate": "log"}

    @pytest.mark.parametrize(
        ("values", "scale"),
        [
            (np.geomspace(1e-5, 1e-1, 9), "log"),
            ([16, 32, 64], "log"),  # a geometric series
            (10 ** np.random.default_rng(0).uniform(-4, 0, 50), "log"),
            (np.random.default_rng(0).uniform(0, 1, 500), "linear"),  # whose lowest is close to 0
            ([1, 2, 3], "linear"),
            ([10.0, 10.1, 10.2], "linear"),  # whose ratios are nearly equal, too
            ([0.0, 0.01, 1.0], "linear"),
            ([1.0, np.nan, 1000.0, 10.0], "log"),
            ([1.0, 2.0], "linear"),  # two are no series
            ([1.0, 2.0, 100.0], "log"),
            ([1.0, 2.0, 99.0], "linear"),
            ([0.01, 0.3, 0.5, 1.0], "linear"),  # wide, but half of them are close to the highest
            ([True, False], "options"),
            (np.array(["a", 1], object), "options"),
            (np.ones((3, 2)), "options"),
        ],
    )
    def test_scales_are_guessed(self, values, scale):
        assert _cells.scale(np.asarray(values)) == scale

    def test_no_such_column(self, table):
        with pytest.raises(KeyError, match="no column 'los'; there are id, rate"):
            table["los"]

    @pytest.mark.parametrize(
        ("columns", "names", "scores", "message"),
        [
            ({"rate": [1.0]}, ("rate",), ("loss",), "Expected a column 'loss'; there are rate"),
            ({"loss": [1.0], "id": [0]}, ("id",), ("loss",), "Expected another name than 'id'"),
            ({"loss": [1.0]}, (), ("loss", "seconds"), "name than 'seconds' of a score"),
            ({"loss": [1.0]}, ("loss",), ("loss",), "got 'loss' as both"),
            (
                {"loss": [1.0], "loss/error": [1.0]},
                (),
                ("loss", "loss/error"),
                "no column 'loss/error' beside the score 'loss'",
            ),
            (
                {"loss": [1.0], "loss/error": [1.0]},
                ("loss/error",),
                ("loss",),
                "no column 'loss/error",
            ),
            ({"loss": [1.0], "x": [1.0, 2]}, ("x",), ("loss",), r"each trial, got loss \(1,\), x"),
            ({"loss": 1.0}, (), ("loss",), r"each trial, got loss \(\)"),
            ({"loss": [1.0], "x": [1.0]}, (), ("loss",), "'x' among names or scores"),
            ({"error": [1.0]}, (), ("error",), "score as one of 'error', got 'loss'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, columns, names, scores, message):
        with pytest.raises(ValueError, match=message):
            lo.sweeps.Table(columns, "loss", names, scores)


def test_names_like_those_at_rungs_without_rungs():
    """Of a hyperparameter or a score of its own, which no rung made."""
    columns = {"rate": [1.0, 2.0, 3.0], "rate@9": [4.0, 5.0, 1.5], "recall@5": [0.0, 1.0, 2.0]}
    columns |= {"recall": [0.1, 0.9, 0.2], "recall@10": [0.3, 0.2, 0.1]}
    columns |= {"steps": [3, 4, 5]}
    names, scores = ("rate", "rate@9", "recall@5", "steps"), ("recall", "recall@10")
    table = lo.sweeps.Table(columns, "recall", names, scores, maximize=True)
    assert table.rank().tolist() == [1, 2, 0]
    assert table.mean()["recall@10"].tolist() == columns["recall@10"]
    assert table.best["recall@5"] == 1
    good = table.interval("rate", within=0)
    assert (good.below, good.low, good.above) == (1, 2, 3)
    with pytest.raises(ValueError, match=r"got 5\. There are none"):
        table.at(5)


def test_what_a_trial_has_not():
    column = np.empty(3, object)
    column[0], column[1] = np.full(2, np.nan), np.nan
    assert _cells.missing(column).tolist() == [False, True, False]
    assert _cells.missing(np.full((2, 3), np.nan)).tolist() == [False, False]


class TestInterval:
    RATES = np.float32([0.001, 0.01, 0.1, 1.0, 10.0, 100.0])

    def test_a_limit_is_rounded_as_the_scores_are(self):
        scores = np.array(
            [0.3, 0.1, 0.9, 0.7], np.float32
        )  # 0.1 of float32 is more, 0.9 and 0.7 are less
        table = _table({"rate": [1, 2, 3, 4], "loss": scores})
        assert table.interval("rate", within=0).good == 1
        assert table.interval("rate", limit=0.3).good == 2
        highest = dataclasses.replace(table, maximize=True)
        assert highest.interval("rate", limit=0.7).good == 2

    def test_from_the_lowest_good_value_to_the_highest(self):
        table = _table({"rate": self.RATES, "loss": [3.0, 1.09, 1.3, 1.0, 1.11, np.nan]})
        good = table.interval("rate")
        assert (good.low, good.high, good.below, good.above) == (0.01, 1.0, 0.001, 10.0)
        assert (good.good, good.inside) == (2, 3)
        assert good.limit == pytest.approx(1.1)
        assert good.decades == pytest.approx(2)
        assert str(good) == (
            "rate 0.01 to 1, 2 decades: 2 of 3 settings there have a loss of at most 1.1"
        )

    def test_what_was_stopped_at_a_rung_is_counted_apart(self):
        ends = np.array(["stopped", "finished", "stopped", "finished", "stopped", "diverged"])
        scores = [1.0, 1.09, 1.05, 1.0, 1.0, np.nan]
        good = _table({"rate": self.RATES, "loss": scores, "status": ends}).interval("rate")
        assert (good.low, good.high, good.below, good.above) == (0.01, 1.0, 0.001, 10.0)
        assert (good.good, good.inside, good.stopped) == (2, 3, 1)
        assert "2 of 3 settings there (1 of them stopped at a rung) have a loss" in str(good)

    def test_at_the_ends_of_what_was_tried_it_says_so(self):
        table = _table({"rate": self.RATES, "loss": [1.0, 1.2, 1.1, 1.0, 1.0, 1.2]})
        good = table.interval("rate", within=0.5)
        assert np.isnan(good.below)
        assert np.isnan(good.above)
        assert "(the least and the most that was tried)" in str(good)

    def test_highest_is_best(self):
        accuracy = [0.1, 0.85, 0.9, 0.8, -np.inf, np.inf]
        table = _table({"rate": self.RATES, "loss": accuracy}, maximize=True)
        good = table.interval("rate")  # from 0.81 on
        assert (good.low, good.high) == (0.01, 0.1)
        assert "at least 0.81" in str(good)

    def test_scores_below_0(self):
        table = _table({"rate": self.RATES, "loss": [-10.0, -9.5, -8.9, 0.0, 1.0, 2.0]})
        assert table.interval("rate").high == 0.01
        assert table.interval("rate").limit == pytest.approx(-9)

    def test_a_limit_of_ones_own_for_a_part(self):
        table = _table({"rate": self.RATES, "loss": [3.0, 2.0, 1.0, 2.0, 3.0, 4.0]})
        good = table[3:].interval("rate", limit=3.0)
        assert (good.low, good.high, good.limit) == (1.0, 10.0, 3.0)
        with pytest.raises(ValueError, match="best of the table is 2"):
            table[3:].interval("rate", limit=1.0)

    def test_of_repeated_settings_the_mean_decides(self):
        columns = {"rate": [0.1, 0.1, 1.0, 1.0], "loss": [0.1, 2.0, 0.5, 0.5]}
        good = _table(columns | {"setting": [0, 0, 1, 1]}).interval("rate")
        assert (good.low, good.high, good.good) == (1.0, 1.0, 1)

    def test_only_trials_that_have_it_count(self):
        columns = {"rate": [0.1, np.nan, 0.3], "loss": [1.0, 0.2, 1.05]}
        good = _table(columns).interval("rate")
        assert (good.low, good.high) == (0.1, 0.3)

    def test_only_of_numbers(self, table):
        for name in ("rule", "loss", "other"):
            with pytest.raises(ValueError, match=f"number, got {name!r}. There are rate, momentum"):
                table.interval(name)
        with pytest.raises(ValueError, match="Expected within >= 0"):
            table.interval("rate", within=-0.1)


class TestImportance:
    def test_one_of_three_matters(self, draws):
        columns = draws | {"loss": np.exp(30 * draws["b"])}  # of which one value rules the mean
        columns["loss"][draws["b"] > 0.9] = np.nan  # to diverge is the worst
        found = _table(columns).importance(repeats=4)
        assert next(iter(found)) == "b"
        assert found["b"][0] > 1
        assert abs(found["a"][0]) < 0.1
        assert abs(found["rule"][0]) < 0.1
        assert found["b"][1] > 0

    def test_of_ranks_in_which_to_diverge_is_the_worst(self, table):
        ran = table[:-1]  # equals share a rank
        assert ranks(ran, "loss").tolist() == [3, 5.5, 1.5, 5.5, 1.5, 4]
        highest = dataclasses.replace(ran, maximize=True)
        assert ranks(highest, "loss").tolist() == [2, 5.5, 3.5, 5.5, 3.5, 1]

    def test_equals_share_a_rank_where_trials_were_stopped(self):
        columns = {
            "loss": [2.0, 1.0, 1.0, 3.0, 3.0, np.nan, np.inf, 3.0],
            "loss@1": [2.0, 1.0, 1.0, 3.0, 3.0, np.nan, np.inf, 3.0],
            "steps": [9, 1, 1, 9, 9, 1, 9, 4],
            "status": [
                "finished",
                *["stopped"] * 2,
                *["finished"] * 2,
                *["diverged"] * 2,
                "stopped",
            ],
        }
        table = lo.sweeps.Table(columns, "loss", (), ("loss",))
        assert ranks(table, "loss").tolist() == [1, 5.5, 5.5, 2.5, 2.5, 7.5, 7.5, 4]

    def test_an_option_matters(self, draws):
        wanted = draws["rule"] == "lion"
        table = _table(draws | {"loss": wanted.astype(float)})
        found = table.importance(repeats=2)
        assert next(iter(found)) == "rule"
        assert table.importance(repeats=2) == found  # the same key draws the same
        assert table.importance(repeats=2, key=1) != found

    def test_of_another_score_and_of_none(self, draws):
        columns = draws | {"loss": draws["a"], "size": np.ones(48)}
        table = _table(columns, scores=("loss", "size"))
        assert table.importance("size") == dict.fromkeys(("a", "b", "rule"), (0.0, 0.0))
        with pytest.raises(ValueError, match="score as one of 'loss', 'size', got 'a'"):
            table.importance("a")

    def test_of_too_few(self, draws):
        table = _table(draws | {"loss": draws["a"]})[:7]
        with pytest.raises(ValueError, match="at least 8 trials with a finite loss, got 7"):
            table.importance()

    def test_where_nothing_differs(self):
        with pytest.raises(ValueError, match="differs among the trials, and none does"):
            _table({"a": np.ones(9), "loss": np.arange(9.0)}).importance()

    def test_without_scikit_learn(self, draws, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
        with pytest.raises(ImportError, match=r"lossopt\[sweeps\]"):
            _table(draws | {"loss": draws["a"]}).importance()


class TestFiles:
    def test_csv(self, table, tmp_path):
        table.to_csv(tmp_path / "table.csv")
        rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
        assert [row["rate"] for row in rows[:3]] == ["0.1", "10.0", "0.03"]
        assert [row["rule"] for row in rows[2:5]] == ["None", "sgd", "tanh"]
        assert rows[0]["momentum"] == "nan"
        assert rows[-1]["status"] == "waiting"

    def test_arrays_are_left_out(self, repeated, tmp_path):
        repeated[0].to_csv(tmp_path / "table.csv")
        names = next(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
        assert names == ["id", "setting", "rate", "rule", "fold", "loss", "status", "seconds"]

    def test_pandas(self, table, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="to_pandas needs the package pandas"):
            table.to_pandas()
        frames = type("Frames", (), {"DataFrame": dict})
        monkeypatch.setitem(sys.modules, "pandas", frames)
        assert table.to_pandas()["loss"].tolist()[0] == 0.5

    def test_printed(self, table, repeated):
        head, names, *rows = repr(table).splitlines()
        assert head == (
            "Table: 7 trials, 4 finished, 2 diverged, 1 waiting; best is the lowest loss"
        )
        assert names.split() == ["id", "loss", "rate", "rule", "momentum", "accuracy", "status"]
        assert rows[0].split() == ["7", "0.2", "0.01", "tanh", "-", "0.9", "finished"]
        assert len(rows) == 5
        assert "loss/error" in repr(repeated[0])

    def test_printed_within_a_width(self):
        names = [f"hyperparameter_{number}" for number in range(9)]
        table = _table({name: [1.0, 2.0] for name in names} | {"loss": [1.0, 2.0]})
        *lines, left = repr(table).splitlines()
        assert max(map(len, lines)) <= 96
        assert left.startswith("and hyperparameter_4, ")


class TestRuler:
    def test_positions(self):
        assert ruler(np.array([1e-4, 1.0]), "log").at([1e-4, 1e-2, 1.0]).tolist() == [0, 0.5, 1]
        assert ruler(np.array([2, 6]), "linear").at([3, np.nan])[0] == 0.25
        assert np.isnan(ruler(np.array([2, 6]), "linear").at([3, np.nan])[1])
        assert ruler(np.array([2.0, 2.0]), "linear").at([2.0]).tolist() == [0.5]

    def test_options_in_order_of_the_alphabet_or_of_the_trials(self):
        column = np.array(["b", "a", np.nan, "c"], object)
        on = ruler(column, "options")
        assert on.options == ("a", "b", "c")
        assert np.array_equal(on.at(column), [0.5, 0, np.nan, 1], equal_nan=True)
        assert ruler(np.array([None, "a", 3], object), "options").options == (None, "a", 3)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (1024, "1024"), (0.003, "0.003"), (3e-5, "3e-5"), (1.25e-7, "1.25e-7"), (0, "0"),
        (123.456, "123"), (54321.5, "54322"), (1e9, "1e9"), (-0.25, "-0.25"), (np.inf, "inf"),
        (np.nan, "-"), (0.001, "0.001"), (999999, "999999"), (1234567, "1.23e6"),
    ],
)  # fmt: skip
def test_numbers_in_few_letters(x, text):
    assert _cells.number(x) == text


def test_numbers_of_a_table_have_four_digits():
    assert _cells.word(np.float32(0.123456)) == "0.1235"


def test_a_score_that_repeats_another_is_told_once():
    columns = {"rate": [0.1, 1.0], "loss": [1.0, 2.0], "value": [1.0, 2.0], "fit": [0.5, 2.0]}
    table = lo.sweeps.Table(columns, "loss", names=("rate",), scores=("loss", "value", "fit"))
    assert str(table).splitlines()[1].split() == ["id", "loss", "rate", "fit", "status"]
