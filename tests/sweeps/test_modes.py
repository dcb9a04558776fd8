"""Which form a sweep takes, what it is told meanwhile, and how it ends."""

import dataclasses
import gc
import itertools
import signal
import weakref
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lossopt import sweeps
from lossopt.sweeps import _host, _settled, _sweep
from lossopt.sweeps._calls import Calls
from lossopt.sweeps._compiled import Compiled, compiled
from lossopt.sweeps._form import Form
from lossopt.sweeps._host import hosted
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._trial import Trial
from tests.sweeps.runs import IDS, KEY, RUN, STEPS, TASK, TRIALS, VALUES, bits, same, sweep

ALONE = Form("sequential", 1)
ONE = {name: x[0] for name, x in VALUES.items()}


def _clock(step=0.0):
    """A clock that moves at each look."""
    times = itertools.count(0.0, step)
    return lambda: next(times)


def _size(numbers, key):
    """Takes memory in proportion to the trials beside each other."""
    x = jnp.sin(jnp.arange(4096.0) * numbers["rate"])
    return {"loss": jnp.sum(jnp.sort(x)[:3]), "last": jnp.sort(jnp.cos(x))[-1]}


SIZED = Trial(_size, (), KEY)
RATE = {"rate": np.float32(1)}


class TestCuts:
    @pytest.mark.parametrize("pace", [None, 5.0, 1.1, 0.6])
    def test_any_cut_of_the_steps_gives_the_same_bits(self, pace):
        calls = Calls(Trial(TASK, (), KEY), VALUES, IDS, _clock())
        calls._pace = pace
        calls._learn = lambda steps, seconds: None
        seen = []
        result = calls.run(
            ALONE, np.array([4]), None, STEPS, lambda under: seen.append(under) or True
        )
        whole = sweep(trials=TRIALS[[4]], mode="sequential")
        assert len(seen) == {None: 11, 5.0: 11, 1.1: 2, 0.6: 1}[pace]
        assert result is not None
        assert result.scores["loss"].tobytes() == whole["loss"].tobytes()
        middle = seen[0]
        calls = Calls(Trial(TASK, (), KEY), VALUES, IDS, _clock())
        again = calls.run(ALONE, np.array([4]), middle, STEPS, lambda under: True)
        assert again is not None
        assert [*map(bits, jax.tree.leaves(again.state))] == [
            *map(bits, jax.tree.leaves(result.state))
        ]

    def test_a_pace_is_learned(self):
        calls = Calls(Trial(TASK, (), KEY), VALUES, IDS, _clock(1.0))
        done = []
        calls.run(ALONE, np.array([0]), None, STEPS, lambda under: done.append(under.done) or True)
        assert done == [1, 9], "one step, then as many as a guess allows, then the rest"
        assert calls._count(99) == 15  # three steps took a second of this clock


