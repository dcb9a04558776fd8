"""A population is its trials until one goes on from another, and then what numpy says."""

import contextlib
import dataclasses
import signal
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt import _programs, sweeps
from lossopt.sweeps import _host, _watch
from lossopt.sweeps._calls import Calls
from lossopt.sweeps._form import Form
from lossopt.sweeps._population import evolved, rule_of
from lossopt.sweeps._trial import Bound
from tests.counted import counted
from tests.sweeps import runs
from tests.sweeps.runs import KEY, TASK, TRIALS, always, bits, failing, same, sweep

COUNT, FACTORS = 12, (0.5, 0.9, 2.0)
SPACE = {"rate": sweeps.Log(1e-2, 1), "decay": sweeps.Linear(0, 0.5)}
PLAN = sweeps.population(3, SPACE, quantile=0.25, factors=FACTORS)
IDS = np.array([31, 4, 17, 9, 26, 3, 5, 8, 14, 22, 11, 6], np.int32)
RNG = np.random.default_rng(1)
VALUES = {
    "rate": RNG.uniform(0.01, 1, COUNT).astype(np.float32),
    "decay": RNG.uniform(0, 0.5, COUNT).astype(np.float32),
    "seed": np.arange(COUNT, dtype=np.int32),
}
STATE = {
    "w": RNG.normal(size=(COUNT, 2)).astype(np.float32),
    "key": jax.random.split(jax.random.key(8), COUNT),
    "of": VALUES,
}
NAN, INF = np.nan, np.inf
SCORES = {
    "ties": np.array([3, 1, 9, 2, 1, 0, 7, 5, 5, 7, 7, 7], np.float32),
    "not finite": np.array([3, 1, NAN, 2, 1, -INF, 7, 5, 5, 4, INF, 6], np.float32),
    "few are finite": np.array([NAN] * 5 + [2, NAN, 1] + [INF] * 4, np.float32),
    "none is finite": np.full(COUNT, NAN, np.float32),
}
WHOLE = {
    "whole numbers": np.array([3, 1, -(2**31), 2, 1, 0, 7, 5, 5, 7, 7, 7], np.int32),
    "booleans": np.arange(COUNT) % 3 == 0,
}


RANGES = {"rate": sweeps.Log(1e-4, 1e9), "decay": sweeps.Linear(0, 1)}
RUNGS = sweeps.population(4, RANGES, quantile=0.25, factors=FACTORS)
BESIDE = {"mode": "vmap", "chunk": len(TRIALS)}


def _after(scores, maximize=False, plan=PLAN, generation=2, rows: Any = slice(None)):
    """What comes after a generation, compiled."""
    made = TASK, (), Form("vmap", COUNT), rule_of(plan, COUNT, maximize)
    given = jax.tree.map(lambda x: x[rows], (STATE, VALUES, IDS, scores))
    return _programs.call(evolved, made, *given, KEY, np.int32(generation))


def _ranked(scores, ids, maximize):
    """Rows, the best first."""
    worth = lambda row: float(scores[row]) * (-1 if maximize else 1)
    known = [row for row in range(len(ids)) if np.isfinite(scores[row])]
    lost = [row for row in range(len(ids)) if not np.isfinite(scores[row])]
    return sorted(known, key=lambda i: (worth(i), ids[i])) + sorted(lost, key=lambda i: ids[i])


def _by_hand(scores, maximize=False, generation=2, values=VALUES, ids=IDS, space=SPACE):
    """Donors and hyperparameters, trial by trial; three of them are replaced."""
    order, known = _ranked(scores, ids, maximize), int(np.isfinite(scores).sum())
    donors, moved = np.arange(len(ids)), {name: x.copy() for name, x in values.items()}
    for row in order[-3:] if known else []:
        key = jax.random.fold_in(jax.random.fold_in(KEY, 2**32 - 1), generation)
        which, how = jax.random.split(jax.random.fold_in(key, ids[row]))
        donors[row] = order[int(jax.random.randint(which, (), 0, min(3, known)))]
        picks = jax.random.randint(how, (2,), 0, 3)
        for name, pick in zip(("decay", "rate"), picks):
            ends = np.array([space[name].low, space[name].high], np.float32)
            new = values[name][donors[row]] * np.float32(FACTORS[int(pick)])
            moved[name][row] = np.clip(new, *ends)
    return donors, moved


