"""What a call leaves behind: programs for the next one, and no arrays of the user's."""

import gc

import jax
import jax.numpy as jnp
import optax

import lossopt as lo
from benchmarks._measure import Claim, compilations


def left():
    """Programs that a second call compiles, and megabytes alive after eight calls."""
    gc.collect()
    before = _live()
    data, key = jnp.arange(96.0), jax.random.key(0)

    def objective(table):
        return lambda w, x: {"fit": lo.mean((w * table[0] - x) ** 2)}

    def train(objective, optimizer, epochs):
        given = {"epochs": epochs, "batch_size": 16, "key": key, "progress": False}
        return lo.fit(objective, 0.0, data, optimizer, **given)

    def fresh(number):
        return train(objective(jnp.full(2**22, number, jnp.float32)), optax.sgd(0.1), 2)

    mine, rule = objective(jnp.ones(2)), optax.sgd(0.1)
    calls = {
        "evaluate, called again": lambda: lo.training.evaluate(mine, 0.0, data, batch_size=16),
        "fit, called again": lambda: train(mine, rule, 3),
        "fit, of more epochs": lambda: train(mine, rule, 4),
        "fit, of fresh closures": lambda: fresh(9.0),
    }
    for name in ("evaluate, called again", "fit, called again", "fit, of fresh closures"):
        calls[name]()
    for name, call in calls.items():
        yield Claim(f"{name}: programs compiled", compilations(call), 0)
    for number in range(6):
        fresh(float(number))
    gc.collect()
    what = "8 fits that close over 16 MB each: MB alive"
    yield Claim(what, (_live() - before) / 2**20, 65)  # four of them, and what is small


def _live():
    return sum(x.nbytes for x in jax.live_arrays())
