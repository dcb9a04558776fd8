"""A grid of short runs that are those of `fit`, and the range test."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lossopt as lo
from lossopt.training import _learning_rate
from tests.counted import counted

find, range_test = lo.training.find_learning_rate, lo.training.range_test
ROWS, BATCH, STEPS, SEEDS, STRENGTH = 11, 4, 9, 2, 0.5
LATE = 2  # steps of the last quarter
KEY = jax.random.key(3)
RATES = [0.01, 0.1, 0.3, 1e20]
MODES = {"side by side": 1e9, "one after the other": 0}


def _data(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 2)).astype(np.float32)
    return {"x": x, "y": x @ np.float32([1, -2]) + rng.normal(size=ROWS).astype(np.float32)}


def _objective(params, batch, key, model_state, hyperparameters):
    """A linear model with noise while it trains, whose state grows with each step."""
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    if key is None:
        return {"fit": lo.mean(errors**2)}, {}
    noise = hyperparameters * jax.random.normal(key, errors.shape)
    return {"fit": lo.mean((errors + noise) ** 2)}, {"model_state": model_state + 1}


def _inputs(seed=0):
    params = {"w": np.float32([0.5, 0.25]), "b": jnp.array(0.0)}
    return params, _data(seed), {"model_state": np.zeros(2), "hyperparameters": STRENGTH}


def _found(seed=0, rates=RATES, **options):
    params, train, given = _inputs(seed)
    given |= {"batch_size": BATCH, "steps": STEPS, "seeds": SEEDS, "key": KEY, "has_aux": True}
    return find(_objective, params, train, optax.sgd, rates=rates, **given | options)


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    monkeypatch.setattr(_learning_rate, "SIDE_BY_SIDE", MODES[request.param])


@pytest.fixture(scope="module")
def fitted():
    """The last rows of histories of `fit`, of so many steps; NaN where it broke."""

    def noisy(params, batch, key, model_state, hyperparameters):
        return _objective(params, batch, key, model_state, hyperparameters["strength"])

    def last(rate, key):
        params, train, given = _inputs()
        given["hyperparameters"] = {"rate": rate, "strength": STRENGTH}
        run = lo.fit(noisy, params, train, rule, key=key, has_aux=True, **given, **options)
        finished = run.stopped is lo.training.Stopped.FINISHED
        return run.history["train/value"][-1] if finished else np.nan

    rule = lambda numbers: optax.sgd(numbers["rate"])
    options = {"steps": STEPS, "evaluate_every": STEPS - LATE, "batch_size": BATCH}
    keys = jax.random.split(KEY, SEEDS)
    return np.array([[last(rate, key) for rate in RATES] for key in keys])


def test_values_are_those_of_fit(mode, fitted):
    grid = _found()
    np.testing.assert_array_equal(np.isnan(fitted), SEEDS * [[rate > 1 for rate in RATES]])
    np.testing.assert_allclose(grid.values, fitted, rtol=1e-5)
    np.testing.assert_array_equal(grid.rates, RATES)
    assert grid.learning_rate in RATES[:3]
    assert type(grid.learning_rate) is float


def test_a_loss_that_breaks_and_recovers_is_broken(mode):
    def breaks(w, x, model_state):
        first = jnp.where(model_state == 0, jnp.inf, 0.0)
        return {"fit": lo.mean((w - x) ** 2 + first)}, {"model_state": model_state + 1}

    options = {"steps": STEPS, "key": KEY, "has_aux": True, "model_state": 0, "check": False}
    with pytest.raises(ValueError, match="stay finite"):
        find(breaks, 0.0, np.ones(4), optax.sgd, rates=RATES[:2], **options)


def test_parameters_that_the_last_step_breaks_are_broken():
    last = optax.scale_by_schedule(lambda count: jnp.where(count == 1, jnp.inf, 1.0))
    rule = lambda rate: optax.chain(optax.sgd(rate), last)
    with pytest.raises(ValueError, match="stay finite"):
        find(_plain, *_inputs()[:2], rule, rates=RATES[:2], steps=2, key=KEY, check=False)


def test_fresh_inputs_and_numbers_compile_nothing(mode):
    _found()
    other = jax.random.key(1)  # a program of its own
    with counted() as count:
        _found(seed=1, rates=[0.02, 0.2, 0.5, 1.0], steps=STEPS + 3, key=other)
    assert count.compiled == 0


def test_nothing_that_is_given_is_changed(mode):
    params, train, given = _inputs()
    before, state = copy.deepcopy((params, train, given)), np.random.get_state()[1].copy()
    options = {"batch_size": BATCH, "steps": STEPS, "key": KEY, "has_aux": True, "rates": RATES}
    find(_objective, params, train, optax.sgd, **options, **given)
    jax.tree.map(np.testing.assert_array_equal, (params, train, given), before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def _by_hand(rates):
    """Full batches in float64: the value at each step, and the last parameters."""
    _, train, _ = _inputs()
    x = np.column_stack([train["x"], np.ones(ROWS)]).astype(float)
    w, values = np.array([0.5, 0.25, 0.0]), []
    for rate in rates:
        errors = x @ w - train["y"]
        values.append(np.mean(errors**2))
        w = w - rate * 2 / ROWS * errors @ x
    return values, w


def _plain(params, batch):
    return {"fit": lo.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)}


@pytest.mark.parametrize("steps", [2, 3, STEPS])
def test_the_last_quarter_counts(steps):
    params, train, _ = _inputs()
    grid = find(_plain, params, train, optax.sgd, rates=RATES[:3], steps=steps, seeds=1, key=KEY)
    quarter = max(1, steps // 4)
    want = [np.mean(_by_hand(steps * [rate])[0][-quarter:]) for rate in RATES[:3]]
    np.testing.assert_allclose(grid.values, [want], rtol=1e-5)
    assert grid.learning_rate == RATES[np.argmin(want)]


def test_or_what_validates_after_it():
    params, train, _ = _inputs()
    held = {name: x[:5] for name, x in _data(1).items()}
    options = {"rates": RATES[:3], "steps": STEPS, "seeds": 1, "key": KEY, "validation": held}
    grid = find(_plain, params, train, optax.sgd, **options)
    last = [_by_hand(STEPS * [rate])[1] for rate in RATES[:3]]
    want = [np.mean((held["x"] @ w[:2] + w[2] - held["y"]) ** 2) for w in last]
    np.testing.assert_allclose(grid.values, [want], rtol=1e-5)


def test_rates_keep_low_precision_as_python_numbers_do():
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.zeros((), jnp.bfloat16)}
    rule = partial(optax.rmsprop, momentum=0.9)
    grid = find(_plain, params, _inputs()[1], rule, rates=[0.01, 0.1], steps=2, key=KEY)
    assert np.isfinite(grid.values).all()


def test_rows_may_lie_on_devices():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    x = np.linspace(0, 1, 16, dtype=np.float32)
    level = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
    options = {"rates": RATES[:2], "steps": 3, "key": KEY}
    lies = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    got, want = (find(level, 3.0, data, optax.sgd, **options).values for data in (lies, x))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def _picked(monkeypatch, *tables, rates=None):
    """What is made of these values; the rates that were tried."""
    tried, tables = [], list(tables)

    def values(short, grid, steps, seeds):
        tried.append(grid)
        return np.array(tables.pop(0), float)

    monkeypatch.setattr(_learning_rate, "_values", values)
    level = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
    return find(level, 0.0, np.ones(4), optax.sgd, rates=rates, key=KEY, check=False), tried


def test_the_lowest_mean_over_seeds_is_picked_and_never_one_that_broke(monkeypatch):
    rates = [0.1, 0.2, 0.3, 0.4, 0.5]
    table = [[3, 2, 4, np.nan, np.inf], [3, 4, 2, -9, -9]]
    grid, _ = _picked(monkeypatch, table, rates=rates)
    assert (grid.learning_rate, grid.at_end) == (0.1, True)
    table = [[3, 2, 4, np.nan, np.inf], [3, 3, 2, -9, -9]]
    grid, tried = _picked(monkeypatch, table, rates=rates)
    assert (grid.learning_rate, grid.at_end, len(tried)) == (0.2, False, 1)


FALLING, VALLEY = 10 - np.arange(11), abs(np.arange(11) - 4) - 5


@pytest.mark.parametrize(
    ("first", "more", "ends", "pick"),
    [
        (-FALLING, VALLEY - 10, (-9.5, 0.5), -7.5),
        (FALLING, VALLEY, (-4.5, 5.5), 2.5),
        (np.full(11, np.nan), VALLEY, (-9.5, 0.5), -7.5),
        (VALLEY, None, (-4.5, 0.5), -2.5),
    ],
    ids=["below", "above", "all broke", "within"],
)
def test_its_own_grid_is_widened_once(monkeypatch, first, more, ends, pick):
    tables = [[values] for values in (first, more) if values is not None]
    grid, tried = _picked(monkeypatch, *tables)
    assert len(tried) == len(tables)
    wanted = 10 ** np.arange(ends[0], ends[1] + 0.1, 0.5)
    np.testing.assert_allclose(grid.rates, wanted, rtol=1e-12)
    assert (grid.values.shape, grid.at_end) == ((1, len(wanted)), False)
    np.testing.assert_allclose(grid.learning_rate, 10**pick, rtol=1e-12)


LEVEL = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
LOGARITHMS = lambda w, x: {"fit": lo.mean(lo.losses.poisson_nll(w + 0 * x, x))}
LASSO = lambda rate: lo.transforms.sgd(rate, regularizer=lo.regularizers.L1(0.1))
NO_FUNCTION = "Expected optimizer_of as a function from a learning rate"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": [0.1]}, ValueError, "rates above 0, rising, two or more"),
        ({"rates": [0.1, 0.1]}, ValueError, "rising"),
        ({"rates": [0.0, 0.1]}, ValueError, "above 0"),
        ({"rates": [0.1, np.nan]}, ValueError, "rising"),
        ({"rates": [0.1, np.inf]}, ValueError, "rates < inf"),
        ({"rates": [[0.1, 0.2]]}, ValueError, "rising"),
        ({"steps": 0}, ValueError, "steps >= 2"),
        ({"steps": 2.5}, TypeError, "steps as a whole number"),
        ({"seeds": 0}, ValueError, "seeds >= 1"),
        ({"optimizer_of": optax.sgd(0.1)}, TypeError, f"{NO_FUNCTION}.*itself"),
        ({"optimizer_of": 0.1}, TypeError, f"{NO_FUNCTION}.*0.1 itself"),
        ({"optimizer_of": lambda rate: rate}, TypeError, NO_FUNCTION),
        ({"optimizer_of": lambda rate: optax.sgd(0.1)}, ValueError, "does not use the rate"),
        ({"objective": lambda w, x: {"fit": lo.mean(x * jnp.inf)}}, ValueError, "stay finite"),
        ({"objective": lambda w, x: jnp.mean(x)}, TypeError, "Mean"),
        ({"objective": LOGARITHMS, "train": -np.ones(4)}, ValueError, "train: poisson_nll"),
        ({"optimizer_of": LASSO}, ValueError, "The optimizer has a regularizer R"),
        ({"params": 1}, TypeError, "floating params"),
        ({"train": np.ones((0, 2))}, ValueError, "leading axis of rows"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, "key"),
        ({"validation": (np.ones(2), np.ones(3))}, ValueError, "validation"),
        ({"microbatches": 9}, ValueError, "microbatches"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, error, message):
    given = {"objective": LEVEL, "params": 0.0, "train": np.ones(4), "optimizer_of": optax.sgd}
    with pytest.raises(error, match=message):
        find(**{"key": KEY, "rates": [0.1, 0.2], "steps": 2} | given | options)


def test_an_error_of_the_optimizer_says_what_to_write():
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        find(LEVEL, 0.0, np.ones(4), lambda rate: optax.sgd(rate if rate else 1.0), key=KEY)
    assert any(note.startswith(NO_FUNCTION) for note in caught.value.__notes__)


@pytest.mark.parametrize("call", [find, range_test])
def test_a_traced_call_is_refused(call):
    with pytest.raises(TypeError, match="found by the host"):
        jax.jit(lambda w: call(LEVEL, w, jnp.ones(4), optax.sgd, key=KEY))(0.0)


def test_the_rates_of_a_range_test_grow_in_one_run():
    params, train, _ = _inputs()
    rates, losses = range_test(
        _plain, params, train, optax.sgd, key=KEY, lowest=1e-3, highest=1e20, steps=12
    )
    np.testing.assert_allclose(rates, 1e-3 * 1e23 ** (np.arange(12) / 11), rtol=1e-6)
    want = np.array(_by_hand(rates)[0])
    kept = want < 1e30
    assert 3 < kept.sum() < 11
    np.testing.assert_allclose(losses[kept], want[kept], rtol=1e-3)
    assert np.isnan(losses[-1])


def test_a_range_test_keeps_the_state_of_its_optimizer():
    train = {"x": np.ones((2, 2)), "y": np.zeros(2)}
    params = {"w": np.ones(2), "b": 1.0}
    rule = partial(optax.sgd, momentum=0.9)
    _, losses = range_test(_plain, params, train, rule, key=KEY, lowest=1e-3, highest=1e-1, steps=3)
    point, pace, want = np.float64(3.0), 0.0, []
    for rate in (1e-3, 1e-2, 1e-1):
        want.append(point**2)
        pace = 0.9 * pace + 2 * point
        point -= 3 * rate * pace
    np.testing.assert_allclose(losses, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps >= 2"),
        ({"lowest": 0.0}, "lowest > 0"),
        ({"lowest": 11.0}, "highest > 11"),
        ({"highest": np.inf}, "highest < inf"),
        ({"optimizer_of": optax.inject_hyperparams(optax.sgd)}, "keeps its learning rate"),
    ],
)
def test_what_is_no_range_is_refused(options, message):
    given = {"objective": LEVEL, "params": 0.0, "train": np.ones(4), "optimizer_of": optax.sgd}
    with pytest.raises(ValueError, match=message):
        range_test(**{"key": KEY} | given | options)
