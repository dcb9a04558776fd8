"""Laws of the loop: cuts change no bit, stops are those of a plain loop, nothing broken is kept."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.training import Patience, Stopped, Target
from lossopt.training._loop import advance, start
from lossopt.training._plan import Data
from lossopt.training._run import plan_of
from lossopt.training._source import source

KEY, INF, NAN = jax.random.key(0), np.inf, np.nan
ROWS, SIZE, PER_EPOCH = 10, 4, 3
RNG = np.random.default_rng(0)
TRAIN = {"x": RNG.normal(size=(ROWS, 2)).astype(np.float32), "row": np.arange(ROWS)}


def _timeless(x):
    """What the clock has no part in."""
    if isinstance(x, lo.training.Run):
        return dataclasses.replace(x, history=_timeless(x.history))
    return {k: v for k, v in x.items() if k != "seconds"} if isinstance(x, dict) else x


def _same_bits(got, want):
    got, want = map(_timeless, (got, want))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


# Cuts


def _objective(params, batch, key, model_state, hyperparameters):
    """Everything that a run may have: noise, a state, two terms, a metric, numbers."""
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, batch["x"].shape)
    errors = batch["x"] + noise - params["w"][None] - 0.01 * model_state
    means = {"fit": lo.mean(errors**2), "penalty": lo.constant(hyperparameters * params["b"] ** 2)}
    return means, {"metrics": {"size": lo.mean(jnp.abs(errors))}, "model_state": model_state + 1}


STEPS, EVERY = 11, 2  # rows cross epochs, and the last epoch is cut
CUTS = {
    "at every step": range(STEPS + 1),
    "in the middle of an epoch": [0, 4, STEPS],
    "before the ragged step": [0, 2, 5, STEPS],
    "after the ragged step": [0, 3, 9, STEPS],
    "beside the rows of history": [0, 1, 7, STEPS],
}
WAYS = {
    "plain": dict(microbatches=1),
    "in pieces, until patience ends": dict(microbatches=3, stop=Patience(2, min_delta=0.15)),
}


def _begun(microbatches, stop=None):
    """A program of the loop, its data, and what there is before the first step."""
    validation = jax.tree.map(lambda x: x[:7], TRAIN)
    data = jax.tree.map(jnp.asarray, Data(TRAIN, validation, KEY, 0.1, stop))
    rows = source(TRAIN, SIZE, False)
    plan = plan_of(_objective, optax.adam(0.3), rows, data, None, microbatches, True)
    plan = plan._replace(window=8)
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    program = jax.jit(partial(advance, plan))
    return program, data, start(plan, data, params, jnp.zeros(()))


@pytest.fixture(scope="module", params=WAYS)
def begun(request):
    program, data, first = _begun(**WAYS[request.param])
    return program, data, first, program(data, first, 0, STEPS, EVERY, STEPS)


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.usefixtures("optimized")
def test_any_cut_gives_the_same_bits(begun, case):
    program, data, progress, whole = begun
    for first, end in zip(CUTS[case], CUTS[case][1:]):
        progress = program(data, progress, first, end, EVERY, STEPS)
    _same_bits(progress, whole)
    assert program._cache_size() == 1


@pytest.mark.usefixtures("optimized")
def test_the_cut_run_stops_half_way(begun):
    _, data, _, whole = begun
    if data.stop is None:
        assert (whole.status, whole.state.count, whole.rows) == (0, STEPS, 6)
        np.testing.assert_array_equal(whole.window["step"][:6], [2, 4, 6, 8, 10, 11])
    else:
        assert whole.status == Stopped.PATIENCE.code
        assert 2 < whole.state.count < STEPS, "the case is meant to stop half way"
        assert whole.state.count == EVERY * whole.rows


# Stop rules, beside a plain Python loop


def _table(w, batch, key, model_state, hyperparameters):
    """A fine loss in training; after epoch n the value is number n of a table."""
    value = 0.0 if key is not None else hyperparameters[model_state - 1]
    means = lo.constant(w - jax.lax.stop_gradient(w) + value)
    return means, {"model_state": model_state + (key is not None)}


EPOCHS, DESCENT = 6, optax.sgd(1.0)
TABLE = {"objective": _table, "params": 0.0, "train": jnp.zeros(2), "optimizer": DESCENT} | {
    "batch_size": 2, "epochs": EPOCHS, "key": KEY, "has_aux": True, "model_state": 0
}  # fmt: skip


def _plainly(values, patience, min_delta, target):
    """Why a run ends, after how many epochs, and which was best."""
    accepted, waited, lowest, best = INF, 0, INF, -1
    for epoch, value in enumerate(values):
        if value < lowest and math.isfinite(value):
            lowest, best = value, epoch
        if accepted - value > min_delta:
            accepted, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return Stopped.PATIENCE, epoch + 1, best
        if value <= target:
            return Stopped.TARGET, epoch + 1, best
    return Stopped.FINISHED, len(values), best


def _tables():
    """Falling, rising and negative values with ties, NaN and infinities among them."""
    rng = np.random.default_rng(1)
    tables = rng.integers(-4, 4, size=(24, EPOCHS)) / 2
    tables[6:12] = np.sort(tables[6:12])[:, ::-1]
    odd = rng.choice([NAN, INF, -INF], size=tables.shape, p=[0.8, 0.1, 0.1])
    return np.where(rng.uniform(size=tables.shape) < 0.25, odd, tables).astype(np.float32)


TABLES = _tables()
PATIENCES, DELTAS = np.resize([1, 2, 3, 9], len(TABLES)), np.resize([0, 0.5, 0], len(TABLES))
TARGETS = np.resize([-INF, -2.0, -INF, 0.0, -INF], len(TABLES)).astype(np.float32)
WANTED = [_plainly(*row) for row in zip(TABLES.tolist(), PATIENCES, DELTAS, TARGETS)]


def test_the_tables_hold_every_end():
    ends = {why: [epochs for reason, epochs, _ in WANTED if reason is why] for why, *_ in WANTED}
    assert set(ends) == {Stopped.PATIENCE, Stopped.TARGET, Stopped.FINISHED}
    assert len(set(ends[Stopped.PATIENCE])) > 2
    assert {best for *_, best in WANTED} >= {-1, 0, 1, 3}


def _agrees(status, params, best_epoch, best_params, wanted):
    why, epochs, best = wanted
    assert Stopped(int(status)) is why
    assert params == -epochs, "a step subtracts 1"
    assert best_epoch == best
    assert best_params == -(best + 1), "-1 keeps the first"


def test_a_fit_stops_where_a_plain_loop_stops():
    for values, k, delta, target, wanted in zip(TABLES, PATIENCES, DELTAS, TARGETS, WANTED):
        stop = Patience(int(k), min_delta=float(delta)) | Target(float(target))
        given = {"validation": jnp.zeros(2), "hyperparameters": values, "stop": stop}
        run = lo.fit(**TABLE | given, progress=False)
        _agrees(run.status, run.params, run.best_epoch, run.best_params, wanted)
        assert run.stopped is wanted[0]
        assert run.stopped_at is None
        np.testing.assert_array_equal(run.history["validation/value"], values[: wanted[1]])


@pytest.mark.parametrize("judged", [{"validation": np.zeros(2)}, {"best": "train"}])
def test_runs_side_by_side_stop_where_a_plain_loop_stops(judged):
    part = "validation" if "validation" in judged else "trained"
    trial = lambda values, stop: lo.training.run(
        **TABLE | judged, hyperparameters=values, stop=stop
    )
    stops = Patience(jnp.array(PATIENCES), min_delta=jnp.array(DELTAS)) | Target(TARGETS)
    runs = jax.jit(jax.vmap(trial))(TABLES, stops)
    for i, (values, wanted) in enumerate(zip(TABLES, WANTED)):
        kept = runs.best_epoch[i], runs.best_params[i]
        _agrees(runs.status[i], runs.params[i], *kept, wanted)
        rows = np.where(np.arange(EPOCHS) < wanted[1], values, NAN)
        np.testing.assert_array_equal(runs.history[f"{part}/value"][i], rows)


def test_of_two_rules_the_first_that_fires_gives_the_status():
    values = jnp.array([3.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    for stop, why in (
        (Patience(1) | Target(1.0), Stopped.PATIENCE),
        (Target(1.0) | Patience(2), Stopped.TARGET),
    ):
        given = {"validation": jnp.zeros(2), "hyperparameters": values, "stop": stop}
        assert lo.fit(**TABLE | given, progress=False).stopped is why


def test_a_nan_of_the_validation_value_alone_does_not_stop():
    values = jnp.array([2.0, NAN, INF, NAN, 1.0, NAN])
    run = lo.fit(**TABLE, hyperparameters=values, validation=jnp.zeros(2), progress=False)
    assert run.stopped is Stopped.FINISHED
    assert (run.best_epoch, run.best_params, run.params) == (4, -5, -6)


# Numbers that are not finite


def _troubled(params, batch, key, model_state, hyperparameters):
    """At one step, by the kind of trouble: a loss, a term, a sum of terms, or a slope breaks."""
    kind, trouble = hyperparameters["kind"], hyperparameters["step"] == model_state
    hit = lambda name: trouble & (kind == KINDS.index(name)) & (key is not None)
    fit = lo.mean((params["w"] - batch) ** 2)
    root = jnp.sqrt(jnp.where(hit("slope"), 0.0, 1.0) * params["w"] ** 2 + 0.0)
    large = jnp.where(hit("sum"), 3e38, 0.0)
    means = {
        "a": (1 + jnp.where(hit("first term"), NAN, 0.0)) * fit,
        "b": lo.constant(large + jnp.where(hit("second term"), INF, 0.0)),
        "c": lo.constant(large + 0.1 * root),
    }
    return means, {"model_state": model_state + (key is not None)}


KINDS = ["none", "first term", "second term", "sum", "slope", "unread leaf"]
LOSS, PARAMETERS = Stopped.NONFINITE_LOSS, Stopped.NONFINITE_PARAMETERS
ENDS = {
    "first term": (LOSS, "a"),
    "second term": (LOSS, "b"),
    "sum": (LOSS, None),
    "slope": (PARAMETERS, None),
    "unread leaf": (PARAMETERS, None),
}


def _poisoned(numbers):
    """Descent, which at one step breaks a leaf that the loss never reads."""

    def update(updates, count, params=None):
        hit = (numbers["kind"] == KINDS.index("unread leaf")) & (numbers["step"] == count)
        updates = jax.tree.map(lambda u: -0.1 * u, updates)
        return updates | {"idle": jnp.where(hit, INF, updates["idle"])}, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), int), update)


TROUBLED = {"objective": _troubled, "optimizer": _poisoned, "train": jnp.arange(5.0)} | {
    "params": {"w": 3.0, "idle": 1.0}, "validation": jnp.ones(2), "model_state": 0,
    "batch_size": 2, "key": KEY, "has_aux": True,
}  # fmt: skip
AT = [0, 2, 4, 7]  # the first step, a ragged one, one in the middle of an epoch, a late one
CASES = [(kind, step) for kind in ENDS for step in AT]


def _numbers(kind, step):
    return {"kind": KINDS.index(kind), "step": step}


def _fit_troubled(kind="none", step=-1, **options):
    return lo.fit(**TROUBLED, hyperparameters=_numbers(kind, step), progress=False, **options)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_fit_ends_before_the_step_that_breaks(kind, step):
    why, term = ENDS[kind]
    run = _fit_troubled(kind, step, epochs=3)
    assert run.stopped is why
    assert run.stopped_at == (step // PER_EPOCH, step, term)
    epochs = step // PER_EPOCH
    np.testing.assert_array_equal(run.history["step"], PER_EPOCH * np.arange(1, epochs + 1))
    assert all(np.isfinite(column).all() for column in run.history.values())
    if step == 0:
        _same_bits(run.params, {"w": np.float32(3), "idle": np.float32(1)})
        assert (run.best_epoch, run.model_state) == (-1, 0)
        return
    cut = _fit_troubled(steps=step)
    _same_bits((run.params, run.opt_state, run.model_state), (cut.params, cut.opt_state, step))
    if epochs:
        whole = _fit_troubled(epochs=epochs)
        kept = lambda run: (run.best_params, run.best_model_state, run.best_epoch)
        _same_bits(kept(run), kept(whole))
        _same_bits(run.history, whole.history)


@pytest.fixture(scope="module")
def troubled():
    """Runs side by side, each with its trouble."""
    trial = lambda numbers: lo.training.run(
        **TROUBLED, epochs=3, stop=Patience(99), hyperparameters=numbers
    )
    numbers = [_numbers(*case) for case in CASES]
    return jax.jit(jax.vmap(trial))(jax.tree.map(lambda *xs: jnp.array(xs), *numbers))


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_run_that_stops_ends_there_too(troubled, kind, step):
    run = jax.tree.map(lambda x: x[CASES.index((kind, step))], troubled)
    why, term = ENDS[kind]
    assert Stopped(int(run.status)) is why
    assert run.stopped_at == (step // PER_EPOCH, step, term)
    want = _fit_troubled(steps=step).params if step else TROUBLED["params"]
    for name, leaf in want.items():
        np.testing.assert_allclose(run.params[name], leaf, rtol=1e-6)
    assert run.model_state == step
    rows = np.where(np.arange(3) < step // PER_EPOCH, PER_EPOCH * np.arange(1, 4), 0)
    np.testing.assert_array_equal(run.history["step"], rows)


@pytest.fixture(scope="module")
def unguarded():
    return jax.jit(partial(lo.training.run, **TROUBLED, epochs=3))


@pytest.mark.parametrize(("kind", "leaf"), [("slope", "w"), ("unread leaf", "idle")])
def test_a_run_without_stop_goes_on_and_keeps_nothing_broken(unguarded, kind, leaf):
    run = unguarded(hyperparameters=_numbers(kind, 4))
    assert run.stopped is Stopped.FINISHED
    assert not np.isfinite(run.params[leaf])
    assert np.isfinite(run.history["validation/value"]).all() == (leaf == "idle")
    assert (run.best_epoch, run.best_model_state) == (0, 3)
    assert all(np.isfinite(kept) for kept in run.best_params.values())


@pytest.mark.parametrize("judged", [{"best": "train"}, {"validation": jnp.array([1.0])}])
def test_what_was_measured_before_a_step_does_not_vouch_for_what_comes_after(judged):
    objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
    options = {"epochs": 4, "key": KEY, "progress": False} | judged
    run = lo.fit(objective, 0.0, jnp.array([1.0]), optax.sgd(1e25), **options)
    assert (run.best_epoch, run.best_params) == (-1, 0.0)
    assert run.stopped is Stopped.NONFINITE_LOSS
    assert run.stopped_at == (1, 1, "fit")
    assert run.params == np.float32(2e25), "the last that were finite"


def test_a_loss_that_overflows_is_found_within_an_epoch():
    objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
    train = jnp.ones(40)
    run = lo.fit(
        objective, 0.0, train, optax.sgd(1e3), batch_size=1, epochs=1, key=KEY, progress=False
    )
    w, step = np.float32(0), 0
    with np.errstate(over="ignore"):
        while np.isfinite((w - np.float32(1)) ** 2):
            w, step = w - np.float32(1e3) * 2 * (w - np.float32(1)), step + 1
    assert run.stopped_at == (0, step, "fit")
    np.testing.assert_allclose(run.params, w, rtol=1e-5)
    assert run.history["step"].shape == (0,)
