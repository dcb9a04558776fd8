"""A population is its trials until one goes on from another, and then what numpy says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt import _programs, sweeps
from lossopt.sweeps._form import Form
from lossopt.sweeps._population import evolved, rule_of
from tests.sweeps.runs import KEY, bits

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
    "whole numbers": np.array([3, 1, -(2**31), 2, 1, 0, 7, 5, 5, 7, 7, 7], np.int32),
    "booleans": np.arange(COUNT) % 3 == 0,
}


def _inherit(own, donor, numbers):
    return donor | {"key": own["key"], "of": numbers}


def _task(init=lambda numbers, key: None, inherit=_inherit):
    return sweeps.Task(init, lambda s, steps: s, lambda s: s["w"], steps=10, inherit=inherit)


TASK = _task()


def _after(scores, maximize=False, plan=PLAN, generation=2, rows: Any = slice(None)):
    """What comes after a generation, compiled."""
    made = TASK, (), Form("vmap", COUNT), rule_of(plan, COUNT, maximize)
    given = jax.tree.map(lambda x: x[rows], (STATE, VALUES, IDS, scores))
    return _programs.call(evolved, made, *given, KEY, np.int32(generation))


def _ranked(scores, maximize):
    """Rows, the best first."""
    worth = lambda row: float(scores[row]) * (-1 if maximize else 1)
    known = [row for row in range(COUNT) if np.isfinite(scores[row])]
    lost = [row for row in range(COUNT) if not np.isfinite(scores[row])]
    return sorted(known, key=lambda i: (worth(i), IDS[i])) + sorted(lost, key=lambda i: IDS[i])


def _by_hand(scores, maximize, generation=2):
    """Donors and hyperparameters, trial by trial."""
    order, known = _ranked(scores, maximize), int(np.isfinite(scores).sum())
    donors, values = np.arange(COUNT), {name: x.copy() for name, x in VALUES.items()}
    for row in order[-3:] if known else []:
        key = jax.random.fold_in(jax.random.fold_in(KEY, 2**32 - 1), generation)
        which, how = jax.random.split(jax.random.fold_in(key, IDS[row]))
        donors[row] = order[int(jax.random.randint(which, (), 0, min(3, known)))]
        picks = jax.random.randint(how, (2,), 0, 3)
        for name, pick in zip(("decay", "rate"), picks):
            ends = np.array([SPACE[name].low, SPACE[name].high], np.float32)
            moved = VALUES[name][donors[row]] * np.float32(FACTORS[int(pick)])
            values[name][row] = np.clip(moved, *ends)
    return donors, values


class TestGeneration:
    @pytest.mark.parametrize("maximize", [False, True])
    @pytest.mark.parametrize("case", SCORES)
    def test_it_is_what_numpy_says(self, case, maximize):
        donors, values = _by_hand(SCORES[case], maximize)
        state, found, rows = _after(SCORES[case], maximize)
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

    def test_without_a_quantile_nobody_goes_on_from_another(self):
        plan = sweeps.population(3, SPACE, quantile=0)
        state, values, rows = _after(SCORES["ties"], plan=plan)
        assert (rows == np.arange(COUNT)).all()
        same = jax.tree.map(lambda a, b: bits(a) == bits(b), (state, values), (STATE, VALUES))
        assert jax.tree.all(same)


REFUSED = {
    "every": (ValueError, "every >= 1, got 0", {"every": 0}),
    "part of a step": (TypeError, r"every as a whole number, got 1\.5", {"every": 1.5}),
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
    keys, inherit = jax.random.split(KEY), made.inherit
    assert inherit is not None
    advance = jax.jit(made.advance)
    own, donor = (advance(made.init(numbers(0.1), key), 5) for key in keys)
    new = jax.jit(lambda own, donor: inherit(own, donor, numbers(0.3)))(own, donor)
    for name in ("params", "model_state", "opt_state", "count", "pool"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(donor, name))
    assert bits(new.key) == bits(own.key) != bits(donor.key)
    assert jax.tree.structure(new) == jax.tree.structure(own)
    assert new.hyperparameters["rate"] == np.float32(0.3)
    assert made.score(new)["train/value"] == made.score(donor)["train/value"]
    after, other = advance(new, 1), advance(donor, 1)
    assert bits(after.params) != bits(other.params)
