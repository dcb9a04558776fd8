"""Columns beside the terms, what judges by them, and how a run is told."""

import csv
import dataclasses
import json
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import lossopt as lo
from lossopt.training import _bar, _fit
from lossopt.training._norms import norms
from lossopt.training._report import as_json

KEY, NAN, INF = jax.random.key(0), np.nan, np.inf
EPOCHS, X = 4, np.arange(6.0, dtype=np.float32)
OPTIONS = {"key": KEY, "progress": False}


def _objective(params, x):
    return {
        "fit": lo.mean((params["w"] - x) ** 2),
        "penalty": lo.constant(jnp.sum(params["b"] ** 2)),
    }


PARAMS = {"w": np.float32(1), "b": np.ones(3, np.float32)}


def _fit_it(optimizer=None, objective=_objective, **options):
    given = OPTIONS | {"batch_size": 3, "epochs": EPOCHS} | options
    return lo.fit(objective, PARAMS, X, optimizer or optax.sgd(0.1), **given)


# Norms


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_are_those_of_float64(scale, dtype):
    rng = np.random.default_rng(0)
    trees = [
        {"w": jnp.asarray(scale * rng.normal(size=(3, 2)), dtype), "b": jnp.asarray(scale, dtype)}
        for _ in range(3)
    ]
    columns = norms("^w$", (trees[0], trees[1]), trees[2])
    slopes, old, new = ({k: np.asarray(x, np.float64) for k, x in t.items()} for t in trees)
    size = lambda *leaves: np.linalg.norm(np.concatenate([np.ravel(x) for x in leaves]))
    moved = {k: new[k] - old[k] for k in new}
    want = {
        "gradient_norm": size(*slopes.values()),
        "update_ratio": size(*moved.values()) / size(*new.values()),
        "gradient_norm/w": size(slopes["w"]),
        "update_ratio/w": size(moved["w"]) / size(new["w"]),
    }
    assert columns.keys() == want.keys()
    for name, column in columns.items():
        assert column.dtype == jnp.float32
        np.testing.assert_allclose(column, want[name], rtol=1e-5)


def test_an_update_that_is_lost_to_rounding_is_0():
    before = jnp.ones(3, jnp.bfloat16)
    after = optax.apply_updates(before, jnp.full(3, 1e-4, jnp.bfloat16))
    assert norms(None, (before, before), after)["update_ratio"] == 0
    assert norms(None, (before, 0 * before), 0 * before)["update_ratio"] == 0


def test_norms_are_those_of_the_last_step_of_a_row_wherever_rows_end():
    each, some = (_fit_it(evaluate_every=every).history for every in (1, 3))
    at = some["step"] - 1
    np.testing.assert_array_equal(some["step"], [3, 6, 8])
    for name in ("train/gradient_norm", "train/update_ratio"):
        assert len(np.unique(each[name])) == len(each[name])
        np.testing.assert_allclose(some[name], each[name][at], rtol=1e-6)


def test_norms_have_no_derivative():
    objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}

    def trial(rate):
        run = lo.training.run(objective, 0.0, jnp.ones(2), optax.sgd(rate), epochs=2, key=KEY)
        return run.history["train/gradient_norm"][-1] + run.history["train/update_ratio"][-1]

    value, slope = jax.jit(jax.value_and_grad(trial))(0.1)
    np.testing.assert_allclose(value, 1.6 + 0.16 / 0.36, rtol=1e-6)
    assert slope == 0


# The learning rate


def _schedule(count):
    return 0.1 / (1 + count)


INJECTED = optax.inject_hyperparams(optax.sgd)
RATES = {
    "of a state": (INJECTED(_schedule), None, _schedule(np.arange(1, 8, 2))),
    "of the hyperparameters": (
        lambda numbers: optax.sgd(numbers["learning_rate"]),
        {"learning_rate": 0.05},
        np.full(4, 0.05),
    ),
    "of a state before hyperparameters": (
        lambda numbers: INJECTED(lambda count: numbers["learning_rate"] * _schedule(count)),
        {"learning_rate": 0.5},
        0.5 * _schedule(np.arange(1, 8, 2)),
    ),
}