class TestGeneration:
    @pytest.mark.parametrize(
        ("case", "maximize"),
        [("ties", True), *((case, False) for case in SCORES), *((case, True) for case in WHOLE)],
    )
    def test_it_is_what_numpy_says(self, case, maximize):
        scores = (SCORES | WHOLE)[case]
        donors, values = _by_hand(scores, maximize)
        state, found, rows = _after(scores, maximize)
        np.testing.assert_array_equal(rows, donors)
        for name, x in values.items():
            assert bits(found[name]) == bits(x)
            assert bits(state["of"][name]) == bits(x)
        assert bits(state["w"]) == bits(STATE["w"][donors])
        assert bits(state["key"]) == bits(STATE["key"]), "each keeps its own"
        assert (donors != np.arange(COUNT)).sum() == (0 if case == "none is finite" else 3)

    def test_an_order_of_trials_is_that_of_the_rows(self):
        order, scores = np.random.default_rng(3).permutation(COUNT), SCORES["not finite"]
        state, values, rows = _after(scores)
        other, moved, places = _after(scores, rows=order)
        assert (IDS[rows][order] == IDS[order][places]).all()
        assert bits(state["w"][order]) == bits(other["w"])
        assert bits(values["rate"][order]) == bits(moved["rate"])

    def test_draws_are_even_and_differ_from_generation_to_generation(self):
        scores = np.arange(COUNT, dtype=np.float32)
        found = [_after(scores, generation=number) for number in range(100)]
        rows = np.array([rows[-3:] for *_, rows in found]).ravel()
        assert set(rows.tolist()) == {0, 1, 2}
        assert (abs(np.bincount(rows) - 100) < 33).all()  # four standard deviations
        free = sweeps.population(3, {"rate": sweeps.Log(1e-6, 1e6)}, quantile=0.25, factors=FACTORS)
        found = [_after(scores, plan=free, generation=number) for number in range(100)]
        grown = np.array([x["rate"][-3:] / VALUES["rate"][rows[-3:]] for _, x, rows in found])
        places = [np.isclose(grown, factor, rtol=1e-5).sum() for factor in FACTORS]
        assert sum(places) == 300
        assert (abs(np.subtract(places, 100)) < 33).all()

    def test_ends_are_those_of_the_space(self):
        narrow = {"rate": sweeps.Log(0.9, 1), "decay": sweeps.Linear(0.2, 0.21)}
        plan = sweeps.population(3, narrow, quantile=0.5, factors=(1e-3, 1e3))
        _, found, rows = _after(SCORES["ties"], plan=plan)
        replaced = np.asarray(rows) != np.arange(COUNT)
        assert replaced.sum() == 6
        for name, range_ in narrow.items():
            ends = np.array([range_.low, range_.high], np.float32)
            assert np.isin(found[name][replaced], ends).all()
            assert bits(found[name][~replaced]) == bits(VALUES[name][~replaced])

    def test_who_is_not_replaced_inherits_nothing(self):
        again = lambda own, donor, numbers: donor | {"key": own["key"], "w": 0 * donor["w"]}
        made = dataclasses.replace(TASK, inherit=again), (), Form("vmap", COUNT)
        given = STATE, VALUES, IDS, SCORES["ties"], KEY, np.int32(2)
        state, _, rows = _programs.call(evolved, (*made, rule_of(PLAN, COUNT, False)), *given)
        replaced = np.asarray(rows) != np.arange(COUNT)
        np.testing.assert_array_equal(state["w"], np.where(replaced[:, None], 0, STATE["w"]))

    def test_without_a_quantile_nobody_goes_on_from_another(self):
        plan = sweeps.population(3, SPACE, quantile=0)
        state, values, rows = _after(SCORES["ties"], plan=plan)
        assert (rows == np.arange(COUNT)).all()
        same = jax.tree.map(lambda a, b: bits(a) == bits(b), (state, values), (STATE, VALUES))
        assert jax.tree.all(same)


