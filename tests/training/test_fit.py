"""`fit` is `training.run`, compiled once, refused early, and shown to whoever watches."""

import dataclasses
import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import lossopt as lo
from lossopt import _programs
from lossopt.training import Patience, Stopped, _fit, _host
from lossopt.training._feed import Memory, horizon
from lossopt.training._loop import advance, start
from lossopt.training._plan import Data
from lossopt.training._preflight import _broken
from lossopt.training._run import plan_of
from lossopt.training._saves import Saves
from lossopt.training._source import source

ROWS, EPOCHS = 10, 5
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(ROWS, 3)).astype(np.float32), np.arange(ROWS) % 4
TRAIN = {"x": X, "y": LABELS, "weight": np.ones(ROWS, np.float32)}
VALIDATION = jax.tree.map(lambda x: x[:7], TRAIN)
OPTIMIZER, DESCENT = optax.adam(0.1), optax.sgd(0.1)
OPTIONS = {"batch_size": 4, "epochs": EPOCHS, "key": KEY, "progress": False}


def _objective(params, batch, key, model_state, hyperparameters):
    """Noisy in training, with a counter, so that every part of a run is at work."""
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, batch["x"].shape)
    logits = (batch["x"] + noise) @ params["w"] + params["b"][None]
    losses = lo.losses.softmax_cross_entropy(logits, batch["y"])
    means = {
        "fit": lo.mean(losses, batch["weight"]),
        "penalty": lo.constant(hyperparameters * jnp.sum(params["w"] ** 2)),
    }
    right = lo.mean(logits.argmax(-1) == batch["y"], batch["weight"])
    return means, {"metrics": {"accuracy": right}, "model_state": model_state + 1}


def _params():
    return {"w": jnp.full((3, 4), 0.1), "b": jnp.zeros(4)}


def _fit_it(objective=_objective, **options):
    given = {"validation": VALIDATION, "has_aux": True, "model_state": jnp.array(0)}
    given |= {"params": _params(), "train": TRAIN, "optimizer": OPTIMIZER, "hyperparameters": 0.01}
    return lo.fit(objective, **OPTIONS | given | options)


def _plain(w, x):
    return {"fit": lo.mean((w - x) ** 2)}


def _fit_plain(objective=_plain, params=0.0, train=None, optimizer=None, **options):
    """One step an epoch: the draw of rows is most of a program."""
    train = jnp.arange(6.0) if train is None else train
    given = OPTIONS | {"batch_size": 6} | options
    return lo.fit(objective, params, train, optimizer or DESCENT, **given)


def _timeless(x):
    """What the clock has no part in."""
    if isinstance(x, lo.training.Run):
        return dataclasses.replace(x, history=_timeless(x.history))
    return {k: v for k, v in x.items() if k != "seconds"} if isinstance(x, dict) else x


def _same_bits(got, want):
    got, want = map(_timeless, (got, want))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def fitted():
    return _fit_it()


# The same run


def test_functions_make_the_start_as_they_do_on_a_mesh(fitted):
    made = _fit_it(params=_params, model_state=lambda: jnp.array(0))
    _same_bits(made, fitted)
    assert made.model_state > 0


def test_the_first_row_is_not_the_last(fitted):
    assert len(np.unique(fitted.history["train/value"])) == EPOCHS


def test_it_is_the_compiled_run(fitted):
    trial = lambda: lo.training.run(
        _objective,
        _params(),
        TRAIN,
        OPTIMIZER,
        **{name: value for name, value in OPTIONS.items() if name != "progress"},
        validation=VALIDATION,
        has_aux=True,
        model_state=jnp.array(0),
        hyperparameters=0.01,
    )
    want = jax.jit(trial)()
    got = _timeless(fitted)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, want)


def test_the_history_is_numpy(fitted):
    parts = itertools.product(("train", "validation"), ("value", "fit", "penalty", "accuracy"))
    measured = {"train/gradient_norm", "train/update_ratio"} | {"/".join(names) for names in parts}
    assert set(fitted.history) == {"step", "seconds"} | measured
    for name, column in fitted.history.items():
        assert type(column) is np.ndarray
        assert column.shape == (EPOCHS,)
        assert column.dtype == {"step": np.int32, "seconds": np.float64}.get(name, np.float32)
    np.testing.assert_array_equal(fitted.history["step"], 3 * np.arange(1, EPOCHS + 1))
    assert isinstance(fitted, lo.training.Run)
    assert fitted.best_epoch == np.argmin(fitted.history["validation/value"])


