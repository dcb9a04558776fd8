"""Trials of a sampler: rows are those of trials drawn beforehand, and nothing is asked twice."""

import shutil
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

import lossopt as lo
from lossopt import sweeps
from lossopt.sweeps import _host
from lossopt.sweeps._asked import Asked
from lossopt.sweeps._calls import Calls
from tests.counted import counted
from tests.sweeps.runs import KEY, RUN, TASK, VALUES, always, same, sweep, task

N, CHUNK = 10, 4
MASKS = VALUES["mask"][:3]
SPACE = {
    "rate": sweeps.Log(1e-3, 0.2),
    "decay": sweeps.Linear(0, 0.5),
    "mask": sweeps.Choice(MASKS),
}
WAYS = {"sequential": {"mode": "sequential"}, "vmap": {"mode": "vmap", "chunk": 4}}
RUNS = {"run": RUN, "task": TASK}


class Search:
    """Draws around the best row so far; what it asks depends on the rows it was told alone."""

    def __init__(self):
        self.asked, self.told, self.rows = [], [], []

    def ask(self, count):
        self.asked.append(count)
        random, best = np.random.default_rng(len(self.rows)), 0.01
        if self.rows:
            best = min(self.rows, key=lambda row: row["loss"])["rate"]
        rates = np.clip(best * np.exp(random.normal(size=count)), 1e-3, 0.2)
        masks, decays = random.integers(3, size=count), random.uniform(0, 0.5, count)
        of = lambda i: {"mask": MASKS[masks[i]], "decay": decays[i], "rate": float(rates[i])}
        return [of(i) for i in range(count)]

    def tell(self, rows):
        self.told.append([row["id"] for row in rows])
        self.rows += rows

    def trials(self, n=N, chunk=CHUNK):
        return sweeps.suggest(SPACE, self.ask, self.tell, n, chunk=chunk)


def _plain(table, names=tuple(SPACE)):
    """The trials of a table, drawn beforehand."""
    return {name: table[name] for name in names}


@pytest.fixture(scope="module")
def whole():
    """Tables that nobody interrupted."""
    return {
        (name, way): sweep(RUNS[name], Search().trials(), **WAYS[way])
        for name in RUNS
        for way in WAYS
    }


class TestRows:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", RUNS)
    def test_are_those_of_trials_drawn_beforehand(self, whole, name, way):
        table = whole[name, way]
        plain = sweep(RUNS[name], _plain(table), **WAYS[way])
        same(table, plain)
        assert len(table) == N
        assert table.work == plain.work
        assert (table.state is not None) == (name == "task")

    def test_are_told_once_in_their_order(self, capsys):
        search, seen = Search(), []
        table = sweep(RUN, search.trials(), on_row=seen.append, progress=True, **WAYS["sequential"])
        assert "trials 10/10" in capsys.readouterr().err
        assert search.asked == [4, 4, 2]
        assert search.told == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        want = [table[row] for row in range(N)]
        np.testing.assert_equal(search.rows, want)
        np.testing.assert_equal(seen, want)
        assert table.scales["rate"] == "log"

    def test_of_scores_that_are_not_finite_are_told(self):
        told = []
        ask = lambda count: [{"x": 0.25}, {"x": 0.75}]
        run = lambda numbers, key: jnp.log(numbers["x"] - 0.5)
        space = {"x": sweeps.Linear(0, 1)}
        table = sweep(run, sweeps.suggest(space, ask, told.extend, 2), mode="sequential")
        assert [row["status"] for row in told] == ["diverged", "finished"]
        assert table.best["x"] == 0.75

    def test_on_several_devices(self, whole):
        mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
        same(sweep(TASK, Search().trials(), mesh=mesh, **WAYS["vmap"]), whole["task", "vmap"])

    def test_of_a_sampler_that_knows_nothing_of_sweeps(self):
        engine = qmc.Halton(2, rng=np.random.default_rng(0))
        points = qmc.Halton(2, rng=np.random.default_rng(0)).random(7).astype(np.float32)
        space = {"x": sweeps.Linear(0, 1), "y": sweeps.Linear(0, 1)}
        ask = lambda count: [dict(zip("xy", point)) for point in engine.random(count)]
        run = lambda numbers, key: numbers["x"] - numbers["y"]
        trials = sweeps.suggest(space, ask, lambda rows: None, 7, chunk=3)
        table = sweep(run, trials, mode="sequential")
        assert np.stack([table["x"], table["y"]], 1).tolist() == points.tolist()
        assert table.best["id"] == np.argmin(points[:, 0] - points[:, 1])