class TestMode:
    def _form(self, times, count=1000, **wanted):
        """What is settled where calls take these seconds, by mode; and what was tried."""
        tried = []

        def timed(form):
            tried.append(form.mode)
            return times[form.mode]

        _settled._timed.clear()
        given = {"mode": "auto", "chunk": "auto", "memory": None, "mesh": None}
        with mock.patch.object(_settled, "compiled", return_value=Compiled(1.0, 0)):
            form = settled(Wanted(**given | wanted), Trial(RUN, (), KEY), ONE, count, timed)
        return form, tried

    def test_the_faster_one_is_taken(self):
        form, tried = self._form({"sequential": 0.1, "vmap": 0.3})
        assert (form.mode, form.chunk) == ("vmap", 32)
        assert tried == ["sequential"] * 2 + ["vmap"] * 2
        form, _ = self._form({"sequential": 0.1, "vmap": 3.3})
        assert form == ALONE

    def test_little_work_is_not_worth_a_compilation(self):
        form, tried = self._form({"sequential": 0.01, "vmap": 0.0}, count=150)
        assert (form, set(tried)) == (ALONE, {"sequential"})

    def test_what_is_compiled_already_is_worth_a_try(self, monkeypatch):
        wide = Form("vmap", 30)
        assert not Trial(RUN, (), KEY).ready(dataclasses.replace(wide, chunk=31), ONE)
        sweep(
            RUN,
            {name: np.resize(x, (150, *x.shape[1:])) for name, x in VALUES.items()},
            mode="vmap",
            chunk=30,
        )
        assert Trial(RUN, (), KEY).ready(wide, ONE)
        form, _ = self._form({"sequential": 0.01, "vmap": 0.0}, count=150)
        assert form == wide

    def test_nothing_is_timed_where_it_is_clear(self, monkeypatch):
        assert self._form({}, count=1) == (ALONE, [])
        assert self._form({}, mode="sequential") == (ALONE, [])
        assert self._form({}, mode="vmap", chunk=7) == (Form("vmap", 7), [])
        monkeypatch.setattr(_settled, "CROSSOVER", 10)
        assert self._form({}) == (ALONE, []), "steps are large"
        monkeypatch.setattr(_settled, "_platform", lambda mesh: "gpu")
        monkeypatch.setattr(_settled.Wanted, "limit", 10**10)
        assert self._form({}) == (Form("vmap", 1000), [])

    def test_chunks_are_of_equal_size(self):
        form, _ = self._form({"sequential": 9, "vmap": 0}, count=33)
        assert form == Form("vmap", 17)

    def test_a_plain_run_is_timed_for_what_it_takes(self):
        calls = Calls(Trial(RUN, (), KEY), VALUES, IDS, clock := _clock(1.0))
        assert [calls.tried(ALONE, np.arange(13)) for _ in range(3)] == [3.0] * 3
        assert clock() == 12

    @pytest.mark.parametrize("faster", ["sequential", "vmap"])
    @pytest.mark.parametrize("run", [RUN, TASK])
    def test_timing_leaves_no_trace(self, run, faster, monkeypatch):
        ended = []

        def measured(wanted, trial, values, count, timed):
            forms = {"sequential": ALONE, "vmap": Form("vmap", 5)}
            for form in (*forms.values(), ALONE):
                ended.append(timed(form))
            return forms[faster]

        how = {"mode": faster} | ({"chunk": 5} if faster == "vmap" else {})
        want = sweep(run, **how)
        monkeypatch.setattr(_host, "settled", measured)
        same(sweep(run), want)
        assert min(ended) > 0

    def test_what_is_known_changes_nothing_but_the_mode(self):
        tables = [sweep(RUN, TRIALS) for _ in range(2)]
        same(*tables)


class TestMemory:
    def test_chunk_is_solved_from_what_programs_take(self):
        sizes = {n: compiled(SIZED, Form("vmap", n), RATE).memory for n in (1, 8, 40)}
        each = (sizes[8] - sizes[1]) / 7
        for chunk in (40, 8, 5):
            limit = int(sizes[1] + (chunk - 0.5) * each)
            wanted = Wanted("vmap", "auto", limit, None)
            form = settled(wanted, SIZED, RATE, 10**6, lambda form: 0.0)
            taken = compiled(SIZED, form, RATE).memory
            assert taken <= limit
            assert taken > limit - 2 * each or form.chunk == 32
            assert taken == pytest.approx(sizes[1] + (form.chunk - 1) * each, rel=0.1)

    def test_where_programs_do_not_grow_evenly(self, monkeypatch):
        grows = lambda trial, form, values: Compiled(0.0, int(1000 * form.chunk**0.5))
        monkeypatch.setattr(_settled, "compiled", grows)
        form = settled(Wanted("vmap", "auto", 3000, None), SIZED, RATE, 10**6, lambda form: 0.0)
        assert form.chunk == 9

    def test_less_than_one_trial_needs(self):
        with pytest.raises(
            ValueError, match=r"^Expected memory to hold a call, got 1000 bytes: one"
        ) as told:
            sweep(_size, {"rate": np.ones(3)}, memory=1000, mode="vmap")
        needed = int(str(told.value).split("at least ")[1].split()[0])
        table = sweep(_size, {"rate": np.ones(3)}, memory=needed, mode="vmap")
        assert (table["status"] == "finished").all()
        with pytest.raises(ValueError, match="one trial needs"):
            sweep(_size, {"rate": np.ones(3)}, memory=needed - 1, mode="vmap")
        with pytest.raises(ValueError, match=r"2 trials need .* or a smaller chunk\.$"):
            sweep(_size, {"rate": np.ones(3)}, memory=needed, mode="vmap", chunk=2)
        with pytest.raises(ValueError, match="one trial needs"):
            sweep(_size, {"rate": np.ones(3)}, memory=100)