def test_a_run_that_ends_says_so(fitted):
    assert fitted.stopped is Stopped.FINISHED
    assert fitted.stopped.value == "all steps were taken"
    assert fitted.stopped_at is None


def test_without_validation_there_is_no_best_unless_it_is_asked_for():
    run = _fit_plain()
    assert (run.best_params, run.best_model_state, run.best_epoch) == (None, None, None)
    measured = "value", "fit", "gradient_norm", "update_ratio"
    assert set(run.history) == {"step", "seconds"} | {f"train/{name}" for name in measured}
    asked = _fit_plain(best="train")
    _same_bits(asked.params, run.params)
    measured = lo.training.evaluate(_plain, asked.params, jnp.arange(6.0), batch_size=4)
    np.testing.assert_allclose(asked.history["trained/value"][-1], measured["value"], rtol=1e-6)
    assert asked.best_epoch == np.argmin(asked.history["trained/value"])


def test_a_validation_set_of_total_weight_0_never_wins():
    def objective(w, batch):
        fit = lo.mean((w - batch["x"]) ** 2, batch["weight"])
        return {"fit": fit, "penalty": lo.constant(0.1 * w**2)}

    train = {"x": jnp.arange(6.0), "weight": jnp.ones(6)}
    nothing = {"x": jnp.arange(2.0), "weight": jnp.zeros(2)}
    run = _fit_plain(objective, train=train, validation=nothing)
    assert np.isnan(run.history["validation/value"]).all()
    assert np.isnan(run.history["validation/fit"]).all()
    assert (run.best_epoch, run.best_params) == (-1, 0)
    assert run.stopped is Stopped.FINISHED


def test_steps_are_counted_instead_of_epochs():
    in_two = partial(_fit_plain, batch_size=4, validation=jnp.arange(3.0))
    seven = in_two(epochs=None, steps=7, evaluate_every=3)
    np.testing.assert_array_equal(seven.history["step"], [3, 6, 7])
    epochs = in_two(epochs=3)
    six = in_two(epochs=None, steps=6)
    np.testing.assert_array_equal(epochs.history["step"], [2, 4, 6])
    _same_bits(six, epochs)
    assert seven.history["validation/value"][1] == epochs.history["validation/value"][2]


def test_rows_of_history_do_not_change_the_run():
    often, once = (_fit_plain(batch_size=4, evaluate_every=every) for every in (1, 999))
    _same_bits(often.params, once.params)
    np.testing.assert_array_equal(often.history["step"], np.arange(1, 11))
    np.testing.assert_array_equal(once.history["step"], [10])
    want = np.average(often.history["train/fit"], weights=[4, 2] * 5)
    np.testing.assert_allclose(once.history["train/fit"], [want], rtol=1e-6)


def test_a_history_may_be_longer_than_its_window(monkeypatch):
    want = _fit_plain(evaluate_every=1, epochs=7)
    monkeypatch.setattr(_fit, "WINDOW", 4)
    _same_bits(_fit_plain(evaluate_every=1, epochs=7), want)


def test_all_rows_make_a_batch():
    y = X @ np.array([1.0, -2.0, 0.5], np.float32) + LABELS
    objective = lambda w, batch: {"fit": lo.mean((batch["x"] @ w - batch["y"]) ** 2)}
    data = {"x": X, "y": y}
    run = _fit_plain(objective, jnp.zeros(3), data, optax.lbfgs(), batch_size=None, epochs=8)
    want, *_ = np.linalg.lstsq(X.astype(float), y.astype(float), rcond=None)
    np.testing.assert_allclose(run.params, want, rtol=1e-4)
    np.testing.assert_array_equal(run.history["step"], np.arange(1, 9))


def test_an_optimizer_may_be_a_function_of_the_hyperparameters():
    given = {"hyperparameters": {"rate": 0.1}}
    run = _fit_plain(optimizer=lambda numbers: optax.sgd(numbers["rate"]), **given)
    _same_bits(run, _fit_plain())