class TestPrograms:
    @pytest.mark.parametrize("way", WAYS)
    def test_one_serves_all_chunks(self, way):
        counts = []
        for extra, n in ((0.31, CHUNK), (0.32, N)):
            with counted() as seen:
                sweep(task(extra=extra), Search().trials(n), **WAYS[way])
            counts.append((seen.traces, seen.compiled))
        assert counts[0] >= counts[1]
        assert counts[1][1] > 0

    def test_the_form_is_settled_once_for_a_share_of_a_chunk(self, monkeypatch):
        settled, counts = _host.settled, []

        def spy(wanted, trial, values, count, timed):
            counts.append((trial.statics, count))
            return settled(wanted, trial, values, count, timed)

        monkeypatch.setattr(_host, "settled", spy)
        options = iter([1, 1, 1, 1, 2, 1, 1, 1])
        ask = lambda count: [{"x": 0.5, "width": next(options)} for _ in range(count)]
        space = {"x": sweeps.Linear(0, 1), "width": sweeps.Static((1, 2))}
        run = lambda numbers, key: jnp.sum(numbers["x"] * jnp.ones(numbers["width"]))
        trials = sweeps.suggest(space, ask, lambda rows: None, 8, chunk=3)
        table = sweep(run, trials, mode="vmap")
        assert table["loss"].tolist() == [0.5] * 4 + [1.0] + [0.5] * 3
        assert counts == [((("width", 1),), 3), ((("width", 2),), 2)]

    def test_a_task_looks_at_each_group_once(self, tmp_path):
        seen = []
        run = sweeps.Task(
            lambda numbers, key: numbers["x"],
            lambda state, steps: state,
            lambda state: state,
            steps=1,
            check=lambda numbers, key: seen.append((numbers["of"](1), float(numbers["x"]))),
        )
        # Two functions of one name, the second of which comes later.
        options = [lambda x: x, lambda x: -x]
        space = {"x": sweeps.Linear(0, 1), "of": sweeps.Static(options)}
        given = [{"x": i / 8, "of": options[i in (3, 4)]} for i in range(6)]

        asking = iter(given)
        ask = lambda count: [next(asking) for _ in range(count)]
        stop = lambda row: signal.raise_signal(signal.SIGINT) if row["id"] == 2 else None
        common = {"mode": "sequential", "checkpoint": tmp_path}
        for on_row in (stop, None):
            trials = sweeps.suggest(space, ask, lambda rows: None, 6, chunk=2)
            table = sweep(run, trials, on_row=on_row, **common)
            latest = lo.checkpoint.Checkpoints(tmp_path).latest()
            facts = latest.note["sweep"]["facts"] if latest and latest.note else {}
            assert sum(name.startswith("trials of") for name in facts) == 2
        assert table["of"].tolist() == [one["of"] for one in given]
        assert table["x"].tolist() == [one["x"] for one in given]
        assert seen == [(1, 0), (-1, 3 / 8), (-1, 3 / 8)]


def _stopping(*ids):
    def stop(row):
        if row["id"] in ids:
            signal.raise_signal(signal.SIGINT)

    return stop


