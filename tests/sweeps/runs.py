"""A run and a task of all kinds of state, and the trials that they are swept over."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import lossopt as lo
from lossopt import _keys, sweeps
from lossopt.sweeps import _watch
from lossopt.sweeps._calls import Calls

KEY = jax.random.key(5)
STEPS = 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = X @ np.array([1, -2, 0.5], np.float32) + RNG.normal(size=8).astype(np.float32)
VALUES = {
    "rate": np.array([1e9, *np.geomspace(1e-3, 0.2, 9), 1e9, 0.05, 1e9], np.float32),
    "decay": np.linspace(0, 0.5, 13, dtype=np.float32),
    "mask": RNG.random((13, 8)) < 0.8,
}
IDS = np.arange(13)
TRIALS = sweeps.Trials(VALUES, IDS)


def task(x=X, steps=STEPS, extra=0.0):
    """Descent with dropout; a new object each time, of equal functions and arrays."""
    x = jnp.asarray(x)

    def init(numbers, key):
        return {"w": jax.random.normal(key, (3,)), "key": key, "count": 0, "of": numbers}

    def moved(state):
        numbers, key = state["of"], jax.random.fold_in(state["key"], state["count"])
        kept = jax.random.bernoulli(key, 0.8, x.shape) & numbers["mask"][:, None]
        errors = jnp.where(kept, x, 0) @ state["w"] - Y
        slope = x.T @ jnp.tanh(errors) + numbers["decay"] * jnp.sinh(state["w"]) + extra
        w = state["w"] - numbers["rate"] * slope
        return state | {"w": w, "count": state["count"] + 1}

    def advance(state, steps):
        return jax.lax.fori_loop(0, steps, lambda _, state: moved(state), state)

    def score(state):
        errors = x @ state["w"] - Y
        return {"loss": jnp.mean(errors**2), "near": jnp.sum(jnp.abs(errors) < 1)}

    def inherit(own, donor, numbers):
        return donor | {"key": own["key"], "of": numbers}

    return sweeps.Task(init, advance, score, steps=steps, inherit=inherit)


def function(made):
    """The same as a plain function."""

    def run(numbers, key):
        return made.score(made.advance(made.init(numbers, key), made.steps))

    return run


TASK = task()
RUN = function(TASK)


def sweep(run: Any = TASK, trials: Any = TRIALS, key: Any = KEY, **options: Any):
    """The sweep without a bar."""
    return lo.sweep(run, trials, key, **{"progress": False, **options})


def same(got, want, but=("seconds",)):
    """Fails where a bit of a column differs, or the best states do."""
    assert got.columns.keys() == want.columns.keys()
    for name in got.columns.keys() - set(but):
        one, other = got[name], want[name]
        equal = one.tolist() == other.tolist() if one.dtype == object else bits(one) == bits(other)
        assert equal, f"{name}: {one} and {other}"
    assert (got.state is None) == (want.state is None)
    assert [*map(bits, jax.tree.leaves(got.state))] == [*map(bits, jax.tree.leaves(want.state))]


def bits(x):
    """What an array is, to the bit."""
    x = np.asarray(jax.random.key_data(x) if _keys.is_key(x) else x)
    return x.dtype, x.shape, x.tobytes()


def taking(seconds):
    """Each trial of a call takes so many seconds."""
    run = Calls.run

    def timed(*given):
        result = run(*given)
        return result and result._replace(seconds=seconds)

    return mock.patch.object(Calls, "run", timed)


def failing(call, done, few):
    """The caller's error where trials of a call have taken so many steps; and where calls began.

    A program of a call takes `few` steps at most.
    """
    run, begun = Calls.run, []

    def fails(self, form, rows, within, until, goes_on):
        begun.append(within and within.done)
        number = len(begun)

        def on(under):
            if goes_on(under) and (number, under.done) == (call, done):
                raise KeyError("of the caller")
            return True

        return run(self, form, rows, within, until, on)

    limited = lambda self, left: min(left, few)
    return mock.patch.multiple(Calls, run=fails, _count=limited), begun


def always():
    """Saves at the end of each chunk, and between any two calls of a program."""
    return mock.patch.multiple(_watch, EVERY=-1.0, UNDER_WAY=-1.0)