class TestScores:
    def test_which_one_ranks(self):
        named = lambda *names: lambda x, key: {name: x + i for i, name in enumerate(names)}
        assert sweep(named("error"), np.arange(3.0)).score == "error"
        assert sweep(named("other", "loss"), np.arange(3.0)).score == "loss"
        assert sweep(lambda x, key: x, np.arange(3.0)).score == "loss"
        table = sweep(
            lambda x, key: {"valid": {"accuracy": -x}, "loss": x},
            np.arange(3.0),
            score="valid/accuracy",
            maximize=True,
        )
        assert table.best["id"] == 0
        with pytest.raises(ValueError, match=r"^Expected score, for run returns 'a', 'b' and no"):
            sweep(named("a", "b"), np.arange(3.0))
        with pytest.raises(ValueError, match=r"^Expected score as one of 'loss', .* got 'less'"):
            sweep(named("loss"), np.arange(3.0), score="less")

    def test_their_dtypes(self):
        def run(x, key):
            return {"loss": x.astype(jnp.bfloat16), "count": jnp.int32(x), "high": x > 1}

        table = sweep(run, np.array([0.1, 2.3], np.float32))
        assert table["loss"].tolist() == [np.float32(ml_dtypes.bfloat16(x)) for x in (0.1, 2.3)]
        assert (table["count"].tolist(), table["high"].tolist()) == ([0, 2], [0, 1])

    def test_double_precision(self):
        with jax.enable_x64(True):
            table = sweep(lambda x, key: x * np.pi, np.array([1.0, 3.0]), mode="sequential")
        assert table["loss"].tolist() == [np.pi, 3 * np.pi]

    def test_repetitions_rank_by_their_mean(self):
        trials = TRIALS[3:7].repeat(3)
        order = np.random.default_rng(0).permutation(len(trials))
        table = sweep(trials=trials, mode="sequential")
        means = table["loss"].reshape(4, 3).astype(float).mean(axis=1)
        assert table.best["id"] == 3 + means.argmin()
        of_best = np.where(table["setting"] == table.best["id"], table["loss"], np.inf)
        row = int(of_best.argmin())
        alone = sweep(trials=trials[[row]], mode="sequential")
        assert table.best_state["w"].tobytes() == alone.best_state["w"].tobytes()
        for way in ({"mode": "sequential"}, {"mode": "vmap", "chunk": 1}):
            mixed = sweep(trials=trials[order], **way)
            assert mixed.best_state["w"].tobytes() == alone.best_state["w"].tobytes()

    def test_of_equals_the_first_id_is_kept(self):
        init = lambda x, key: {"x": x, "key": key}
        run = sweeps.Task(init, lambda state, steps: state, lambda state: 0.0 * state["x"], steps=1)
        trials = sweeps.Trials(np.arange(4.0), np.arange(4), np.array([0, 0, 2, 2]))
        for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
            assert sweep(run, trials[order], mode="sequential").best_state["x"] == 0