class TestGoesOn:
    @pytest.mark.parametrize(("name", "way"), [("run", "sequential"), ("task", "vmap")])
    def test_after_ctrl_c(self, whole, name, way, tmp_path):
        begun, options = 0, {"checkpoint": tmp_path, **WAYS[way]}
        for stop in (1, 5):
            search = Search()
            table = sweep(RUNS[name], search.trials(), on_row=_stopping(stop), **options)
            ran = table["status"] != "waiting"
            assert begun < ran.sum() < N
            assert not begun or search.told[0] == [*range(begun)]
            begun = int(ran.sum())
        search = Search()
        same(sweep(RUNS[name], search.trials(), **options), whole[name, way])
        assert search.told[0] == [*range(begun)]
        assert [id for ids in search.told for id in ids] == [*range(N)]
        assert sum(search.asked) == N - len(table)

    def test_nothing_is_asked_for_after_ctrl_c(self):
        search = Search()
        table = sweep(RUN, search.trials(), on_row=_stopping(CHUNK - 1), **WAYS["vmap"])
        assert table["status"].tolist() == ["finished"] * CHUNK
        assert search.asked == [CHUNK]
        assert search.told == [[*range(CHUNK)]]

    def test_from_what_was_on_the_disk_when_a_row_came(self, whole, tmp_path):
        """As after `kill -9`: what was asked for is there before anybody sees what came of it."""

        def copied(row):
            shutil.copytree(tmp_path / "run", tmp_path / str(row["id"]))

        options = WAYS["sequential"]
        sweep(RUN, Search().trials(), checkpoint=tmp_path / "run", on_row=copied, **options)
        for row in (0, 7):
            search = Search()
            found = sweep(RUN, search.trials(), checkpoint=tmp_path / str(row), **options)
            same(found, whole["run", "sequential"])
            assert sum(search.asked) == N - min(N, row // CHUNK * CHUNK + CHUNK)

    def test_after_ctrl_c_in_the_sampler(self, whole, tmp_path):
        options, search = {"checkpoint": tmp_path, **WAYS["vmap"]}, Search()

        def ask(count):
            if search.rows:
                signal.raise_signal(signal.SIGINT)
            return search.ask(count)

        table = sweep(RUN, sweeps.suggest(SPACE, ask, search.tell, N, chunk=CHUNK), **options)
        assert table["status"].tolist() == ["finished"] * 4 + ["waiting"] * 4
        assert not np.isnan(table["rate"]).any()
        search = Search()
        same(sweep(RUN, search.trials(), **options), whole["run", "vmap"])
        assert search.asked == [2]

    def test_within_a_trial(self, whole, tmp_path):
        run, begun = Calls.run, []

        def cut(self, form, rows, within, until, goes_on):
            begun.append(0 if within is None else within.done)

            def asked(under):
                if under.done == 6 and 5 in self.ids[under.rows]:
                    signal.raise_signal(signal.SIGINT)
                return goes_on(under)

            return run(self, form, rows, within, until, asked)

        options = {"checkpoint": tmp_path, **WAYS["vmap"]}
        with mock.patch.multiple(Calls, run=cut, _count=lambda self, left: min(left, 3)):
            assert (sweep(TASK, Search().trials(), **options)["status"] == "waiting").sum() == 4
            same(sweep(TASK, Search().trials(), **options), whole["task", "vmap"])
        assert begun == [0, 0, 6, 0]

    def test_with_more_trials_and_not_with_fewer(self, tmp_path):
        options = {"checkpoint": tmp_path, **WAYS["vmap"]}
        want = sweep(RUN, Search().trials(12), **WAYS["vmap"])
        for n, asked in ((8, 2), (12, 1), (12, 0)):
            search = Search()
            table = sweep(RUN, search.trials(n), **options)
            assert len(search.asked) == asked
        same(table, want)
        with pytest.raises(ValueError, match=r"holds 12 trials that were suggested.* got 11"):
            sweep(RUN, Search().trials(11), **options)

    def test_checkpoints_stay_open_and_a_directory_does_not(self, whole, tmp_path, monkeypatch):
        closed, close = [], lo.checkpoint.Checkpoints.close
        spy = lambda self: closed.append(self) or close(self)
        monkeypatch.setattr(lo.checkpoint.Checkpoints, "close", spy)
        with lo.checkpoint.Checkpoints(tmp_path) as checkpoints:
            options = {"checkpoint": checkpoints, **WAYS["vmap"]}
            sweep(RUN, Search().trials(CHUNK), **options)
            assert not closed
        same(
            sweep(RUN, Search().trials(), checkpoint=tmp_path, **WAYS["vmap"]), whole["run", "vmap"]
        )
        assert len(set(map(id, closed))) == 3

    def test_a_form_is_saved_with_what_was_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_host, "compiled", mock.Mock(side_effect=KeyError("of the machine")))
        with pytest.raises(KeyError, match="of the machine"):
            sweep(RUN, Search().trials(), checkpoint=tmp_path, **WAYS["vmap"])
        latest = lo.checkpoint.Checkpoints(tmp_path).latest()
        assert latest is not None
        assert latest.note is not None
        assert list(latest.note["sweep"]["settled"].values()) == [["vmap", 4]]

    def test_when_time_is_up(self, whole, tmp_path):
        options = {"checkpoint": tmp_path, **WAYS["vmap"]}
        with mock.patch.object(_host, "settled", None):  # for what does not begin
            table = sweep(RUN, Search().trials(), timeout=1e-9, **options)
        assert table["status"].tolist() == ["waiting"] * 4
        search = Search()
        same(sweep(RUN, search.trials(), **options), whole["run", "vmap"])
        assert search.asked == [4, 2], "the first were saved"

    def test_an_error_of_the_sampler_leaves_what_was_saved(self, whole, tmp_path):
        options, search = {"checkpoint": tmp_path, **WAYS["vmap"]}, Search()

        def tell(rows):
            search.tell(rows)
            if len(search.rows) == 8:
                raise KeyError("of the sampler")

        with always(), pytest.raises(KeyError, match="of the sampler"):
            sweep(RUN, sweeps.suggest(SPACE, search.ask, tell, N, chunk=CHUNK), **options)
        search = Search()
        same(sweep(RUN, search.trials(), **options), whole["run", "vmap"])
        assert search.told == [[*range(8)], [8, 9]]


