"""The step for a loop of one's own is that of `fit`, whatever jax does with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lossopt as lo

ROWS, KEY = 12, jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(ROWS, 3)).astype(np.float32),
    "y": RNG.normal(size=ROWS).astype(np.float32),
    "weight": RNG.uniform(size=ROWS).astype(np.float32),
}
NUMBERS = {"learning_rate": 0.1, "strength": 0.01}


def _params():
    return {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.3)}


def _objective(params, batch, key, model_state, hyperparameters):
    """Noise, a state that shifts the model and moves on, two terms and a metric."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    errors = batch["x"] @ params["w"] + params["b"] + noise + model_state - batch["y"]
    penalty = hyperparameters["strength"] * jnp.sum(params["w"] ** 2)
    means = {"fit": lo.mean(errors**2, batch["weight"]), "penalty": lo.constant(penalty)}
    metrics = {"absolute": lo.mean(jnp.abs(errors))}
    return means, {"metrics": metrics, "model_state": model_state + jnp.mean(batch["x"])}


def _quiet(params, batch):
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return {"fit": lo.mean(errors**2, batch["weight"])}


def _descent(numbers):
    return optax.sgd(numbers["learning_rate"], momentum=0.5)


def _close(got, want, rtol=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), got, want)


def _same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def _at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


# What a line search compares


def _probe():
    """Remembers what it was offered, and what it found by itself."""

    def update(updates, state, params=None, *, value, grad, value_fn):
        found = {"value": value_fn(params), "grad": jax.grad(value_fn)(params)}
        moved = value_fn(jax.tree.map(lambda x: x + 1, params))
        return updates, {"offered": {"value": value, "grad": grad}, "found": found, "moved": moved}

    def init(params):
        pair = {"value": jnp.zeros(()), "grad": jax.tree.map(jnp.zeros_like, params)}
        return {"offered": pair, "found": pair, "moved": jnp.zeros(())}

    return optax.GradientTransformationExtraArgs(init, update)


def _mapped(how, step, state, batch):
    """The step over two devices, each with half of the batch; the state of the first."""
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    if how == "shard_map":
        specs = {"in_specs": (P(), P("i")), "out_specs": P()}
        return jax.jit(jax.shard_map(step, mesh=mesh, **specs))(state, batch)
    several = {"vmap": jax.vmap, "pmap": jax.pmap}[how]
    run = several(step, axis_name="i", in_axes=(None, 0))
    return _at(run(state, halves), 0)


@pytest.mark.parametrize(
    ("how", "microbatches"), [(None, 1), (None, 3), ("vmap", 3), ("pmap", 3), ("shard_map", 1)]
)
def test_the_value_and_its_gradient_are_those_that_value_fn_gives(how, microbatches):
    axis = "i" if how else ()
    init, step = lo.train_step(
        _objective, _probe(), microbatches=microbatches, axis_name=axis, has_aux=True
    )
    once = lambda state, batch: step(state, batch, key=KEY, hyperparameters=NUMBERS)[0].opt_state
    state = init(_params(), 0.2)
    seen = _mapped(how, once, state, BATCH) if how else jax.jit(once)(state, BATCH)
    _close(seen["found"], seen["offered"], rtol=1e-6)
    assert abs(seen["moved"] - seen["offered"]["value"]) > 0.1, "it is a function"


