"""What is judged may be another point than the one that gradients are taken at."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.training import Stopped
from lossopt.training._source import source

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)
TRAIN = {"x": X[:8], "y": X[:8] @ np.array([1, -1, 2], np.float32)}
VALIDATION = {"x": X[8:], "y": X[8:] @ np.array([1, -1, 2], np.float32) + 0.1}
AVERAGE = lo.transforms.average(optax.sgd(0.05), decay=0.8)
FREE = optax.contrib.schedule_free(optax.sgd(0.05), 0.05)
EVALUATED = lo.transforms.averaged
OPTIONS = {"batch_size": 4, "epochs": 6, "key": KEY, "validation": VALIDATION}
QUIET = {"progress": False, "check": False}


def _objective(w, batch):
    return {"fit": lo.mean((batch["x"] @ w - batch["y"]) ** 2)}


def _fit(optimizer=AVERAGE, evaluate_at=EVALUATED, **options):
    given = OPTIONS | QUIET | options
    return lo.fit(_objective, jnp.zeros(3), TRAIN, optimizer, evaluate_at=evaluate_at, **given)


def _loss(w, data):
    """By hand, in float64."""
    return np.mean((data["x"].astype(float) @ np.asarray(w, float) - data["y"]) ** 2)


@pytest.fixture(scope="module")
def judged():
    points = []
    run = _fit(on_epoch=lambda row, state: points.append(np.asarray(state.params)))
    return run, points


def test_rows_measure_the_average_of_the_iterates(judged):
    """Two steps an epoch, of which the float64 average knows each."""
    run, _ = judged
    iterates, average, weight, values = [], np.zeros(3), 0.0, []
    init, step = lo.train_step(_objective, AVERAGE)
    state, advance = init(jnp.zeros(3)), jax.jit(step)
    rows = source(TRAIN, 4, False)
    for epoch in range(6):
        shuffle, _ = jax.random.split(jax.random.fold_in(KEY, epoch))
        for number in range(2):
            state, _ = advance(state, rows.batch(TRAIN, shuffle, number))
            iterates.append(np.asarray(state.params, float))
            weight = 0.8 * weight + 0.2
            average += 0.2 / weight * (iterates[-1] - average)
        values.append(_loss(average, VALIDATION))
    np.testing.assert_allclose(run.history["validation/fit"], values, rtol=2e-5)
    np.testing.assert_array_equal(run.params, state.params)
    np.testing.assert_allclose(run.best_params, average, rtol=1e-5)
    assert run.best_epoch == np.argmin(values) == 5


def test_the_path_is_that_of_a_run_that_is_judged_where_it_is(judged):
    run, points = judged
    with pytest.warns(UserWarning, match="evaluate_at=lossopt.transforms.averaged"):
        plain = _fit(evaluate_at=None)
    np.testing.assert_array_equal(plain.params, run.params)
    np.testing.assert_array_equal(plain.history["train/value"], run.history["train/value"])
    losses = [_loss(point, VALIDATION) for point in points]
    np.testing.assert_allclose(plain.history["validation/value"], losses, rtol=2e-5)
    assert not np.allclose(losses, run.history["validation/value"], rtol=1e-2)


def test_it_is_that_of_the_compiled_run_and_of_a_stream(judged):
    run, _ = judged
    pure = jax.jit(
        lambda w: lo.training.run(
            _objective, w, TRAIN, AVERAGE, evaluate_at=EVALUATED, check=False, **OPTIONS
        )
    )(jnp.zeros(3))
    halves = [
        {name: x[rows] for name, x in VALIDATION.items()} for rows in np.split(np.arange(4), 2)
    ]
    streamed = _fit(validation=_Again(halves))
    for other in (pure, streamed):
        np.testing.assert_array_equal(other.best_params, run.best_params)
        np.testing.assert_allclose(
            other.history["validation/value"], run.history["validation/value"], rtol=1e-5
        )


class _Again:
    """An iterable that is no tree."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_rule_stops_by_what_is_judged():
    """The average comes later to where the point has been."""
    steps = []
    for evaluate_at in (lambda opt_state, params: params, EVALUATED):
        run = _fit(evaluate_at=evaluate_at, epochs=60, stop=lo.training.Target(0.3))
        values = run.history["validation/value"]
        assert run.stopped is Stopped.TARGET
        assert values[-1] <= 0.3 < values[:-1].min()
        steps.append(run.steps)
    assert steps[0] < steps[1]


def test_schedule_free_is_judged_at_its_average():
    point = optax.contrib.schedule_free_eval_params
    run = _fit(FREE, point)
    want = point(run.opt_state, run.params)
    np.testing.assert_allclose(run.history["validation/fit"][-1], _loss(want, VALIDATION), 2e-5)
    assert not np.allclose(want, run.params)


def test_it_is_said_once_and_only_where_something_is_judged():
    with pytest.warns(UserWarning, match="schedule_free_eval_params") as told:
        _fit(FREE, None, epochs=1)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fit(FREE, None, epochs=1, validation=None)