def test_data_may_be_whatever_numpy_reads():
    class Column:
        """As those of pandas: an index, a dtype and a shape beside the numbers."""

        dtype, shape, ndim = np.dtype("float64"), (6,), 1

        def __array__(self, dtype=None, copy=None):
            return np.arange(6, dtype=dtype or self.dtype)

        def __len__(self):
            return 6

    _same_bits(_fit_plain(train=Column()), _fit_plain())


def test_options_reach_the_run():
    def count(w, x, model_state):
        return {"fit": lo.mean((w - x) ** 2)}, {"model_state": model_state + 1}

    counted = partial(_fit_plain, count, has_aux=True, model_state=0, batch_size=4, epochs=1)
    cut = counted(train=jnp.arange(10.0), microbatches=2)
    dropped = counted(train=jnp.arange(10.0), drop_last=True)
    assert (cut.model_state, dropped.model_state) == (5, 2)


def test_it_fits_in_float64():
    with jax.enable_x64(True):
        train = jax.tree.map(np.float64, {"x": X[:, 0]})
        loss = lambda w, batch: {"fit": lo.mean((w - batch["x"]) ** 2)}
        result = _fit_plain(loss, np.float64(0), train, batch_size=10, epochs=80)
        assert result.params.dtype == result.history["train/fit"].dtype == np.float64
        np.testing.assert_allclose(np.array(result.params), X[:, 0].mean(dtype=float), rtol=1e-6)


# What is given stays


def test_what_was_given_stays_as_it_was():
    params, state, data = _params(), jnp.array(0), jax.tree.map(jnp.asarray, TRAIN)
    _fit_it(params=params, model_state=state, train=data)
    given = (params, state, data)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    _same_bits(given, (_params(), jnp.array(0), TRAIN))


def test_numpy_parameters_stay_as_they_were(fitted):
    params = jax.tree.map(np.array, _params())
    _same_bits(_fit_it(params=params), fitted)
    _same_bits(params, _params())


def test_parameters_keep_their_tree():
    params = {"layers": [(jnp.ones(2), None), {"b": jnp.zeros((), jnp.bfloat16)}]}
    objective = lambda p, x: {
        "fit": lo.mean((jnp.sum(p["layers"][0][0]) + p["layers"][1]["b"] - x) ** 2)
    }
    result = _fit_plain(objective, params, epochs=2, best="train")
    for got in (result.params, result.best_params):
        assert jax.tree.structure(got) == jax.tree.structure(params)
        assert [x.dtype for x in jax.tree.leaves(got)] == [jnp.float32, jnp.bfloat16]


def test_a_state_may_hold_a_key():
    fold = lambda w, x, model_state: (
        _plain(w, x),
        {"model_state": jax.random.fold_in(model_state, 1)},
    )
    result = _fit_plain(fold, has_aux=True, model_state=KEY, batch_size=6, epochs=2)
    want = jax.random.fold_in(jax.random.fold_in(KEY, 1), 1)
    np.testing.assert_array_equal(*map(jax.random.key_data, (result.model_state, want)))
    assert not KEY.is_deleted()


# Compiled once


@pytest.fixture
def compiled():
    """How many programs were compiled, or read from the cache on disk, since the last call."""
    events = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            events.append(event)

    def count():
        number = len(events)
        events.clear()
        return number

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