def test_devices_that_share_a_batch_take_the_step_of_one():
    mapped = lo.train_step(_quiet, _probe(), axis_name="i")
    alone = lo.train_step(_quiet, _probe())
    state = mapped[0](_params())
    _close(_mapped("pmap", mapped[1], state, BATCH), jax.jit(alone[1])(state, BATCH))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_hypergradients_reach_through_value_fn(microbatches):
    def update(updates, state, params=None, *, value_fn, **_):
        return jax.tree.map(lambda u: -0.1 * value_fn(params) * u, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda params: (), update)

    def outcome(shift):
        shifted = lambda w, x, hyperparameters: {"fit": lo.mean((w - x - shift) ** 2)}
        init, step = lo.train_step(shifted, rule, microbatches=microbatches)
        state, _ = step(init(0.5), jnp.array([0.0, 1.0, 3.0]), hyperparameters=shift)
        return state.params

    plain = lambda w, s: jnp.mean((w - jnp.array([0.0, 1.0, 3.0]) - s) ** 2)
    by_hand = lambda s: 0.5 - 0.1 * plain(0.5, s) * jax.grad(plain)(0.5, s)
    want = jax.jit(jax.grad(by_hand))(0.2)
    got = jax.jit(lambda s: (jax.grad(outcome)(s), jax.jvp(outcome, (s,), (1.0,))[1]))(0.2)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_microbatches_bound_the_memory_of_a_line_search():
    rows, width = 512, 1024
    objective = lambda w, x: {"fit": lo.mean(jnp.tanh(x @ w) ** 2)}
    params, x = jnp.ones((4, width)), jnp.ones((rows, 4))

    def temporary(microbatches):
        search = optax.lbfgs(memory_size=1)
        init, step = lo.train_step(objective, search, microbatches=microbatches)
        compiled = jax.jit(step).lower(init(params), x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 4 * rows * width
    whole, pieces = temporary(1), temporary(16)
    assert whole > activations, "the case is meant to be large"
    assert pieces < whole / 4


# A pure function


def test_a_donated_state_leaves_the_callers_parameters():
    params, model_state = _params(), jnp.array(0.2)
    init, step = lo.train_step(_objective, _descent, has_aux=True)
    state = init(params, model_state, hyperparameters=NUMBERS)
    donating = jax.jit(step, donate_argnums=0)
    for number in range(2):
        key = jax.random.fold_in(KEY, number)
        before = state
        state, _ = donating(state, BATCH, key=key, hyperparameters=NUMBERS)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert donating._cache_size() == 1, "the first state looks like the next ones"
    _same_bits((params, model_state), (_params(), jnp.array(0.2)))
    assert state.count == 2
    assert state.count.dtype == jnp.int32


def test_numbers_of_python_and_numpy_are_parameters():
    objective = lambda p, x: {"fit": lo.mean((p["a"] * p["b"] - x) ** 2)}
    init, step = lo.train_step(objective, optax.sgd(0.1))
    state = init({"a": 1.0, "b": np.float32(2)})
    after, _ = jax.jit(step)(state, np.arange(3.0))
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    _close(after.params, {"a": 1.0 - 0.1 * 4, "b": 2.0 - 0.1 * 2})


def test_it_measures_what_it_started_from():
    init, step = lo.train_step(_objective, _descent, has_aux=True)
    state = init(_params(), 0.2, hyperparameters=NUMBERS)
    _, measured = jax.jit(step)(state, BATCH, key=KEY, hyperparameters=NUMBERS)
    given = {"key": KEY, "model_state": 0.2, "hyperparameters": NUMBERS}
    value, means, aux = lo.measure(_objective, has_aux=True)(_params(), BATCH, **given)
    _close(measured, lo.training.Measured(value, means, aux["metrics"]))


def test_steps_may_be_scanned():
    init, step = lo.train_step(_objective, _descent, has_aux=True)
    turn = lambda state, key: step(state, BATCH, key=key, hyperparameters=NUMBERS)
    keys = jax.random.split(KEY, 3)
    state = first = init(_params(), 0.2, hyperparameters=NUMBERS)
    scanned, measured = jax.jit(partial(jax.lax.scan, turn))(first, keys)
    once = jax.jit(turn)
    for key in keys:
        state, last = once(state, key)
    _close(scanned, state)
    _close(_at(measured, -1), last)


def test_steps_map_over_hyperparameters():
    init, step = lo.train_step(_objective, _descent, microbatches=2, has_aux=True)

    def trial(numbers):
        state = init(_params(), 0.2, hyperparameters=numbers)
        return step(state, BATCH, key=KEY, hyperparameters=numbers)

    numbers = {"learning_rate": jnp.array([0.01, 0.3]), "strength": jnp.array([0.0, 2.0])}
    many, alone = jax.jit(jax.vmap(trial))(numbers), jax.jit(trial)
    for i in range(2):
        _close(_at(many, i), alone(_at(numbers, i)))
    assert many[0].params["b"][0] != many[0].params["b"][1]


def _logged(params, batch, key, model_state, hyperparameters):
    """Writes rows and keys of each step into its state."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    errors = batch["x"] @ params["w"] + params["b"] + noise - batch["y"]
    rows, step = batch["row"], model_state["step"]
    state = {
        "rows": model_state["rows"].at[step, : len(rows)].set(rows),
        "keys": model_state["keys"].at[step].set(key),
        "step": step + 1,
    }
    penalty = hyperparameters["strength"] * jnp.sum(params["w"] ** 2)
    means = {"fit": lo.mean(errors**2, batch["weight"]), "penalty": lo.constant(penalty)}
    return means, {"model_state": state}


def test_the_batches_of_a_fit_give_its_parameters():
    size, epochs = 5, 2
    steps = 3 * epochs
    data = BATCH | {"row": np.arange(ROWS)}
    log = {"rows": jnp.full((steps, size), -1), "keys": jax.random.split(KEY, steps), "step": 0}
    options = {"has_aux": True, "hyperparameters": NUMBERS, "model_state": log}
    fitted = lo.fit(
        _logged,
        _params(),
        data,
        _descent,
        batch_size=size,
        epochs=epochs,
        key=KEY,
        progress=False,
        **options,
    )
    init, step = lo.train_step(_logged, _descent, has_aux=True)
    step, state = jax.jit(step), init(_params(), log, hyperparameters=NUMBERS)
    taken = fitted.model_state
    batches = [rows[rows >= 0] for rows in np.asarray(taken["rows"])]
    assert [len(rows) for rows in batches] == [5, 5, 2] * epochs
    for rows, key in zip(batches, taken["keys"], strict=True):
        batch = {name: column[rows] for name, column in data.items()}
        state, _ = step(state, batch, key=key, hyperparameters=NUMBERS)
    _close((fitted.params, fitted.opt_state), (state.params, state.opt_state), rtol=1e-6)


# An optimizer


def test_an_optimizer_may_be_a_function_of_the_hyperparameters():
    init, step = lo.train_step(_quiet, _descent)
    state, _ = step(init(_params(), hyperparameters=NUMBERS), BATCH, hyperparameters=NUMBERS)
    init, step = lo.train_step(_quiet, _descent(NUMBERS))
    _close(state, step(init(_params()), BATCH)[0])


UNCALLED = {"optax": optax.adam, "ours": lo.transforms.adam}


@pytest.mark.parametrize("case", UNCALLED)
def test_an_optimizer_that_is_not_called_is_told_so(case):
    init, _ = lo.train_step(_quiet, UNCALLED[case])
    with pytest.raises(TypeError, match=r"Call it, as in optax\.adam\(1e-3\)"):
        init(_params())
    with pytest.raises((TypeError, ValueError)) as caught:
        init(_params(), hyperparameters=NUMBERS)
    assert any("lambda numbers: optax.adam(" in note for note in caught.value.__notes__)


def test_an_optimizer_that_fails_late_is_told_what_to_write():
    late = lambda rates: optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: -u * rates, updates)
    )
    init, step = lo.train_step(_quiet, late)
    state = init(_params(), hyperparameters=NUMBERS)
    with pytest.raises(TypeError) as caught:
        step(state, BATCH, hyperparameters=NUMBERS)
    assert any("lambda numbers: optax.adam(" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("optimizer", [None, 0.1, "adam"])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match=f"Expected optimizer as an .*, got {optimizer!r}"):
        lo.train_step(_quiet, optimizer)[0](_params())


def test_a_function_that_makes_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"Expected optimizer as an .*, got 0\.1"):
        lo.train_step(_quiet, lambda numbers: 0.1)[0](_params(), hyperparameters=NUMBERS)


# What is refused


def _step(objective=_quiet, model_state=None, options=(), **given):
    init, step = lo.train_step(objective, optax.sgd(0.1), **dict(options))
    return step(init(_params(), model_state), BATCH, **given)


def _noisy(params, batch, key=None):
    return _quiet(params, batch)


@pytest.mark.parametrize("objective", [_noisy, lambda p, b, *, key: _quiet(p, b)])
def test_an_objective_that_names_key_is_not_stepped_without(objective):
    with pytest.raises(TypeError, match=r"The objective names key.*Pass key="):
        _step(objective)
    _step(objective, key=KEY)
    _step(partial(objective, key=KEY))


WIDE = np.array([2**40])
REFUSED = {
    "a raw key": (dict(objective=_noisy, key=jax.random.PRNGKey(0)), TypeError, "typed PRNG key"),
    "pieces that are no integer": (
        dict(options={"microbatches": 2.0}),
        TypeError,
        "microbatches as a whole number, got 2.0",
    ),
    "no pieces": (dict(options={"microbatches": 0}), ValueError, "microbatches >= 1, got 0"),
    "more pieces than rows": (dict(options={"microbatches": 13}), ValueError, "microbatches <= 12"),
    "numbers that nobody takes": (dict(hyperparameters=1.0), ValueError, "hyperparameters was"),
    "a state that nobody takes": (dict(model_state=1.0), ValueError, "model_state was given"),
    "integers that do not fit": (dict(model_state=WIDE), ValueError, "model_state within 32 bits"),
    "no means": (dict(objective=lambda p, b: 0.0), TypeError, "tree of Mean"),
    "aux without has_aux": (
        dict(objective=lambda p, b: (_quiet(p, b), {"metrics": {}})),
        TypeError,
        "has_aux=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        _step(**options)


@pytest.mark.parametrize("change", [lambda s: s[None], lambda s: {"a": s}, lambda s: s.astype(int)])
def test_a_model_state_keeps_its_form(change):
    moving = lambda p, b, model_state: (_quiet(p, b), {"model_state": change(model_state)})
    with pytest.raises(ValueError, match="model_state like the first one"):
        _step(moving, jnp.ones(()), {"has_aux": True})


# Dtypes


@pytest.mark.parametrize("microbatches", [1, 2])
def test_parameters_of_low_precision_stay_so(microbatches):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    init, step = lo.train_step(_quiet, optax.lbfgs(), microbatches=microbatches)
    state = init(low)
    after, measured = jax.eval_shape(step, state, BATCH)
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("bfloat16")}
    assert measured.value.dtype == jnp.float32


def test_it_steps_in_float64():
    with jax.enable_x64(True):
        batch = jax.tree.map(np.float64, BATCH)
        params = jax.tree.map(np.float64, {"w": np.array([0.5, -1.0, 2.0]), "b": np.array(0.3)})
        init, step = lo.train_step(_quiet, optax.sgd(0.1), microbatches=5)
        after, measured = jax.jit(step)(init(params), batch)
        errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
        share = batch["weight"] / batch["weight"].sum()
        slope = 2 * share * errors
        want = {"w": params["w"] - 0.1 * slope @ batch["x"], "b": params["b"] - 0.1 * slope.sum()}
        _close(after.params, want, rtol=1e-14)
        np.testing.assert_allclose(measured.value, share @ errors**2, rtol=1e-14)
