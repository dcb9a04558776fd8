"""What a trial gives does not depend on its company, and programs do not depend on the trials."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lossopt import sweeps
from lossopt.sweeps._form import Form
from lossopt.sweeps._trial import Trial
from tests.counted import counted
from tests.placed import moved
from tests.sweeps.runs import KEY, RUN, TASK, TRIALS, bits, function, same, sweep, task

WAYS = {"sequential": {"mode": "sequential"}, "alone": {"mode": "vmap", "chunk": 1}}
BESIDE = {"mode": "vmap", "chunk": 2}
RUNS = {"run": RUN, "task": TASK}
MESHES = {
    "auto": ((8,), "d", AxisType.Auto),
    "explicit": ((2, 4), "ab", AxisType.Explicit),
}


@pytest.fixture(scope="module")
def whole():
    """Tables of all trials, by run and way."""
    ways = WAYS | {"beside": BESIDE}
    return {(name, way): sweep(RUNS[name], **ways[way]) for name in RUNS for way in ways}


def _mesh(kind):
    sizes, names, types = MESHES[kind]
    return jax.make_mesh(sizes, tuple(names), axis_types=(types,) * len(sizes))


class TestCompany:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", RUNS)
    def test_a_trial_alone_is_the_trial_in_the_sweep(self, whole, name, way):
        table = whole[name, way]
        for row in (0, 6, 12):
            alone = sweep(RUNS[name], TRIALS[[row]], **WAYS[way])
            want = table[np.array([row])]
            for column in {"id", "loss", "near", "status"}:
                assert alone[column].tobytes() == want[column].tobytes() or (
                    alone[column].tolist() == want[column].tolist()
                )

    @pytest.mark.parametrize("name", RUNS)
    def test_it_is_what_the_functions_give(self, whole, name):
        table, row = whole[name, "sequential"], 4
        numbers = {name: x[row] for name, x in TRIALS.values.items()}
        result = jax.jit(RUN)(numbers, jax.random.fold_in(KEY, 4))
        np.testing.assert_allclose(table["loss"][row], result["loss"], rtol=1e-5)
        assert table["near"][row] == result["near"]
        assert table["near"].dtype == np.float64
        assert table["loss"].dtype == np.float32

    @pytest.mark.parametrize("way", [*WAYS, "beside"])
    @pytest.mark.parametrize("name", RUNS)
    def test_an_order_of_trials_is_that_of_the_rows(self, whole, name, way):
        order = np.random.default_rng(1).permutation(len(TRIALS))
        table = sweep(RUNS[name], TRIALS[order], **(WAYS | {"beside": BESIDE})[way])
        want = whole[name, way][order]
        same(table, want)

    def test_the_table_keeps_the_state_of_its_best(self, whole):
        table = whole["task", "sequential"]
        best = int(np.nanargmin(np.where(np.isfinite(table["loss"]), table["loss"], np.nan)))
        assert table.best["id"] == best
        alone = sweep(trials=TRIALS[[best]], mode="sequential")
        assert [*map(bits, jax.tree.leaves(table.best_state))] == [
            *map(bits, jax.tree.leaves(alone.best_state))
        ]
        assert table.best_state["count"] == TASK.steps
        with pytest.raises(ValueError, match=r"^Expected the table of a sweep of a lossopt"):
            _ = whole["run", "sequential"].best_state

    def test_what_diverged_is_last_and_marked(self, whole):
        table = whole["task", "sequential"]
        finite = np.isfinite(table["loss"])
        assert 0 < finite.sum() < len(table)
        assert (table["status"] == np.where(finite, "finished", "diverged")).all()
        assert (table["status"][table.rank()][: finite.sum()] == "finished").all()
        highest = sweep(maximize=True, mode="sequential")
        assert highest.best["loss"] == pytest.approx(table["loss"][finite].max())
        assert (highest["status"][highest.rank()][: finite.sum()] == "finished").all()
        errors = highest.best_state["w"]
        assert np.isfinite(errors).all()


class TestDevices:
    @pytest.mark.parametrize(
        ("name", "way", "kind"),
        [
            ("run", "sequential", "explicit"),
            ("run", "beside", "auto"),
            ("task", "sequential", "auto"),
            ("task", "beside", "explicit"),
        ],
    )
    def test_sharded_is_unsharded(self, whole, name, way, kind):
        table = sweep(RUNS[name], mesh=_mesh(kind), **(WAYS | {"beside": BESIDE})[way])
        same(table, whole[name, way])

    @pytest.mark.parametrize("kind", MESHES)
    def test_devices_do_not_speak(self, kind):
        numbers = {name: x[0] for name, x in TRIALS.values.items()}
        for run in RUNS.values():
            form = Form("vmap", 2, _mesh(kind))
            for program, shapes in Trial(run, (), KEY).programs(form, numbers):
                text = jax.jit(program.run).lower(program.arrays, *shapes).compile().as_text() or ""
                assert "num_partitions=8" in text
                assert not moved(text)
                assert not re.search("all-reduce|all-gather|all-to-all|collective|send|recv", text)

    @pytest.mark.parametrize("kind", MESHES)
    def test_arrays_that_lie_on_a_device(self, kind):
        held = jax.device_put(jnp.arange(3.0), jax.devices()[0])
        run = lambda numbers, key: jnp.sum(jnp.tanh(numbers * held))
        want = sweep(run, np.arange(5.0), mode="sequential")
        same(sweep(run, np.arange(5.0), mode="sequential", mesh=_mesh(kind)), want)
        with jax.set_mesh(_mesh(kind)):
            same(sweep(run, np.arange(5.0), mode="sequential", mesh=_mesh(kind)), want)


class TestPrograms:
    def test_their_number_does_not_grow_with_the_trials(self):
        few, many, again = (task(extra=extra) for extra in (0.1, 0.2, 0.2))
        counts = []
        for run, trials in ((few, TRIALS[:4]), (many, TRIALS), (again, TRIALS[:6])):
            with counted() as seen:
                sweep(run, trials, **BESIDE)
            counts.append(seen.compiled)
        assert counts[0] >= counts[1] > 0
        assert counts[2] == 0, "built again of equal arrays"

    def test_a_closure_of_equal_arrays_is_the_same_program(self):
        runs = [function(task(extra=0.3)) for _ in range(2)]
        sweep(runs[0], **WAYS["sequential"])
        with counted() as seen:
            sweep(runs[1], **WAYS["sequential"])
        assert seen.compiled == 0

    @pytest.mark.parametrize("options", [{}, {"memory": 10**9, "mode": "vmap", "chunk": 2}])
    def test_a_second_sweep_traces_nothing(self, options):
        run = task()
        sweep(run, **options)
        with counted() as seen:
            sweep(run, **options)
        assert (seen.traces, seen.lowered, seen.compiled) == (0, 0, 0)

    def test_options_are_one_program_each_in_one_table(self):
        space = {"width": sweeps.Static((2, 3)), "rate": sweeps.Linear(0, 1)}
        traced = []

        def run(numbers, key):
            traced.append(numbers["width"])
            return numbers["rate"] * jnp.sum(jnp.ones(numbers["width"]))

        trials = sweeps.grid(space, 3)
        order = np.array([5, 0, 3, 1, 4, 2])
        table = sweep(run, trials[order], mode="sequential")
        want = (trials["rate"] * trials["width"].astype(np.float32))[order]
        np.testing.assert_allclose(table["loss"], want)
        assert table["width"].tolist() == trials["width"][order].tolist()
        assert len(traced) <= 4  # its shapes, and its program

    def test_many_options(self):
        space = {"width": sweeps.Static(tuple(range(1, 13))), "rate": sweeps.Linear(0, 1)}
        stay = lambda state, steps: state
        init = lambda numbers, key: numbers["rate"] * jnp.ones(numbers["width"])
        run = sweeps.Task(init, stay, jnp.sum, steps=1)
        sweep(run, sweeps.grid(space, 1), mode="sequential")
        with counted() as seen:
            table = sweep(run, sweeps.grid(space, 1), mode="sequential")
        assert (seen.traces, seen.compiled) == (0, 0)
        np.testing.assert_allclose(table["loss"], table["rate"] * np.arange(1, 13), rtol=1e-6)

    def test_what_is_missing_is_not_passed(self):
        adam = sweeps.grid({"rate": sweeps.Linear(0.1, 1), "b2": sweeps.Choice((0.9, 0.99))}, 2)
        sgd = sweeps.grid({"rate": sweeps.Linear(0.1, 1)}, 2)
        seen = set()

        def run(numbers, key):
            seen.add(tuple(sorted(numbers)))
            return numbers["rate"] + numbers.get("b2", 5.0)

        table = sweep(run, sweeps.join(adam, sgd), mode="sequential")
        assert seen == {("rate",), ("b2", "rate")}
        assert np.isnan(table["b2"]).tolist() == [False] * 4 + [True] * 2
        np.testing.assert_allclose(table["loss"], table["rate"] + np.nan_to_num(table["b2"], nan=5))