COUNTER = optax.GradientTransformation(lambda p: 0.0, lambda u, s, p: (-0.1 * u, s + 1))
STARTS = {
    "arrays": (jnp.zeros(()), DESCENT),
    "Python numbers": (0.0, DESCENT),
    "arrays of Python numbers": (jnp.array(0.0), DESCENT),
    "a state of Python numbers": (jnp.zeros(()), COUNTER),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_fit_compiles_its_loop_once(compiled, case):
    params, optimizer = STARTS[case]
    objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
    _programs.clear()  # two of the cases are one program
    _fit_plain(objective, params, optimizer=optimizer, batch_size=6, epochs=1)
    assert compiled() > 0
    _fit_plain(objective, params, optimizer=optimizer, batch_size=6, epochs=20)
    assert compiled() == 0


def test_other_numbers_epochs_and_data_neither_trace_nor_compile(compiled):
    traces = []

    def objective(w, x, key, model_state, hyperparameters):
        traces.append(1)
        noise = 0.0 if key is None else jax.random.normal(key)
        return {"fit": lo.mean((w - x) ** 2)}, {
            "model_state": model_state + hyperparameters["noise"] * noise
        }

    x = jnp.arange(10.0)
    first = {"params": jnp.ones(2)[0], "train": x, "validation": x[:7], "key": KEY, "epochs": 2}
    first |= {"model_state": jnp.ones(2)[0], "hyperparameters": {"noise": 0.1, "rate": 0.1}}
    first |= {"stop": Patience(4, min_delta=0.1)}
    second = {"params": jnp.ones(2)[1], "train": x + 1, "validation": -x[:7], "epochs": 9}
    second |= {"model_state": jnp.ones(2)[1], "hyperparameters": {"noise": 0.2, "rate": 0.01}}
    second |= {"stop": Patience(2, min_delta=0.0), "key": jax.random.key(7)}
    rule = lambda numbers: optax.sgd(numbers["rate"])
    _fit_plain(objective, optimizer=rule, has_aux=True, **first)
    assert compiled() > 0
    assert len(traces) <= 30
    traces.clear()
    _fit_plain(objective, optimizer=rule, has_aux=True, **second)
    _fit_plain(objective, optimizer=rule, has_aux=True, **second | {"evaluate_every": 5})
    assert (compiled(), traces) == (0, [])


# The host


def _hosted(clock, shown=False, epochs=20):
    """A run of one step an epoch, by this clock."""
    data = Data(jnp.arange(6.0), None, KEY, None, None)
    rows = source(data.train, None, False)
    plan = plan_of(_plain, DESCENT, rows, data, None, 1, False)._replace(window=_fit.WINDOW)
    begun = start(plan, data, 0.0, None)
    feed = Memory(plan, data.train, horizon(epochs, None, None))
    host = _host.Host(plan, data, feed, Saves(None, 60.0), {}, shown=shown, clock=clock)
    return _host.hosted(host, _host.Reached(begun, [], Stopped.FINISHED, begun.pool))


def _calls(seconds, epochs):
    """How many calls there are where each takes so long, and what they leave behind."""
    readings = itertools.count()
    run = _hosted(lambda: seconds * next(readings), epochs=epochs)
    return (next(readings) - 1) // 2, run


def test_short_calls_grow_after_the_first_which_compiles():
    calls, run = _calls(0.01, epochs=40)
    assert calls == 4, "1, 1, 16 and the rest"
    slow, other = _calls(0.25, epochs=40)
    assert slow == 40, "calls of the right length stay"
    _same_bits(run, other)


@pytest.mark.parametrize(("count", "seconds", "want"), [(9, 0.5, 4), (2, 0.5, 1), (1, 9.0, 1)])
def test_long_calls_shrink(count, seconds, want):
    assert _host._adapted(count, seconds) == want


@pytest.mark.parametrize(("count", "seconds", "want"), [(3, 0.0, 48), (8, 0.125, 16)])
def test_short_calls_grow_but_not_at_once(count, seconds, want):
    assert _host._adapted(count, seconds) == want


# What the compiled programs hold


def _twisted(params, batch):
    """A model inside scan, remat and custom derivatives, with conditions among it."""

    @jax.custom_vjp
    def layer(x, w):
        return jnp.tanh(x @ w)

    layer.defvjp(lambda x, w: (layer(x, w), (x, w)), lambda r, g: jax.vjp(_tanh, *r)[1](g))
    blocks = lambda x, w: (jax.checkpoint(layer)(x, w), None)
    hidden, _ = jax.lax.scan(blocks, batch["x"], params["blocks"])
    losses = lo.losses.softmax_cross_entropy(hidden @ params["w"], batch["y"])
    return {"fit": lo.mean(losses, batch["weight"])}


def _tanh(x, w):
    return jnp.tanh(x @ w)


def _twisted_params():
    return {"w": jnp.full((3, 4), 0.1), "blocks": jnp.ones((2, 3, 3))}


@pytest.fixture(scope="module")
def programs():
    train = jax.tree.map(jnp.asarray, TRAIN)
    data, params = Data(train, None, KEY, None, None), _twisted_params()
    plan = plan_of(_twisted, OPTIMIZER, source(train, 4, False), data, None, 1, False)
    begun = start(plan, data, params, None)
    loop = jax.jit(partial(advance, plan)).lower(data, begun, *map(np.int32, (0, 3, 3, 3)))
    check = jax.jit(partial(_broken, _twisted, False, 4, 1)).lower(params, train, None, None, KEY)
    programs = {"loop": loop, "preflight": check}
    return {name: program.compile().as_text() for name, program in programs.items()}


def test_the_loop_holds_the_model_and_no_callback(programs):
    assert " dot(" in programs["loop"]
    assert "callback" not in programs["loop"]


def test_the_preflight_holds_neither_model_nor_callback(programs):
    assert not any(product in programs["preflight"] for product in (" dot(", "matmul", "tanh"))
    assert "callback" not in programs["preflight"]


# The preflight


def _spoiled(name, value, row=-1):
    column = np.array(TRAIN[name])
    column[row] = value
    return TRAIN | {name: column}


BROKEN = {
    "a label beyond the last": (_spoiled("y", 4), r"softmax_cross_entropy: .*\b4\. .*"),
    "a label below the first": (
        _spoiled("y", -1, row=0),
        r"softmax_cross_entropy: .*-1 and 0\. .*",
    ),
    "a negative weight": (_spoiled("weight", -0.5), r"mean: expected weights >= 0, got -0.5"),
}


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_conditions_are_named_before_the_loop_compiles(compiled, part, case):
    data, message = BROKEN[case]
    traces = []

    def objective(*args, **keywords):
        traces.append(1)
        return _objective(*args, **keywords)

    objective.__signature__ = inspect.signature(_objective)
    with pytest.raises(ValueError, match=rf"^{part}: {message}\S*$"):
        _fit_it(objective, **{"validation": TRAIN, part: data})
    assert compiled() <= 2, "the preflight of train, and of validation"


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_conditions_are_found_in_any_program(wrap):
    objective = lambda params, batch: wrap(_twisted)(params, batch)
    options = {"objective": objective, "params": _twisted_params()}
    with pytest.raises(ValueError, match="train: softmax_cross_entropy"):
        _fit_plain(train=_spoiled("y", 9), **options)


def test_conditions_of_ones_own_are_evaluated():
    def objective(w, x):
        checkify.debug_check(jnp.all(x < 5), "mine: expected x < 5, got {x}.", x=x.max())
        return {"fit": lo.mean((w - x) ** 2)}

    _fit_plain(objective, train=jnp.arange(5.0), epochs=1)
    with pytest.raises(ValueError, match=r"^train: mine: expected x < 5, got 5.0\.$"):
        _fit_plain(objective, train=jnp.arange(6.0), epochs=1)


def test_conditions_see_hyperparameters_and_state():
    def objective(w, x, model_state, hyperparameters):
        holds = jnp.all(x < model_state * hyperparameters)
        checkify.debug_check(holds, "bound: too small")
        return {"fit": lo.mean((w - x) ** 2)}

    options = {"train": jnp.arange(6.0), "epochs": 1, "model_state": jnp.array(2.0)}
    _fit_plain(objective, hyperparameters=3.0, **options)
    with pytest.raises(ValueError, match="train: bound: too small"):
        _fit_plain(objective, hyperparameters=2.0, **options)


def test_the_preflight_gives_validation_no_key():
    def objective(w, batch, key):
        """Training rows hold two views, validation rows one."""
        x = batch["x"] if key is None else (batch["first"] + batch["second"]) / 2
        return {"fit": lo.mean((w - x) ** 2)}

    x = jnp.arange(6.0)
    result = _fit_plain(
        objective, train={"first": x, "second": x}, validation={"x": x}, batch_size=6, epochs=50
    )
    np.testing.assert_allclose(result.params, 2.5, rtol=1e-4)


# What is refused


WIDE = np.array([2**40, 1])


@pytest.mark.parametrize("place", ["train", "validation", "model_state", "hyperparameters"])
def test_integers_that_do_not_fit_are_refused(place):
    def objective(w, x, model_state, hyperparameters):
        return {"fit": lo.mean(w - x + jnp.sum(model_state) + jnp.sum(hyperparameters))}

    given = {"model_state": 0, "hyperparameters": 0} | {place: WIDE}
    with pytest.raises(ValueError, match=f"{place} within 32 bits, got 1099511627776"):
        _fit_plain(objective, **given)


def test_integers_that_fit_are_data():
    train = [np.arange(6, dtype=dtype) for dtype in (np.int64, np.uint64, np.int8)]
    objective = lambda w, batch: {"fit": lo.mean((w - sum(batch)) ** 2)}
    result = _fit_plain(objective, train=train, batch_size=6, epochs=50)
    np.testing.assert_allclose(result.params, 7.5, rtol=1e-4)


def test_wide_integers_are_data_in_float64():
    with jax.enable_x64(True):
        loss = lambda w, x: {"fit": lo.mean((w - x / 2.0**40) ** 2)}
        result = _fit_plain(loss, train=np.array(WIDE), batch_size=2, epochs=1)
        np.testing.assert_allclose(float(result.params), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train": [1.0, 2.0, 3.0]}, TypeError, "arrays in train, got numbers of Python"),
        ({"train": {"x": [[1.0, 2.0]]}}, TypeError, r"numbers of Python in train\['x'\]:"),
        ({"train": (np.zeros(3), np.zeros(4))}, ValueError, r"\[0\] \(3,\), .*\[1\] \(4,\)"),
        ({"train": ()}, ValueError, "no arrays"),
        ({"train": np.zeros(0)}, ValueError, "row"),
        ({"validation": [1.0]}, TypeError, "arrays in validation, got numbers"),
        ({"validation": np.zeros(0)}, ValueError, "row"),
        ({"train": np.array(["a", "b"])}, TypeError, "numbers in train, got text"),
        ({"train": np.array([None, 1.0])}, TypeError, "numbers in train, got objects"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, "typed PRNG key"),
        ({"key": 0}, TypeError, "typed PRNG key"),
        ({"key": None}, TypeError, "typed PRNG key, got None"),
        ({"epochs": 0}, ValueError, "epochs >= 1"),
        ({"epochs": 3.0}, TypeError, r"epochs as a whole number, got 3\.0"),
        ({"epochs": "3"}, TypeError, "epochs as a whole number, got '3'"),
        ({"epochs": 2**30}, ValueError, "epochs <= 1073741823, got 1073741824"),
        ({"epochs": 2**40}, ValueError, "epochs within 32 bits"),
        ({"steps": 3}, ValueError, "either epochs or steps, got epochs=5 and steps=3"),
        ({"epochs": None}, ValueError, "either epochs or steps, got epochs=None and steps=None"),
        ({"epochs": None, "steps": 0}, ValueError, "steps >= 1, got 0"),
        ({"epochs": None, "steps": 2.5}, TypeError, r"steps as a whole number, got 2\.5"),
        ({"evaluate_every": 1.0}, TypeError, r"evaluate_every as a whole number, got 1\.0"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every >= 1, got 0"),
        ({"batch_size": 4.0}, TypeError, r"batch_size as a whole number, got 4\.0"),
        ({"microbatches": 2.0}, TypeError, r"microbatches as a whole number, got 2\.0"),
        ({"stop": Patience(1)}, ValueError, "stop was given, .*: give validation"),
        ({"best": "validation"}, ValueError, "best was given, .*: give validation"),
        ({"best": "last"}, ValueError, r"best as .* \('validation/accuracy', max\), got 'last'"),
        ({"best": ("train/fit", "max")}, ValueError, r"got \('train/fit', 'max'\)"),
        ({"best": ("train/fat", min)}, ValueError, "'train/fat', .* train/fit, train/gradient"),
        ({"best": ("step", max)}, ValueError, "best names the column 'step'"),
        ({"best": ("validation/fit", max)}, ValueError, "best was given, .*: give validation"),
        ({"watch": "kernel"}, ValueError, r"watch='kernel' takes no leaf of \[''\]"),
        ({"watch": 3}, TypeError, "watch as a regular expression .*, got 3"),
        ({"objective": lambda w, x: {"gradient_norm": lo.mean(w - x)}}, ValueError, "of its own"),
        ({"best": "train", "stop": Patience(2.5)}, TypeError, r"patience as .*, got 2\.5"),
        ({"best": "train", "stop": Patience(0)}, ValueError, "patience >= 1, got 0"),
        ({"best": "train", "stop": Patience}, TypeError, "Expected a stop rule, got <class"),
        ({"best": "train", "stop": 3}, TypeError, "Expected a stop rule, got 3"),
        ({"optimizer": optax.adam}, TypeError, r"Call it, as in optax\.adam\(1e-3\)"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"microbatches": 0}, ValueError, "microbatches >= 1"),
        ({"microbatches": 5}, ValueError, "microbatches <= 4"),
        ({"batch_size": 7, "drop_last": True}, ValueError, "batch_size <= 6"),
        ({"model_state": 0.0}, ValueError, "model_state was given"),
        ({"hyperparameters": 0.0}, ValueError, "hyperparameters was given"),
        ({"objective": lambda w, x: jnp.mean(w - x)}, TypeError, "tree of Mean"),
        ({"objective": lambda w, x: {"value": lo.mean(w - x)}}, ValueError, "'value' twice"),
    ],
)
def test_what_does_not_fit_is_refused_in_plain_words(compiled, options, error, message):
    with pytest.raises(error, match=message):
        _fit_plain(**{"batch_size": 4} | options)
    assert compiled() <= 1, "at most the preflight"


