"""`fit` is `training.run`, compiled once, refused early, and shown to whoever watches."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import lossopt as lo
from lossopt.training import _fit
from lossopt.training._run import Data, Spec, start

pytestmark = pytest.mark.usefixtures("optimized")

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
    train = jnp.arange(6.0) if train is None else train
    return lo.fit(objective, params, train, optimizer or DESCENT, **OPTIONS | options)


def _same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def fitted():
    return _fit_it()


# The same run


def test_the_first_row_is_not_the_last(fitted):
    assert len(np.unique(fitted.history["train/value"])) == EPOCHS


@pytest.mark.parametrize("epochs_per_call", [1, 2, 3, EPOCHS, 99])
def test_epochs_per_call_do_not_change_a_bit(fitted, epochs_per_call):
    programs = _fit._advance._cache_size()
    _same_bits(_fit_it(epochs_per_call=epochs_per_call), fitted)
    assert _fit._advance._cache_size() == programs, "one program for any number"


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
    assert jax.tree.structure(fitted) == jax.tree.structure(want)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, fitted, want)


def test_the_history_is_numpy(fitted):
    parts = itertools.product(("train", "validation"), ("value", "fit", "penalty", "accuracy"))
    assert set(fitted.history) == {"/".join(names) for names in parts}
    for column in fitted.history.values():
        assert type(column) is np.ndarray
        assert (column.shape, column.dtype) == ((EPOCHS,), np.float32)
    assert isinstance(fitted, lo.training.Run)
    assert fitted.best_epoch == np.argmin(fitted.history["validation/value"])


def test_options_reach_the_run():
    def count(w, x, model_state):
        return {"fit": lo.mean((w - x) ** 2)}, {"model_state": model_state + 1}

    counted = partial(_fit_plain, count, has_aux=True, model_state=0, epochs=1)
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
    result = _fit_plain(objective, params, epochs=2)
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
def compiled(caplog):
    """Names of the programs that were compiled since the last call."""

    def names():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line.split()[1] for line in lines if line.startswith("Compiling ")]

    with jax.log_compiles():
        yield names


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
    options = {"batch_size": 6, "epochs": 3, "epochs_per_call": 1}
    _fit_plain(lambda w, x: {"fit": lo.mean((w - x) ** 2)}, params, optimizer=optimizer, **options)
    assert sum("advance" in name for name in compiled()) == 1


def test_a_second_fit_compiles_nothing(compiled):
    traces = []

    def objective(w, x, key, model_state, hyperparameters):
        traces.append(1)
        noise = 0.0 if key is None else jax.random.normal(key)
        return {"fit": lo.mean((w - x) ** 2)}, {
            "model_state": model_state + hyperparameters * noise
        }

    x = jnp.arange(10.0)
    first = {"params": jnp.ones(2)[0], "train": x, "validation": x[:7], "key": KEY}
    first |= {"model_state": jnp.ones(2)[0], "hyperparameters": 0.1}
    second = {"params": jnp.ones(2)[1], "train": x + 1, "validation": -x[:7], "key": KEY}
    second |= {"model_state": jnp.ones(2)[1], "hyperparameters": 0.2}
    _fit_plain(objective, has_aux=True, **first)
    assert any("advance" in name for name in compiled())
    assert len(traces) <= 20
    traces.clear()
    _fit_plain(objective, has_aux=True, **second, epochs_per_call=2)
    assert compiled() == []
    assert len(traces) <= 3, "one batch and the two sizes of validation batches, for their shapes"


def test_other_objects_compile_anew(compiled):
    for options in ({}, {"optimizer": optax.sgd(0.2)}):
        _fit_plain(params=jnp.zeros(2).sum(), **options, epochs=2)
    assert any("advance" in name for name in compiled())


def _calls(monkeypatch, seconds, **options):
    """The stretches of epochs of a fit whose every call takes `seconds`."""
    clock, calls = [0.0], []

    def advance(spec, data, state, begin, end):
        calls.append((int(begin), int(end)))
        assert len(calls) < 200, "no end"
        clock[0] += seconds
        return state

    monkeypatch.setattr(_fit, "_advance", advance)
    monkeypatch.setattr(_fit, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    _fit_plain(**options)
    assert [begin for begin, _ in calls] == [0] + [end for _, end in calls[:-1]]
    assert calls[-1][1] == options["epochs"]
    return [end - begin for begin, end in calls]


def test_calls_have_the_length_that_was_asked(monkeypatch):
    for seconds in (0.0, 9.0):
        assert _calls(monkeypatch, seconds, epochs=10, epochs_per_call=3) == [3, 3, 3, 1]


def test_short_calls_grow_after_the_first_which_compiles(monkeypatch):
    assert _calls(monkeypatch, 0.01, epochs=20) == [1, 1, 2, 4, 8, 4]


def test_calls_of_the_right_length_stay(monkeypatch):
    assert _calls(monkeypatch, 0.2, epochs=4) == [1, 1, 1, 1]


def test_long_calls_shrink():
    assert [_fit._adapted(count, 0.3) for count in (9, 2, 1)] == [4, 1, 1]


@pytest.mark.parametrize("epochs_per_call", [0, -1])
def test_calls_without_epochs_are_refused(monkeypatch, epochs_per_call):
    with pytest.raises(ValueError, match="epochs_per_call >= 1"):
        _calls(monkeypatch, 0.0, epochs=3, epochs_per_call=epochs_per_call)


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
    spec = Spec(_twisted, OPTIMIZER, batch_size=4)
    train = jax.tree.map(jnp.asarray, TRAIN)
    data, params = Data(train, None, KEY, None), _twisted_params()
    state = start(spec, data, params, None, 3)
    zero, three = np.int32(0), np.int32(3)
    lowered = {
        "loop": _fit._advance.lower(spec, data, state, zero, three),
        "preflight": _fit._broken_conditions.lower(spec, data, train, None, params),
    }
    return {name: program.compile().as_text() for name, program in lowered.items()}


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
    with pytest.raises(ValueError, match=rf"^{part}: {message}\S*$"):
        _fit_it(**{"validation": TRAIN, part: data})
    assert not any("advance" in name for name in compiled())


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
    with pytest.raises(ValueError, match="1099511627776 do not fit int32"):
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
        ({"train": [1.0, 2.0, 3.0]}, ValueError, r"leading axis of .*, got \[0\] \(\)"),
        ({"train": {"x": [[1.0, 2.0]]}}, ValueError, r"\['x'\]\[0\]\[0\] \(\)"),
        ({"train": (np.zeros(3), np.zeros(4))}, ValueError, r"\[0\] \(3,\), \[1\] \(4,\)"),
        ({"train": ()}, ValueError, "no arrays"),
        ({"train": np.zeros(0)}, ValueError, "row"),
        ({"validation": [1.0]}, ValueError, "leading axis"),
        ({"validation": np.zeros(0)}, ValueError, "row"),
        ({"train": np.array(["a", "b"])}, TypeError, "JAX"),
        ({"train": np.array([None, 1.0])}, TypeError, "JAX"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, "typed PRNG key"),
        ({"key": 0}, TypeError, "typed PRNG key"),
        ({"epochs": 0}, ValueError, "epochs >= 1"),
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
def test_what_does_not_fit_is_refused_in_plain_words(options, error, message):
    with pytest.raises(error, match=message):
        _fit_plain(**options)


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
        assert all(text in err for text in ("fit", "3/3", "train/value", "validation/value"))
        assert "train/fit" not in err


def test_the_bar_shows_the_last_row(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    options = {"train": jnp.array([3.0]), "params": 1.0, "batch_size": 1, "epochs": 3}
    err = _shown(capfd, progress=True, **options)
    assert f"train/value {4 * 0.64**2:.4g}" in err


def test_an_interrupted_fit_leaves_no_bar(monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_fit, "_advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _fit_plain(progress=True)
    monkeypatch.undo()
    assert _shown(capfd, progress=True, epochs=2).count("2/2") == 1