@pytest.mark.parametrize("case", RATES)
def test_the_learning_rate_is_that_of_the_last_step_of_a_row(case):
    optimizer, numbers, want = RATES[case]
    column = _fit_it(optimizer, hyperparameters=numbers).history["train/learning_rate"]
    np.testing.assert_allclose(column, want, rtol=1e-6)


def test_where_there_is_none_or_there_are_two_there_is_no_column():
    pair = optax.partition({"a": INJECTED(0.1), "b": INJECTED(0.2)}, {"w": "a", "b": "b"})
    for optimizer in (None, pair):
        assert "train/learning_rate" not in _fit_it(optimizer).history


# Seconds


def test_rows_of_one_call_share_its_time(monkeypatch):
    readings = iter(np.cumsum([100.0, 0.0, 3.0, 0.0, 0.05, 0.0, 1.0]))
    monkeypatch.setattr(_fit, "Host", partial(_fit.Host, clock=lambda: next(readings)))
    seconds = _fit_it(batch_size=6, epochs=5).history["seconds"]
    np.testing.assert_allclose(seconds, [3, 3.05, 3.05 + 1 / 3, 3.05 + 2 / 3, 4.05])


# What judges


def _scored(w, x, key, model_state, hyperparameters):
    """A step adds 1; after epoch n the metric is number n of a table."""
    score = 0.0 if key is not None else hyperparameters[model_state - 1]
    means = lo.constant(jax.lax.stop_gradient(w) - w)
    aux = {"metrics": {"score": lo.constant(score)}}
    return means, aux | {"model_state": model_state + (key is not None)}


SCORED: dict[str, Any] = {"objective": _scored, "params": 0.0, "train": jnp.zeros(2)}
SCORED |= {"optimizer": optax.sgd(1.0), "epochs": 5, "key": KEY, "has_aux": True, "model_state": 0}
SCORES = {
    "first of equals": ([1.0, 3.0, 2.0, 3.0, 0.0], 1, 4),
    "not finite": ([NAN, INF, -2.0, -INF, NAN], 2, 2),
    "none": ([NAN, INF, -INF, NAN, NAN], -1, -1),
}


@pytest.mark.parametrize("part", ["validation", "trained"])
@pytest.mark.parametrize("case", SCORES)
def test_any_column_judges_in_either_direction(part, case):
    scores, *wanted = SCORES[case]
    given = {"validation": jnp.zeros(2)} if part == "validation" else {}
    for direction, want in zip((max, min), wanted):
        best = f"{part}/score", direction
        run = lo.fit(
            **SCORED, **given, hyperparameters=jnp.array(scores), best=best, progress=False
        )
        assert (run.best_epoch, run.best_params) == (want, want + 1)
        assert run.judge == f"{part}/score"


def test_runs_side_by_side_are_judged_by_any_column():
    tables = jnp.array([scores for scores, *_ in SCORES.values()])
    best = "trained/score", max
    trial = lambda scores: lo.training.run(**SCORED, hyperparameters=scores, best=best)
    wanted = [most for _, most, _ in SCORES.values()]
    np.testing.assert_array_equal(jax.jit(jax.vmap(trial))(tables).best_epoch, wanted)


# Tables


@pytest.fixture(scope="module")
def run():
    return _fit_it(validation=X[:2], watch="b", epochs=3)


def test_a_csv_file_holds_the_history(run, tmp_path):
    run.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for name, column in run.history.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], column)


def test_lines_of_json_hold_the_history_and_null_for_what_json_has_not(run, tmp_path):
    history = run.history | {"train/fit": np.array([NAN, INF, 1.0])}
    lo.training.Run(**vars(run) | {"history": history}).to_jsonl(tmp_path / "history.jsonl")
    refused = lambda name: pytest.fail(f"{name} is no JSON")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refused) for line in lines]
    assert [row["train/fit"] for row in rows] == [None, None, 1.0]
    assert [row["step"] for row in rows] == [2, 4, 6]
    np.testing.assert_array_equal([row["train/penalty"] for row in rows], history["train/penalty"])