REFUSED = {
    "every": (ValueError, "every >= 1, got 0", {"every": 0}),
    "part of a step": (TypeError, r"every as a whole number, got 1\.5", {"every": 1.5}),
    "one factor": (TypeError, "factors as a sequence of numbers, got 3", {"factors": 3}),
    "nothing changes": (ValueError, "at least one range", {"space": {}}),
    "no space": (ValueError, "space as a dict", {"space": sweeps.Log(1, 2)}),
    "a choice": (
        TypeError,
        r"'rate' of space as lossopt\.sweeps\.Log or Linear, got Integer",
        {"space": {"rate": sweeps.Integer(1, 2)}},
    ),
    "less than none": (ValueError, "quantile >= 0", {"quantile": -0.1}),
    "more than half": (ValueError, r"quantile <= 0\.5", {"quantile": 0.6}),
    "no number": (ValueError, "quantile", {"quantile": NAN}),
    "no factors": (ValueError, "factors as numbers above 0", {"factors": ()}),
    "a factor of zero": (ValueError, "factors as numbers above 0", {"factors": (0.0, 1)}),
    "an infinite factor": (ValueError, "factors as numbers above 0", {"factors": (INF, 1)}),
}


class TestPlan:
    @pytest.mark.parametrize(
        ("quantile", "counts"),
        [(0, [0, 0, 0]), (1e-9, [0, 1, 1]), (0.29, [0, 1, 29]), (0.5, [0, 1, 50])],
    )
    def test_how_many_are_replaced(self, quantile, counts):
        plan = sweeps.population(1, SPACE, quantile=quantile)
        assert [plan.replaced(trials) for trials in (1, 2, 100)] == counts

    def test_generations_end_with_the_task(self):
        assert PLAN.levels(10) == (3, 6, 9, 10)
        assert PLAN.levels(9) == (3, 6, 9)

    @pytest.mark.parametrize("case", REFUSED)
    def test_refused(self, case):
        error, said, options = REFUSED[case]
        given = {"every": 3, "space": SPACE} | options
        with pytest.raises(error, match=said):
            sweeps.population(given.pop("every"), given.pop("space"), **given)


def test_a_training_run_goes_on_from_another():
    """With its own key and the new hyperparameters, and all that the other has learned."""
    data = {"x": RNG.normal(size=(12, 2)).astype(np.float32)}

    def objective(params, batch, model_state, hyperparameters):
        values = (batch["x"] @ params - hyperparameters["level"]) ** 2
        return lo.mean(values), {"model_state": model_state + 1}

    made = sweeps.task(
        objective,
        lambda key: (jax.random.normal(key, (2,)), jnp.zeros(())),
        data,
        lambda numbers: optax.adam(numbers["rate"]),
        steps=9,
        batch_size=4,
        has_aux=True,
    )
    numbers = lambda rate: {"rate": jnp.float32(rate), "level": jnp.float32(1), "name": "a"}
    inherit = made.inherit
    assert inherit is not None

    @jax.jit
    def moved(keys):
        pair = jax.vmap(lambda key: made.advance(made.init(numbers(0.1), key), 5))(keys)
        own, donor = (jax.tree.map(lambda x, row=row: x[row], pair) for row in range(2))
        trials = own, donor, inherit(own, donor, numbers(0.3))
        three = jax.tree.map(lambda *x: jnp.stack(x), *trials)
        after = jax.vmap(lambda trial: made.advance(trial, 1))(three)
        return trials, jax.vmap(made.score)(three)["train/value"], after.params

    (own, donor, new), scores, after = moved(jax.random.split(KEY))
    for name in ("params", "model_state", "opt_state", "count", "pool"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(donor, name))
    assert bits(new.key) == bits(own.key) != bits(donor.key)
    assert jax.tree.structure(new) == jax.tree.structure(own)
    assert new.hyperparameters["rate"] == np.float32(0.3)
    assert scores[2] == scores[1] != scores[0]
    assert bits(after[2]) != bits(after[1])


# Swept


@pytest.fixture(scope="module")
def whole():
    """The table of a population that nobody interrupted."""
    return sweep(rungs=RUNGS)


@pytest.fixture(scope="module")
def plain():
    """The full sweep of the same trials in the same form."""
    return sweep(**BESIDE)