OPTIONS = sweeps.Static(("adam", 2))
ONE = {"rate": 0.1, "count": 3, "of": 16, "near": 0.9, "rule": "adam"}
RANGES = {
    "rate": sweeps.Log(0.01, 1),
    "count": sweeps.Integer(1, 9),
    "of": sweeps.Choice([16, 32]),
    "near": sweeps.Choice([0.1, 0.9]),
    "rule": OPTIONS,
}
REFUSED = {
    "a number": ([3, 4], r"trial 0 a dict of \['rate', 'count', 'of', 'near', 'rule'\], got 3"),
    "none": (None, r"ask\(2\) to return a list of 2 dicts, got NoneType"),
    "a generator": ((one for one in [ONE, ONE]), r"a list of 2 dicts, got generator"),
    "too few": ([ONE], r"a list of 2 dicts, got list of 1"),
    "a name less": ([ONE, {"rate": 0.1}], r"give trial 1 a dict .* got \['rate'\]"),
    "a name more": ([ONE, {**ONE, "x": 1}], r"trial 1 .* got \['rate', .* 'x'\]"),
    "too high": ([ONE, {**ONE, "rate": 1.5}], r"trial 1 a value of 'rate' as a number.*got 1\.5"),
    "too low": ([{**ONE, "rate": 0.0}] * 2, r"trial 0 .*'rate' as a number from 0\.01 to 1\.0"),
    "nan": ([{**ONE, "rate": np.nan}] * 2, r"'rate' as a number .*got nan"),
    "a text": ([{**ONE, "rate": "0.1"}] * 2, r"'rate' as a number .*got '0\.1'"),
    "an array": ([{**ONE, "rate": np.ones(1)}] * 2, r"'rate' as a number .*got array"),
    "a part": ([{**ONE, "count": 2.5}] * 2, r"'count' as a whole number from 1 to 9, got 2\.5"),
    "too many": ([{**ONE, "count": 10}] * 2, r"'count' as a whole number from 1 to 9, got 10"),
    "a flag": ([{**ONE, "count": True}] * 2, r"'count' as a whole number .* got True"),
    "a flag of numpy": ([{**ONE, "rate": np.True_}] * 2, r"'rate' as a number .* got np\.True_"),
    "beyond all floats": ([{**ONE, "rate": 10**400}] * 2, r"'rate' as a number .*got 10000"),
    "no number": ([{**ONE, "near": "high"}] * 2, r"'near' among \[0\.1, 0\.9\], got 'high'"),
    "an array of a choice": ([{**ONE, "of": np.array([16])}] * 2, r"'of' among .*got array"),
    "no choice": ([{**ONE, "of": 16.5}] * 2, r"'of' among \[.*16.*32.*\], got 16\.5"),
    "no option": ([{**ONE, "rule": 2.0}] * 2, r"'rule' among \['adam', 2\], got 2\.0"),
}


OTHERS = [
    [sweeps.Choice([1, 2]), sweeps.Choice([1, 3]), sweeps.Choice([1, 2, 3])],
    [sweeps.Choice(np.arange(count) + first) for count, first in ((40, 0), (40, 1), (41, 0))],
    [sweeps.Choice(jax.random.split(jax.random.key(seed))) for seed in range(3)],
    [sweeps.Static(("a", 1)), sweeps.Static(("a", 2)), sweeps.Static(("a", 1, 2))],
]


