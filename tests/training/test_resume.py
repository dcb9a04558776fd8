"""A run that goes on ends in the bits of one that nobody interrupted, or is refused."""

import pickle
import random
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.training import Patience, Stopped, Target
from tests.training.resumed import (
    EVERY,
    KEY,
    RATE,
    STOP,
    TRAIN,
    VALIDATION,
    child,
    fit,
    interrupted,
    leaves,
    objective,
    same,
)

pytestmark = pytest.mark.usefixtures("optimized")
CUTS = 2, 4, 13, 22  # within a row and an epoch, at a row, while the rule waits, behind the best


@pytest.fixture(scope="module")
def whole():
    """A run that nobody touched."""
    return fit()


@pytest.fixture(scope="module")
def cut():
    """A run that was interrupted within a row and an epoch."""
    with interrupted(13):
        return fit()


@pytest.fixture
def saved(cut, tmp_path):
    """Where it lies on the disk."""
    return _saved(cut, tmp_path / "run")


def _saved(run, directory):
    """A directory that holds a run, as `fit` would have left it."""
    saves = lo.training._saves.Saves(directory, 60.0)
    saves.now(lambda: run)
    saves.wait()
    return directory


def _bytes(directory):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in _files(directory)}


def _files(directory):
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def _ways(run, directory):
    """A run to go on from, in memory and on the disk."""
    return {"start": run}, {"checkpoint": _saved(run, directory)}


def test_the_run_is_one_of_all_states(whole):
    values = whole.history["validation/value"]
    assert whole.stopped is Stopped.PATIENCE
    assert 0 < whole.best_epoch < len(values) - 1
    assert len(np.unique(whole.history["train/value"])) == len(values)
    assert whole.unfinished is not None
    assert np.all(whole.model_state["mean"] != 0)


@pytest.mark.parametrize("way", ["start", "checkpoint"])
def test_any_interruption_ends_in_the_same_bits(whole, way, tmp_path):
    run, history = None, []
    for step in CUTS:
        with interrupted(step):
            run = fit(**{way: run if way == "start" else tmp_path})
        assert (run.stopped, run.steps) == (Stopped.INTERRUPTED, step)
        assert len(run.history["step"]) == step // EVERY
        history.append(run.history["seconds"])
    run = fit(**{way: run if way == "start" else tmp_path})
    same(leaves(run), leaves(whole))
    seconds = run.history["seconds"]
    assert np.all(np.diff(seconds) > 0), "they go on"
    np.testing.assert_array_equal(seconds[: len(history[-1])], history[-1])


@pytest.mark.parametrize("way", [0, 1])
def test_the_same_call_again_returns_the_run_as_it_is(whole, way, tmp_path, counted):
    given = _ways(whole, tmp_path)[way]
    before = _bytes(tmp_path)
    fit(**given)
    counted.clear()
    again = fit(**given)
    assert counted == []
    same(leaves(again), leaves(whole))
    np.testing.assert_array_equal(again.history["seconds"], whole.history["seconds"])
    assert again.origin == whole.origin
    assert _bytes(tmp_path) == before


@pytest.fixture
def counted():
    """Programs that were compiled, or read from the cache on disk."""
    seen = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


# A run that had stopped

MOMENTUM = optax.sgd(0.1, momentum=0.9)


def _squares(w, x):
    return {"fit": lo.mean((w - x) ** 2)}


def _plain(params=0.0, optimizer=MOMENTUM, **options):
    given = {"epochs": 4, "batch_size": 4, "key": KEY, "progress": False}
    return lo.fit(_squares, params, jnp.arange(6.0), optimizer, **given | options)


BROKEN = {"params": 1.0, "optimizer": optax.sgd}
STOPS = {
    Stopped.PATIENCE: {"stop": Patience(1, min_delta=9.0), "best": "train"},
    Stopped.NONFINITE_LOSS: BROKEN | {"hyperparameters": -1e12},
    Stopped.NONFINITE_PARAMETERS: BROKEN | {"hyperparameters": -3e38},
    Stopped.ASKED: {"on_epoch": lambda row, state: lo.training.STOP},
}


@pytest.mark.parametrize("reason", STOPS, ids=lambda reason: reason.name)
def test_a_run_that_had_stopped_stays_stopped(reason, tmp_path):
    run = _plain(**STOPS[reason], checkpoint=tmp_path)
    assert run.stopped is reason
    again = STOPS[reason] | {"on_epoch": None, "epochs": 9}
    for given in ({"start": run}, {"checkpoint": tmp_path}):
        same(leaves(_plain(**again, **given)), leaves(run))


def test_with_another_stop_rule_it_goes_on_as_if_it_had_had_that(whole, tmp_path):
    patient = STOP | Target(-1.0), Patience(5, min_delta=0.2), None
    for rule in patient[1:]:
        want = fit(stop=rule)
        assert want.steps > whole.steps
        same(leaves(fit(stop=rule, start=whole)), leaves(want))
    same(leaves(fit(stop=patient[0], start=whole)), leaves(whole))
    strict = fit(stop=STOP | Target(3.2), start=whole)  # the last values are above it again
    assert (strict.stopped, strict.steps) == (Stopped.TARGET, whole.steps)


