"""What an optimizer must not be inside of a step, and what it asks of an objective."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets, linear_model
from sklearn.preprocessing import StandardScaler

import lossopt as lo
from lossopt.training._rules import average_reader

L1 = lo.regularizers.L1(0.1)
PARAMS = {
    "w": jnp.array([[0.5, -1.0], [0.25, 2.0]]),
    "b": jnp.array([0.1, -0.2]),
    "s": jnp.ones(()),
}
DATA = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
FIRST = {"w": True, "b": False, "s": False}
LABELS = {"w": "a", "b": "b", "s": "b"}
SETTINGS = {"epochs": 2, "batch_size": len(DATA), "key": jax.random.key(0)}


def loss(params, batch):
    return jnp.sum((batch @ params["w"] + params["b"][None]) ** 2, 1) + params["s"] ** 2


def bare(params, batch):
    return lo.mean(loss(params, batch))


def penalized(params, batch, penalty=L1, *, gradient=False):
    return {"fit": bare(params, batch), "p": lo.constant(penalty(params), gradient=gradient)}


def by_run(objective, optimizer, **options):
    train = lambda: lo.training.run(objective, PARAMS, DATA, optimizer, **SETTINGS, **options)
    return jax.eval_shape(train)


def by_fit(objective, optimizer, **options):
    return lo.fit(objective, PARAMS, DATA, optimizer, progress=False, **SETTINGS, **options)


def by_step(objective, optimizer, *, hyperparameters=None, **options):
    init, step = lo.train_step(objective, optimizer, **options)
    given = {"hyperparameters": hyperparameters}
    return jax.eval_shape(lambda: step(init(PARAMS, **given), DATA, **given))


DOORS = {"run": by_run, "fit": by_fit, "train_step": by_step}
PENALTY = r"its terms \(its only one\) none does.*lo\.constant\(R\(params\), gradient=False\)"


# The value of a penalty whose steps are the optimizer's


@pytest.mark.parametrize("door", DOORS)
def test_a_regularizer_of_the_optimizer_must_stand_in_the_objective(door):
    optimizer = lo.transforms.adam(0.1, regularizer=L1)
    with pytest.raises(ValueError, match=PENALTY):
        DOORS[door](bare, optimizer)
    DOORS[door](penalized, optimizer)
    DOORS[door](bare, optimizer, check=False)


def test_a_penalty_with_a_slope_would_count_twice():
    optimizer = lo.transforms.sgd(0.1, regularizer=L1)
    with pytest.raises(ValueError, match=r"\(fit, p\) none does"):
        by_step(partial(penalized, gradient=True), optimizer)


proximal = lo.transforms.adam(0.1, regularizer=L1)
HELD = {
    "chain": optax.chain(optax.clip(1.0), proximal),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("rule", proximal)),
    "masked": optax.masked(proximal, FIRST),
    "partition": optax.partition({"a": proximal, "b": optax.sgd(0.1)}, LABELS),
    "inject_hyperparams": optax.inject_hyperparams(
        lo.transforms.adam, static_args=("regularizer", "weight_decay")
    )(0.1, regularizer=L1),
    "flatten": optax.flatten(proximal),
    "apply_if_finite": optax.apply_if_finite(proximal, 3),
    "conditionally_mask": optax.conditionally_mask(proximal, lambda step, **_: step % 2 == 0),
    "schedule_free": optax.contrib.schedule_free(proximal, 0.1),
    "skip_spikes": lo.transforms.skip_spikes(proximal),
    "average": lo.transforms.average(proximal, decay=0.9),
    "quantized": lo.transforms.quantized(proximal),
    "scale_by_path": lo.transforms.scale_by_path(proximal, {"w": 0.5}),
    "kahan": lo.transforms.kahan(proximal),
    "stochastic_rounding": lo.transforms.stochastic_rounding(proximal, jax.random.key(0)),
    "8 bits": lo.transforms.momentum(0.1, regularizer=L1, moments="int8"),
    "bfloat16": lo.transforms.rmsprop(0.1, regularizer=L1, moments="bfloat16"),
    "adagrad": lo.transforms.adagrad(0.1, regularizer=L1),
    "proximal": lo.transforms.proximal(L1, 0.1),
    "by_path": lo.transforms.sgd(0.1, regularizer=lo.regularizers.by_path({"w": L1})),
    "a sum": lo.transforms.sgd(0.1, regularizer=L1 + lo.regularizers.NonNegative()),
    "a function": lambda numbers: lo.transforms.sgd(numbers, regularizer=L1),
}


@pytest.mark.parametrize("name", HELD)
def test_it_is_found_wherever_it_is_held(name):
    options = {"hyperparameters": jnp.array(0.1)} if name == "a function" else {}
    with pytest.raises(ValueError, match=PENALTY):
        by_step(bare, HELD[name], **options)
    by_step(penalized, HELD[name], **options)


FREE = {
    "no regularizer": lo.transforms.adam(0.1, weight_decay=0.1),
    "of optax": optax.adam(0.1),
    "a constraint": lo.transforms.adam(0.1, regularizer=lo.regularizers.Simplex()),
    "bounds": lo.transforms.sgd(0.1, regularizer=lo.regularizers.Box(-1.0, 1.0)),
    "constraints by path": lo.transforms.sgd(
        0.1, regularizer=lo.regularizers.by_path({"w": lo.regularizers.NonNegative()})
    ),
    "a group without leaves": optax.partition(
        {"a": proximal, "b": optax.sgd(0.1)}, {"w": "b", "b": "b", "s": "b"}
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_what_has_no_value_asks_for_none(name):
    by_step(bare, FREE[name])


@pytest.mark.parametrize("name", [name for name in HELD if name != "a function"])
def test_an_average_is_found_wherever_it_is_held(name):
    """That of the rule outermost, whose iterates it is."""
    assert average_reader(jax.eval_shape(HELD[name].init, PARAMS)) == {
        "average": "lossopt.transforms.averaged",
        "schedule_free": "optax.contrib.schedule_free_eval_params",
    }.get(name)
    outer = optax.chain(optax.clip(1.0), lo.transforms.average(HELD[name], start=1))
    found = average_reader(jax.eval_shape(outer.init, PARAMS))
    assert found == "lossopt.transforms.averaged"


def test_the_term_may_stand_beside_others_and_be_any_of_them():
    others = lambda params, batch: (
        penalized(params, batch)
        | {
            "decay": lo.constant(lo.regularizers.L2(0.1)(params)),
            "rows": lo.mean(batch[:, 0]),
        }
    )
    by_step(others, proximal)
    own = lambda params, batch: [
        bare(params, batch),
        lo.constant(jax.lax.stop_gradient(jnp.abs(params["w"]).sum())),
    ]
    by_step(own, proximal)
    data_alone = lambda params, batch: {"fit": bare(params, batch), "rows": lo.mean(batch[:, 0])}
    with pytest.raises(ValueError, match=r"\(fit, rows\) none does"):
        by_step(data_alone, proximal)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_terms_are_told_apart_where_one_program_gives_them(wrap):
    whole = lambda params, batch: tuple(t.value for t in penalized(params, batch).values())

    def objective(params, batch, *, held):
        fit, penalty = wrap(whole)(params, batch)
        return [lo.constant(fit)] + [lo.constant(penalty)] * held

    by_step(partial(objective, held=True), proximal)
    with pytest.raises(ValueError, match=r"\(0\) none does"):
        by_step(partial(objective, held=False), proximal)


def test_a_step_without_a_key_is_told_so_first():
    def noisy(params, batch, key):
        return penalized(params, batch + jax.random.normal(key, batch.shape))

    with pytest.raises(TypeError, match="names key"):
        by_step(noisy, proximal)


def test_a_term_behind_a_kernel_of_its_own_has_a_slope():
    @jax.custom_vjp
    def kernel(x):
        return x**2

    kernel.defvjp(lambda x: (x**2, x), lambda x, c: (2 * x * c,))
    inside = lambda params, batch: {"fit": lo.mean(kernel(loss(params, batch)))}
    with pytest.raises(ValueError, match=r"\(fit\) none does"):
        by_step(inside, proximal)
    by_step(lambda p, batch: inside(p, batch) | {"p": penalized(p, batch)["p"]}, proximal)


def test_devices_are_judged_alike():
    options = {"axis_name": "devices"}
    shares = DATA.reshape(2, 5, 2)

    def stepped(objective, over):
        init, step = lo.train_step(objective, proximal, **options)
        state = init(PARAMS)
        return over(step, in_axes=(None, 0), axis_name="devices")(state, shares)

    def by_shard_map(fn, in_axes, axis_name):
        mesh = jax.make_mesh((2,), (axis_name,), axis_types=(jax.sharding.AxisType.Auto,))
        everywhere, split = jax.P(), jax.P(axis_name)
        mapped = jax.shard_map(fn, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere)
        return lambda state, shares: mapped(state, shares.reshape(10, 2))

    for over in (jax.vmap, jax.pmap, by_shard_map):
        with pytest.raises(ValueError, match=PENALTY):
            jax.eval_shape(partial(stepped, bare, over))
        jax.eval_shape(partial(stepped, penalized, over))


def test_judging_changes_no_bit():
    runs = [by_fit(penalized, proximal, check=check) for check in (True, False)]
    for checked, not_checked in zip(*map(jax.tree.leaves, (runs[0].params, runs[1].params))):
        np.testing.assert_array_equal(checked, not_checked)


def test_a_second_fit_is_not_judged_again():
    traced = []

    def objective(params, batch):
        traced.append(1)
        return penalized(params, batch)

    for expected in (True, False):
        traced.clear()
        by_fit(objective, proximal)
        assert bool(traced) is expected


def test_the_best_by_value_and_penalty_is_the_optimum_of_scikit_learn():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x, strength = StandardScaler().fit_transform(x), 0.02
    numbers = {"C": 1 / (strength * len(y)), "l1_ratio": 1, "solver": "saga", "tol": 1e-6}
    model = linear_model.LogisticRegression(**numbers, max_iter=10_000).fit(x, y)
    lasso = lo.regularizers.by_path({"kernel": lo.regularizers.L1(strength)})

    def objective(params, batch):
        logits = batch["x"] @ params["kernel"] + params["bias"]
        fit = lo.mean(lo.losses.sigmoid_cross_entropy(logits, batch["y"]))
        return {"fit": fit, "penalty": lo.constant(lasso(params), gradient=False)}

    def by_hand(kernel, bias):
        logits = x @ np.asarray(kernel, np.float64) + float(bias)
        penalty = strength * np.abs(np.asarray(kernel, np.float64)).sum()
        return np.mean(np.logaddexp(0, logits) - y * logits) + penalty

    def best(objective, **options):
        rate = lo.schedules.cosine(0.5, 1000)
        run = lo.fit(
            objective,
            {"kernel": jnp.zeros(30), "bias": jnp.zeros(())},
            {"x": np.float32(x), "y": np.float32(y)},
            lo.transforms.adam(rate, b2=0.99, regularizer=lasso),
            steps=1000,
            evaluate_every=20,
            key=jax.random.key(0),
            best="train",
            progress=False,
            **options,
        )
        return run, by_hand(run.best_params["kernel"], run.best_params["bias"])

    run, value = best(objective)
    wanted = by_hand(model.coef_[0], model.intercept_[0])
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(run.history["trained/value"].min(), wanted, rtol=1e-5)
    kept = np.asarray(run.best_params["kernel"]) != 0
    assert kept.sum() == 7
    np.testing.assert_array_equal(kept, model.coef_[0] != 0)
    fit_alone = lambda params, batch: {"fit": objective(params, batch)["fit"]}
    run, value = best(fit_alone, check=False)
    assert value > 1.2 * wanted
    assert np.count_nonzero(run.best_params["kernel"]) > 10


# What no optimizer may be


plain = optax.sgd(0.1)
GATHERED = "gathers.*Use a larger batch_size and microbatches="
EACH = "needs the gradient of each example"
PRIVATE = optax.contrib.differentially_private_aggregate(1.0, 0.1, 0)
REFUSED = {
    "accumulate": (lo.transforms.accumulate(plain, 4), GATHERED),
    "MultiSteps": (optax.MultiSteps(plain, 2), GATHERED),
    "MultiSteps, as a rule": (optax.MultiSteps(plain, 2).gradient_transformation(), GATHERED),
    "apply_every": (optax.chain(plain, optax.apply_every(2)), GATHERED),
    "within a group": (
        optax.partition({"a": lo.transforms.accumulate(plain, 2), "b": plain}, LABELS),
        GATHERED,
    ),
    "within a mask, behind a guard": (
        lo.transforms.skip_spikes(
            optax.masked(optax.MultiSteps(plain, 2).gradient_transformation(), FIRST)
        ),
        GATHERED,
    ),
    "privacy": (optax.chain(PRIVATE, plain), EACH),
    "privacy before momentum, which gives it back its shape": (
        optax.chain(PRIVATE, optax.trace(0.9), optax.scale(-0.1)),
        EACH,
    ),
    "lookahead": (optax.lookahead(plain, 2, 0.5), "needs parameters that are a pair"),
    "sam": (optax.contrib.sam(plain, plain), "sam needs opaque_mode=True.*grad_fn="),
    "sam, opaque": (
        optax.contrib.sam(plain, plain, opaque_mode=True),
        r"grad_fn=lambda point, _: jax\.grad\(value_fn\)\(point\)",
    ),
    "sophia": (optax.contrib.sophia(0.1), "sophia needs obj_fn=.*obj_fn=value_fn"),
    "a state that grows": (
        optax.monitor({"norm": optax.tree.norm}),
        r"monitor, returned a state of another form.* None became float32\(\) at .*'norm'",
    ),
    "updates of another shape": (
        optax.stateless(lambda u, _: jax.tree.map(jnp.sum, u)),
        r"stateless, returned updates that are not like.*\(2,\) became \(\) at \['b'\]",
    ),
    "updates of another structure": (
        optax.stateless(lambda u, _: tuple(u.values())),
        "not like the parameters",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_in_silence_is_refused(name):
    rule, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        by_step(bare, rule)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_what_gathers_steps(door):
    with pytest.raises(ValueError, match=GATHERED):
        DOORS[door](bare, lo.transforms.accumulate(plain, 2), check=False)


WRAPPED = {
    "sophia": (
        optax.contrib.sophia(0.1),
        lambda value_fn: {"obj_fn": value_fn},
    ),
    "sam": (
        optax.contrib.sam(plain, optax.sgd(0.05), opaque_mode=True),
        lambda value_fn: {"grad_fn": lambda point, _: jax.grad(value_fn)(point)},
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_needs_a_function_takes_the_one_that_is_offered(name):
    rule, needs = WRAPPED[name]

    def update(grads, state, params, *, value_fn, **_):
        return rule.update(grads, state, params, **needs(value_fn))

    wrapped = optax.GradientTransformationExtraArgs(rule.init, update)
    init, step = lo.train_step(bare, wrapped, microbatches=3)
    whole = lambda params: jnp.mean(loss(params, DATA))

    @jax.jit
    def both(ours, params, state):
        updates, state = rule.update(jax.grad(whole)(params), state, params, **needs(whole))
        return step(ours, DATA)[0], optax.apply_updates(params, updates), state

    ours, params, state = init(PARAMS), PARAMS, rule.init(PARAMS)
    for _ in range(3):
        ours, params, state = both(ours, params, state)
    for leaf in params:
        np.testing.assert_allclose(ours.params[leaf], params[leaf], rtol=1e-4, atol=1e-5)
        assert np.abs(params[leaf] - PARAMS[leaf]).max() > 1e-3


def _needy():
    def update(grads, state, params, *, temperature):
        return grads, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def _broken():
    def init_fn(params):
        return params["missing"]

    return optax.GradientTransformation(init_fn, plain.update)


FAILS = {
    "a missing argument": (_needy(), TypeError, "In update of the optimizer, _needy. A step gives"),
    "within a chain": (
        optax.chain(optax.clip(1.0), optax.contrib.scale_by_muon()),
        ValueError,
        "In update of the optimizer, chain > scale_by_muon. A step gives it one gradient",
    ),
    "init": (optax.chain(plain, _broken()), KeyError, "In init of the optimizer, chain > _broken."),
    "a bound method": (
        optax.MultiSteps(_broken(), 2),
        KeyError,
        "In init of the optimizer, MultiSteps.init > _broken.",
    ),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_fails_by_itself_is_passed_on_with_its_name(name):
    rule, kind, told = FAILS[name]
    with pytest.raises(kind) as caught:
        by_step(bare, rule)
    assert any(note.startswith(told) for note in caught.value.__notes__), caught.value.__notes__
