"""A trial of a task is a training run, alone, in company, and however its steps are cut."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _programs
from lossopt.sweeps import Task, task
from tests.counted import counted
from tests.programs import equations

ROWS, SIZE, EPOCHS, WIDTH = 10, 4, 2, 5
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(ROWS, WIDTH)),
    "y": RNG.normal(size=ROWS),
    "row": np.arange(ROWS),
}
BASE = {
    "strength": 0.1,
    "dropout": 0.2,
    "decay": 0.01,
    "level": 0.1,
    "length": 20,
    "seed": 0,
    "mask": np.arange(ROWS) % 3 > 0,
}
OTHER = {
    "strength": 1.0,
    "dropout": 0.6,
    "decay": 0.5,
    "level": 0.3,
    "length": 4,
    "seed": 1,
    "mask": np.arange(ROWS) % 4 > 0,
}
SETTINGS = [BASE, *(BASE | {name: OTHER[name]} for name in OTHER)]


def _objective(params, batch, key, model_state, hyperparameters):
    """Dropout, a mask that validation turns around, a penalty, a metric, a state."""
    rate, x, mask = hyperparameters["dropout"], batch["x"], hyperparameters["mask"][batch["row"]]
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
    errors = (x @ params["w"])[:, 0] - batch["y"] - 0.01 * model_state
    penalty = lo.regularizers.L2(hyperparameters["strength"])
    weights = (mask == (key is not None)).astype(x.dtype)
    means = {"fit": lo.mean(errors**2, weights), "penalty": lo.constant(penalty(params))}
    return means, {"metrics": {"size": lo.mean(jnp.abs(errors))}, "model_state": model_state + 1}


def _init(hyperparameters, key):
    seeded = jax.random.fold_in(key, hyperparameters["seed"])
    return {"w": jax.random.normal(seeded, (WIDTH, 1))}, jnp.zeros(())


def _optimizer(numbers):
    rate = lo.schedules.cosine(numbers["level"], numbers["length"])
    return lo.transforms.adam(rate, weight_decay=numbers["decay"])


OPTIONS = dict(batch_size=SIZE, validation=DATA, microbatches=2, has_aux=True)


def _by_hand(hyperparameters, key, **options):
    """The same trial from `training.run`."""
    begin, key = jax.random.split(key)
    params, model_state = _init(hyperparameters, begin)
    return lo.training.run(
        _objective,
        params,
        DATA,
        _optimizer,
        epochs=EPOCHS,
        key=key,
        hyperparameters=hyperparameters,
        model_state=model_state,
        **OPTIONS | options,
    )


def _whole(made, hyperparameters, key):
    """All steps of a task, and its scores."""
    trial = made.init(hyperparameters, key)
    trial = made.advance(trial, made.steps)
    return trial, made.score(trial)


def _close(got, want, tolerance):
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, got, want)


def _same_trial(trial, scores, run, tolerance):
    """A trial and its scores against a run and the last row of its history."""
    for name in ("params", "model_state", "opt_state"):
        _close(getattr(trial, name), getattr(run, name), tolerance)
    assert trial.count == run.steps
    row = {name: column[-1] for name, column in run.history.items()}
    for name in ("step", "train/gradient_norm", "train/update_ratio"):
        del row[name]
    judged = "train/value" if run.judge is None else "validation/value"
    _close(scores, row | {"loss": row[judged]}, tolerance)


def _of(tree, number):
    return jax.tree.map(lambda x: x[number], tree)


@pytest.fixture(scope="class")
def many():
    with jax.enable_x64(True):
        made = task(_objective, _init, DATA, _optimizer, epochs=EPOCHS, **OPTIONS)
        settings = jax.tree.map(lambda *xs: jnp.stack(jnp.asarray(xs)), *SETTINGS)
        yield SimpleNamespace(
            task=made,
            settings=settings,
            begun=jax.jit(jax.vmap(made.init, (0, None)))(settings, KEY),
            advance=jax.jit(jax.vmap(made.advance, (0, None))),
            score=jax.jit(jax.vmap(made.score)),
        )


class TestInDoublePrecision:
    """One task of all that there may be, and as many trials as it has numbers."""

    def test_a_trial_is_a_run_whatever_number_differs(self, many):
        run = jax.jit(_by_hand)
        trials = many.advance(many.begun, many.task.steps)
        scores = many.score(trials)
        for number in range(len(SETTINGS)):
            wanted = run(_of(many.settings, number), KEY)
            assert wanted.params["w"].dtype == scores["loss"].dtype == jnp.float64
            _same_trial(_of(trials, number), _of(scores, number), wanted, 1e-12)
        assert len(set(scores["loss"].tolist())) == len(SETTINGS), "each number is meant to matter"

    @pytest.mark.parametrize("cut", [(1, 6), (3, 4), (2, 5), (0, 2, 1, 0, 4), (1,) * 7], ids=str)
    def test_any_cut_gives_the_same_bits(self, many, cut):
        """The ragged step is the third of an epoch."""
        wanted, trial = many.advance(many.begun, 7), many.begun
        for steps in cut:
            trial = many.advance(trial, steps)
        assert jnp.all(trial.count == 7)
        jax.tree.map(np.testing.assert_array_equal, *(x._replace(key=()) for x in (trial, wanted)))

    def test_before_the_first_step_there_is_no_value_of_training(self, many):
        scores = many.score(many.begun)
        assert np.isnan(scores["train/fit"]).all()
        assert np.isfinite(scores["loss"]).all()

    def test_loops_and_branches_are_one_for_all_members(self, many):
        """A batched predicate would run both branches, and select the whole state in each step.

        What the shuffle loops over are whole numbers.
        """
        traced = jax.make_jaxpr(jax.vmap(many.task.advance, (0, None)))(many.begun, 7)
        floats = lambda equation: any(
            jnp.issubdtype(x.aval.dtype, jnp.floating) for x in equation.outvars
        )
        found = list(filter(floats, equations(traced.jaxpr)))
        loops = [x for x in found if x.primitive.name == "while"]
        branches = [x for x in found if x.primitive.name == "cond"]
        assert [x.params["cond_jaxpr"].out_avals[0].shape for x in loops] == [(), ()]
        assert [x.invars[0].aval.shape for x in branches] == [()]


# With little more than data

SINGLE = {name: x.astype(np.float32 if x.dtype == float else int) for name, x in DATA.items()}


def _plain(params, batch):
    return lo.mean((batch["x"] @ params - batch["y"]) ** 2)


def _first(key):
    return jax.random.normal(key, (WIDTH,))


@pytest.fixture(scope="module")
def small():
    """A task whose last epoch is cut, and the run that it is."""
    rule, options = optax.sgd(0.1, momentum=0.9), dict(batch_size=SIZE, drop_last=True, steps=5)
    made = task(_plain, _first, SINGLE, rule, **options)
    begin, key = jax.random.split(KEY)
    given = dict(key=key, check=False, progress=False)
    run = lo.fit(_plain, _first(begin), SINGLE, rule, **given, **options)
    del run.history["seconds"]
    np.testing.assert_array_equal(run.history["step"], [2, 4, 5])
    return made, run


def test_a_trial_is_a_fit_whose_last_epoch_is_cut(small):
    made, run = small
    assert made.steps == 5
    _same_trial(*jax.jit(partial(_whole, made))({}, KEY), run, 1e-6)


def test_devices_have_trials_of_their_own(small):
    made, run = small
    mesh = jax.make_mesh((2,), ("trials",), devices=jax.devices()[:2])
    each, where = jax.vmap(lambda key: _whole(made, {}, key)), P("trials")
    place = partial(jax.shard_map, each, mesh=mesh, in_specs=where, out_specs=where)
    spread = place(check_vma=False)
    keys = jax.device_put(jnp.stack([KEY] * 4), jax.NamedSharding(mesh, where))
    program = jax.jit(spread).lower(keys).compile()
    text = program.as_text()
    assert not [name for name in ("all-reduce", "all-gather", "collective-") if name in text]
    jax.eval_shape(place(check_vma=True), keys)
    trials, scores = program(keys)
    trials, scores = jax.device_get((trials._replace(key=np.zeros(4)), scores))
    for number in range(4):
        _same_trial(_of(trials, number), _of(scores, number), run, 1e-6)


def _again():
    """A task of new functions, whose arguments are equal."""

    def objective(params, batch, hyperparameters):
        return lo.mean((batch["x"] @ params - hyperparameters["level"] * batch["y"]) ** 2)

    data = jax.tree.map(np.copy, SINGLE)
    options = dict(epochs=1, batch_size=SIZE, validation=data)
    return task(objective, lambda key: _first(key), data, optax.adam(0.1), **options)


def _called(made):
    hyperparameters = {"level": jnp.float32(2.0)}
    made.check(hyperparameters, KEY)
    parts = made.init, made.advance, made.score
    return _programs.call(_in_three, parts, hyperparameters, KEY, jnp.int32(made.steps))


def _in_three(init, advance, score, hyperparameters, key, steps):
    return score(advance(init(hyperparameters, key), steps))


def test_a_task_of_equal_arguments_compiles_nothing():
    first = _called(_again())
    with counted() as count:
        second = _called(_again())
    assert count.traces > 0
    assert count.compiled == 0
    jax.tree.map(np.testing.assert_array_equal, first, second)


# What is no number


def _of_kind(params, batch, hyperparameters):
    layer = {"tanh": jnp.tanh, "relu": jax.nn.relu}[hyperparameters["layer"]]
    return lo.mean((layer(batch["x"] @ params["w"]).sum(1) - batch["y"]) ** 2)


def _wide(hyperparameters, key):
    return {"w": jax.random.normal(key, (WIDTH, hyperparameters["width"]))}


def test_options_come_as_they_are():
    made = task(
        _of_kind,
        _wide,
        SINGLE,
        lambda given: given["rule"](given["rate"]),
        steps=4,
        batch_size=lambda given: given["size"],
    )
    given = {"layer": "tanh", "width": 3, "rule": optax.sgd, "size": 5, "rate": jnp.float32(0.1)}
    made.check(given, KEY)

    @jax.jit
    def both(rate, key):
        begin, other = jax.random.split(key)
        run = lo.training.run(
            partial(_of_kind, hyperparameters=given),
            _wide(given, begin),
            SINGLE,
            optax.sgd(rate),
            epochs=2,
            batch_size=5,
            key=other,
        )
        return *_whole(made, given | {"rate": rate}, key), run

    trial, scores, run = both(given["rate"], KEY)
    assert trial.params["w"].shape == (WIDTH, 3)
    _same_trial(trial, scores, run, 1e-6)


# Bad input


def _classes(params, batch):
    return lo.mean(lo.losses.softmax_cross_entropy(batch["x"] @ params, batch["y"]))


def test_data_are_tried_before_anything_long():
    classes = SINGLE | {"y": np.arange(ROWS)}
    first = lambda key: jax.random.normal(key, (WIDTH, 3))
    made = task(_classes, first, classes, optax.sgd(0.1), epochs=1)
    with pytest.raises(ValueError, match=r"train: .*labels"):
        made.check({}, KEY)
    made = task(_classes, first, classes, optax.sgd(0.1), epochs=1, check=False)
    assert made.check is None


def test_a_penalty_that_the_optimizer_alone_holds_is_refused():
    rule = lo.transforms.adam(0.1, regularizer=lo.regularizers.L1(0.1))
    made = task(_plain, _first, SINGLE, rule, epochs=1)
    with pytest.raises(ValueError, match="constant"):
        jax.eval_shape(made.init, {}, KEY)
    free = task(_plain, _first, SINGLE, rule, epochs=1, check=False)
    jax.eval_shape(free.init, {}, KEY)


REFUSED = {
    "both": (dict(epochs=1, steps=1), ValueError, "either epochs or steps"),
    "no steps": (dict(epochs=0), ValueError, "epochs >= 1"),
    "too many": (dict(epochs=2**30, batch_size=1), ValueError, "epochs <="),
    "a share": (dict(epochs=1, validation=0.2), ValueError, "training.split"),
    "a stream": (dict(epochs=1, train=iter([SINGLE])), TypeError, "iterable"),
    "parameters": (dict(epochs=1, init={"w": 0.0}), TypeError, "lambda key: params"),
    "many": (dict(epochs=1, init=lambda a, b, c: a), TypeError, r"'a', 'b', 'c'"),
    "none": (dict(epochs=1, init=lambda: 0.0), TypeError, "lambda key: model.init"),
    "objective": (dict(epochs=1, objective=1), TypeError, "objective as a function"),
    "pieces": (dict(epochs=1, batch_size=2, microbatches=3), ValueError, "microbatches <= 2"),
    "unequal": (dict(epochs=1, batch_size=lambda given: 2), ValueError, "give steps="),
}


@pytest.mark.parametrize(("options", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(options, error, words):
    given = {"objective": _plain, "init": _first, "train": SINGLE, "optimizer": optax.sgd(0.1)}
    with pytest.raises(error, match=words):
        task(**given | options)


UNFIT = {
    "a traced size": (
        dict(batch_size=lambda given: given["size"], steps=1),
        {"size": 2},
        "sweeps.Static",
    ),
    "a list": (dict(steps=1), {"size": [1]}, "'size' as an array or something hashable"),
    "no state": (
        dict(objective=lambda params, batch, model_state: None, steps=1),
        {},
        r"\(params, model_state\) of init",
    ),
}


@pytest.mark.parametrize(("options", "hyperparameters", "words"), UNFIT.values(), ids=UNFIT)
def test_hyperparameters_that_do_not_fit_are_refused(options, hyperparameters, words):
    given = {"objective": _plain, "init": _first, "train": SINGLE, "optimizer": optax.sgd(0.1)}
    made = task(**given | options)
    traced = {name: x for name, x in hyperparameters.items() if isinstance(x, int)}
    others = hyperparameters | traced
    call = lambda traced: made.init(others | traced, KEY)
    with pytest.raises(TypeError, match=words):
        jax.eval_shape(call, traced)


PARTS = {"init": lambda numbers, key: key, "advance": lambda state, steps: state, "score": len}


@pytest.mark.parametrize("name", ["init", "advance", "score", "check"])
def test_a_part_is_a_function(name):
    with pytest.raises(TypeError, match=f"Expected {name} as a function, got 1"):
        Task(**PARTS | {name: 1}, steps=1)


@pytest.mark.parametrize("steps", [0, 1.5, None])
def test_steps_are_a_count(steps):
    with pytest.raises((ValueError, TypeError), match="steps"):
        Task(**PARTS, steps=steps)
