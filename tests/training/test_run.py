"""A run is the plain loop that its documentation tells, wherever it is compiled."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

run, Patience = lo.training.run, lo.training.Patience
ROWS, BATCH, EPOCHS, STRENGTH = 10, 4, 5, 0.1
KEY = jax.random.key(1)


def _data(rows, seed):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 3)),
        "y": rng.normal(size=rows),
        "weight": rng.uniform(0.1, 1, size=rows) * (np.arange(rows) % 4 != 1),
        "row": np.arange(rows),
    }


TRAIN, VALIDATION = _data(ROWS, 0), _data(7, 1)


def _params():
    return {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.3)}


def _terms(params, batch, hyperparameters):
    """A linear model, with a penalty and a metric."""
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    means = {
        "fit": lo.mean(errors**2, batch["weight"]),
        "penalty": lo.constant(hyperparameters * jnp.sum(params["w"] ** 2)),
    }
    return means, {"metrics": {"absolute": lo.mean(jnp.abs(errors), batch["weight"])}}


def _objective(params, batch, key, model_state, hyperparameters):
    """Writes the rows and the noise of each step into its state."""
    means, aux = _terms(params, batch, hyperparameters)
    return means, aux if key is None else aux | {"model_state": _log(model_state, batch, key)}


def _log(state, batch, key):
    at, step, rows = state["at"], state["step"], batch["row"]
    return {
        "rows": jax.lax.dynamic_update_slice(state["rows"], rows, (at,)),
        "at": at + len(rows),
        "sizes": state["sizes"].at[step].set(len(rows)),
        "noise": state["noise"].at[step].set(jax.random.uniform(key)),
        "step": step + 1,
    }


def _empty_log():
    size = ROWS * EPOCHS
    return {"rows": jnp.full(size, -1), "sizes": jnp.zeros(size, int), "noise": jnp.zeros(size)} | {
        "at": jnp.array(0),
        "step": jnp.array(0),
    }


def _trial(key=KEY, **options):
    return run(
        _objective,
        _params(),
        _data(ROWS, 0),
        optax.sgd(0.2, momentum=0.5),
        key=key,
        has_aux=True,
        model_state=_empty_log(),
        hyperparameters=STRENGTH,
        **{"batch_size": BATCH, "epochs": EPOCHS, "validation": _data(7, 1), "watch": "w"}
        | options,
    )


AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(_trial, compiler_options=AS_USERS)


@pytest.fixture(scope="module")
def trained(compiled):
    return compiled(KEY)


def _steps(log):
    """The rows of each step, as they were taken."""
    sizes = np.asarray(log["sizes"])[: int(log["step"])]
    return np.split(np.asarray(log["rows"])[: sizes.sum()], np.cumsum(sizes)[:-1])


def _measure(params, data, rows=slice(None)):
    """Errors and totals by hand, in float64."""
    x, y, weight = (np.asarray(data[name], np.float64)[rows] for name in ("x", "y", "weight"))
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    errors = x @ w + b - y
    table = {
        "fit": (weight @ errors**2, weight.sum()),
        "penalty": (STRENGTH * w @ w, 1.0),
        "absolute": (weight @ abs(errors), weight.sum()),
    }
    slope = 2 * weight * errors / (weight.sum() or 1)
    return table, {"w": slope @ x + 2 * STRENGTH * w, "b": slope.sum()}


def _columns(tables):
    pooled = {name: np.sum([t[name] for t in tables], axis=0) for name in tables[0]}
    row = {name: total / weight for name, (total, weight) in pooled.items()}
    return row | {"value": row["fit"] + row["penalty"]}


def _norms(name, tree):
    """Of all leaves, and of the one that is watched."""
    leaves = {k: np.ravel(np.asarray(x, np.float64)) for k, x in tree.items()}
    whole, watched = np.concatenate(list(leaves.values())), leaves["w"]
    return {name: np.linalg.norm(whole), f"{name}/w": np.linalg.norm(watched)}


def _replay(steps, epochs, optimizer, params):
    """The plain optax loop over the same rows, with gradients by hand."""
    state, history, trajectory = optimizer.init(params), [], []
    for epoch in np.split(np.arange(len(steps)), epochs):
        tables = []
        for rows in (steps[i] for i in epoch):
            table, grads = _measure(params, TRAIN, rows)
            norms = _norms("gradient_norm", grads)
            grads = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), grads, params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            size, moved = _norms("update_ratio", params), _norms("update_ratio", updates)
            norms |= {name: moved[name] / size[name] for name in size}
            tables.append(table)
        train, valid = _columns(tables), _columns([_measure(params, VALIDATION)[0]])
        history.append(
            {"step": epoch[-1] + 1}
            | {f"train/{k}": v for k, v in (train | norms).items()}
            | {f"validation/{k}": v for k, v in valid.items()}
        )
        trajectory.append(params)
    columns = {name: np.array([row[name] for row in history]) for name in history[0]}
    return trajectory, columns


def _close(got, want, rtol=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), got, want)


def _at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def _same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_every_row_is_visited_once_an_epoch(trained):
    epochs = np.asarray(trained.model_state["rows"]).reshape(EPOCHS, ROWS)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(ROWS), (EPOCHS, 1)))
    assert len(np.unique(epochs, axis=0)) == EPOCHS, "each epoch has an order of its own"


def test_the_ragged_last_batch_is_a_smaller_step(trained):
    assert [len(rows) for rows in _steps(trained.model_state)] == [4, 4, 2] * EPOCHS


def test_every_step_has_a_key_of_its_own(trained):
    noise = np.asarray(trained.model_state["noise"])[: 3 * EPOCHS]
    assert len(np.unique(noise)) == 3 * EPOCHS


def test_a_run_is_the_plain_loop(trained):
    optimizer = optax.sgd(0.2, momentum=0.5)
    trajectory, columns = _replay(_steps(trained.model_state), EPOCHS, optimizer, _params())
    _close(trained.params, trajectory[-1])
    _close(trained.history, columns)
    best = int(np.argmin(columns["validation/value"]))
    assert trained.best_epoch == best
    _close(trained.best_params, trajectory[best])


def test_terms_add_up_to_the_value_and_metrics_do_not(trained):
    for part in ("train", "validation"):
        value, fit, penalty = (trained.history[f"{part}/{k}"] for k in ("value", "fit", "penalty"))
        np.testing.assert_allclose(value, fit + penalty, rtol=1e-6)
        assert trained.history[f"{part}/absolute"].shape == (EPOCHS,)
    assert len(trained.history) == 13


def test_validation_is_measured_after_the_epoch(trained):
    measured = lo.training.evaluate(
        _objective,
        trained.params,
        VALIDATION,
        batch_size=BATCH,
        has_aux=True,
        model_state=trained.model_state,
        hyperparameters=STRENGTH,
    )
    for name, column in measured.items():
        np.testing.assert_allclose(trained.history[f"validation/{name}"][-1], column, rtol=1e-6)


def test_a_run_holds_arrays_only(trained):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trained))
    assert isinstance(trained, lo.training.Run)


def test_the_key_decides_the_order(compiled, trained):
    again, other = compiled(jax.random.key(1)), compiled(jax.random.key(4))
    _same_bits(again, trained)
    assert (other.model_state["rows"] != trained.model_state["rows"]).any()
    assert (other.model_state["noise"] != trained.model_state["noise"]).any()


@pytest.fixture(scope="module")
def in_pieces():
    return jax.jit(partial(_trial, microbatches=2))()


def test_microbatches_do_not_change_the_run(trained, in_pieces):
    _close((in_pieces.params, in_pieces.best_params), (trained.params, trained.best_params))
    log = in_pieces.model_state
    assert [len(rows) for rows in _steps(log)] == [2, 2, 2, 2, 2] * EPOCHS
    assert len(np.unique(np.asarray(log["noise"])[: log["step"]])) == log["step"]
    whole = lambda state: np.sort(np.asarray(state["rows"]).reshape(EPOCHS, ROWS)[:, :BATCH])
    np.testing.assert_array_equal(whole(log), whole(trained.model_state))


def test_microbatches_do_not_change_the_columns(trained, in_pieces):
    _close(in_pieces.history, trained.history)


def test_no_piece_is_larger_than_a_full_batch_has():
    result = jax.jit(partial(_trial, microbatches=3, batch_size=7, epochs=1))()
    assert [len(rows) for rows in _steps(result.model_state)] == [3, 3, 1, 3]


def test_drop_last_leaves_out_the_ragged_batch(trained):
    result = jax.jit(partial(_trial, drop_last=True))()
    steps = _steps(result.model_state)
    assert [len(rows) for rows in steps] == [4, 4] * EPOCHS
    epochs = np.concatenate(steps).reshape(EPOCHS, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len(set(epochs.ravel())) == ROWS, "another row is left out each time"
    trajectory, columns = _replay(steps, EPOCHS, optax.sgd(0.2, momentum=0.5), _params())
    _close(result.params, trajectory[-1])
    _close(result.history, columns)


def test_drop_last_changes_nothing_where_batches_divide():
    options = {"batch_size": 5, "epochs": 2, "key": KEY}
    trial = lambda drop: run(
        _plain, 0.0, jnp.arange(10.0), optax.sgd(0.1), **options, drop_last=drop
    )
    _same_bits(trial(True), trial(False))


def test_a_batch_larger_than_the_data_is_one_step():
    count = lambda w, x, model_state: (_plain(w, x), {"model_state": model_state + len(x)})
    options = {"batch_size": 64, "epochs": 2, "key": KEY, "has_aux": True, "model_state": 0}
    result = run(count, 0.0, jnp.arange(6.0), optax.sgd(0.1), **options)
    assert result.model_state == 12
    assert result.params == pytest.approx(2.5 * (1 - 0.8**2))


def _small(rate=0.2, strength=STRENGTH, params=None, key=KEY):
    return run(
        _terms,
        _params() if params is None else params,
        _data(ROWS, 0),
        optax.sgd(rate),
        batch_size=ROWS // 2,
        epochs=2,
        key=key,
        has_aux=True,
        hyperparameters=strength,
    )


SWEPT = {
    "rate": jnp.array([0.01, 0.2]),
    "strength": jnp.array([0.0, 0.5]),
    "params": jax.tree.map(lambda x: jnp.stack([x, 2 * x]), _params()),
    "key": jax.random.split(jax.random.key(0), 2),
}


DEFAULTS = {"rate": 0.2, "strength": STRENGTH, "params": _params(), "key": KEY}


@pytest.fixture(scope="module")
def alone():
    return jax.jit(lambda given: _small(**given))


def test_eager_and_compiled_runs_agree(alone):
    _close(_small(), alone(DEFAULTS))


@pytest.mark.parametrize("name", ["rate", "key"])
def test_vmap_gives_the_runs_one_by_one(alone, name):
    sweep = jax.jit(jax.vmap(lambda x: _small(**{name: x})))(SWEPT[name])
    for i in range(2):
        _close(_at(sweep, i), alone(DEFAULTS | {name: _at(SWEPT[name], i)}))
    assert len(np.unique(sweep.history["train/value"][:, -1])) == 2


def test_devices_run_side_by_side(alone):
    keys = jax.random.split(jax.random.key(1), jax.device_count())
    assert len(keys) == 8
    got = jax.pmap(lambda key: _small(key=key))(keys)
    for i in (0, 7):
        _close(_at(got, i), alone(DEFAULTS | {"key": keys[i]}))


@pytest.fixture(scope="module")
def in_float64():
    with jax.enable_x64(True):
        result = jax.jit(_trial)()
        replayed = _replay(
            _steps(result.model_state), EPOCHS, optax.sgd(0.2, momentum=0.5), _params()
        )
        return result, replayed


def test_a_run_in_float64_is_the_plain_loop(in_float64):
    result, (trajectory, columns) = in_float64
    columns_of_floats = {k: column for k, column in result.history.items() if k != "step"}
    floats = (result.params, result.best_params, columns_of_floats)
    assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {jnp.dtype("float64")}
    _close(result.params, trajectory[-1], rtol=1e-12)
    _close(result.history, columns, rtol=1e-12)


def test_gradients_reach_hyperparameters_through_the_run():
    with jax.enable_x64(True):

        def outcome(given):
            return _small(given[0], given[1]).history["train/fit"][-1]

        f, slope = jax.jit(outcome), jax.jit(jax.grad(outcome))
        point, h = jnp.array([0.05, 0.1]), 1e-6
        want = [(f(point + d) - f(point - d)) / (2 * h) for d in h * jnp.eye(2)]
        got, want = np.array(slope(point)), np.array(want)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(want).min() > 1e-4


def test_gradients_reach_the_weights_of_rows():
    x = jnp.array([0.0, 1.0, 5.0])

    def objective(w, batch, hyperparameters):
        return {"fit": lo.mean((w - batch["x"]) ** 2, hyperparameters[batch["row"]])}

    def outcome(weights):
        data = {"x": x, "row": jnp.arange(3)}
        options = {"batch_size": 3, "epochs": 2, "key": KEY, "hyperparameters": weights}
        return run(objective, 0.0, data, optax.sgd(0.1), **options).params

    def plain(weights, w=0.0):
        for _ in range(2):
            w = w - 0.1 * 2 * jnp.sum(weights * (w - x)) / jnp.sum(weights)
        return w

    weights = jnp.array([1.0, 0.5, 2.0])
    want = jax.jit(jax.value_and_grad(plain))(weights)
    _close(jax.jit(jax.value_and_grad(outcome))(weights), want)
    _close(jax.jvp(outcome, (weights,), (weights,))[1], want[1] @ weights)


# What is best


def _table_objective(params, batch, key, model_state, hyperparameters):
    """Falls through a table of values, after each epoch, whatever the parameters."""
    value = 0.0 if key is not None else hyperparameters[model_state - 1]
    means = lo.constant(params - jax.lax.stop_gradient(params) + value)
    return means, {"model_state": model_state + 1}


INF, NAN = np.inf, np.nan
TABLES = {  # values after each epoch, and the best
    "falling": ([3, 2, 1, 0], 3),
    "rising": ([0, 1, 2, 3], 0),
    "the first of two": ([2, 1, 3, 1], 1),
    "NaN first": ([NAN, 2, 1, 3], 2),
    "NaN last": ([2, 1, 3, NAN], 1),
    "negative": ([-1, NAN, -2, INF], 2),
    "never finite": ([NAN, INF, NAN, INF], -1),
    "infinite only": ([INF, INF, INF, INF], -1),
    "minus infinity is not finite": ([2, 1, -INF, -INF], 1),
}


def _through(table, **judged):
    return run(
        _table_objective,
        1.0,
        jnp.zeros(2),
        optax.sgd(1.0),
        batch_size=2,
        epochs=4,
        key=KEY,
        has_aux=True,
        model_state=0,
        hyperparameters=table,
        **judged,
    )


@pytest.fixture(scope="module")
def through_tables():
    tables = jnp.array([values for values, _ in TABLES.values()], jnp.float32)
    trials = {
        "validation": partial(_through, validation=jnp.zeros(2)),
        "trained": partial(_through, best="train"),
    }
    return {name: jax.jit(jax.vmap(trial))(tables) for name, trial in trials.items()}


@pytest.mark.parametrize("watched", ["trained", "validation"])
@pytest.mark.parametrize("case", TABLES)
def test_the_best_epoch_has_the_lowest_finite_value(through_tables, watched, case):
    i, (values, best) = list(TABLES).index(case), TABLES[case]
    result = _at(through_tables[watched], i)
    np.testing.assert_array_equal(result.history[f"{watched}/value"], np.float32(values))
    assert result.best_epoch == best
    assert result.best_epoch.dtype == jnp.int32
    assert result.best_params == 1 - (best + 1), "a step subtracts 1; -1 keeps the first"
    assert result.best_model_state == best + 1
    assert (result.params, result.model_state) == (-3, 4)


def test_best_parameters_are_those_of_a_shorter_run(trained):
    best = int(trained.best_epoch)
    assert 0 <= best < EPOCHS - 1, "the case is meant to overshoot"
    shorter = jax.jit(partial(_trial, epochs=best + 1), compiler_options=AS_USERS)(KEY)
    _same_bits(trained.best_params, shorter.params)
    _same_bits(trained.best_model_state, shorter.model_state)
    assert (trained.params["w"] != trained.best_params["w"]).any()


# Models with a state and noise


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.tanh(x)))[..., 0]


def _net_objective(params, batch, model_state, key):
    variables = {"params": params, "batch_stats": model_state["stats"]}
    if key is None:
        return {"fit": lo.mean((_Net().apply(variables, batch["x"], False) - batch["y"]) ** 2)}, {}
    out, new = _Net().apply(
        variables, batch["x"], True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    logged = _log(model_state["log"], batch, key)
    logged["keys"] = model_state["log"]["keys"].at[model_state["log"]["step"]].set(key)
    state = {"stats": new["batch_stats"], "log": logged}
    return {"fit": lo.mean((out - batch["y"]) ** 2)}, {"model_state": state}


def test_batch_statistics_and_dropout_are_those_of_the_plain_loop():
    first = jax.jit(_Net().init, static_argnums=2)(jax.random.key(0), jnp.zeros((2, 3)), False)
    log = _empty_log() | {"keys": jax.random.split(jax.random.key(0), 9)}
    result = jax.jit(
        lambda: run(
            _net_objective,
            first["params"],
            TRAIN,
            optax.sgd(0.1),
            batch_size=BATCH,
            epochs=3,
            key=KEY,
            validation=VALIDATION,
            has_aux=True,
            model_state={"stats": first["batch_stats"], "log": log},
        )
    )()

    @jax.jit
    def step(params, stats, batch, key):
        def loss(params):
            (means, aux) = _net_objective(params, batch, {"stats": stats, "log": log}, key)
            return lo.value(means), aux["model_state"]["stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), stats

    params, stats, logged = first["params"], first["batch_stats"], result.model_state["log"]
    for rows, key in zip(_steps(logged), logged["keys"]):
        params, stats = step(params, stats, _at(TRAIN, rows), key)
    _close(result.params, params)
    _close(result.model_state["stats"], stats)
    assert len(np.unique(jax.random.key_data(logged["keys"]), axis=0)) == 9
    means, _ = jax.jit(_net_objective)(params, VALIDATION, {"stats": stats}, None)
    got = result.history["validation/fit"][-1]
    np.testing.assert_allclose(got, means["fit"].value, rtol=1e-5)


def test_microbatches_pass_the_state_on():
    count = lambda w, x, model_state: (
        {"fit": lo.mean((w - x) ** 2)},
        {"model_state": 1 + model_state},
    )
    options = {"batch_size": 4, "epochs": 3, "key": KEY, "has_aux": True, "model_state": 0}
    result = run(count, 0.0, jnp.arange(10.0), optax.sgd(0.1), microbatches=4, **options)
    assert result.model_state == 30


def test_a_state_that_is_only_read_stays():
    read = lambda w, x, model_state: {"fit": lo.mean((w - model_state["shift"] - x) ** 2)}
    options = {"batch_size": 4, "epochs": 50, "key": KEY, "model_state": {"shift": jnp.array(1.0)}}
    result = run(read, 0.0, jnp.ones(4), optax.sgd(0.2), **options)
    np.testing.assert_allclose(result.params, 2, rtol=1e-5)
    assert result.model_state == {"shift": 1.0}


def test_a_state_may_be_any_tree():
    @partial(jax.tree_util.register_dataclass, data_fields=["count"], meta_fields=[])
    @dataclasses.dataclass(eq=False)
    class Counter:
        count: jax.Array

    count = lambda w, x, model_state: (
        {"fit": lo.mean((w - x) ** 2)},
        {"model_state": Counter(model_state.count + 1)},
    )
    options = {"batch_size": 4, "epochs": 3, "key": KEY, "has_aux": True}
    state = Counter(jnp.zeros(2))
    result = run(count, 0.0, jnp.ones(4), optax.sgd(0.2), model_state=state, **options)
    np.testing.assert_array_equal(result.model_state.count, [3, 3])


# What the objective receives and returns


def _plain(w, x):
    return {"fit": lo.mean((w - x) ** 2)}


def _outline(objective=_plain, params=0.0, train=None, optimizer=None, **options):
    """Shapes of a run, without compiling it."""
    train = jnp.arange(6.0) if train is None else train
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    options = {"batch_size": 4, "epochs": 2, "key": KEY} | options
    return jax.eval_shape(lambda: run(objective, params, train, optimizer, **options))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: partial(f, extra=1)])
@pytest.mark.parametrize(
    "names", ["", "key", "model_state", "hyperparameters", "hyperparameters, key"]
)
def test_an_objective_receives_the_keywords_that_it_names(wrap, names):
    seen = []
    namespace = {"note": lambda **keywords: seen.append(keywords), "loss": _plain}
    passed = ", ".join(f"{name}={name}" for name in names.split(", ") if name)
    code = f"def f(w, x, {names + ',' if names else ''} extra=0): note({passed}); return loss(w, x)"
    exec(code, namespace)
    given = {"model_state": jnp.ones(2), "hyperparameters": jnp.ones(3)}
    given = {name: given[name] for name in names.split(", ") if name in given}
    _outline(wrap(namespace["f"]), **given, validation=jnp.ones(3))
    assert seen
    assert all(", ".join(keywords) == names for keywords in seen)
    for name, array in given.items():
        assert all(keywords[name].shape == array.shape for keywords in seen)
    if "key" in names:
        assert {keywords["key"] is None for keywords in seen} == {True, False}


def test_methods_and_callable_objects_are_objectives():
    @dataclasses.dataclass(frozen=True)
    class Model:
        scale: float

        def loss(self, w, x, *, key):
            return {"loss": lo.mean((self.scale * w - x) ** 2)}

        def __call__(self, w, x, hyperparameters):
            return {"call": lo.mean((hyperparameters * w - x) ** 2)}

    assert "train/loss" in _outline(Model(2.0).loss).history
    assert "train/call" in _outline(Model(2.0), hyperparameters=1.0).history


def test_keywords_that_a_partial_binds_stay_bound():
    seen = []

    def objective(w, x, hyperparameters):
        seen.append(hyperparameters)
        return {"fit": lo.mean((w - x) ** 2)}

    _outline(partial(objective, hyperparameters=0.5))
    assert set(seen) == {0.5}


def test_hyperparameters_may_be_a_regularizer():
    def objective(w, x, hyperparameters):
        return {"fit": lo.mean((w - x) ** 2), "penalty": lo.constant(hyperparameters(w))}

    strengths = jnp.array([0.0, 1.0])
    options = {"batch_size": 6, "epochs": 40, "key": KEY}
    trial = lambda penalty: (
        run(
            objective, 0.0, jnp.arange(6.0), optax.sgd(0.2), hyperparameters=penalty, **options
        ).params
    )
    np.testing.assert_allclose(
        jax.vmap(trial)(lo.regularizers.L2(strengths)), [2.5, 1.25], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (lambda w, x: lo.mean((w - x) ** 2), ["value"]),
        (lambda w, x: [lo.mean((w - x) ** 2), lo.constant(w**2)], ["value", "0", "1"]),
        (lambda w, x: {"a": {"b": lo.mean(w - x)}, "c": lo.constant(w)}, ["value", "a/b", "c"]),
    ],
)
def test_columns_are_named_by_path(objective, names):
    history = _outline(objective, validation=jnp.ones(3)).history
    parts = ("train", "validation")
    measured = {"step", "train/gradient_norm", "train/update_ratio"}
    assert set(history) == measured | {f"{part}/{name}" for part in parts for name in names}
    assert all(column.shape == (2,) for column in history.values())


def test_a_bare_mean_is_an_objective():
    result = run(
        lambda w, x: lo.mean((w - x) ** 2),
        0.0,
        jnp.arange(6.0),
        optax.sgd(0.2),
        batch_size=6,
        epochs=40,
        key=KEY,
    )
    np.testing.assert_allclose(result.params, 2.5, rtol=1e-5)
    np.testing.assert_allclose(result.history["train/value"][-1], 35 / 12, rtol=1e-5)


def _with_aux(**aux):
    return lambda w, x: (_plain(w, x), aux)


def _stateful(change):
    return lambda w, x, model_state: (_plain(w, x), {"model_state": change(model_state)})


MEAN = lo.constant(1.0)
REFUSED = {
    "a term named value": (
        dict(objective=lambda w, x: {"value": lo.mean(w - x)}),
        "names of their own",
    ),
    "a metric named as a term": (
        dict(objective=_with_aux(metrics={"fit": MEAN}), has_aux=True),
        "'fit' twice",
    ),
    "a metric named value": (
        dict(objective=_with_aux(metrics={"value": MEAN}), has_aux=True),
        "names of their own",
    ),
    "a metric without a name": (
        dict(objective=_with_aux(metrics=MEAN), has_aux=True),
        "no name at all",
    ),
    "two terms of one path": (
        dict(objective=lambda w, x: {"a": {"b": lo.mean(w - x)}, "a/b": MEAN}),
        "one name",
    ),
    "a state that nobody names": (dict(model_state=0.0), "model_state was given"),
    "a state beside what is named": (
        dict(objective=lambda w, x, key, hyperparameters: _plain(w, x), model_state=0.0),
        "model_state was given",
    ),
    "numbers that nobody names": (dict(hyperparameters=0.0), "hyperparameters was given"),
    "a state of another structure": (
        dict(objective=_stateful(lambda s: {"b": s["a"]}), has_aux=True, model_state={"a": 1.0}),
        "model_state like the first",
    ),
    "a state of another shape": (
        dict(objective=_stateful(lambda s: s[None]), has_aux=True, model_state=1.0),
        "model_state like the first",
    ),
    "a state out of nothing": (
        dict(objective=_with_aux(model_state=jnp.ones(2)), has_aux=True),
        "model_state like the first",
    ),
    "best without validation": (dict(best="validation"), "best was given.*give validation"),
    "a stop without what it watches": (dict(stop=Patience(1)), "stop was given.*give validation"),
    "another best": (dict(best="last"), r"best as .* \('validation/accuracy', max\), got 'last'"),
    "patience out of range": (dict(stop=Patience(0), best="train"), "patience >= 1, got 0"),
    "integers that do not fit": (dict(train=np.array([2**40])), "train within 32 bits"),
    "no epochs": (dict(epochs=0), "epochs >= 1, got 0"),
    "empty batches": (dict(batch_size=0), "batch_size >= 1, got 0"),
    "no microbatches": (dict(microbatches=0), "microbatches >= 1, got 0"),
    "more microbatches than rows": (dict(microbatches=5), "microbatches <= 4, got 5"),
    "nothing left by drop_last": (dict(batch_size=7, drop_last=True), "batch_size <= 6, got 7"),
    "no rows": (dict(train=jnp.zeros(0)), "row"),
    "no validation rows": (dict(validation=jnp.zeros(0)), "row"),
    "leaves of different rows": (dict(train=(jnp.zeros(3), jnp.zeros(4))), r"\[1\] \(4,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        _outline(**options)


REFUSED_TYPES = {
    "a number for data": (dict(train=1.0), "arrays in train, got numbers of Python"),
    "a state that was not given": (
        dict(objective=_stateful(lambda s: jnp.ones(2)), has_aux=True),
        "names model_state, and there is none",
    ),
    "a raw key": (dict(key=jax.random.PRNGKey(0)), "typed PRNG key"),
    "no key": (dict(key=None), "PRNG key"),
    "epochs that are no integer": (dict(epochs=3.0), "epochs as a whole number, got 3.0"),
    "batches that are no integer": (dict(batch_size=4.0), "batch_size as a whole number, got 4.0"),
    "pieces that are no integer": (dict(microbatches=2.0), "microbatches as a whole number"),
    "a number for a rule": (dict(stop=3, best="train"), "Expected a stop rule, got 3"),
    "a class for a rule": (dict(stop=Patience, best="train"), "Expected a stop rule, got <class"),
    "an optimizer that is not called": (dict(optimizer=optax.adam), r"Call it, as in optax\.adam"),
    "an array for a term": (dict(objective=lambda w, x: {"fit": jnp.mean(w - x)}), "tree of Mean"),
    "an array for a metric": (
        dict(objective=_with_aux(metrics={"m": jnp.ones(())}), has_aux=True),
        "tree of Mean",
    ),
    "a state that was not announced": (
        dict(objective=_with_aux(model_state=jnp.ones(2))),
        "has_aux=True",
    ),
    "metrics that were not announced": (
        dict(objective=_with_aux(metrics={"m": MEAN})),
        "has_aux=True",
    ),
    "no terms": (dict(objective=lambda w, x: {}), "tree of Mean"),
    "nothing": (dict(objective=lambda w, x: None), "tree of Mean"),
    "an unknown aux": (dict(objective=_with_aux(metric=MEAN), has_aux=True), "'metrics'"),
    "no aux": (dict(has_aux=True), "has_aux"),
    "two terms for aux": (
        dict(objective=lambda w, x: {"a": lo.mean(w - x), "b": MEAN}, has_aux=True),
        "has_aux",
    ),
    "None for aux": (dict(objective=lambda w, x: (_plain(w, x), None), has_aux=True), "has_aux"),
}


@pytest.mark.parametrize("case", REFUSED_TYPES)
def test_what_is_another_thing_is_refused(case):
    options, message = REFUSED_TYPES[case]
    with pytest.raises(TypeError, match=message):
        _outline(**options)


def test_metrics_and_state_are_each_optional():
    names = set(_outline(_with_aux(metrics={"m": MEAN}), has_aux=True).history)
    measured = {"step", "train/gradient_norm", "train/update_ratio"}
    assert names == measured | {"train/value", "train/fit", "train/m"}
    assert set(_outline(_with_aux(), has_aux=True).history) == names - {"train/m"}
    state = _outline(_stateful(lambda s: s + 1), has_aux=True, model_state=0.0).model_state
    assert state.shape == ()


# Any optax optimizer


def _square_loss(params, batch):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lion": optax.lion(0.1),
    "lbfgs": optax.lbfgs(),
    "clip and schedule": optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(optax.cosine_decay_schedule(0.5, 4))
    ),
    "masked": optax.masked(optax.scale(-0.1), {"w": True, "b": False}),
    "partition": optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"w": "a", "b": "b"}),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.5, 0, 4)),
    "reduce_on_plateau": optax.chain(
        optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    ),
    "polyak": optax.polyak_sgd(),
}


def _optimize(optimizer, objective, epochs):
    options = {"batch_size": ROWS, "epochs": epochs, "key": KEY}
    return run(objective, _params(), _data(ROWS, 0), optimizer, **options)


def _optimize_plainly(optimizer, loss, epochs):
    update = optax.with_extra_args_support(optimizer).update

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), value

    first = _params(), optimizer.init(_params())
    return jax.lax.scan(step, first, length=epochs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_the_steps_of_a_plain_loop(name):
    objective = lambda params, batch: {"fit": lo.mean(_square_loss(params, batch))}
    loss = lambda params: jnp.mean(_square_loss(params, _data(ROWS, 0)))
    result, ((params, state), values) = jax.jit(
        lambda: (
            _optimize(OPTIMIZERS[name], objective, 4),
            _optimize_plainly(OPTIMIZERS[name], loss, 4),
        )
    )()
    _close(result.params, params, rtol=1e-4)
    _close(result.history["train/value"], values, rtol=1e-4)
    _close(result.opt_state, state, rtol=1e-4)


def test_an_optimizer_is_offered_value_grad_and_value_fn():
    def update(updates, state, params=None, *, value, grad, value_fn):
        checks = {"value": value, "value_fn": value_fn(params), "moved": value_fn(params + 1)}
        return updates, checks | {"difference": jnp.abs(grad - updates).sum()}

    zero = jnp.zeros(())
    init = lambda params: dict.fromkeys(("value", "value_fn", "moved", "difference"), zero)
    optimizer = optax.GradientTransformationExtraArgs(init, update)
    options = {"batch_size": 6, "epochs": 1, "key": KEY, "microbatches": 2}
    result = run(_plain, 1.0, jnp.arange(6.0), optimizer, **options)
    state = {name: float(x) for name, x in result.opt_state.items()}
    want = {"value": 31 / 6, "value_fn": 31 / 6, "moved": 19 / 6, "difference": 0}
    assert state == pytest.approx(want)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_low_precision_parameters_keep_their_dtype(microbatches):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    objective = lambda params, batch: {"fit": lo.mean(_square_loss(params, batch))}
    result = _outline(
        objective, params, TRAIN, optax.adamw(0.1), microbatches=microbatches, validation=TRAIN
    )
    kept = {leaf.dtype for leaf in jax.tree.leaves((result.params, result.best_params))}
    assert kept == {jnp.dtype("bfloat16")}
    dtypes = {name: x.dtype for name, x in result.history.items()}
    assert dtypes.pop("step") == jnp.int32
    assert set(dtypes.values()) == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["adam", "lbfgs", "reduce_on_plateau", "polyak"])
def test_float32_parameters_run_where_float64_is_on(name):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), _params())
        train = jax.tree.map(jnp.float32, TRAIN)
        objective = lambda params, batch: {"fit": lo.mean(_square_loss(params, batch))}
        result = _outline(objective, params, train, OPTIMIZERS[name])
        assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype("float32")}


def test_a_state_of_another_dtype_is_refused():
    def objective(w, x, model_state):
        return {"fit": lo.mean((w - x) ** 2)}, {"model_state": model_state + 0.5}

    with pytest.raises(ValueError, match=r"model_state like the first one.*int32.*float32"):
        lo.training.run(
            objective,
            0.0,
            jnp.arange(4.0),
            optax.sgd(0.1),
            batch_size=2,
            epochs=1,
            key=jax.random.key(0),
            has_aux=True,
            model_state=jnp.int32(0),
        )
