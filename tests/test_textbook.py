"""The finished rows of docs/textbook.md, each shown by one test."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

import lossopt as lo


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (lo.losses.squared_error, lambda p, y: (p - y) ** 2),
        (lo.losses.absolute_error, lambda p, y: np.abs(p - y)),
        (lo.losses.sigmoid_cross_entropy, lambda p, y: np.log1p(np.exp(-p)) + (1 - y) * p),
    ],
)
def test_01_the_loss_of_a_data_set_is_the_mean_of_its_examples(loss, reference):
    rng = np.random.default_rng(1)
    predictions, labels = rng.normal(size=1000), rng.integers(0, 2, size=1000).astype(float)
    per_example = loss(jnp.float32(predictions), jnp.float32(labels))
    assert per_example.shape == (1000,)
    want = np.mean(reference(predictions, labels))
    np.testing.assert_allclose(lo.mean(per_example).value, want, rtol=1e-6)


def test_02_squared_error_counts_ten_as_a_hundred():
    errors = jnp.array([10.0, 1.0, -1.0])
    losses = lo.losses.squared_error(errors, jnp.zeros(3))
    assert losses.tolist() == [100.0, 1.0, 1.0]
    assert lo.mean(losses[1:]).value == 1.0  # and not 0: signs do not cancel


def test_04_cross_entropy_is_the_surprise():
    logits = lambda p: jnp.log(p) - jnp.log1p(-p)
    loss = lo.losses.sigmoid_cross_entropy
    surprise = loss(logits(jnp.array([0.9, 0.1])), jnp.ones(2))
    np.testing.assert_allclose(surprise, [0.105, 2.30], atol=5e-3)

    slope = jax.vmap(jax.grad(loss))
    z, y = jnp.array([-3.0, -0.5, 0.0, 2.0]), jnp.array([1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(slope(z, y), jax.nn.sigmoid(z) - y, rtol=1e-6)

    far, wrong = jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0])
    np.testing.assert_allclose(loss(far, wrong), [1e4, 1e4])  # grows without end, but finite
    np.testing.assert_allclose(slope(far, wrong), [1.0, -1.0])  # as strong as it can be
    np.testing.assert_allclose(slope(far, 1 - wrong), [0.0, 0.0])


def test_07_gradient_descent_follows_the_slope():
    loss, w = lambda w: lo.losses.squared_error(w, jnp.zeros(())), jnp.float32(1.6)
    _, change = jax.jvp(loss, (w,), (jnp.float32(0.1),))
    np.testing.assert_allclose([jax.grad(loss)(w), change], [3.2, 0.32], rtol=1e-6)

    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    batch = jnp.float32(x), jnp.float32(y)
    objective = lambda w, batch: lo.mean(lo.losses.squared_error(batch[0] @ w, batch[1]))
    lo.testing.check_gradient(lambda w: lo.value(objective(w, (x, y))), jnp.ones(3))

    optimizer, rate, steps = optax.sgd(0.1), 0.1, 25
    params, want = jnp.zeros(3), np.zeros(3)
    state = optimizer.init(params)
    for _ in range(steps):
        _, gradient = lo.value_and_grad(objective)(params, batch)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        want = want - rate * 2 * x.T @ (x @ want - y) / 20
        np.testing.assert_allclose(params, want, rtol=1e-5, atol=1e-6)


def test_10_momentum_as_a_sum_and_as_an_average_agree():
    curvature, rate, decay, steps = np.array([1.0, 25.0]), 0.01, 0.9, 50
    sums = optax.chain(optax.trace(decay), optax.scale(-rate))
    averages = optax.chain(optax.ema(decay, debias=False), optax.scale(-rate / (1 - decay)))

    want, velocity = np.array([1.0, -2.0]), np.zeros(2)
    with jax.enable_x64(True):
        found = {rule: jnp.array(want) for rule in (sums, averages)}
        states = {rule: rule.init(w) for rule, w in found.items()}
        for _ in range(steps):
            velocity = decay * velocity + curvature * want
            want = want - rate * velocity
            for rule in found:
                gradient = curvature * found[rule]
                updates, states[rule] = rule.update(gradient, states[rule])
                found[rule] = optax.apply_updates(found[rule], updates)
                np.testing.assert_allclose(found[rule], want, rtol=1e-6, atol=1e-9)


def test_14_schedules_have_their_values_at_the_boundaries():
    s = lo.schedules
    boundaries = {
        "fixed": (s.constant(0.1), {0: 0.1, 1000: 0.1}),
        "step": (s.step(0.1, 30, factor=0.1), {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001}),
        "exponential": (s.exponential(0.1, 0.2), {0: 0.1, 5: 0.1 * np.exp(-1)}),
        "cosine": (s.cosine(0.1, 100, end=0.01), {0: 0.1, 50: 0.055, 100: 0.01, 200: 0.01}),
        "restarts": (s.cosine_restarts(0.1, 10), {0: 0.1, 5: 0.05, 10: 0.1, 15: 0.05}),
        "warmup": (s.warmup(s.linear(0.1, 0.0, 10), 4), {0: 0.025, 3: 0.1, 4: 0.1, 14: 0.0}),
        "epochs": (s.per_epoch(s.step(0.1, 30, factor=0.1), 7), {209: 0.1, 210: 0.01}),
    }
    for name, (schedule, values) in boundaries.items():
        for count, want in values.items():
            np.testing.assert_allclose(
                schedule(count), want, rtol=1e-5, atol=1e-8, err_msg=f"{name} at {count}"
            )


def test_18_the_columns_of_the_terms_add_up():
    rng = np.random.default_rng(18)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    data = {"x": x, "y": x @ np.float32([1, 0, -1])}
    l1, strength = lo.regularizers.L1(1.0), 0.3

    def objective(params, batch):
        loss = lo.losses.squared_error(batch["x"] @ params, batch["y"])
        return {"fit": lo.mean(loss), "penalty": strength * lo.constant(l1(params))}

    run = lo.fit(
        objective,
        jnp.ones(3),
        data,
        optax.sgd(0.05),
        batch_size=16,
        epochs=6,
        key=jax.random.key(0),
        validation=data,
    )
    for part in ("train", "validation"):
        terms = run.history[f"{part}/fit"] + run.history[f"{part}/penalty"]
        np.testing.assert_allclose(run.history[f"{part}/value"], terms, rtol=1e-6)
    want = strength * np.sum(np.abs(run.params))
    np.testing.assert_allclose(run.history["validation/penalty"][-1], want, rtol=1e-6)


@pytest.mark.parametrize("microbatches", [2, 4, 7, 24])
def test_26_microbatches_equal_the_full_batch(microbatches):
    rng = np.random.default_rng(26)
    x, mask = rng.normal(size=(24, 5)), rng.uniform(size=24) < np.linspace(0, 1, 24)
    batch = jnp.float32(x), jnp.float32(rng.integers(0, 2, size=24)), jnp.float32(mask)
    params = jnp.float32(rng.normal(size=5))

    def objective(params, batch):
        x, y, mask = batch
        fit = lo.mean(lo.losses.sigmoid_cross_entropy(x @ params, y), mask)
        return {"fit": fit, "penalty": lo.constant(lo.regularizers.L2(0.01)(params))}

    (want, _), full = lo.value_and_grad(objective)(params, batch)
    (got, _), cut = lo.value_and_grad(objective, microbatches=microbatches)(params, batch)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.linalg.norm(cut - full) <= 1e-6 * np.linalg.norm(full)


def test_19_l2_is_weight_decay_only_for_plain_descent():
    assert lo.regularizers.L2(1.0)(jnp.array([3.0, 4.0])) == 25.0  # no half
    w, gradient = jnp.array([[1.0, -2.0, 0.5]]), jnp.array([[0.1, 3.0, -1.0]])
    penalized = gradient + jax.grad(lo.regularizers.L2(0.05))(w)

    def both(rule):
        plain, decayed = rule(0.1), rule(0.1, weight_decay=2 * 0.05)
        inside, _ = plain.update(penalized, plain.init(w), w)
        beside, _ = decayed.update(gradient, decayed.init(w), w)
        return inside, beside

    np.testing.assert_allclose(*both(lo.transforms.sgd), rtol=1e-6)
    inside, beside = both(lo.transforms.adam)
    assert abs(inside - beside).max() > 0.005  # of steps of 0.1


def _minimize(loss, optimizer, start, steps):
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    run = lambda w: jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[0][0]
    return jax.jit(run)(start)


def test_20_l1_gives_exact_zeros_by_its_prox_and_none_by_its_slope():
    x, y = load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    want = Lasso(0.1, fit_intercept=False, tol=1e-10).fit(x, y).coef_
    l1, start = lo.regularizers.L1(0.1), jnp.zeros(10)
    x, y = jnp.float32(x), jnp.float32(y)
    fit = lambda w: lo.mean(lo.losses.squared_error(x @ w, y)).value / 2

    got = _minimize(fit, lo.transforms.adam(0.01, regularizer=l1), start, 3000)
    assert ((got != 0) == (want != 0)).all()
    assert 0 < (got == 0).sum() < 10
    np.testing.assert_allclose(got, want, atol=1e-4)

    slope = _minimize(lambda w: fit(w) + l1(w), optax.adam(0.01), start, 3000)
    assert (slope != 0).all()


def test_21_the_elastic_net_keeps_correlated_features_together():
    rng = np.random.default_rng(21)
    common, noise = rng.normal(size=(200, 1)), rng.normal(size=(200, 3))
    x = jnp.float32(np.hstack([common + 0.05 * noise[:, :2], noise[:, 2:]]))
    y = 2 * x[:, 0]
    fit = lambda w: lo.mean(lo.losses.squared_error(x @ w, y)).value / 2

    def kept(regularizer):
        optimizer = lo.transforms.momentum(0.02, 0.9, regularizer=regularizer)
        return _minimize(fit, optimizer, jnp.zeros(3), 20_000)

    lasso = kept(lo.regularizers.L1(0.4))
    net = kept(lo.regularizers.ElasticNet(0.8, 0.5))
    assert (lasso != 0).tolist() == [True, False, False]
    assert (net != 0).tolist() == [True, True, False]
    np.testing.assert_allclose(net[0], net[1], rtol=0.1)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training, momentum=0.8)(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=not training)(nn.relu(x))
        return nn.Dense(1)(x)[:, 0]


def test_27_dropout_and_batch_statistics_train_and_are_off_where_a_run_is_judged():
    x, y = load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    data = {"x": jnp.float32(x), "y": jnp.float32(y)}
    start = Noisy().init(jax.random.key(0), data["x"], False)

    def objective(params, batch, key, model_state):
        variables = {"params": params, "batch_stats": model_state}
        rngs = {} if key is None else {"dropout": key}
        predictions, changed = Noisy().apply(
            variables, batch["x"], key is not None, rngs=rngs, mutable=["batch_stats"]
        )
        fit = lo.mean(lo.losses.squared_error(predictions, batch["y"]))
        return {"fit": fit}, {"model_state": changed["batch_stats"]}

    run = lo.fit(
        objective,
        start["params"],
        data,
        optax.adam(0.02),
        epochs=200,
        batch_size=64,
        key=jax.random.key(0),
        validation=0.3,
        stop=lo.training.Patience(10),
        has_aux=True,
        model_state=start["batch_stats"],
    )
    column, held = run.history["validation/fit"], run.validation_rows
    assert run.stopped is lo.training.Stopped.PATIENCE
    assert len(column) == run.best_epoch + 11 < 200
    assert column.min() < 0.7 < 0.75 < column[0]  # of the variance of the targets

    variables = {"params": run.best_params, "batch_stats": run.best_model_state}
    predictions = Noisy().apply(variables, data["x"][held], False)
    want = np.mean((np.asarray(predictions, float) - y[held]) ** 2)
    np.testing.assert_allclose(column.min(), want, rtol=1e-4)