TRACED = {
    "a leaf in vmap": (lambda fit: jax.vmap(lambda w: fit(params=w))(jnp.ones(2)), "params is"),
    "two arguments in jit": (
        lambda fit: jax.jit(lambda x: fit(train=x, validation=x))(jnp.ones(2)),
        "train and validation is",
    ),
    "grad": (
        lambda fit: jax.grad(lambda h: fit(hyperparameters=h))(0.1),
        "hyperparameters is",
    ),
    "nothing in jit": (lambda fit: jax.jit(lambda: fit(train=np.arange(6.0)))(), "the call is"),
    "an objective in vmap": (
        lambda fit: jax.vmap(lambda s: fit(objective=lambda w, x: lo.mean(s * (w - x) ** 2)))(
            jnp.ones(2)
        ),
        "the call is",
    ),
}


@pytest.mark.parametrize("case", TRACED)
def test_a_fit_is_not_traced(compiled, case):
    trace, message = TRACED[case]
    fit = lambda **options: _fit_plain(**options).params
    with pytest.raises(TypeError, match=rf"{message} traced by .*: take lossopt\.training\.run"):
        trace(fit)
    assert compiled() <= 1, "the arrays of this test"


# The bar


def _shown(capfd, **options):
    _fit_plain(**options)
    out, err = capfd.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("progress", [True, False, "auto"])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_where_it_is_wanted(monkeypatch, capfd, progress, terminal):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    err = _shown(capfd, progress=progress, validation=jnp.arange(2.0), epochs=3)
    shown = terminal if progress == "auto" else progress
    assert bool(err) == shown
    if shown:
        assert all(text in err for text in ("epochs", "3/3", "train/value", "validation/value"))
        assert "train/fit" not in err


