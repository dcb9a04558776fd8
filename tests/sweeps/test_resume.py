"""A sweep that goes on ends in the table of one that nobody interrupted, or is refused."""

import dataclasses
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt import sweeps
from lossopt.sweeps import _host, _identity, _watch
from lossopt.sweeps._calls import Calls
from lossopt.sweeps._trial import Bound
from tests.sweeps.runs import (
    IDS,
    KEY,
    RUN,
    TASK,
    TRIALS,
    VALUES,
    always,
    failing,
    function,
    same,
    sweep,
    task,
)

WAYS = {"sequential": {"mode": "sequential"}, "vmap": {"mode": "vmap", "chunk": 4}}
RUNS = {"run": RUN, "task": TASK}


@pytest.fixture(scope="module")
def whole():
    """Tables that nobody interrupted."""
    return {(name, way): sweep(RUNS[name], **WAYS[way]) for name in RUNS for way in WAYS}


@pytest.fixture
def calls(monkeypatch):
    """The ids of the trials that ran, call by call."""
    seen, run = [], Calls.run

    def counted(self, form, rows, *args):
        seen.append(self.ids[rows].tolist())
        return run(self, form, rows, *args)

    monkeypatch.setattr(Calls, "run", counted)
    return seen


def _stopping(*ids):
    """Ctrl-C when one of these trials has come."""

    def stop(row):
        if row["id"] in ids:
            signal.raise_signal(signal.SIGINT)

    return stop


def _bytes(directory):
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _cut(step, **options):
    """A sweep that is interrupted when the trial of row 2 has taken so many steps."""
    run = Calls.run

    def cut(self, form, rows, within, until, goes_on):
        def asked(under):
            if under.done == step and 2 in self.ids[under.rows]:
                signal.raise_signal(signal.SIGINT)
            return goes_on(under)

        return run(self, form, rows, within, until, asked)

    few = lambda self, left: min(left, 3)
    with mock.patch.multiple(Calls, run=cut, _count=few):
        return sweep(**options)