class TestSwept:
    def test_it_is_what_numpy_says(self, whole):
        """Generation after generation, from parts that are jitted alone."""
        ids = np.asarray(TRIALS.id)
        keys = jax.vmap(lambda id: jax.random.fold_in(KEY, id))(ids)
        advance = jax.jit(jax.vmap(TASK.advance, (0, None)))
        values, state = TRIALS.values, jax.vmap(TASK.init)(TRIALS.values, keys)
        for number, steps in enumerate((4, 8, 12)):
            state = advance(state, 4)
            loss = np.asarray(jax.vmap(TASK.score)(state)["loss"])
            np.testing.assert_allclose(whole[f"loss@{steps}"], loss, rtol=1e-4)
            for name in ("rate", "decay"):
                assert bits(whole[f"{name}@{steps}"]) == bits(values[name])
            if steps < 12:
                scores = whole[f"loss@{steps}"]
                donors, values = _by_hand(scores, False, number, values, ids, RANGES)
                assert whole[f"parent@{steps}"].tolist() == ids[donors].tolist()
                assert (donors != np.arange(len(ids))).sum() == 3
                state = jax.tree.map(lambda x: x[donors], state) | {"key": keys, "of": values}  # noqa: B023
        assert "parent@12" not in whole.columns

    def test_the_table(self, whole):
        assert whole["status"].tolist() == ["finished"] * len(TRIALS), "who diverged went on"
        assert bits(whole["loss"]) == bits(whole["loss@12"])
        assert bits(whole["rate@4"]) == bits(TRIALS["rate"]), "what it began with"
        assert bits(whole["rate"]) == bits(whole["rate@12"]) != bits(TRIALS["rate"])
        assert set(whole["steps"]) == {12}
        assert whole.work == (12 * 13,) * 3
        best = int(np.argmin(whole["loss"]))
        assert whole.best["id"] == best
        assert whole.best_state["of"]["rate"] == whole["rate@12"][best]
        assert TASK.score(whole.best_state)["loss"] == pytest.approx(whole["loss"][best])
        early = whole.at(4)
        assert bits(early["rate"]) == bits(whole["rate@4"])
        assert (early["status"] == "diverged").sum() == 3
        assert not [name for name in early.columns if "@" in name]
        later = whole.at(8)
        assert bits(later["rate"]) == bits(whole["rate@8"]) != bits(whole["rate@12"])
        assert len(whole.mean()) == len(whole)

    def test_the_bar_moves_with_the_generations(self, monkeypatch):
        shown = []
        bar = lambda *given: contextlib.nullcontext(lambda done, *_: shown.append(done))
        monkeypatch.setattr(_watch, "BLINK", -1)
        monkeypatch.setattr(_host, "bar", bar)
        sweep(rungs=RUNGS)
        assert shown == [4, 8, 13, 13]

    def test_where_nobody_is_replaced_it_is_the_full_sweep(self, plain):
        table = sweep(rungs=sweeps.population(5, RANGES, quantile=0, factors=(1, 1)))
        for name in plain.columns.keys() - {"seconds"}:
            assert bits(table[name].astype(plain[name].dtype)) == bits(plain[name]) or (
                table[name].tolist() == plain[name].tolist()
            )
        equal = jax.tree.map(lambda a, b: bits(a) == bits(b), table.best_state, plain.best_state)
        assert jax.tree.all(equal)
        assert (table["parent@5"] == table["id"]).all()

    def test_who_is_never_replaced_is_the_trial_of_the_full_sweep(self, whole, plain):
        own = [(whole[f"parent@{steps}"] == whole["id"]) for steps in (4, 8)]
        stayed = np.all(own, axis=0)
        assert 7 <= stayed.sum() < 13
        assert bits(whole["loss"][stayed]) == bits(plain["loss"][stayed])
        assert (whole["loss"] != plain["loss"])[~stayed].all()

    def test_the_highest(self, whole):
        table = sweep(rungs=RUNGS, maximize=True, score="near")
        donors, values = _by_hand(
            table["near@4"], True, 0, TRIALS.values, np.asarray(TRIALS.id), RANGES
        )
        assert table["parent@4"].tolist() == donors.tolist()
        assert bits(table["rate@8"]) == bits(values["rate"])

    def test_another_score_in_the_checkpoint(self, tmp_path):
        with mock.patch.object(_watch, "EVERY", 1e9):
            sweep(rungs=RUNGS, checkpoint=tmp_path)
        latest = lo.checkpoint.Checkpoints(tmp_path).latest()
        assert latest is not None
        assert latest.step == 2, "saved after the first generation and at the end"
        with pytest.raises(ValueError, match="ranks by: was the lowest loss, is the lowest near"):
            sweep(rungs=RUNGS, checkpoint=tmp_path, score="near")

    def test_what_was_used_before_was_tried(self, whole):
        rates = np.concatenate([whole["rate@4"], whole["rate@8"], whole["rate@12"]])
        good = whole.interval("rate", within=0.0)
        assert good.low == good.high == whole.best["rate"]
        assert good.below == pytest.approx(rates[rates < whole.best["rate"]].max())
        assert good.above == pytest.approx(rates[rates > whole.best["rate"]].min())
        assert np.isfinite(whole["loss"]).all()  # all of them count
        last = whole["rate"]
        assert {good.below, good.above} - {float(x) for x in last}

    def test_an_order_of_trials_is_that_of_the_rows(self, whole):
        order = np.random.default_rng(1).permutation(len(TRIALS))
        same(sweep(trials=TRIALS[order], rungs=RUNGS), whole[order])

    def test_programs_do_not_depend_on_the_generations(self, whole):
        every = lambda steps: sweeps.population(steps, RANGES, quantile=0.25, factors=FACTORS)
        with counted() as seen:
            table = sweep(rungs=every(4))
        assert (seen.traces, seen.lowered, seen.compiled) == (0, 0, 0)
        same(table, whole)
        with counted() as seen:
            sweep(rungs=every(1))
        assert (seen.traces, seen.lowered, seen.compiled) == (0, 0, 0)
        with counted() as seen:
            sweep(dataclasses.replace(TASK, steps=30), rungs=every(7))
        assert seen.compiled == 0