class TestEnd:
    def test_rows_are_told_as_they_come(self):
        rows = []
        table = sweep(on_row=rows.append, mode="vmap", chunk=4)
        assert [row["id"] for row in rows] == [*range(13)]
        told = {name: [row[name] for row in rows] for name in ("loss", "status", "seconds")}
        want = {name: [table[row][name] for row in range(13)] for name in told}
        np.testing.assert_equal(told, want)
        assert rows[0].keys() == table.columns.keys()

    def test_the_bar_tells_the_best_score(self, capsys):
        losses = np.array([3.0, 1.0, np.inf, 5.0])
        for maximize, best in ((False, 1), (True, 5)):
            sweep(lambda x, key: x, losses, maximize=maximize, progress=True, mode="sequential")
            assert f"trials 4/4  best/value {best} " in capsys.readouterr().err

    def test_states_that_cannot_be_the_best_are_let_go(self, monkeypatch):
        most, put = [], Ledger.put

        def counting(self, *given):
            put(self, *given)
            most.append(len(self.kept))

        monkeypatch.setattr(Ledger, "put", counting)
        sweep(trials=TRIALS[3:7].repeat(2), mode="sequential")
        assert most[1::2] == [1] * 4
        assert max(most) == 2

    def test_time_is_up_between_two_chunks(self):
        late = lambda host: hosted(dataclasses.replace(host, clock=_clock(1.0), limit=15))
        with mock.patch.object(_sweep, "hosted", late):
            table = sweep(mode="vmap", chunk=2, timeout=9)
        ran = table["status"] != "waiting"
        assert 0 < ran.sum() < 13
        assert ran.sum() % 2 == 0
        assert ran[: ran.sum()].all()
        assert np.isnan(table["loss"][~ran]).all()

    def test_control_c_returns_what_has_come(self):
        def stop(row):
            if row["id"] == 5:
                signal.raise_signal(signal.SIGINT)

        table = sweep(on_row=stop, mode="sequential")
        assert (table["status"] == "waiting").tolist() == [False] * 6 + [True] * 7
        assert table["loss"][:6].tobytes() == sweep(mode="sequential")["loss"][:6].tobytes()
        twice = lambda row: [signal.raise_signal(signal.SIGINT) for _ in range(2)]
        with pytest.raises(KeyboardInterrupt):
            sweep(on_row=twice, mode="sequential")

    def test_large_closures_are_let_go(self):
        seen, held = [], None
        for scale in range(6):
            held = jnp.full(100, float(scale))
            seen.append(weakref.ref(held))
            sweep(lambda x, key, held=held: jnp.sum(x * held), np.arange(2.0), mode="sequential")
        del held
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 4


class TestContexts:
    def test_what_the_caller_asks_of_jax(self):
        want = sweep(mode="sequential")
        with jax.transfer_guard("disallow"):
            same(sweep(mode="sequential"), want)
        with jax.set_mesh(jax.make_mesh((8,), ("d",))):
            same(sweep(mode="sequential"), want)

    def test_trials_of_keys(self):
        keys = jax.random.split(KEY, 5)
        run = lambda numbers, key: jax.random.normal(numbers["seed"])
        table = sweep(run, {"seed": keys}, mode="sequential")
        assert table["loss"].tolist() == [float(jax.random.normal(key)) for key in keys]
        same(
            sweep(run, {"seed": keys}, mode="vmap", chunk=2, mesh=jax.make_mesh((8,), ("d",))),
            table,
        )

    def test_missing_numbers_and_bare_trees(self):
        table = sweep(lambda x, key: x, np.array([1.0, np.nan, 0.5]))
        assert table["status"].tolist() == ["finished", "diverged", "finished"]
        assert table["hyperparameters"].tolist()[::2] == [1.0, 0.5]
        table = sweep(lambda xs, key: xs[0] + xs[1]["b"], (np.arange(2.0), {"b": np.ones(2)}))
        assert table.names == ("0", "1/b")
        assert table["loss"].tolist() == [1, 2]