def test_the_bar_shows_the_last_row(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    options = {"train": jnp.array([3.0]), "params": 1.0, "batch_size": 1, "epochs": 3}
    err = _shown(capfd, progress=True, **options)
    assert f"train/value {4 * 0.64**2:.4g}" in err
    err = _shown(capfd, progress=True, **options | {"epochs": None, "steps": 4})
    assert all(text in err for text in ("steps", "4/4"))


def test_the_bar_shows_where_a_run_stopped(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    stop = Patience(1, min_delta=1e9)
    err = _shown(capfd, progress=True, validation=jnp.arange(2.0), stop=stop, epochs=50)
    assert " 2/50" in err.splitlines()[-1]


def test_an_interrupted_fit_leaves_no_bar(capfd):
    readings = iter([0.0, 1.0, 2.0])

    def clock():
        if (now := next(readings, None)) is None:
            raise KeyboardInterrupt
        return now

    with pytest.raises(KeyboardInterrupt):
        _hosted(clock, shown=True)
    capfd.readouterr()
    assert _shown(capfd, progress=True, epochs=2).count("2/2") == 1


@pytest.mark.parametrize("name", ["objective", "evaluate_at", "on_epoch"])
def test_what_is_to_be_called_must_be_a_function(name):
    given = {"objective": _objective} | {name: 3}
    with pytest.raises(TypeError, match=f"Expected {name} as a function, got 3"):
        lo.fit(given.pop("objective"), _params(), TRAIN, OPTIMIZER, **OPTIONS, **given)
