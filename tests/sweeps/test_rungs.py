"""Rungs: who stops, by hand from whole sweeps; who goes on has the bits of a whole one."""

import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt import sweeps
from lossopt.sweeps import _host, _resting
from lossopt.sweeps._calls import Calls
from tests.counted import counted
from tests.sweeps.runs import RUN, STEPS, TASK, TRIALS, always, bits, same, sweep, taking, task

WAYS = {"sequential": {"mode": "sequential"}, "vmap": {"mode": "vmap", "chunk": 5}}
PLANS = {
    "halving": sweeps.halving(13, STEPS, 2),
    "hyperband": sweeps.Rungs([[(7, 2), (3, 5), (1, STEPS)], [(4, 5), (2, STEPS)], [(2, STEPS)]]),
    "wide": sweeps.Rungs([[(13, 3), (13, 6), (9, STEPS)]]),
}
REPEATED = TRIALS[np.array([4, 0, 7, 9, 2, 6])].repeat(2)
FEW = sweeps.Rungs([[(6, 2), (3, 5), (2, STEPS)]])


@pytest.fixture(scope="module")
def whole():
    """Scores of all trials after so many steps, one after the other, each run from its start."""
    known = {}

    def after(trials, steps):
        of = trials is TRIALS, steps
        if of not in known:
            known[of] = sweep(task(steps=steps), trials, mode="sequential")
        return known[of]

    return after


@pytest.fixture(scope="module")
def tables():
    """Tables of rungs that nobody interrupted."""
    known = {}

    def of(way, plan):
        if (way, plan) not in known:
            known[way, plan] = sweep(rungs=PLANS[plan], **WAYS[way])
        return known[way, plan]

    return of


def _by_hand(plan, trials, whole, maximize=False):
    """How far each trial comes, and which settings are stopped, in Python alone."""
    ids = list(dict.fromkeys(np.asarray(trials.setting).tolist()))
    rows = {s: [i for i, x in enumerate(np.asarray(trials.setting)) if x == s] for s in ids}
    reached, at = dict.fromkeys(ids, 0), 0
    for bracket in plan.brackets:
        alive = ids[at : at + bracket[0][0]]
        at += bracket[0][0]
        for (_, steps), following in zip(bracket, [*bracket[1:], None]):
            reached |= dict.fromkeys(alive, steps)
            if following is None:
                break
            scores = whole(trials, steps)["loss"]
            means = {
                s: float(np.mean([scores[row] for row in rows[s]], dtype=float)) for s in alive
            }
            finite = [s for s in alive if np.isfinite(means[s])]
            order = sorted(finite, key=lambda s: (-means[s] if maximize else means[s], s))
            alive = order[: following[0]]
    return np.array([reached[s] for s in np.asarray(trials.setting).tolist()])


def _agrees(table, plan, trials, whole, exact=True):
    """Fails where a score at a rung is another than that of a sweep that ends there."""
    for name in table.scores:
        for steps in plan.levels:
            got, want = table[f"{name}@{steps}"], whole(trials, steps)[name]
            there = table["steps"] >= steps
            assert np.isnan(got[~there]).all()
            assert bits(got[there]) == bits(want[there]) or not exact
            np.testing.assert_allclose(got[there], want[there], rtol=1e-4)