def test_fewer_steps_than_it_has_return_it(whole):
    same(leaves(fit(epochs=1, start=whole)), leaves(whole))
    assert fit(epochs=1, start=whole, stop=None).stopped is Stopped.FINISHED


# What may differ, and what may not


def test_numbers_and_the_optimizer_of_the_same_state_may_differ(cut, whole):
    half = optax.contrib.schedule_free(optax.adam(lambda count: RATE(count) / 2, b1=0.0), RATE)
    for other in (fit(start=cut, hyperparameters=0.5), fit(start=cut, optimizer=half)):
        assert other.steps > cut.steps
        assert np.any(other.params["w"] != whole.params["w"])
    same(leaves(fit(start=cut, checkpoint_every=1.0, check=False)), leaves(whole))


def test_rows_may_come_at_other_steps(cut):
    run = fit(start=cut, epochs=None, steps=15, evaluate_every=5, stop=None)
    np.testing.assert_array_equal(run.history["step"], [4, 8, 12, 15])


TWO = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
EDGE = np.arange(22) == 21
OTHERS = {
    "first row": ({"train": TRAIN | {"y": TRAIN["y"] + EDGE[::-1]}}, "train/y: was float32[22], "),
    "last row": ({"train": TRAIN | {"y": TRAIN["y"] + EDGE}}, "train/y: was float32[22], "),
    "data": ({"train": TRAIN | {"y": TRAIN["y"] + 1}}, "train/y: was float32[22], "),
    "dtype": ({"train": jax.tree.map(np.float16, TRAIN)}, "is float16[22, 3]"),
    "rows": ({"train": jax.tree.map(lambda x: x[:20], TRAIN)}, "source.rows: was 22, is 20"),
    "validation": ({"validation": jax.tree.map(lambda x: -x, VALIDATION)}, "validation/x: was"),
    "no validation": ({"validation": None, "stop": None}, "validation/y: was float32"),
    "key": ({"key": jax.random.key(4)}, "key: was threefry2x32 [0, 3], is threefry2x32 [0, 4]"),
    "implementation": ({"key": jax.random.key(3, impl="rbg")}, "is rbg [0, 3, 0, 3]"),
    "batch size": ({"batch_size": 4}, "source.batch_size: was 8, is 4"),
    "last batch": ({"drop_last": True}, "source.drop_last: was False, is True"),
    "microbatches": ({"microbatches": 1}, "microbatches: was 2, is 1"),
    "shards": ({"shards": 2}, "source.shards: was 1, is 2"),
    "best": ({"best": ("train/value", min)}, "validation/value, is lowest train/value"),
    "direction": ({"best": ("validation/value", max)}, "lowest validation/value, is highest"),
    "trained": ({"best": "train"}, "is lowest trained/value"),
    "watch": ({"watch": "w"}, "history/train/gradient_norm/w"),
    "params": ({"params": TWO}, "params/b"),
    "model state": ({"model_state": {"mean": jnp.zeros(3), "more": 0.0}}, "model_state/more"),
    "optimizer": ({"optimizer": optax.sgd(0.1), "evaluate_at": None}, "opt_state"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_nothing_overwritten(name, cut, saved):
    options, want = OTHERS[name]
    before = _bytes(saved)
    for given in ({"start": cut}, {"checkpoint": saved, "checkpoint_every": 0.0}):
        with pytest.raises(ValueError, match=re.escape(want)):
            fit(**options, **given)
    assert _bytes(saved) == before


def test_other_terms_are_refused(cut, saved):
    def other(params, batch, key, model_state, hyperparameters):
        means, aux = objective(params, batch, key, model_state, hyperparameters)
        return {"loss": means["fit"], "penalty": means["penalty"]}, aux

    for given in ({"start": cut}, {"checkpoint": saved}):
        with pytest.raises(ValueError, match="history/train/loss"):
            fit(objective=other, **given)


def test_a_directory_of_somebody_else_is_refused(tmp_path):
    with lo.checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"w": np.zeros(3)}, {"value": 1.0})
    before = _bytes(tmp_path)
    with pytest.raises(ValueError, match=r"holds steps that fit has not saved: name another"):
        _plain(checkpoint=tmp_path)
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize("start", [{"w": jnp.zeros(3)}, 0.0])
def test_a_start_that_is_no_run_is_refused(start):
    with pytest.raises(TypeError, match=r"Expected start as a Run, .* given as params"):
        fit(start=start)


# Forms of a run


def test_params_give_the_structure_alone(cut, whole):
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros(3)})
    for params in (shapes, {"w": np.full(3, np.nan)}):
        same(leaves(fit(params, start=cut)), leaves(whole))


