"""Objectives that look at several rows at once, on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

pytestmark = pytest.mark.usefixtures("uncached")

RANDOM = np.random.default_rng(0)
BATCH = {"x": RANDOM.normal(size=(16, 5)), "y": RANDOM.normal(size=16), "mask": np.arange(16) < 11}
KERNEL = RANDOM.normal(size=5)


def _normalized(kernel, batch, average):
    outputs = batch["x"] @ kernel
    outputs = outputs - average(jnp.mean(outputs))
    outputs = outputs / jnp.sqrt(average(jnp.mean(jnp.square(outputs))))
    return {"fit": lo.mean(jnp.square(outputs - batch["y"]), batch["mask"])}


def _by_hand(kernel):
    """Value and slope in numpy; all rows make the statistics, whatever they weigh."""

    def value(kernel):
        outputs = BATCH["x"] @ kernel
        outputs = (outputs - outputs.mean()) / outputs.std()
        return np.mean(np.square(outputs - BATCH["y"])[BATCH["mask"]])

    ends = [[value(kernel + sign * move) for sign in (1, -1)] for move in 1e-6 * np.eye(5)]
    return value(kernel), np.array([(up - down) / 2e-6 for up, down in ends])


@pytest.mark.parametrize("way", ["auto", "shard_map", "pmap"])
def test_batch_norm_over_all_devices_is_that_of_one(way):
    axes = {"auto": (), "shard_map": ("data", "fsdp"), "pmap": "devices"}[way]
    average = lambda x: jax.lax.pmean(x, axes) if axes else x
    objective = lambda kernel, batch: _normalized(kernel, batch, average)
    options = {"mesh": lo.parallel.mesh(2, 4), "lowering": way}
    if way == "pmap":
        options = {"axis_name": axes}
    with jax.enable_x64(True):
        init, step = lo.train_step(objective, optax.sgd(1.0), **options)
        if way == "pmap":
            state, batch = lo.parallel.replicate(init(KERNEL)), lo.parallel.split(BATCH)
            outs = jax.pmap(step, axis_name=axes)(state, batch)
            state, measured = jax.tree.map(lambda x: x[0], outs)
        else:
            state, measured = step(init(KERNEL), BATCH)
        value, slope = _by_hand(KERNEL)
        np.testing.assert_allclose(measured.value, value, rtol=1e-12)
        np.testing.assert_allclose(KERNEL - state.params, slope, rtol=1e-6)
