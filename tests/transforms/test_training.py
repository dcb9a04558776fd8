"""Transformations inside of a compiled run, with a plain loop as the judge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 5)).astype(np.float32)
Y = X @ np.float32([2.0, -1.0, 0.0, 0.0, 0.0]) + np.float32(RNG.normal(size=48)) / 10
LASSO = lo.regularizers.by_path({"kernel": lo.regularizers.L1(0.2)})
START = {"kernel": jnp.zeros((5, 1)), "bias": jnp.zeros(())}
adam, sgd = lo.transforms.adam, lo.transforms.sgd
OPTIMIZERS = {
    "a proximal step": adam(0.05, regularizer=LASSO, weight_decay=1e-3),
    "plateaus": optax.chain(sgd(0.1), lo.transforms.reduce_on_plateau(0.5, 2)),
    "spikes": lo.transforms.skip_spikes(adam(0.05), warmup=3),
    "clipping": optax.chain(lo.transforms.clip_by_global_norm(0.5), sgd(0.1)),
    "8 bits": adam(0.05, moments="int8"),
    "bfloat16": adam(0.05, moments="bfloat16"),
    "an average": lo.transforms.average(adam(0.05, regularizer=LASSO), decay=0.9),
}


def objective(params, batch, regularizer=LASSO):
    residual = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
    penalty = lo.constant(regularizer(params), gradient=False)
    return {"fit": lo.mean(jnp.square(residual)), "penalty": penalty}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_takes_the_steps_of_a_plain_loop(optimizer):
    data = {"x": X, "y": Y[:, None]}
    settings = {"epochs": 12, "batch_size": len(X), "key": jax.random.key(0)}
    run = lo.fit(objective, START, data, optimizer, **settings)

    @jax.jit
    def step(params, state):
        (value, _), gradients = lo.value_and_grad(objective)(params, data)
        transform = optax.with_extra_args_support(optimizer)
        updates, state = transform.update(gradients, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params, state = START, optimizer.init(START)
    for _ in range(12):
        params, state = step(params, state)
    for name in START:
        np.testing.assert_allclose(run.params[name], params[name], rtol=1e-5, atol=1e-6)
    assert run.history["train/fit"][-1] < run.history["train/fit"][0]


def test_a_step_keeps_the_average_of_its_iterates():
    data = {"x": X, "y": Y[:, None]}
    rule = lo.transforms.average(adam(0.05, regularizer=LASSO), start=3, every=2)
    init, step = lo.train_step(objective, rule)
    state, step, points = init(START), jax.jit(step), []
    for _ in range(6):
        state, _ = step(state, data)
        points.append(np.asarray(state.params["kernel"], np.float64))
    got = lo.transforms.averaged(state.opt_state, state.params)
    np.testing.assert_allclose(got["kernel"], (points[2] + points[4]) / 2, rtol=2**-23)


def test_a_sweep_over_strengths_is_one_program():
    data = {"x": X, "y": Y[:, None]}

    def kept(strength):
        lasso = lo.regularizers.L1(strength)
        optimizer = lo.transforms.momentum(0.05, regularizer=lasso)
        settings = {"epochs": 200, "batch_size": len(X), "key": jax.random.key(0)}
        penalized = partial(objective, regularizer=lasso)
        run = lo.training.run(penalized, START, data, optimizer, **settings)
        return jnp.sum(run.params["kernel"] != 0)

    got = jax.jit(jax.vmap(kept))(jnp.array([0.0, 0.2, 10.0]))
    assert got.tolist() == [5, 2, 0]