@pytest.mark.parametrize(
    "copied",
    [
        lambda run: pickle.loads(pickle.dumps(run)),
        partial(jax.tree.map, np.array),
        jax.jit(lambda run: run),
    ],
    ids=["pickle", "numpy", "jit"],
)
def test_a_run_that_was_copied_goes_on(cut, whole, copied):
    same(leaves(fit(start=copied(cut))), leaves(whole))


def test_a_run_of_the_pure_function_goes_on():
    given = {"batch_size": 4, "key": KEY}
    trained = partial(lo.training.run, _squares, 0.0, jnp.arange(6.0), MOMENTUM)
    options = {"best": "train", "stop": Target(-1.0)}
    begun = jax.jit(partial(trained, epochs=2, **given, best="train", stop=Target(9.0)))()
    np.testing.assert_array_equal(begun.history["step"], [2, 0])
    run = _plain(start=begun, **options)
    assert run.history["seconds"][0] == 0
    got, want = leaves(run), leaves(_plain(**options))
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="best: was trained/value, is None"):
        _plain(start=begun)


def test_a_finished_start_is_saved_where_a_checkpoint_is_asked_for(whole, tmp_path):
    for start in (whole, jax.tree.map(np.asarray, whole)):
        directory = tmp_path / str(start.origin is None)
        fit(start=start, checkpoint=directory)
        assert lo.checkpoint.Checkpoints(directory).latest().step == whole.steps
        same(leaves(fit(checkpoint=directory)), leaves(whole))


def test_a_directory_that_holds_the_run_is_nearer_than_start(cut, whole, tmp_path):
    with interrupted(2):
        early = fit(checkpoint=tmp_path)
    with interrupted(3):
        run = fit(checkpoint=tmp_path, start=cut)
    assert (early.steps, run.steps) == (2, 3)


def test_rows_that_were_split_off_come_back(tmp_path):
    options = {"validation": 0.4, "batch_size": 2, "epochs": 4}
    want = _plain(**options)
    with interrupted(5):
        _plain(**options, checkpoint=tmp_path)
    run = _plain(**options, checkpoint=tmp_path)
    same(leaves(run), leaves(want))
    assert run.validation_rows is not None


def test_long_histories_and_none(tmp_path):
    long = {"epochs": None, "steps": 700, "evaluate_every": 1}
    want = _plain(**long)
    first = _plain(**long | {"steps": 300}, checkpoint=tmp_path)
    assert len(first.history["step"]) == 300
    run = _plain(**long, checkpoint=tmp_path)
    same(leaves(run), leaves(want))
    with interrupted(2):
        none = _plain(evaluate_every=4)
    assert len(none.history["step"]) == 0
    same(leaves(_plain(evaluate_every=4, start=none)), leaves(_plain(evaluate_every=4)))


def test_without_a_finite_value_there_is_no_best_until_there_is_one(tmp_path):
    def objective(w, x):
        return {"fit": lo.mean(jnp.where((x > 9) & (w < 1.6), jnp.inf, (w - x) ** 2))}

    given = {"batch_size": 4, "key": KEY, "progress": False, "validation": jnp.full(2, 10.0)}
    given["best"] = "validation/value", max
    trained = partial(lo.fit, objective, 0.0, jnp.arange(6.0), optax.sgd(0.1), **given)
    begun, want = trained(epochs=2, checkpoint=tmp_path), trained(epochs=4)
    assert (begun.best_epoch, want.best_epoch) == (-1, 2)
    for way in ({"start": begun}, {"checkpoint": tmp_path}):
        same(leaves(trained(epochs=4, **way)), leaves(want))


def test_the_highest_stays_the_best():
    options = {"best": ("train/value", max)}
    want, begun = _plain(**options), _plain(**options, epochs=2)
    assert want.best_epoch == 0
    same(leaves(_plain(**options, start=begun)), leaves(want))


def test_in_float64(tmp_path):
    with jax.enable_x64(True):
        options = {"best": "train", "stop": Patience(9)}
        want, begun = _plain(**options), _plain(epochs=2, **options, checkpoint=tmp_path)
        assert want.params.dtype == np.float64
        same(leaves(_plain(start=begun, **options)), leaves(want))
        same(leaves(_plain(checkpoint=tmp_path, **options)), leaves(want))
    with pytest.raises(ValueError, match="was float64"):
        _plain(start=begun, **options)


# Killed


def test_a_killed_run_ends_in_the_bits_of_one_that_nobody_touched(tmp_path):
    chance, stop, ends = random.Random(5), Patience(8, min_delta=0.2), []
    for _ in range(2):
        told = child(tmp_path, 8, chance.randint(2, 4), chance.uniform(0, 0.1))
        ends.append((told[0], told[-1]))
    (first, reached), (again, _) = ends
    assert first == EVERY
    lost = "at most the save under way and the row after it are taken again"
    assert reached - 2 * EVERY < again <= reached + EVERY, lost
    got, want = fit(epochs=999, stop=stop, checkpoint=tmp_path), fit(epochs=999, stop=stop)
    assert got.stopped is Stopped.PATIENCE
    same(leaves(got), leaves(want))