class TestGoesOn:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", RUNS)
    def test_after_each_chunk(self, whole, name, way, tmp_path, calls):
        with always():
            for stop in (1, 6, 11):
                before = len(calls)
                table = sweep(RUNS[name], checkpoint=tmp_path, on_row=_stopping(stop), **WAYS[way])
                assert "waiting" in table["status"] or stop == 11
                assert len(calls) > before
        table = sweep(RUNS[name], checkpoint=tmp_path, **WAYS[way])
        same(table, whole[name, way])
        assert np.isfinite(table["seconds"]).all()
        assert sorted(np.concatenate(calls).tolist()) == [*range(13)]
        before = _bytes(tmp_path)
        same(sweep(RUNS[name], checkpoint=tmp_path, **WAYS[way]), table, but=())
        assert len(np.concatenate(calls)) == 13
        assert _bytes(tmp_path) == before

    @pytest.mark.parametrize("way", WAYS)
    def test_more_trials_and_another_order(self, whole, way, tmp_path, calls):
        sweep(trials=TRIALS[:6], checkpoint=tmp_path, **WAYS[way])
        order = np.random.default_rng(2).permutation(13)
        table = sweep(trials=TRIALS[order], checkpoint=tmp_path, **WAYS[way])
        same(table, whole["task", way][order])
        ran = np.concatenate(calls).tolist()
        assert sorted(ran) == [*range(13)]
        assert sorted(ran[6:]) == [*range(6, 13)]

    def test_mode_and_chunk_are_those_of_before(self, tmp_path, monkeypatch):
        sweep(RUN, TRIALS[:5], checkpoint=tmp_path, mode="vmap", chunk=3)
        with monkeypatch.context() as patch:
            patch.setattr(_host, "settled", None)
            table = sweep(RUN, checkpoint=tmp_path)
        same(table, sweep(RUN, mode="vmap", chunk=3))
        with pytest.raises(ValueError, match="mode: was vmap, is sequential"):
            sweep(RUN, checkpoint=tmp_path, mode="sequential")  # though nothing is left to run

    @pytest.mark.parametrize("way", WAYS)
    def test_within_a_trial(self, whole, way, tmp_path):
        begun = []
        begin = Bound.begin
        spy = lambda self, values, ids: begun.append(ids) or begin(self, values, ids)
        options = {"checkpoint": tmp_path, **WAYS[way]}
        with mock.patch.object(Bound, "begin", spy):
            for step in (3, 9):
                table = _cut(step, **options)
                assert table["status"][2] == "waiting"
            count = len(begun)
            same(sweep(**options), whole["task", way])
        assert count == (3 if way == "sequential" else 1)
        assert len(begun) == (13 if way == "sequential" else 4)

    def test_trials_under_way_stay_who_they_are(self, tmp_path):
        """Of a last chunk that was not full, or of a group that is no longer the first."""
        options = {"checkpoint": tmp_path, **WAYS["vmap"]}
        _cut(6, trials=TRIALS[:3], **options)
        order = np.array([7, 8, 2, 1, 0, 3, 4, 5, 6, 9, 10, 11, 12])
        same(sweep(trials=TRIALS[order], **options), sweep(**WAYS["vmap"])[order])

    def test_a_state_is_not_taken_for_that_of_another(self, tmp_path):
        run = sweeps.Task(
            lambda numbers, key: numbers["x"] + jax.random.normal(key),
            lambda state, steps: state,
            lambda state: {"loss": state, "other": -state},
            steps=1,
        )
        trials = sweeps.grid({"x": sweeps.Linear(0, 0.1)}, 4)
        options = {"checkpoint": tmp_path, "mode": "sequential"}
        for count in (2, 4):
            again = sweep(run, trials.repeat(count), **options)
        fresh = sweep(run, trials.repeat(4), mode="sequential")
        assert again.best == {**fresh.best, "seconds": again.best["seconds"]}
        assert fresh.best_state in fresh["loss"][fresh["setting"] == fresh.best["id"]]
        highest = sweep(run, trials.repeat(4), score="other", **options)
        with pytest.raises(ValueError, match=r"Run trial \d+ again"):
            _ = highest.best_state
        with pytest.raises(ValueError, match=r"Run trial \d+ again"):
            _ = dataclasses.replace(fresh, maximize=True).best_state

    def test_states_of_settings_of_which_a_repetition_waits(self, tmp_path):
        stay = lambda state, steps: state
        run = sweeps.Task(lambda x, key: x["x"], stay, lambda state: state, steps=1)
        values = {"x": np.array([1, 2, 3, 4], np.float32)}
        trials = sweeps.Trials(values, np.arange(4), np.array([0, 1, 0, 1]))
        options = {"checkpoint": tmp_path, **WAYS["sequential"]}
        sweep(run, trials, on_row=_stopping(1), **options)
        assert sweep(run, trials, **options).best_state == 1

    def test_one_after_the_other_a_chunk_is_what_runs_between_two_saves(self, tmp_path):
        with always():
            sweep(RUN, checkpoint=tmp_path, mode="sequential", chunk=4)
        latest = lo.checkpoint.Checkpoints(tmp_path).latest()
        assert latest is not None
        assert latest.step == 4  # after 4, 8, 12 and 13

    def test_on_other_devices_a_trial_begins_anew(self, whole, tmp_path):
        mesh = jax.make_mesh((8,), ("d",))
        for way in WAYS:
            _cut(6, checkpoint=tmp_path / way, **WAYS[way])
            same(sweep(checkpoint=tmp_path / way, mesh=mesh, **WAYS[way]), whole["task", way])
            back = {"checkpoint": tmp_path / way / "back", **WAYS[way]}
            _cut(6, mesh=mesh, **back)
            same(sweep(**back), whole["task", way])

    def test_a_damaged_step_walks_back(self, whole, tmp_path):
        with always():
            sweep(checkpoint=tmp_path, on_row=_stopping(4), **WAYS["sequential"])
        newest = sorted(path for path in tmp_path.iterdir() if path.name.isdigit())[-1]
        (newest / "manifest.json").write_text("{")
        with pytest.warns(UserWarning, match=r"Step \d+ .* set aside"):
            table = sweep(checkpoint=tmp_path, **WAYS["sequential"])
        same(table, whole["task", "sequential"])

    def test_a_save_that_fails_ends_nothing(self, whole, tmp_path):
        (tmp_path / "file").write_text("")
        with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            fail = mock.Mock(side_effect=RuntimeError("Step 1 was not saved: the disk is full."))
            warned = pytest.warns(UserWarning, match="disk is full.*\nThe sweep itself goes on")
            with mock.patch.object(checkpoints, "save", fail), warned:
                table = sweep(RUN, checkpoint=checkpoints, **WAYS["vmap"])
            same(table, whole["run", "vmap"])
            sweep(RUN, checkpoint=checkpoints, **WAYS["vmap"])
            assert checkpoints.latest() is not None, "it stays open"

    def test_the_end_that_a_system_asks_for(self, tmp_path, calls):
        ended, before = [], signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: ended.append(_bytes(tmp_path)))
        stop = lambda row: signal.raise_signal(signal.SIGTERM) if row["id"] == 4 else None
        try:
            sweep(RUN, checkpoint=tmp_path, on_row=stop, **WAYS["sequential"])
        finally:
            signal.signal(signal.SIGTERM, before)
        assert ended == [_bytes(tmp_path)], "it had saved"
        sweep(RUN, checkpoint=tmp_path, **WAYS["sequential"])
        assert np.concatenate(calls).tolist() == [*range(13)]

    @pytest.mark.parametrize(("every", "first"), [(-1.0, 7), (1e9, 1)])
    def test_an_error_leaves_what_was_saved(self, whole, tmp_path, calls, every, first):
        def fails(row):
            if row["id"] == 7:
                raise KeyError("of the caller")

        often = mock.patch.object(_watch, "EVERY", every)
        with often, pytest.raises(KeyError, match="of the caller"):
            sweep(checkpoint=tmp_path, on_row=fails, **WAYS["sequential"])
        calls.clear()
        same(sweep(checkpoint=tmp_path, **WAYS["sequential"]), whole["task", "sequential"])
        assert np.concatenate(calls).tolist() == [*range(first, 13)]

    def test_an_error_within_a_trial_leaves_what_was_saved(self, whole, tmp_path):
        options = {"checkpoint": tmp_path, **WAYS["vmap"]}
        patched, begun = failing(call=1, done=6, few=3)
        with patched:
            with always(), pytest.raises(KeyError, match="of the caller"):
                sweep(**options)
            same(sweep(**options), whole["task", "vmap"])
        assert begun == [None, 6, None, None, None]

    def test_a_form_is_saved_when_it_is_settled(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_host, "compiled", mock.Mock(side_effect=KeyError("of the machine")))
        with pytest.raises(KeyError, match="of the machine"):
            sweep(RUN, checkpoint=tmp_path, mode="vmap")
        latest = lo.checkpoint.Checkpoints(tmp_path).latest()
        assert latest is not None
        assert latest.note is not None
        assert list(latest.note["sweep"]["settled"].values()) == [["vmap", 13]]

    def test_no_form_is_settled_when_time_is_up(self, monkeypatch):
        monkeypatch.setattr(_host, "settled", None)
        assert set(sweep(RUN, timeout=1e-9)["status"]) == {"waiting"}

    def test_joined_trials_with_options_and_keys(self, tmp_path):
        space = {"width": sweeps.Static((1, jnp.tanh)), "rate": sweeps.Linear(0, 1)}
        trials = sweeps.join(
            sweeps.grid(space, 2), sweeps.grid({**space, "b": sweeps.Linear(1, 2)}, 2)
        )
        trials = trials.repeat(2, seed=jax.random.split(KEY, 2))
        run = lambda numbers, key: (
            numbers["rate"] * numbers.get("b", 1.0) + jax.random.normal(numbers["seed"])
        )
        rows = []
        want = sweep(run, trials, mode="sequential", on_row=rows.append)
        of_id = {int(id): want[place] for place, id in enumerate(want["id"])}
        assert all(row.keys() == of_id[row["id"]].keys() for row in rows)
        assert {"b" in row for row in rows} == {True, False}
        with always():
            sweep(run, trials, mode="sequential", checkpoint=tmp_path, on_row=_stopping(4))
        same(sweep(run, trials, mode="sequential", checkpoint=tmp_path), want)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory that holds a sweep that was interrupted."""
    directory = tmp_path_factory.mktemp("sweep")
    sweep(RUN, TRIALS[:7], checkpoint=directory, on_row=_stopping(4), **WAYS["vmap"])
    return directory


class TestRefused:
    @pytest.mark.parametrize(
        ("said", "options"),
        [
            ("key", {"key": jax.random.key(6)}),
            ("mode: was vmap, is sequential", {"mode": "sequential", "chunk": "auto"}),
            ("chunk: was 4, is 5", {"chunk": 5}),
            (
                "trial 2: rate was",
                {
                    "trials": sweeps.Trials(
                        {**VALUES, "rate": VALUES["rate"] * 2 ** (IDS == 2)}, IDS
                    )
                },
            ),
            (
                "trial 3: mask is another",
                {
                    "trials": sweeps.Trials(
                        {**VALUES, "mask": VALUES["mask"] ^ (IDS == 3)[:, None]}, IDS
                    )
                },
            ),
            ("trial 0: there is none of this id now", {"trials": TRIALS[1:]}),
            (
                "trial 1: setting was 1, is 0",
                {"trials": dataclasses.replace(TRIALS, setting=IDS // 2)},
            ),
            (
                "hyperparameters|trials of",
                {"trials": sweeps.Trials({**VALUES, "more": VALUES["rate"]}, IDS)},
            ),
            ("program", {"run": lambda numbers, key: 2 * RUN(numbers, key)["loss"]}),
            (
                "constants",
                {"run": function(task(np.ones((8, 3), np.float32)))},
            ),
        ],
    )
    def test_another_sweep(self, saved, said, options):
        before = _bytes(saved)
        given = {"run": RUN, "trials": TRIALS, "checkpoint": saved, **WAYS["vmap"]} | options
        with pytest.raises(
            ValueError, match=f"holds another sweep than this call(.|\n)*{said}"
        ) as told:
            sweep(**given)
        assert "Nothing was overwritten" in str(told.value)
        assert _bytes(saved) == before

    @pytest.mark.parametrize("way", WAYS)
    def test_other_values_of_a_trial_under_way(self, whole, way, tmp_path):
        _cut(6, checkpoint=tmp_path, **WAYS[way])
        before = _bytes(tmp_path)
        other = sweeps.Trials({**VALUES, "rate": VALUES["rate"] * 2 ** (IDS == 2)}, IDS)
        with pytest.raises(ValueError, match="trial 2: rate was"):
            sweep(trials=other, checkpoint=tmp_path, **WAYS[way])
        assert _bytes(tmp_path) == before
        same(sweep(checkpoint=tmp_path, **WAYS[way]), whole["task", way])

    def test_another_number_of_steps(self, tmp_path):
        sweep(trials=TRIALS[:4], checkpoint=tmp_path, **WAYS["vmap"])
        before = _bytes(tmp_path)
        longer = dataclasses.replace(TASK, steps=TASK.steps + 3)
        with pytest.raises(ValueError, match=rf"steps: was .*{TASK.steps}.*{TASK.steps + 3}"):
            sweep(longer, checkpoint=tmp_path, **WAYS["vmap"])
        assert _bytes(tmp_path) == before

    @pytest.mark.parametrize("name", ["jax", "lossopt"])
    def test_another_version(self, saved, name, monkeypatch):
        version = _identity.metadata.version
        other = lambda of: "0.0.1" if of == name else version(of)
        monkeypatch.setattr(_identity.metadata, "version", other)
        before = _bytes(saved)
        with pytest.raises(ValueError, match=rf"{name}: .*{version(name)}.*0\.0\.1"):
            sweep(RUN, checkpoint=saved, **WAYS["vmap"])
        assert _bytes(saved) == before

    def test_another_option(self, tmp_path):
        run = lambda numbers, key: numbers["rate"] * jnp.sum(jnp.ones(numbers["width"]))
        of = lambda *widths: sweeps.grid(
            {"width": sweeps.Static(widths), "rate": sweeps.Linear(0, 1)}, 1
        )
        sweep(run, of(2, 3), checkpoint=tmp_path, mode="sequential")
        with pytest.raises(ValueError, match=r"width=3(.|\n)*Nothing was overwritten"):
            sweep(run, of(2, 4), checkpoint=tmp_path, mode="sequential")

    def test_a_run_of_fit(self, tmp_path):
        objective = lambda params, batch: lo.mean((params - batch) ** 2)
        lo.fit(
            objective,
            jnp.zeros(()),
            np.ones(4, np.float32),
            lo.transforms.sgd(0.1),
            epochs=1,
            batch_size=2,
            checkpoint=tmp_path,
            progress=False,
            key=KEY,
        )
        before = _bytes(tmp_path)
        with pytest.raises(ValueError, match="holds steps that sweep has not saved"):
            sweep(RUN, checkpoint=tmp_path)
        assert _bytes(tmp_path) == before

    def test_what_is_no_directory(self):
        with pytest.raises(TypeError, match=r"^Expected checkpoint as a directory"):
            sweep(RUN, checkpoint=3)


def test_the_data_of_trials_that_ran_are_not_checked_again(tmp_path):
    checked = []
    task = dataclasses.replace(TASK, check=lambda numbers, key: checked.append(key))
    for _ in range(2):
        sweep(task, checkpoint=tmp_path, mode="sequential")
        assert len(checked) == 1