def _stopping(steps, *ids):
    """Ctrl-C when one of these trials has taken so many steps."""

    def stop(row):
        if row["id"] in ids and row["steps"] == steps:
            signal.raise_signal(signal.SIGINT)

    return stop


def _cut(at, **options):
    """A sweep that is interrupted when its trials have taken so many steps."""
    run = Calls.run

    def cut(self, form, rows, within, until, goes_on):
        def asked(under):
            if under.done == at:
                signal.raise_signal(signal.SIGINT)
            return goes_on(under)

        return run(self, form, rows, within, until, asked)

    few = lambda self, left: min(left, 3)
    with mock.patch.multiple(Calls, run=cut, _count=few):
        return sweep(rungs=RUNGS, **options)


class TestGoesOn:
    def test_after_a_generation(self, whole, tmp_path):
        options = {"rungs": RUNGS, "checkpoint": tmp_path}
        with mock.patch.object(_watch, "EVERY", 1e9):  # the second generation is saved at the end
            table = sweep(on_row=_stopping(8, 6), **options)
        assert set(table["status"]) == {"waiting"}
        assert set(table["steps"]) == {8}
        assert np.isnan(table["rate@12"]).all()
        assert (table["parent@8"] == whole["parent@8"]).all()
        assert bits(table.at(8)["loss"]) == bits(whole["loss@8"])
        rows = []
        same(sweep(on_row=rows.append, **options), whole)
        assert [row["id"] for row in rows] == [*range(13)]
        assert all(row["loss@12"] == row["loss"] or np.isnan(row["loss"]) for row in rows)
        same(sweep(on_row=rows.append, **options), whole)
        assert len(rows) == 13, "it had ended"

    def test_within_a_generation(self, whole, tmp_path):
        begun, begin = [], Bound.begin
        spy = lambda *args: begun.append(args) or begin(*args)
        order = np.random.default_rng(2).permutation(len(TRIALS))
        with mock.patch.object(Bound, "begin", spy):
            for done in (3, 11):
                table = _cut(done, checkpoint=tmp_path)
                assert set(table["steps"]) == {done // 4 * 4}
            same(sweep(trials=TRIALS[order], rungs=RUNGS, checkpoint=tmp_path), whole[order])
        assert len(begun) == 1

    def test_an_error_leaves_what_was_saved(self, whole, tmp_path):
        def fails(row):
            if row["steps"] == 8:
                raise KeyError("of the caller")

        with always(), pytest.raises(KeyError, match="of the caller"):
            sweep(rungs=RUNGS, checkpoint=tmp_path, on_row=fails)
        same(sweep(rungs=RUNGS, checkpoint=tmp_path), whole)

    def test_an_error_within_a_generation_leaves_what_was_saved(self, whole, tmp_path):
        patched, begun = failing(call=2, done=7, few=3)
        with patched:
            with always(), pytest.raises(KeyError, match="of the caller"):
                sweep(rungs=RUNGS, checkpoint=tmp_path)
            same(sweep(rungs=RUNGS, checkpoint=tmp_path), whole)
        assert begun == [None, 4, 7, 8]

    def test_no_generation_begins_after_the_time(self, whole, tmp_path):
        table = sweep(rungs=RUNGS, checkpoint=tmp_path, timeout=1e-9)
        assert set(table["status"]) == {"waiting"}
        assert set(table["steps"]) == {0}
        same(sweep(rungs=RUNGS, checkpoint=tmp_path), whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory that holds a population that was interrupted."""
    directory = tmp_path_factory.mktemp("population")
    sweep(rungs=RUNGS, checkpoint=directory, on_row=_stopping(4, 6))
    return directory


def _other(own, donor, numbers):
    return donor | {"key": own["key"], "of": numbers, "w": donor["w"] + 1}


ANOTHER = {
    "plan": (dict(rungs=dataclasses.replace(RUNGS, factors=(0.5, 2.0))), "rungs: was"),
    "no plan": (dict(rungs=None), "rungs: was"),
    "fewer": (dict(trials=TRIALS[:12]), "trials: was 13, is 12|none of this id"),
    "more": (dict(trials=sweeps.join(TRIALS, TRIALS)), "trials: was 13, is 26"),
    "inherit": (dict(run=dataclasses.replace(TASK, inherit=_other)), "inherit: was program"),
}


@pytest.mark.parametrize(("options", "said"), ANOTHER.values(), ids=ANOTHER)
def test_another_population_is_refused(saved, options, said):
    before = sorted(saved.iterdir())
    given = {"run": TASK, "rungs": RUNGS, "checkpoint": saved} | options
    with pytest.raises(ValueError, match=f"(?s)holds another sweep than this call.*({said})"):
        sweep(**given)
    assert sorted(saved.iterdir()) == before


def _named(name):
    """A task and trials in which a hyperparameter has another name."""
    values = {name: np.linspace(0.1, 0.9, 4, dtype=np.float32)}
    made = sweeps.Task(
        lambda numbers, key: numbers[name],
        lambda state, steps: state,
        lambda state: state,
        steps=3,
        inherit=lambda own, donor, numbers: numbers[name],
    )
    plan = sweeps.population(2, {name: sweeps.Linear(0, 1)})
    return {"run": made, "trials": values, "rungs": plan}


KINDS = sweeps.grid({"rate": sweeps.Linear(0.1, 1), "kind": sweeps.Static(("a", "b"))}, 2)
UNFIT = {
    "a function": (dict(run=runs.RUN), TypeError, "plain function"),
    "no inherit": (
        dict(run=dataclasses.replace(TASK, inherit=None)),
        ValueError,
        "Task with inherit.*without",
    ),
    "the plan": (dict(rungs=4), TypeError, "rungs.*got 4"),
    "one generation": (
        dict(rungs=dataclasses.replace(RUNGS, every=12)),
        ValueError,
        "every below the 12 steps of the task, got 12",
    ),
    "sequential": (dict(mode="sequential"), ValueError, "mode 'vmap' or 'auto'"),
    "chunk": (dict(chunk=4), ValueError, "its 13 trials.*got 4"),
    "mesh": (dict(mesh=jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])), ValueError, "mesh"),
    "memory": (dict(memory=100), ValueError, "memory to hold a call.*13 trials need"),
    "kinds": (
        dict(_named("rate"), trials=KINDS),
        ValueError,
        "share a program, got trials of rate, kind='a' and trials of rate, kind='b'",
    ),
    "repeats": (dict(trials=TRIALS.repeat(2)), ValueError, "repeated"),
    "no such name": (
        dict(rungs=sweeps.population(4, {"speed": sweeps.Log(1, 2)})),
        ValueError,
        "'speed' of space among.*got decay, mask, rate",
    ),
    "an array": (
        dict(rungs=sweeps.population(4, {"mask": sweeps.Linear(0, 1)})),
        ValueError,
        r"'mask' of space as one real number a trial, got bool of shape \(8,\)",
    ),
    "whole numbers": (
        dict(_named("rate"), trials={"rate": np.array([0, 1])}),
        ValueError,
        r"'rate' of space as one real number a trial, got int32 of shape \(\)",
    ),
    "arrays of real numbers": (
        dict(
            _named("rate"),
            run=dataclasses.replace(_named("rate")["run"], score=jnp.sum),
            trials={"rate": np.ones((3, 2), np.float32)},
        ),
        ValueError,
        r"'rate' of space as one real number a trial, got float32 of shape \(2,\)",
    ),
    "outside": (
        dict(rungs=sweeps.population(4, {"rate": sweeps.Log(1e-3, 1)})),
        ValueError,
        "begin with rate within Log.*got 1000000000",
    ),
    "outside of all": (
        dict(_named("rate"), trials={"rate": np.float32([0.5, NAN])}),
        ValueError,
        r"begin with rate within Linear.*got nan",
    ),
    "parent": (_named("parent"), ValueError, "another name than 'parent'"),
    "parent that does not change": (
        dict(_named("rate"), trials={name: np.ones(2, np.float32) for name in ("rate", "parent")}),
        ValueError,
        "another name than 'parent'",
    ),
    "a score": (
        dict(run=dataclasses.replace(TASK, score=lambda state: {"parent": state["w"][0]})),
        ValueError,
        "another name than 'parent'",
    ),
    "steps": (_named("steps"), ValueError, "another name than 'steps'"),
    "another state": (
        dict(run=dataclasses.replace(TASK, inherit=lambda own, donor, numbers: own["w"])),
        ValueError,
        "inherit to return a state like that of init",
    ),
    "another dtype": (
        dict(
            run=dataclasses.replace(
                TASK, inherit=lambda own, donor, numbers: own | {"count": donor["w"][0]}
            )
        ),
        ValueError,
        "inherit to keep.*count from int32.* to float32",
    ),
}


def test_trials_may_begin_at_the_ends_of_the_space():
    table = sweep(**_named("rate") | {"trials": {"rate": np.array([0, 1, 0.5], np.float32)}})
    assert table["rate@2"].tolist() == [0, 1, 0.5]


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_population_is_refused(case, tmp_path):
    options, error, said = UNFIT[case]
    given = {"run": TASK, "rungs": RUNGS, "checkpoint": tmp_path / "run"} | options
    with pytest.raises(error, match=f"(?s){said}"):
        sweep(**given)
    assert not (tmp_path / "run").exists()


def test_it_finds_a_schedule():
    """Noisy steps: large rates come near, small ones stay there, and no fixed rate does both."""
    space = {"rate": sweeps.Log(1e-3, 1)}

    def init(numbers, key):
        return {"w": jnp.full(16, 10.0), "key": key, "count": 0, "of": numbers}

    def moved(state):
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["count"]), (16,))
        w = state["w"] - state["of"]["rate"] * (state["w"] + noise)
        return state | {"w": w, "count": state["count"] + 1}

    advance = lambda state, steps: jax.lax.fori_loop(0, steps, lambda _, x: moved(x), state)
    score = lambda state: jnp.mean(state["w"] ** 2)
    task = sweeps.Task(init, advance, score, steps=400, inherit=TASK.inherit)
    plan = sweeps.population(10, space)
    for seed in range(2):
        trials = sweeps.sobol(space, 16, jax.random.key(seed))
        fixed = sweep(task, trials, jax.random.key(seed), mode="vmap", chunk=16)
        found = sweep(task, trials, jax.random.key(seed), rungs=plan)
        assert found.best["loss"] < fixed.best["loss"] / 2
        rates = [found.best[f"rate@{steps}"] for steps in range(10, 401, 10)]
        assert max(rates[:5]) > 4 * max(rates[-5:])