class TestRefused:
    @pytest.mark.parametrize("case", REFUSED)
    def test_what_is_asked_for(self, case, tmp_path):
        given, said = REFUSED[case]
        trials = sweeps.suggest(RANGES, lambda count: given, print, 2)
        with pytest.raises(ValueError, match=said):
            sweep(lambda numbers, key: numbers["rate"], trials, checkpoint=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("wrong", [3, {**ONE, "rate": 2}])
    def test_later_trials_are_told_by_their_ids(self, wrong):
        trials = sweeps.suggest(RANGES, lambda count: [ONE, wrong], print, 8)
        with pytest.raises(ValueError, match="give trial 7 a"):
            trials.asked(2, 6)

    def test_arrays_and_keys_are_found_among_the_options(self):
        keys = jax.random.split(KEY, 3)
        space = {"mask": sweeps.Choice(MASKS), "key": sweeps.Choice(keys)}
        given = [
            {"mask": MASKS[2].tolist(), "key": keys[1]},
            {"mask": jnp.asarray(MASKS[0]), "key": jax.random.key_data(keys[2])},
        ]
        found = sweeps.suggest(space, lambda count: given, print, 2).asked(2, 0)
        assert found["mask"].tolist() == [2, 0]
        assert found["key"].tolist() == [1, 2]

    def test_ends_are_rounded_as_values_are(self):
        low, high = np.float32([0.01, 0.1]).tolist()
        assert low < 0.01
        assert high > 0.1
        ask = lambda count: [{"x": low}, {"x": high}]
        trials = sweeps.suggest({"x": sweeps.Linear(0.01, 0.1)}, ask, print, 2)
        assert trials.asked(2, 0)["x"].tolist() == [low, high]

    def test_numbers_of_any_library_are_taken(self):
        given = [
            {"rate": np.float64(0.01), "count": np.int64(9), "of": 32.0},
            {"rate": jnp.float32(1), "count": jnp.int32(1), "of": np.int64(16)},
        ]
        given = [one | {"near": 0.9, "rule": rule} for one, rule in zip(given, (2, "adam"))]
        trials = sweeps.suggest(RANGES, lambda count: given, lambda rows: None, 2)
        table = sweep(lambda numbers, key: numbers["rate"], trials, mode="sequential")
        assert table["rule"].tolist() == [2, "adam"]
        assert table["of"].tolist() == [32, 16]
        assert table["near"].tolist() == [np.float32(0.9)] * 2
        np.testing.assert_array_equal(table["rate"], np.float32([0.01, 1]))

    @pytest.mark.parametrize(
        ("error", "said", "options"),
        [
            (TypeError, "ask as a function", {"ask": 3}),
            (TypeError, "tell as a function", {"tell": None}),
            (ValueError, "n >= 1", {"n": 0}),
            (ValueError, "chunk >= 1", {"chunk": 0}),
            (TypeError, "Log, Linear, Integer, Choice or Static at 'rate'", {"space": {"rate": 1}}),
        ],
    )
    def test_what_is_no_sampler(self, error, said, options):
        given = {"space": SPACE, "ask": print, "tell": print, "n": 4} | options
        with pytest.raises(error, match=said):
            sweeps.suggest(**given)

    def test_rungs(self):
        search = Search()
        with pytest.raises(ValueError, match=r"drawn beforehand with rungs, got Suggest of 10"):
            sweep(TASK, search.trials(), rungs=sweeps.halving(N, TASK.steps))
        assert not search.asked

    @pytest.mark.parametrize("options", OTHERS)
    def test_other_options_are_another_space(self, options):
        facts = []
        for dimension in options:
            ask = lambda count: [{"x": dimension.options[0]}]  # noqa: B023 -- called at once
            suggest = sweeps.suggest({"x": dimension}, ask, print, 1)
            facts.append(Asked(suggest, None).facts["space"])
        assert len({*facts}) == 3

    def test_another_sweep(self, tmp_path):
        options = {"checkpoint": tmp_path / "run", **WAYS["vmap"]}
        sweep(RUN, Search().trials(CHUNK), **options)
        other = {**SPACE, "rate": sweeps.Log(1e-3, 0.3)}
        more = {**SPACE, "more": sweeps.Linear(0, 1)}
        search = Search()
        another = [
            (search.trials(chunk=2), "trials: was suggested, 4 at a time, is suggested, 2"),
            (sweeps.suggest(other, search.ask, print, N, chunk=CHUNK), r"space: was .*high=0\.2"),
            (sweeps.suggest(more, search.ask, print, N, chunk=CHUNK), r"space: was .*is .*more"),
            (VALUES, "trials: was suggested, 4 at a time, is nothing"),
        ]
        for trials, said in another:
            with pytest.raises(ValueError, match=f"holds another sweep(.|\n)*{said}"):
                sweep(RUN, trials, **options)
        options["checkpoint"] = tmp_path / "plain"
        sweep(RUN, VALUES, **options)
        with pytest.raises(ValueError, match=r"trials: was drawn before .*, is suggested"):
            sweep(RUN, search.trials(), **options)
        assert not search.asked