class TestWhoGoesOn:
    @pytest.mark.parametrize("plan", PLANS)
    def test_by_hand(self, whole, tables, plan):
        rungs, table = PLANS[plan], tables("sequential", plan)
        reached = _by_hand(rungs, TRIALS, whole)
        assert table["steps"].tolist() == reached.tolist()
        _agrees(table, rungs, TRIALS, whole)
        last = [table[f"loss@{steps}"][row] for row, steps in enumerate(reached)]
        assert bits(np.array(last)) == bits(table["loss"]), "the last score that a trial reached"
        finite = np.isfinite(table["loss"])
        assert ((table["status"] == "finished") == ((reached == STEPS) & finite)).all()
        assert ((table["status"] == "stopped") == ((reached < STEPS) & finite)).all()
        assert ((table["status"] == "diverged") == ~finite).all()
        ends = np.flatnonzero(table["status"] == "finished")
        assert table.best["id"] == min(ends, key=lambda row: (table["loss"][row], row))
        assert bits(table.best_state["w"]) == bits(_state_of(table.best["id"])["w"])

    @pytest.mark.parametrize("maximize", [False, True])
    def test_repeats_rank_by_their_mean(self, whole, maximize):
        how = {"mode": "sequential", "maximize": maximize}
        table = sweep(trials=REPEATED, rungs=FEW, **how)
        reached = _by_hand(FEW, REPEATED, whole, maximize)
        assert table["steps"].tolist() == reached.tolist()
        assert len(set(table["steps"].tolist())) > 1
        means = table.mean()
        assert means["steps"].tolist() == reached.reshape(6, 2)[:, 0].tolist()
        pairs = np.asarray(table["loss@2"], float).reshape(6, 2)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(means["loss@2"], pairs.mean(1))
        ends = means["status"] == "finished"
        assert means.best["loss"] == (max if maximize else min)(means["loss"][ends])
        assert table.best_state is not None

    def test_of_unequal_repetitions_the_mean_decides(self):
        run = sweeps.Task(lambda x, key: x["x"], lambda s, _: s, lambda s: s, steps=2)
        values = {"x": np.array([0.6, 1.0, 0.6, 0.6], np.float32)}
        trials = sweeps.Trials(values, np.arange(4), np.array([0, 1, 0, 0]))
        table = sweep(run, trials, rungs=sweeps.halving(2, 2, 2))
        assert table["steps"].tolist() == [2, 1, 2, 2]

    def test_a_setting_whose_repetitions_wait_does_not_displace_the_best_state(self):
        late = lambda s: jnp.where((s["x"] == 3) & (s["count"] == 2), 20, s["x"])
        move = lambda s, n: s | {"count": s["count"] + n}
        run = sweeps.Task(lambda x, key: {"x": x["x"], "count": 0}, move, late, steps=2)
        values = {"x": np.array([5, 5, 1, 3], np.float32)}
        trials = sweeps.Trials(values, np.arange(4), np.array([0, 0, 2, 2]))
        table = sweep(run, trials, rungs=sweeps.Rungs([[(2, 1), (2, 2)]]), mode="sequential")
        assert table["loss"].tolist() == [5, 5, 1, 20]
        assert table.best["id"] == 0
        assert table.best_state["x"] == 5

    def test_of_equals_the_lower_ids(self):
        stay = lambda state, steps: state
        run = sweeps.Task(lambda x, key: x["x"], stay, lambda state: state // 4, steps=4)
        trials = sweeps.Trials({"x": np.arange(9.0)[::-1].copy()}, np.arange(9)[::-1].copy())
        table = sweep(run, trials, rungs=sweeps.Rungs([[(9, 1), (6, 2), (2, 4)]]))
        assert table["id"][table["steps"] == 4].tolist() == [1, 0]
        assert table["id"][table["steps"] >= 2].tolist() == [5, 4, 3, 2, 1, 0]
        assert table.best["id"] == 0

    def test_nobody_goes_on_who_is_not_finite(self):
        nans = np.array([np.nan, 1.0, np.nan, np.inf, 2.0], np.float32)
        run = sweeps.Task(lambda x, key: x["x"], lambda s, _: s, lambda s: s, steps=9)
        table = sweep(run, {"x": nans}, rungs=sweeps.halving(5, 9))
        assert table["status"].tolist() == [
            "diverged",
            "finished",
            "diverged",
            "diverged",
            "stopped",
        ]
        lost = sweep(run, {"x": nans[[0, 2, 3]]}, rungs=sweeps.halving(3, 9))
        assert set(lost["status"]) == {"diverged"}
        assert lost["steps"].tolist() == [3, 3, 3]
        with pytest.raises(ValueError, match="got 3 that diverged"):
            _ = lost.best

    def test_groups_compete(self, whole):
        """Trials of unlike programs and shapes share the rungs."""
        space = {"width": sweeps.Static((1, 2)), "rate": sweeps.Linear(0.1, 0.9)}
        trials = sweeps.grid(space, 4)

        def moved(state):
            return state | {"w": state["w"] * (1 - state["rate"] / state["w"].shape[0])}

        run = sweeps.Task(
            lambda x, key: {"w": jnp.ones(x["width"]), "rate": x["rate"], "key": key},
            lambda state, n: jax.lax.fori_loop(0, n, lambda _, s: moved(s), state),
            lambda state: state["w"][0],
            steps=8,
        )
        for way in WAYS.values():
            table = sweep(run, trials, rungs=sweeps.halving(8, 8, 2), **way)
            shrink = 1 - trials["rate"] / trials["width"].astype(float)
            order = np.argsort(shrink)
            assert table["steps"][order].tolist() == [8, 4, 2, 2, 1, 1, 1, 1]
            np.testing.assert_allclose(table["loss"], shrink ** table["steps"], rtol=1e-5)


def _stopping_at(number):
    """Ctrl-C when so many rows have come."""
    rows = iter(range(1, number + 1))
    return lambda row: next(rows, None) == number and signal.raise_signal(signal.SIGINT)


def _state_of(row):
    return sweep(trials=TRIALS[[row]], mode="sequential").best_state


class TestBits:
    @pytest.mark.parametrize("plan", PLANS)
    def test_beside_others(self, tables, plan):
        """In calls with other neighbors and copies of them, at the same mode and chunk."""
        full, table = sweep(**WAYS["vmap"]), tables("vmap", plan)
        ends = table["steps"] == STEPS
        assert 0 < ends.sum() < 13
        for name in table.scores:
            assert bits(table[name][ends]) == bits(full[name][ends])
        rungs = PLANS[plan].levels[:-1]
        again = sweep(task(steps=rungs[-1]), **WAYS["vmap"])
        there = ~np.isnan(table[f"loss@{rungs[-1]}"])
        assert bits(table[f"loss@{rungs[-1]}"][there]) == bits(again["loss"][there])

    @pytest.mark.parametrize("way", WAYS)
    def test_spread_over_devices(self, tables, way):
        mesh = jax.make_mesh((8,), ("d",))
        how = WAYS[way] | ({"chunk": 5} if way == "vmap" else {})
        same(sweep(rungs=PLANS["halving"], mesh=mesh, **how), tables(way, "halving"))

    def test_one_program(self):
        run, more = task(extra=0.7), sweeps.Rungs([[(13, 1), (9, 2), (5, 7), (2, STEPS)]])
        sweep(run, rungs=PLANS["halving"], **WAYS["vmap"])
        with counted() as seen:
            sweep(run, rungs=more, **WAYS["vmap"])
        assert (seen.traces, seen.lowered, seen.compiled) == (0, 0, 0)


class TestWork:
    def test_copies_are_counted(self, tables):
        plan = PLANS["halving"]
        assert plan.brackets == (((13, 1), (6, 3), (3, 6), (1, STEPS)),)
        nominal = 13 * 1 + 6 * 2 + 3 * 3 + 1 * 6
        assert plan.work == nominal
        assert tables("sequential", "halving").work == (13 * STEPS, nominal, nominal)
        executed = 15 * 1 + 10 * 2 + 5 * 3 + 5 * 6
        table = tables("vmap", "halving")
        assert table.work == (13 * STEPS, nominal, executed)
        assert f"{nominal} of {13 * STEPS} steps of the sweep taken, {executed} executed" in str(
            table
        )
        assert sweep(**WAYS["vmap"]).work == (13 * STEPS, 13 * STEPS, 15 * STEPS)
        assert sweep(RUN, **WAYS["vmap"]).work is None

    def test_brackets_fill_calls_together(self, tables):
        alive = [(7 + 4 + 2, 2), (3 + 4 + 2, 3), (1 + 2 + 2, 7)]
        nominal = sum(size * steps for size, steps in alive)
        executed = sum(-(-size // 5) * 5 * steps for size, steps in alive)
        assert PLANS["hyperband"].work == nominal
        assert tables("vmap", "hyperband").work == (13 * STEPS, nominal, executed)
        assert tables("sequential", "hyperband").work.executed == nominal

    @pytest.mark.parametrize("repeats", [1, 3])
    def test_an_automatic_chunk_is_narrow(self, repeats):
        plan = sweeps.halving(64, 256, 4)
        width, sizes = plan.at_most(repeats), [(64, 4), (16, 12), (4, 48), (1, 192)]
        executed = lambda w: sum(-(-n * repeats // w) * w * steps for n, steps in sizes)
        assert executed(width) <= 2 * repeats * plan.work
        wider = range(width + 1, 64 * repeats + 1)
        assert all(executed(w) > 2 * repeats * plan.work for w in wider)
        assert sweeps.Rungs([[(64, 256)]]).at_most(1) == 64

    @pytest.mark.parametrize("groups", [1, 2, 3])
    @pytest.mark.parametrize(
        ("plan", "parts"),
        [
            (sweeps.Rungs([[(4, 2), (1, 6)]]), [(4, 2), (1, 4)]),
            (sweeps.halving(6, 9), [(6, 3), (2, 6)]),
        ],
    )
    def test_an_automatic_chunk_is_as_wide_as_it_may_be(self, plan, parts, groups):
        def calls(count, width):  # however the trials that go on are dealt to the groups
            deals = itertools.product(range(count + 1), repeat=groups)
            each = [deal for deal in deals if sum(deal) == count]
            return max(sum(-(-x // width) for x in deal) for deal in each)

        executed = lambda width: sum(calls(n, width) * width * steps for n, steps in parts)
        widths = range(1, plan.settings + 1)
        most = max(width for width in widths if executed(width) <= 2 * plan.work)
        assert plan.at_most(1, groups) == most

    def test_seconds_are_those_of_all_rungs(self):
        for executor in (None, ThreadPoolExecutor(1)):
            with taking(2.0):
                table = sweep(rungs=PLANS["halving"], executor=executor, **WAYS["sequential"])
            rungs = np.searchsorted(PLANS["halving"].levels, table["steps"]) + 1
            assert set(rungs) == {1, 2, 3, 4}
            assert table["seconds"].tolist() == (2.0 * rungs).tolist()

    def test_only_who_may_go_on_is_remembered(self, monkeypatch):
        most, seen, put = [], [], _resting.Resting.put

        def counting(self, *args):
            put(self, *args)
            most.append(len(self._leaves))
            seen.append(self)

        monkeypatch.setattr(_resting.Resting, "put", counting)
        sweep(rungs=sweeps.Rungs([[(13, 1), (2, STEPS)]]), mode="sequential")
        assert max(most) == 2
        assert not seen[-1].groups(), "who has ended is forgotten"


class TestPlans:
    def test_of_the_paper(self):
        """Table 1 of Li et al., 2018: R = 81, eta = 3."""
        assert sweeps.hyperband(81).brackets == (
            ((81, 1), (27, 3), (9, 9), (3, 27), (1, 81)),
            ((34, 3), (11, 9), (3, 27), (1, 81)),
            ((15, 9), (5, 27), (1, 81)),
            ((8, 27), (2, 81)),
            ((5, 81),),
        )

    @pytest.mark.parametrize("n", [1, 2, 5, 27, 100])
    @pytest.mark.parametrize(("steps", "eta", "least"), [(1, 2, 1), (100, 2, 7), (243, 3, 1)])
    def test_halving(self, n, steps, eta, least):
        (bracket,) = sweeps.halving(n, steps, eta, least=least).brackets
        assert bracket[0][0] == n
        assert bracket[0][1] >= least
        assert bracket[-1][1] == steps
        for k, (size, done) in enumerate(bracket):
            assert size == n // eta**k
            assert done == int(steps / eta ** (len(bracket) - 1 - k))
        more = n // eta ** len(bracket) >= 1 and steps // eta ** len(bracket) >= least
        assert not more, "as many rungs as there can be"

    @pytest.mark.parametrize(
        ("error", "message", "rungs"),
        [
            (ValueError, "steps increase.*\\[5, 5\\]", [[(4, 5), (2, 5)]]),
            (ValueError, "steps increase.*\\[6, 5\\]", [[(4, 6), (2, 5)]]),
            (ValueError, "steps increase.*\\[0, 5\\]", [[(4, 0), (2, 5)]]),
            (ValueError, "no more than the rung before.*\\[2, 4\\]", [[(2, 1), (4, 5)]]),
            (ValueError, "at least 1 setting.*\\[2, 0\\]", [[(2, 1), (0, 5)]]),
            (ValueError, "end at the same steps.*\\[5, 6\\]", [[(2, 5)], [(2, 6)]]),
            (TypeError, "whole number, got 1.5", [[(2, 1.5)]]),
            (TypeError, "pairs", [[(2, 1, 3)]]),
            (TypeError, r"sequence.*got 2\. Rungs takes a list of brackets", [(2, 1)]),
            (TypeError, "not empty", []),
            (TypeError, "sequence", 3),
        ],
    )
    def test_refused(self, error, message, rungs):
        with pytest.raises(error, match=message):
            sweeps.Rungs(rungs)

    def test_arrays_are_sequences(self):
        assert sweeps.Rungs(np.array([[(4, 1), (2, 5)]])).brackets == (((4, 1), (2, 5)),)

    @pytest.mark.parametrize("make", [lambda **x: sweeps.halving(9, 9, **x), sweeps.hyperband])
    def test_refused_numbers(self, make):
        steps = {} if make is not sweeps.hyperband else {"steps": 9}
        with pytest.raises(ValueError, match="eta >= 2, got 1"):
            make(eta=1, **steps)
        with pytest.raises(ValueError, match="least of at most 9, the steps, got 10"):
            make(least=10, **steps)
        with pytest.raises(TypeError, match=r"whole number, got 2\.5"):
            make(eta=2.5, **steps)


class TestRefused:
    @pytest.mark.parametrize(
        ("error", "message", "run", "rungs"),
        [
            (TypeError, "Task with rungs, got a plain function", RUN, PLANS["halving"]),
            (ValueError, "end at the 12 steps of the task, got 6", TASK, sweeps.halving(13, 6)),
            (
                ValueError,
                "Expected 12 settings for these rungs, got 13",
                TASK,
                sweeps.halving(12, 12),
            ),
            (TypeError, "Expected rungs from lossopt.sweeps.halving", TASK, [(13, 1)]),
        ],
    )
    def test_rungs_of_another_sweep(self, error, message, run, rungs, tmp_path):
        with pytest.raises(error, match=message):
            sweep(run, rungs=rungs, checkpoint=tmp_path / "none")
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(("name", "score"), [("x", "steps"), ("steps", "x")])
    def test_a_score_or_a_hyperparameter_called_steps(self, name, score):
        run = sweeps.Task(lambda x, key: x[name], lambda s, _: s, lambda s: {score: s}, steps=2)
        with pytest.raises(ValueError, match="another name than 'steps'"):
            sweep(run, {name: np.ones(2)}, rungs=sweeps.halving(2, 2, 2))

    def test_other_rungs_in_the_checkpoint(self, tmp_path):
        sweep(rungs=PLANS["halving"], checkpoint=tmp_path, **WAYS["sequential"])
        for rungs in (None, PLANS["wide"]):
            with pytest.raises(ValueError, match=r"rungs: was Rungs[\s\S]*Nothing was overwr"):
                sweep(rungs=rungs, checkpoint=tmp_path, **WAYS["sequential"])

    @pytest.mark.parametrize("other", [{"score": "near"}, {"maximize": True}])
    def test_another_judge_in_the_checkpoint(self, other, tmp_path):
        options = {"rungs": PLANS["halving"], "checkpoint": tmp_path, **WAYS["sequential"]}
        want = sweep(**options)
        with pytest.raises(ValueError, match="ranks by: was the lowest loss, is the "):
            sweep(**options, **other)
        same(sweep(**options), want)


class TestGoesOn:
    @pytest.mark.parametrize(("way", "plan"), [("sequential", "hyperband"), ("vmap", "halving")])
    def test_after_each_chunk(self, tables, way, plan, tmp_path):
        want, calls = tables(way, plan), 0
        options = {"rungs": PLANS[plan], "checkpoint": tmp_path, **WAYS[way]}
        with always():
            while True:
                table = sweep(on_row=_stopping_at(7), **options)
                calls += 1
                assert calls < 20, "it would never end"
                if "waiting" not in table["status"]:
                    break
        same(table, want)
        assert table.work == want.work
        assert calls > 2
        rows = []
        same(sweep(on_row=rows.append, **options), want)
        assert not rows, "all were told"

    @pytest.mark.parametrize("way", WAYS)
    def test_within_a_rung(self, tables, way, tmp_path):
        options = {"rungs": PLANS["wide"], "checkpoint": tmp_path, **WAYS[way]}
        run = Calls.run

        def cut(self, form, rows, within, until, goes_on):
            def asked(under):
                if under.done in (2, 5, 8) and 3 in self.ids[rows]:
                    signal.raise_signal(signal.SIGINT)
                return goes_on(under)

            return run(self, form, rows, within, until, asked)

        with mock.patch.multiple(Calls, run=cut, _count=lambda self, left: 1):
            for _ in range(3):
                assert "waiting" in sweep(**options)["status"]
        same(sweep(**options), tables(way, "wide"))

    def test_a_call_on_other_devices(self, tables, tmp_path):
        options = {"rungs": PLANS["halving"], "checkpoint": tmp_path, **WAYS["vmap"]}
        sweep(on_row=_stopping_at(14), **options)
        mesh = jax.make_mesh((8,), ("d",))
        same(sweep(mesh=mesh, **options), tables("vmap", "halving"))

    def test_another_order_within_the_brackets(self, tables, tmp_path):
        options = {"rungs": PLANS["hyperband"], "checkpoint": tmp_path, **WAYS["sequential"]}
        sweep(on_row=_stopping_at(19), **options)
        order = np.array([3, 6, 0, 1, 5, 2, 4, 10, 7, 9, 8, 12, 11])
        same(sweep(trials=TRIALS[order], **options), tables("sequential", "hyperband")[order])

    def test_states_of_unlike_shapes_dtypes_and_keys(self, tmp_path):
        kinds = {"one": jnp.ones(1), "two": jnp.ones(2), "half": jnp.ones(1, jnp.float16)}
        space = {"kind": sweeps.Static(tuple(kinds)), "rate": sweeps.Linear(0.1, 0.9)}
        moved = lambda s, n: s | {"w": (s["w"] * s["rate"] ** n).astype(s["w"].dtype)}
        run = sweeps.Task(
            lambda x, key: {"w": kinds[x["kind"]], "rate": x["rate"], "key": key},
            moved,
            lambda s: s["w"][0].astype(jnp.float32) + jax.random.uniform(s["key"]),
            steps=4,
        )
        options = {"trials": sweeps.grid(space, 3), "rungs": sweeps.halving(9, 4, 2)}
        options |= {"key": jax.random.key(0, impl="rbg"), "mode": "sequential"}
        want = sweep(run, **options)
        assert set(want["kind"][want["steps"] >= 2]) == set(kinds)
        table = sweep(run, checkpoint=tmp_path, on_row=_stopping_at(9), **options)
        assert set(table["steps"]) == {1}
        same(sweep(run, checkpoint=tmp_path, **options), want)


class TestTable:
    def test_at_a_rung(self, tables):
        table = tables("sequential", "halving")
        early = table.at(3)
        there = table["steps"] >= 3
        assert early["id"].tolist() == table["id"][there].tolist()
        assert bits(early["loss"]) == bits(table["loss@3"][there])
        assert set(early["status"]) == {"finished"}
        assert "steps" not in early.columns
        assert table.work is not None
        assert early.work is None, "which is that of all rungs"
        assert bits(table.at(np.float64(3))["loss"]) == bits(early["loss"])
        assert early.interval("rate", within=9.0).good >= 2
        with pytest.raises(ValueError, match=r"steps of a rung, got 4\. There are 1, 3, 6, 12"):
            table.at(4)
        with pytest.raises(ValueError, match="There are none"):
            sweep(**WAYS["sequential"]).at(12)

    def test_ranks(self):
        columns = {
            "loss": np.array([5.0, 1.0, 3.0, 2.0, np.nan, 4.0]),
            "loss@1": np.array([5.0, 1.0, 3.0, 2.0, 7.0, 4.0]),
            "steps": np.array([9, 1, 3, 3, 1, 9]),
            "status": np.array(["finished", *["stopped"] * 3, "diverged", "waiting"], object),
        }
        table = sweeps.Table(columns, "loss", (), ("loss",))
        assert table.rank().tolist() == [0, 3, 2, 1, 4, 5]
        assert [*table.columns] == ["id", "loss", "loss@1", "steps", "status", "seconds"]

    def test_what_waits_at_rungs_ranks_by_how_far_it_came(self):
        columns = {
            "loss": np.array([5.0, 1.0, np.nan, 2.0, 3.0]),
            "loss@1": np.array([5.0, 1.0, np.nan, 2.0, 3.0]),
            "steps": np.array([3, 1, 0, 3, 1]),
            "status": np.array(["waiting"] * 4 + ["stopped"], object),
        }
        table = sweeps.Table(columns, "loss", (), ("loss",))
        assert table.rank().tolist() == [4, 3, 0, 1, 2]
        del columns["steps"]
        assert sweeps.Table(columns, "loss", (), ("loss",)).rank().tolist() == [4, 1, 3, 0, 2]
        with pytest.raises(ValueError, match=r"1 that were stopped.*4 that wait.*rung, at\(\)"):
            _ = table.best
        with pytest.raises(ValueError, match=r"4 that wait.*rung, at\(\)"):
            _ = table[:4].best

    def test_states_that_nobody_has(self, tables):
        with pytest.raises(ValueError, match="got that of a rung"):
            _ = tables("sequential", "halving").at(6).best_state
        trials = {**TRIALS.values, "rate": np.full(13, 1e9, np.float32)}
        lost = sweep(trials=trials, rungs=PLANS["halving"], **WAYS["sequential"])
        with pytest.raises(ValueError, match=r"nobody has one: 7 that were stopped .*6 that div"):
            _ = lost.best_state

    def test_rows_as_they_come(self):
        rows = []
        table = sweep(rungs=PLANS["halving"], on_row=rows.append, **WAYS["sequential"])
        told = [(row["steps"], row["status"]) for row in rows]
        rungs = [(1, 13, 6), (3, 6, 3), (6, 3, 1)]  # steps, trials, how many go on
        want = []
        for at, trials, on in rungs:
            want += [(at, "waiting")] * trials + [(at, "stopped")] * (trials - on)
        assert told == [*want, (12, "finished")]
        last = {name: x for name, x in table.best.items() if name not in ("mask", "seconds")}
        assert last == {name: rows[-1][name] for name in last}
        assert np.isnan(rows[0]["loss@3"])


@pytest.mark.parametrize(
    ("plan", "trials", "others", "text"),
    [
        (PLANS["hyperband"], TRIALS, TRIALS[::-1], "trials of brackets: was"),
        (FEW, REPEATED[::2], REPEATED, "trials: was 6, is 12"),
    ],
    ids=["another order of brackets", "more repetitions"],
)
def test_trials_that_would_have_competed_otherwise_are_another_sweep(
    plan, trials, others, text, tmp_path
):
    how = {"rungs": plan, "mode": "sequential", "checkpoint": tmp_path}
    sweep(trials=trials, **how)
    with pytest.raises(ValueError, match=text):
        sweep(trials=others, **how)


@pytest.mark.parametrize("name", ["loss@5", "near@77", "rate@3", "parent@4"])
def test_names_of_columns_at_rungs_are_refused(name):
    values = {**{k: np.asarray(x) for k, x in TRIALS.values.items()}, name: np.ones(13, np.float32)}
    with pytest.raises(ValueError, match=f"another name than '{name}'"):
        sweep(trials=sweeps.Trials(values, np.arange(13)), rungs=PLANS["halving"])


def test_a_rung_of_means_has_no_error_of_the_last_score():
    halved = sweep(trials=REPEATED, rungs=FEW, mode="sequential")
    assert "loss/error" not in halved.mean().at(2).columns
    assert bits(halved.mean().at(2)["loss"]) == bits(halved.at(2).mean()["loss"])


def test_a_part_in_which_all_stopped_says_so():
    halved = sweep(rungs=PLANS["wide"], mode="sequential")
    stopped = halved[halved["status"] == "stopped"]
    assert len(stopped)
    with pytest.raises(ValueError, match=r"that were stopped at a rung.*at\(\)"):
        _ = stopped.best


def test_an_automatic_chunk_of_repetitions_and_on_many_devices():
    plan, mesh = sweeps.halving(6, 9, 2), jax.make_mesh((8,), ("d",))
    wide = [plan.at_most(repeats, 1) for repeats in (1, 3)]
    assert wide[0] < 8 < wide[1] < 16
    for repeats, where, width in (
        (1, None, wide[0]),
        (3, None, wide[1]),
        (1, mesh, 8),
        (3, mesh, 8),
    ):
        host: Any = SimpleNamespace(
            rungs=plan,
            ledger=SimpleNamespace(ran=np.zeros(6 * repeats, bool)),
            wanted=SimpleNamespace(mesh=where),
            parts=[None],
        )
        assert _host.narrowed(host, 99) == width
        assert _host.narrowed(host, 2) == 2


def test_an_automatic_chunk_executes_at_most_twice_the_work_in_groups_and_on_a_mesh():
    plan = sweeps.hyperband(27)
    space = {"rate": sweeps.Log(1e-3, 1.0), "of": sweeps.Static(("a", "b"))}
    trials = sweeps.random(space, plan.settings, jax.random.key(0))
    move = lambda state, steps: jax.lax.fori_loop(0, steps, lambda _, x: x * 0.9, state)
    bare = sweeps.Task(lambda numbers, key: numbers["rate"], move, lambda x: x, steps=27)
    mesh = jax.make_mesh((4,), ("trials",))
    for options, run_trials in ({}, trials), ({"mesh": mesh}, {"rate": trials["rate"]}):
        work = sweep(bare, run_trials, rungs=plan, mode="vmap", **options).work
        assert work is not None
        assert work.nominal == plan.work
        assert work.executed <= 2 * work.nominal
