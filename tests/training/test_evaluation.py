"""An evaluation is the whole data set at once, however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

evaluate = lo.training.evaluate
ROWS = 10
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=ROWS), RNG.normal(size=ROWS)
WEIGHT = np.array([0, 0, 0, 0, 1, 0.5, 2, 0, 0.25, 1])  # the first batch of 4 weighs nothing
DATA = {"x": X, "y": Y, "weight": WEIGHT}


def _objective(w, batch):
    errors = w * batch["x"] - batch["y"]
    means = {"fit": lo.mean(errors**2, batch["weight"]), "penalty": lo.constant(0.1 * w**2)}
    return means, {"metrics": {"absolute": lo.mean(jnp.abs(errors))}}


def _by_hand(w):
    errors = w * X - Y
    fit, penalty = np.average(errors**2, weights=WEIGHT), 0.1 * w**2
    absolute = np.mean(abs(errors))
    return {"value": fit + penalty, "fit": fit, "penalty": penalty, "absolute": absolute}


def _close(got, want, rtol=1e-5):
    assert got.keys() == want.keys()
    for name, number in want.items():
        np.testing.assert_allclose(got[name], number, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 99])
def test_any_batches_give_the_whole(batch_size):
    got = evaluate(_objective, 0.7, DATA, batch_size=batch_size, has_aux=True)
    _close(got, _by_hand(0.7))
    assert all(number.shape == () and number.dtype == jnp.float32 for number in got.values())


def test_it_compiles_and_vmaps():
    measure = lambda w: evaluate(_objective, w, DATA, batch_size=4, has_aux=True)
    _close(jax.jit(measure)(0.7), _by_hand(0.7))
    many = jax.vmap(measure)(jnp.array([0.7, -1.0]))
    for i, w in enumerate((0.7, -1.0)):
        _close({name: column[i] for name, column in many.items()}, _by_hand(w))


def test_all_rows_are_one_batch_where_no_size_is_given():
    _close(evaluate(_objective, 0.7, DATA, has_aux=True), _by_hand(0.7))


def test_it_is_compiled_once():
    traces, compiled = [], []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    def objective(w, batch, hyperparameters):
        traces.append(1)
        return _objective(w, batch)[0]

    def measured(w, scale):
        data = {name: scale * column for name, column in DATA.items()}
        return evaluate(objective, w, data, batch_size=4, hyperparameters=scale)

    first = measured(0.7, 1.0)
    traces.clear()
    jax.monitoring.register_event_duration_secs_listener(listen)
    again, other = measured(0.7, 1.0), measured(0.5, 2.0)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert (traces, compiled) == ([], [])
    assert again == first
    assert other["fit"] != first["fit"]


def test_what_was_never_weighed_measures_nan():
    nothing = DATA | {"weight": np.zeros(ROWS)}
    got = evaluate(_objective, 0.7, nothing, batch_size=4, has_aux=True)
    want = _by_hand(0.7) | {"value": np.nan, "fit": np.nan}
    _close(got, want)
    value, means = lo.measure(lambda w, b: _objective(w, b)[0])(0.7, nothing)
    assert means["fit"].value == 0, "in a step nothing weighs nothing"
    np.testing.assert_allclose(value, want["penalty"], rtol=1e-6)


def test_it_measures_in_float64():
    with jax.enable_x64(True):
        data = {name: np.array(column) for name, column in DATA.items()}
        got = evaluate(_objective, jnp.array(0.7), data, batch_size=4, has_aux=True)
        _close(got, _by_hand(0.7), rtol=1e-13)


def test_its_gradient_is_that_of_the_whole():
    got = jax.grad(lambda w: evaluate(_objective, w, DATA, batch_size=4, has_aux=True)["value"])(
        0.7
    )
    h = 1e-5
    want = (_by_hand(0.7 + h)["value"] - _by_hand(0.7 - h)["value"]) / (2 * h)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_unweighted_rows_may_hold_nan():
    data = DATA | {"y": np.where(WEIGHT == 0, np.nan, Y)}
    got = evaluate(lambda w, b: _objective(w, b)[0], 0.7, data, batch_size=3)
    want = _by_hand(0.7)
    del want["absolute"]
    _close(got, want)


def test_a_bare_mean_has_one_column():
    got = evaluate(lambda w, x: lo.mean((w - x) ** 2), 1.0, jnp.arange(5.0), batch_size=2)
    _close(got, {"value": 3.0})


def test_terms_and_metrics_are_named_by_path():
    def objective(w, x):
        one = lo.mean(x)
        return {"heads": [one, one]}, {"metrics": {"a": {"b": one}}}

    got = evaluate(objective, 1.0, jnp.arange(5.0), batch_size=2, has_aux=True)
    _close(got, {"value": 4.0, "heads/0": 2.0, "heads/1": 2.0, "a/b": 2.0})


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_objective_knows_that_it_is_evaluated(wrap):
    def objective(w, x, *, key, model_state, hyperparameters):
        assert key is None
        means = {"fit": lo.mean(model_state["shift"] + hyperparameters * x)}
        return means, {"model_state": {"shift": model_state["shift"] + 1}}

    got = evaluate(
        wrap(objective),
        0.0,
        jnp.arange(5.0),
        batch_size=2,
        has_aux=True,
        model_state={"shift": jnp.array(7.0)},
        hyperparameters=10.0,
    )
    _close(got, {"value": 27.0, "fit": 27.0})  # the state is the same in every batch


MEAN = lo.constant(1.0)
PLAIN = lambda w, x: {"fit": lo.mean(w - x)}


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (PLAIN, {"batch_size": 0}, "batch_size >= 1, got 0"),
        (PLAIN, {"batch_size": -1}, "batch_size >= 1, got -1"),
        (PLAIN, {"data": np.array([2**40])}, "data within 32 bits, got 1099511627776"),
        (PLAIN, {"model_state": 1.0}, "model_state was given"),
        (PLAIN, {"hyperparameters": 1.0}, "hyperparameters was given"),
        (PLAIN, {"data": (jnp.zeros(3), jnp.zeros(2))}, "leading axis"),
        (PLAIN, {"data": jnp.zeros(())}, "leading axis"),
        (PLAIN, {"data": None}, "no arrays"),
        (PLAIN, {"data": jnp.zeros(0)}, "row"),
        (lambda w, x: {"value": lo.mean(w - x)}, {}, "'value' twice"),
        (lambda w, x: (PLAIN(w, x), {"metrics": {"fit": MEAN}}), {"has_aux": True}, "'fit' twice"),
        (lambda w, x: (PLAIN(w, x), {"metrics": MEAN}), {"has_aux": True}, "no name at all"),
    ],
)
def test_what_does_not_fit_is_refused(objective, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(objective, 0.0, **{"data": jnp.arange(5.0), "batch_size": 2} | options)


@pytest.mark.parametrize(
    ("objective", "has_aux", "message"),
    [
        (lambda w, x: {"fit": jnp.mean(w - x)}, False, "tree of Mean"),
        (lambda w, x: (PLAIN(w, x), {"metrics": {"m": 1.0}}), True, "tree of Mean"),
        (lambda w, x: (PLAIN(w, x), {"metric": MEAN}), True, "'metrics'"),
        (PLAIN, True, "has_aux"),
        (lambda w, x: {"a": MEAN, "b": MEAN}, True, "has_aux"),
    ],
)
def test_what_is_another_thing_is_refused(objective, has_aux, message):
    with pytest.raises(TypeError, match=message):
        evaluate(objective, 0.0, jnp.arange(5.0), batch_size=2, has_aux=has_aux)


def test_batches_that_are_no_integer_are_refused():
    with pytest.raises(TypeError, match=r"batch_size as a whole number, got 2\.0"):
        evaluate(PLAIN, 0.0, jnp.arange(5.0), batch_size=2.0)
