"""What `fit` and `check_objective` find before anything long, and what they must leave alone."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt import _audit, _programs
from lossopt.training import _fit
from tests.counted import counted

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROWS = 40
X, Z = RNG.normal(size=(2, ROWS, 3)).astype(np.float32)
TRAIN = {
    "x": X,
    "z": Z,
    "y": np.arange(ROWS, dtype=np.int32) % 4,
    "time": RNG.uniform(1, 2, ROWS).astype(np.float32),
    "weight": np.ones(ROWS, np.float32),
}
PARAMS = {"w": RNG.normal(size=(3, 4)).astype(np.float32), "head": np.zeros((3, 4), np.float32)}


def _cross_entropy(logits, batch):
    losses = lo.losses.softmax_cross_entropy(logits, batch["y"])
    return lo.mean(losses, batch["weight"])


def _plain(params, batch):
    penalty = lo.constant(lo.regularizers.L2(0.1)(params["w"]))
    return {"fit": _cross_entropy(batch["x"] @ params["w"], batch), "penalty": penalty}


@pytest.fixture
def before(monkeypatch):
    """All of `fit` before the loop is compiled."""

    def loop(*_):
        raise StopIteration

    monkeypatch.setattr(_fit, "_called_with", loop)

    def fit(objective=_plain, params=PARAMS, train=TRAIN, optimizer=None, **options):
        given = {"batch_size": 20, "epochs": 1, "key": KEY, "progress": False}
        with contextlib.suppress(StopIteration):
            lo.fit(objective, params, train, optimizer or optax.sgd(0.1), **given | options)
        return "passed"

    return fit


# Whole against pieces


def _beside(name, term):
    return lambda params, batch: _plain(params, batch) | {name: term(params, batch)}


def _clip(params, batch):
    return lo.fused.clip(batch["x"] @ params["w"], batch["z"] @ params["w"], 2.0)


def _partial(params, batch):
    """A partial likelihood: each against those that are still there."""
    scores, later = batch["x"] @ params["w"][:, 0], batch["time"][None] >= batch["time"][:, None]
    return lo.mean(jax.nn.logsumexp(jnp.where(later, scores[None], -jnp.inf), 1) - scores)


def _early(params, batch):
    return lo.constant(jnp.mean((batch["x"] @ params["w"]) ** 2))


def _balance(params, batch):
    """Of a router: shares of rows times mean probabilities. At zero the first takes all rows."""
    logits = batch["x"] @ params["head"]
    shares = jax.nn.one_hot(logits.argmax(-1), 4).mean(0)
    return lo.constant(4 * jnp.sum(shares * jax.nn.softmax(logits).mean(0)))


FAULTS = {
    "an in-batch loss": ("clip", _clip),
    "a partial likelihood": ("likelihood", _partial),
    "a mean taken early": ("early", _early),
    "a term behind a zero head": ("balance", _balance),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_term_that_cannot_be_cut_is_refused_by_name(before, case):
    name, term = FAULTS[case]
    objective = _beside(name, term)
    message = rf"the term '{name}' has another value .*on pieces .* write mean\(x\)\."
    with pytest.raises(
        ValueError, match=rf"^train: {message}.*microbatches=2 .*check=\['{name}'\]"
    ):
        before(objective, microbatches=2)
    with pytest.raises(AssertionError, match=rf"^{message}"):
        lo.testing.check_objective(objective, PARAMS, TRAIN)
    assert before(objective, microbatches=2, check=[name]) == "passed"
    assert before(objective, microbatches=2, check=False) == "passed"
    assert before(objective) == "passed", "the batch is not cut"


def test_the_only_term_has_no_name(before):
    with pytest.raises(ValueError, match=r"train: the only term .*check=\['value'\]"):
        before(_early, microbatches=2)
    assert before(_early, microbatches=2, check=["value"]) == "passed"


def test_the_difference_is_that_of_means_of_means():
    """At 16 rows spread over the data, cut after 8 and 13, against numpy."""
    gaps = _audit._gaps(_audit.Trial(_early, False), 0.0, PARAMS, TRAIN, None, None, None)
    squares = (X[np.arange(16) * ROWS // 16].astype(float) @ PARAMS["w"]) ** 2
    pieces = [part.mean() for part in np.split(squares, [8, 13])]
    want = abs(squares.mean() - np.mean(pieces)), np.mean(pieces)
    np.testing.assert_allclose(gaps[""], want, rtol=1e-4)


def _normalized(params, batch, key, model_state):
    """Statistics of the batch in training, running ones in evaluation."""
    center = batch["x"].mean(0) if key is not None else model_state
    fit = _cross_entropy((batch["x"] - center[None]) @ params["w"], batch)
    return {"fit": fit}, {"model_state": 0.9 * model_state + 0.1 * center}


def _dropout(params, batch, key):
    keep = 1 if key is None else 2 * jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return {"fit": _cross_entropy((keep * batch["x"]) @ params["w"], batch)}


def _always_noisy(params, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    return _plain(params, batch) | {"noisy": _cross_entropy(noise @ params["w"], batch)}


def _half(params, batch):
    hidden, w = jnp.bfloat16(batch["x"]), jnp.bfloat16(4 * params["w"])
    for _ in range(3):
        hidden = jnp.tanh(hidden @ w) @ w.T
    return {"fit": _cross_entropy(hidden @ w, batch)}


def _signed(params, batch):
    """Of both signs, so that all rows and each piece give nothing but what rounding leaves."""
    centered = batch["x"] - batch["x"].mean(1, keepdims=True)
    return {"signed": lo.mean(params["w"][0, 0] * centered)}


def _rare(params, batch):
    """A term that weighs nothing in most of the rows."""
    return {"rare": lo.mean(batch["x"] @ params["w"][:, 0], batch["time"] > 1.9)}


def _of_ten_rows(params, batch):
    return {"fit": lo.mean((batch["x"] @ params["w"]).reshape(-1, 10))}


SOUND = {
    "a plain penalty": (_plain, {}),
    "dropout": (_dropout, {}),
    "dropout in evaluation, too": (_always_noisy, {}),
    "batch statistics": (_normalized, {"has_aux": True, "model_state": jnp.zeros(3)}),
    "bfloat16": (_half, {}),
    "a sum that cancels": (_signed, {}),
    "a term that few rows have": (_rare, {}),
    "an objective that takes tens of rows": (_of_ten_rows, {}),
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_objectives_pass(before, case):
    objective, options = SOUND[case]
    assert before(objective, microbatches=2, **options) == "passed"
    if objective is not _of_ten_rows:
        options = {"key": KEY} | options
        lo.testing.check_objective(objective, PARAMS, TRAIN, **options)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_few_rows_are_cut_as_far_as_they_go(rows):
    few = jax.tree.map(lambda x: x[:rows], TRAIN)
    lo.testing.check_objective(_plain, PARAMS, few)
    with pytest.raises(AssertionError, match="the only term"):
        lo.testing.check_objective(lambda w, b: lo.constant(b["x"].sum()), PARAMS, few)


def test_terms_without_noise_are_judged_where_others_need_a_key(before):
    def objective(params, batch, key):
        return _always_noisy(params, batch, key) | {"early": _early(params, batch)}

    with pytest.raises(ValueError, match="train: the term 'early' has"):
        before(objective, microbatches=2)


def test_an_objective_that_takes_no_such_rows_says_so_to_its_tester():
    with pytest.raises(TypeError, match="reshape"):
        lo.testing.check_objective(_of_ten_rows, PARAMS, TRAIN)
    with pytest.raises(ValueError, match="at least 2 rows"):
        lo.testing.check_objective(_plain, PARAMS, jax.tree.map(lambda x: x[:1], TRAIN))


@pytest.mark.parametrize("check", ["fit", ["fot"], ["fit", "rest"], 3, None])
def test_names_of_terms_are_names_of_terms(before, check):
    with pytest.raises(ValueError, match=r"Expected check as .*; the terms are fit, penalty"):
        before(check=check)


def test_rows_on_devices_are_not_cut():
    """Without microbatches the objective sees the whole batch, wherever its rows lie."""
    mesh = jax.make_mesh((2,), ("rows",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    early = lambda w, x: lo.constant(jnp.mean(w - x) ** 2)
    sharded = jax.device_put(X[:8, 0], jax.NamedSharding(mesh, jax.P("rows")))
    options = {"epochs": 3, "key": KEY, "progress": False}
    w = 0.0
    for _ in range(3):
        w -= 0.1 * 2 * np.mean(w - X[:8, 0].astype(float))
    fitted = lo.fit(early, 0.0, sharded, optax.sgd(0.1), **options)
    np.testing.assert_allclose(fitted.params, w, rtol=1e-5)


# Rows that are not finite


def _spoiled(*rows, weight=1.0, value=np.nan):
    x, weights = X.copy(), np.ones(ROWS, np.float32)
    x[list(rows), 1], weights[list(rows)] = value, weight
    return TRAIN | {"x": x, "weight": weights}


def _guarded(params, batch):
    x = jnp.where(jnp.isfinite(batch["x"]), batch["x"], 0)
    return {"fit": _cross_entropy(x @ params["w"], batch)}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (_spoiled(3), r"row 3 holds NaN or infinite numbers in \['x'\], and the value there"),
        (_spoiled(3, 7, value=np.inf), "2 rows, 3, 7, hold NaN .* the value there"),
        (_spoiled(*range(9)), r"9 rows, 0, 1, 2, 3, 4, \.\.\., hold .* the value there"),
        (_spoiled(3, weight=0.0), "row 3 holds .* the gradient there is not finite.*copies of"),
    ],
)
def test_rows_that_spoil_value_or_gradient_are_named(before, train, message):
    with pytest.raises(ValueError, match=f"^train: {message}"):
        before(train=train)
    with pytest.raises(AssertionError, match=f"^{message}"):
        lo.testing.check_objective(_plain, PARAMS, train)
    assert before(train=train, check=False) == "passed"


def test_rows_that_an_objective_does_not_read_pass(before):
    for weight in (0.0, 1.0):
        train = _spoiled(3, 7, weight=weight)
        assert before(_guarded, train=train, microbatches=2) == "passed"
        lo.testing.check_objective(_guarded, PARAMS, train)


def test_validation_has_no_gradient(before):
    assert before(validation=_spoiled(3, weight=0.0)) == "passed"
    with pytest.raises(ValueError, match=r"^validation: row 3 holds .* the value there"):
        before(validation=_spoiled(3))


# Weights and parameters


def test_a_term_without_weight_is_refused_by_name(before):
    nothing = TRAIN | {"weight": np.zeros(ROWS, np.float32)}
    with pytest.raises(ValueError, match=r"^train: the weights of the term 'fit' are all 0"):
        before(train=nothing)
    with pytest.raises(ValueError, match=r"^train: the weights of the only term are all 0"):
        before(lambda w, b: lo.mean(b["x"] @ w["w"], b["weight"]), train=nothing)
    assert before(validation=nothing) == "passed"
    assert before(train=nothing, check=False) == "passed"


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_parameters_start_finite(before, value):
    params = PARAMS | {"w": np.full((3, 4), value, np.float32)}
    with pytest.raises(ValueError, match=r"finite params, got 12 of 12 .* at params\['w'\]"):
        before(params=params)


# What it costs


def test_a_second_fit_traces_nothing_and_an_equal_objective_compiles_nothing(before):
    _programs.clear()
    optimizer, train = optax.sgd(0.1), _spoiled(3, weight=0.0)
    fresh = lambda: lambda params, batch: _guarded(params, batch)
    objective = fresh()
    again = lambda objective: before(objective, train=train, optimizer=optimizer, microbatches=2)
    with counted() as first:
        again(objective)
    assert first.compiled == 3, "conditions, rows that are not finite, pieces"
    with counted() as second:
        again(objective)
    assert (second.traces, second.lowered, second.compiled) == (0, 0, 0)
    with counted() as third:
        again(fresh())
    assert third.compiled == 0


def test_what_is_not_needed_is_not_compiled(before):
    _programs.clear()
    with counted() as count:
        before(lambda params, batch: _plain(params, batch))
    assert count.compiled == 1, "conditions and weights"


# Bad input


def _named(params, batch, hyperparameters):
    return {"fit": lo.mean(hyperparameters * batch["x"] @ params["w"])}


WORDS = np.array(["a", "b"] * (ROWS // 2))
DAYS = np.array("2020-01-01", "datetime64[D]") + np.arange(ROWS)
INPUTS = {
    "integer parameters": (
        {"params": PARAMS | {"i": {"n": np.arange(3)}}},
        r"floating params, got int32 at params\['i'\]\['n'\].*model_state.*optax.set_to_zero",
    ),
    "flags as parameters": ({"params": PARAMS | {"on": np.array(True)}}, r"bool at params\['on'\]"),
    "a key as a parameter": ({"params": PARAMS | {"key": KEY}}, r"key<fry> at params\['key'\]"),
    "a function as a parameter": (
        {"params": PARAMS | {"act": jnp.tanh}},
        r"numbers in params\['act'\], got objects, such as .*functools.partial",
    ),
    "text": ({"train": TRAIN | {"s": WORDS}}, r"numbers in train\['s'\], got text.*np.unique"),
    "objects of text": (
        {"validation": TRAIN | {"s": WORDS.astype(object)}},
        r"numbers in validation\['s'\], got objects, such as 'a'.*np.unique",
    ),
    "objects": (
        {"train": TRAIN | {"s": np.array([None] * ROWS)}},
        r"numbers in train\['s'\], got objects, such as None.*np.stack",
    ),
    "dates": ({"train": TRAIN | {"s": DAYS}}, r"train\['s'\], got datetime64\[D\].*timedelta64"),
    "spans": ({"train": TRAIN | {"s": DAYS - DAYS[0]}}, r"train\['s'\], got timedelta64\[D\]"),
    "records": ({"train": np.zeros(4, [("a", "f4")])}, "numbers in train, got records of a"),
    "lists": (
        {"train": TRAIN | {"s": [[1.0, 2.0]] * ROWS}},
        r"arrays in train, got numbers of Python in train\['s'\]: a list .* np.asarray",
    ),
    "text among numbers": (
        {"hyperparameters": {"rate": 0.1, "kind": "adam"}},
        r"numbers in hyperparameters\['kind'\], got text.*functools.partial",
    ),
    "hyperparameters that nobody gave": (
        {"objective": _named},
        r"names hyperparameters, and there is none: pass hyperparameters=\.\.\., or",
    ),
    "a state that nobody gave": (
        {"objective": _normalized, "has_aux": True},
        r"names model_state, and there is none: pass model_state=\.\.\., or",
    ),
    "leaves that disagree": (
        {"train": TRAIN | {"s": X[:9], "u": X[:9]}},
        r"Expected train as .* rows, got train\['s'\] \(9, 3\), train\['time'\] \(40,\)\. Stack",
    ),
    "validation that disagrees": (
        {"validation": TRAIN | {"y": np.ones(())}},
        r"Expected validation as .* got .*validation\['y'\] \(\)",
    ),
    "a term without a name": (
        {"objective": lambda w, b: {"": _plain(w, b)["fit"], "rest": lo.constant(1.0)}},
        "need names of their own.*'' twice or no name at all",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_bad_input_is_named_before_anything_long(before, case):
    options, message = INPUTS[case]
    _programs.clear()
    with pytest.raises((TypeError, ValueError), match=message):
        before(**options)
    assert not _programs._programs


@pytest.mark.parametrize(
    "door",
    [
        lambda: lo.train_step(_plain, optax.sgd(0.1))[0](1),
        lambda: lo.training.run(_plain, 1, TRAIN, optax.sgd(0.1), epochs=1, key=KEY),
    ],
)
def test_integer_parameters_have_no_step(door):
    with pytest.raises(TypeError, match="floating params, got int32 at params"):
        door()


def test_parameters_come_back_as_arrays_and_frozen_ones_as_they_were():
    def objective(params, x):
        return lo.mean((params["w"] * x + params["rest"][0] + params["frozen"][None] - 1) ** 2)

    frozen = np.array([0.1, -0.0, 3e-45, 1e30], np.float32)
    params = {"w": 0.5, "rest": (np.float32(1.0), None), "frozen": frozen[:3]}
    labels = {"w": "train", "rest": ("train", None), "frozen": "freeze"}
    parts = {"train": optax.sgd(0.1), "freeze": optax.set_to_zero()}
    options = {"epochs": 2, "key": KEY, "progress": False}
    run = lo.fit(objective, params, X, optax.partition(parts, labels), **options)
    assert jax.tree.structure(run.params) == jax.tree.structure(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(run.params))
    np.testing.assert_array_equal(
        np.asarray(run.params["frozen"]).view(np.int32), frozen[:3].view(np.int32)
    )
    assert run.params["w"] != 0.5
    assert params["w"] == 0.5
