"""Runs that workers in other processes import by name, and what may happen to these."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import sweeps
from tests.sweeps import runs

COUNT = 24
AGAIN = np.arange(COUNT) % len(runs.TRIALS)
TRIALS = sweeps.Trials({name: x[AGAIN] for name, x in runs.VALUES.items()}, np.arange(COUNT))


def run(numbers, key):
    """Found by its name."""
    return runs.RUN(numbers, key)


def striking(marker: Path | None, at: int):
    """The same, whose worker is killed by the trial of one place: once, without marker ever."""

    def strike(place):
        if place == at and not (marker and marker.exists()):
            if marker:
                marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.float32(0)

    def run(numbers, key):
        zero = jax.pure_callback(strike, jax.ShapeDtypeStruct((), jnp.float32), numbers["place"])
        inner = {name: x for name, x in numbers.items() if name != "place"}
        scores = runs.RUN(inner, key)
        return scores | {"loss": scores["loss"] + zero}

    return run


PLACED = sweeps.Trials({**TRIALS.values, "place": np.arange(COUNT)}, np.arange(COUNT))
