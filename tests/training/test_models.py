"""Models of four libraries train through `fit` as in a plain loop of that library and optax."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lossopt as lo

ROWS, BATCH, EPOCHS, WIDTH = 14, 7, 2, 6
STEPS = 2 * EPOCHS
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def _data(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": x[:, 0] * x[:, 1], "row": np.arange(rows)}


TRAIN, VALIDATION = _data(ROWS, 0), _data(7, 1)


class Model(NamedTuple):
    """A start, and `predict(params, state, x, key)`, which gives predictions and a state."""

    params: Any
    state: Any
    predict: Any


def _trained(model):
    """A run, and the rows and the key of each of its steps."""

    def objective(params, batch, key, model_state):
        state, log = model_state
        predictions, state = model.predict(params, state, batch["x"], key)
        log = log if key is None else _log(log, batch["row"], key)
        fit = lo.mean(lo.losses.squared_error(predictions, batch["y"]))
        return {"fit": fit}, {"model_state": (state, log)}

    log = (
        jnp.array(0),
        jnp.full((STEPS, BATCH), -1),
        jnp.zeros((STEPS, 2), jnp.uint32),
    )
    run = lo.fit(
        objective,
        model.params,
        TRAIN,
        OPTIMIZER,
        batch_size=BATCH,
        epochs=EPOCHS,
        key=jax.random.key(3),
        validation=VALIDATION,
        has_aux=True,
        model_state=(model.state, log),
        progress=False,
    )
    _, places, words = run.model_state[1]
    rows = [place[place >= 0] for place in np.asarray(places)]
    assert [len(place) for place in rows] == [BATCH] * STEPS
    batches = [(TRAIN["x"][place], TRAIN["y"][place]) for place in rows]
    return run, list(zip(batches, jax.random.wrap_key_data(words)))


def _log(log, rows, key):
    step, places, words = log
    places = places.at[step, : len(rows)].set(rows)
    return step + 1, places, words.at[step].set(jax.random.key_data(key))


def _squared(predictions, y):
    return jnp.mean((predictions - y) ** 2)


# flax linen


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(WIDTH)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.8)(x))
        x = nn.Dropout(0.3, deterministic=not training)(x)
        return nn.Dense(1)(x)[:, 0]


def _linen():
    start = Linen().init(jax.random.key(0), TRAIN["x"], False)

    def predict(params, state, x, key):
        variables = {"params": params, "batch_stats": state}
        rngs = {} if key is None else {"dropout": key}
        predictions, changed = Linen().apply(
            variables, x, key is not None, rngs=rngs, mutable=["batch_stats"]
        )
        return predictions, changed["batch_stats"]

    return Model(start["params"], start["batch_stats"], predict)


def _linen_loop(steps):
    variables = Linen().init(jax.random.key(0), TRAIN["x"], False)
    params, statistics = variables["params"], variables["batch_stats"]
    opt_state = OPTIMIZER.init(params)

    @jax.jit
    def step(params, statistics, opt_state, x, y, key):
        def loss(params):
            given = {"params": params, "batch_stats": statistics}
            out, changed = Linen().apply(
                given, x, True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return _squared(out, y), changed["batch_stats"]

        grads, changed = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state)
        return optax.apply_updates(params, updates), changed, opt_state

    for (x, y), key in steps:
        params, statistics, opt_state = step(params, statistics, opt_state, x, y, key)
    given = {"params": params, "batch_stats": statistics}
    return params, statistics, Linen().apply(given, VALIDATION["x"], False)


# flax nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(3, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.outer = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x, key):
        x = nnx.relu(self.norm(self.inner(x), use_running_average=key is None))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return self.outer(x)[:, 0]


def _nnx():
    graph, weights, statistics = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def predict(params, state, x, key):
        network = nnx.merge(graph, params, state)
        return network(x, key), nnx.state(network, nnx.BatchStat)

    return Model(weights, statistics, predict)


def _nnx_loop(steps):
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, x, y, key):
        grads = nnx.grad(lambda network: _squared(network(x, key), y))(network)
        optimizer.update(network, grads)

    for (x, y), key in steps:
        step(network, optimizer, x, y, key)
    _, weights, statistics = nnx.split(network, nnx.Param, ...)
    return weights, statistics, network(VALIDATION["x"], None)


# equinox


class Module(eqx.Module):
    inner: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    outer: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.inner = eqx.nn.Linear(3, WIDTH, key=first)
        self.norm = eqx.nn.BatchNorm(WIDTH, "rows", momentum=0.8, mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)
        self.outer = eqx.nn.Linear(WIDTH, "scalar", key=second)

    def __call__(self, x, state, key):
        x, state = self.norm(self.inner(x), state)
        return self.outer(self.dropout(jax.nn.relu(x), key=key)), state


def _over_rows(module, state, x, keys):
    along = {"in_axes": (0, None, 0), "out_axes": (0, None), "axis_name": "rows"}
    return jax.vmap(module, **along)(x, state, keys)


def _equinox():
    module, state = eqx.nn.make_with_state(Module)(jax.random.key(0))
    weights, rest = eqx.partition(module, eqx.is_inexact_array)

    def predict(params, state, x, key):
        module = eqx.nn.inference_mode(eqx.combine(params, rest), key is None)
        keys = None if key is None else jax.random.split(key, len(x))
        return _over_rows(module, state, x, keys)

    return Model(weights, state, predict)


def _equinox_loop(steps):
    module, state = eqx.nn.make_with_state(Module)(jax.random.key(0))
    opt_state = OPTIMIZER.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module, state, opt_state, x, y, key):
        @partial(eqx.filter_grad, has_aux=True)
        def slope(module):
            out, changed = _over_rows(module, state, x, jax.random.split(key, len(x)))
            return _squared(out, y), changed

        grads, changed = slope(module)
        updates, opt_state = OPTIMIZER.update(grads, opt_state)
        return eqx.apply_updates(module, updates), changed, opt_state

    for (x, y), key in steps:
        module, state, opt_state = step(module, state, opt_state, x, y, key)
    predictions, _ = _over_rows(eqx.nn.inference_mode(module), state, VALIDATION["x"], None)
    return eqx.filter(module, eqx.is_inexact_array), state, predictions


# A pair of functions, as `hk.transform_with_state` makes one


def _init(key, x):
    first, second = jax.random.split(key)
    params = {
        "inner": jax.random.normal(first, (x.shape[1], WIDTH)) / 2,
        "scale": jnp.ones(WIDTH),
        "outer": jax.random.normal(second, (WIDTH,)) / 2,
    }
    return params, {"mean": jnp.zeros(WIDTH), "variance": jnp.ones(WIDTH)}


def _apply(params, state, key, x, training):
    x = x @ params["inner"]
    if training:
        now = {"mean": jnp.mean(x, axis=0), "variance": jnp.var(x, axis=0)}
        state = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, state, now)
    used = now if training else state
    x = (x - used["mean"][None]) / jnp.sqrt(used["variance"] + 1e-5)[None]
    x = jax.nn.relu(x * params["scale"][None])
    if training:
        x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
    return x @ params["outer"], state


def _pair():
    predict = lambda params, state, x, key: _apply(params, state, key, x, key is not None)
    return Model(*_init(jax.random.key(0), TRAIN["x"]), predict)


def _pair_loop(steps):
    params, state = _init(jax.random.key(0), TRAIN["x"])
    opt_state = OPTIMIZER.init(params)

    @jax.jit
    def step(params, state, opt_state, x, y, key):
        def loss(params):
            out, changed = _apply(params, state, key, x, True)
            return _squared(out, y), changed

        grads, changed = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state)
        return optax.apply_updates(params, updates), changed, opt_state

    for (x, y), key in steps:
        params, state, opt_state = step(params, state, opt_state, x, y, key)
    return params, state, _apply(params, state, None, VALIDATION["x"], False)[0]


LIBRARIES = {
    "linen": (_linen, _linen_loop),
    "nnx": (_nnx, _nnx_loop),
    "equinox": (_equinox, _equinox_loop),
    "pair": (_pair, _pair_loop),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_model_trains_as_in_a_plain_loop_of_its_library(name):
    make, loop = LIBRARIES[name]
    run, steps = _trained(make())
    params, state, predictions = loop(steps)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, run.params, params)
    jax.tree.map(close, run.model_state[0], state)
    close(run.history["validation/fit"][-1], _squared(predictions, VALIDATION["y"]))
    moved = jax.tree.map(lambda new, old: abs(new - old).max(), run.params, make().params)
    assert max(jax.tree.leaves(moved)) > 0.05


# What comes without it


def test_a_network_of_another_trace_says_what_to_write():
    network = Network(nnx.Rngs(0))
    objective = lambda params, batch, key: lo.mean(params * network(batch, key))
    with pytest.raises(Exception, match="different trace") as caught:
        lo.fit(objective, 1.0, TRAIN["x"], OPTIMIZER, epochs=1, key=jax.random.key(0))
    assert "nnx.merge(graph, params, model_state)" in "".join(caught.value.__notes__)


def test_a_key_that_is_used_in_evaluation_says_that_it_is_none():
    def objective(params, batch, key):
        return lo.mean(params * batch * jax.random.bernoulli(key, 0.5, batch.shape))

    for call in (
        lambda: lo.training.evaluate(objective, 1.0, jnp.ones(3)),
        lambda: lo.fit(
            objective,
            1.0,
            jnp.ones(3),
            optax.sgd(0.1),
            epochs=1,
            key=jax.random.key(0),
            validation=jnp.ones(3),
        ),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert "key is None in evaluation" in "".join(caught.value.__notes__)
    with pytest.raises(ZeroDivisionError) as plain:
        lo.training.evaluate(lambda params, batch: 1 // 0, 1.0, jnp.ones(3))
    assert "key is None" not in "".join(plain.value.__notes__)


class Counter(eqx.Module):
    seen: eqx.nn.StateIndex

    def __init__(self):
        self.seen = eqx.nn.StateIndex(jnp.zeros(()))


def test_a_state_may_be_changed_in_pieces_without_fit():
    graph, weights, statistics = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def objective(params, batch, model_state):
        network = nnx.merge(graph, params, model_state)
        fit = lo.mean(network(batch, jax.random.key(0)) ** 2)
        return fit, {"model_state": nnx.state(network, nnx.BatchStat)}

    differentiate = lo.value_and_grad(objective, has_aux=True, microbatches=2)
    (_, _, aux), _ = differentiate(weights, TRAIN["x"], model_state=statistics)
    assert abs(aux["model_state"]["norm"]["mean"][...]).max() > 0
    assert abs(statistics["norm"]["mean"][...]).max() == 0


def test_a_state_that_is_spent_by_its_use_is_given_anew():
    counter, state = eqx.nn.make_with_state(Counter)()

    def objective(params, batch, model_state):
        seen = model_state.get(counter.seen) + len(batch)
        model_state = model_state.set(counter.seen, seen)
        return {"fit": lo.mean((params - batch) ** 2)}, {"model_state": model_state}

    options = {"has_aux": True, "model_state": state}
    data, rule = jnp.arange(5.0), optax.sgd(0.1)
    run = lo.fit(
        objective,
        0.0,
        data,
        rule,
        batch_size=3,
        epochs=2,
        key=jax.random.key(0),
        validation=data,
        **options,
    )
    assert run.model_state.get(counter.seen) == 10
    measured = lo.training.evaluate(objective, run.params, data, batch_size=2, **options)
    np.testing.assert_allclose(measured["fit"], np.mean((run.params - np.arange(5.0)) ** 2))


class Normed(nn.Module):
    """Statistics of `x @ kernel`, and nothing else."""

    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(2, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=not training, momentum=0.5)(x)


class Parts:
    """Rows in their order, in parts."""

    def __iter__(self):
        for first in range(0, 10, BATCH):
            yield {name: TRAIN[name][first : first + BATCH] for name in ("x", "y")}


def test_a_rule_that_moves_nothing_measures_statistics_at_other_parameters():
    def objective(params, batch, key, model_state):
        variables = {"params": params, "batch_stats": model_state}
        call = {"training": key is not None, "mutable": ["batch_stats"]}
        x, changed = Normed().apply(variables, batch["x"], **call)
        means = {"fit": lo.mean(lo.losses.squared_error(x.sum(axis=1), batch["y"]))}
        return means, {"model_state": changed["batch_stats"]}

    begun = Normed().init(jax.random.key(0), TRAIN["x"], training=False)
    options = {"key": jax.random.key(1), "has_aux": True, "progress": False, "epochs": 2}
    given = objective, begun["params"], Parts(), optax.set_to_zero()
    measured = lo.fit(*given, model_state=begun["batch_stats"], **options)

    jax.tree.map(np.testing.assert_array_equal, measured.params, begun["params"])
    kernel = np.float64(begun["params"]["Dense_0"]["kernel"])
    got = measured.model_state["BatchNorm_0"]
    for name, statistic in {"mean": np.mean, "var": np.var}.items():
        want = np.float64(begun["batch_stats"]["BatchNorm_0"][name])
        for part in [*Parts(), *Parts()]:
            want = 0.5 * want + 0.5 * statistic(np.float64(part["x"]) @ kernel, axis=0)
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