def test_pandas_is_asked_for_by_name(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs the package pandas"):
        run.to_pandas()


def _runs():
    trial = lambda rate: lo.training.run(_objective, PARAMS, X, optax.sgd(rate), epochs=2, key=KEY)
    return trial, jax.jit(jax.vmap(trial))(jnp.array([0.1, 0.2]))


def test_a_table_is_of_one_run(tmp_path):
    trial, runs = _runs()
    with pytest.raises(ValueError, match=r"the column 'step' has the shape \(2, 2\)\. Take one"):
        runs.to_csv(tmp_path / "history.csv")
    with pytest.raises(ValueError, match="while it is traced"):
        jax.eval_shape(lambda rate: trial(rate).to_jsonl(tmp_path / "history.jsonl"), 0.1)
    assert not list(tmp_path.iterdir())


# What a run tells


def test_a_run_tells_shapes_and_why_it_ended_and_no_arrays(run):
    value = run.history["validation/value"][run.best_epoch]
    assert str(run).splitlines() == [
        "Run: all steps were taken",
        "params: 4 numbers in 2 leaves",
        "  b: float32[3]",
        "  w: float32[]",
        "history: 3 rows, 6 steps",
        f"best: row {run.best_epoch}, validation/value {value:.6g}",
    ]


def test_a_run_that_ended_between_two_rows_tells_its_steps(run):
    assert "history: 3 rows, 8 steps" in str(dataclasses.replace(run, steps=jnp.int32(8)))


def test_a_run_that_broke_tells_where():
    text = str(_fit_it(optax.sgd(1e30), batch_size=6))
    assert "Run: the loss became non-finite" in text
    assert "stopped at: epoch 1, step 1, term fit" in text


def test_runs_side_by_side_traced_or_without_arrays_are_told_by_shape(capsys):
    trial, runs = _runs()
    assert "b: float32[2, 3]" in str(runs)
    shapes = jax.eval_shape(lambda rate: [result := trial(rate), print(result)][0], 0.1)
    assert "b: float32[3]" in capsys.readouterr().out
    assert "b: float32[3]" in str(shapes)
    assert str(jax.tree.map(lambda _: None, runs)).startswith("Run\n")
    assert "Run: all steps" in str(jax.tree.map(lambda x: x[1], runs))


# Lines, where there is no bar


def test_hyperparameters_are_noted_as_json_has_them():
    tree = {
        "rate": jnp.float32(0.3),
        "half": jnp.bfloat16(0.1),
        "nested": [np.float64(1e-9), 2.5],
        "steps": np.int32(7),
        "on": True,
        "far": jnp.inf,
        "weights": jnp.ones((1000, 2)),
        "key": jax.random.key(0),
    }
    noted = as_json(tree)
    assert json.loads(json.dumps(noted, allow_nan=False)) == noted
    assert noted == {
        "rate": 0.3,
        "half": 0.100098,  # the same in bfloat16
        "nested/0": 1e-9,
        "nested/1": 2.5,
        "steps": 7,
        "on": True,
        "far": "inf",
        "weights": "float32[1000, 2]",
        "key": "key<fry>[]",
    }
    assert jnp.bfloat16(noted["half"]) == tree["half"]
    assert as_json(2.0) == {"": 2.0}
    assert as_json(None) == {}
    assert len(json.dumps(as_json([1.0] * 10_000))) < 2000  # a checkpoint's note is small


def _lines(capsys, times, total=10, unit="epochs"):
    """What is written of a run whose calls end at these seconds, one more epoch each."""
    with _bar.bar(unit, total, True) as show:
        for number, seconds in enumerate(times, 1):
            show(number, {"train/value": 0.5**number, "train/fit": 7.0}, seconds)
    return capsys.readouterr().err.splitlines()


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not Console(stderr=True).is_terminal


@pytest.mark.usefixtures("no_terminal")
def test_lines_tell_epoch_value_pace_and_what_is_left(capsys):
    assert _lines(capsys, [20.0, 22.0, 45.0]) == [
        "epochs 1/10  train/value 0.5",
        "epochs 3/10  train/value 0.125  12 s/epoch  0:01:28 left",
    ]


@pytest.mark.usefixtures("no_terminal")
def test_lines_become_rare(capsys):
    lines = _lines(capsys, np.arange(1, 1001), total=1000, unit="steps")
    numbers = [int(line.split()[1].split("/")[0]) for line in lines]
    assert numbers == [1, 2, 4, 8, 16, 32, *range(64, 1000, 60), 1000]
    assert lines[-1].endswith("1 s/step  0:00:00 left")
