"""Sweeps in processes of their own that are killed by kill -9, and what is left of them."""

import contextlib
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from lossopt.sweeps import _calls, _watch
from tests.checkpoint import damage, interrupted
from tests.checkpoint.interrupted import CHILDREN
from tests.sweeps import runs

COUNT, CHUNK, CUT = 24, 8, 4
AGAIN = np.arange(COUNT) % len(runs.TRIALS)
VALUES = {name: x[AGAIN] for name, x in runs.VALUES.items()}
TRIALS = runs.sweeps.Trials(VALUES, np.arange(COUNT))
SPACE = {"rate": runs.sweeps.Log(1e-4, 1e9), "decay": runs.sweeps.Linear(0, 1)}
POPULATION = runs.sweeps.population(5, SPACE)
RUNGS = runs.sweeps.halving(COUNT, runs.STEPS, 2)
WAYS = {
    "sequential": (runs.RUN, {"mode": "sequential"}),
    "beside": (runs.RUN, {"mode": "vmap", "chunk": CHUNK}),
    "population": (runs.TASK, {"rungs": POPULATION}),
    "within": (runs.TASK, {"mode": "vmap", "chunk": CHUNK}),
    "rungs": (runs.TASK, {"mode": "vmap", "chunk": CHUNK, "rungs": RUNGS}),
}


def told(way: str) -> int:
    """How many rows a child tells that nobody kills: one for each trial at a rung, or stopped."""
    if way == "population":
        return COUNT * len(POPULATION.levels(runs.STEPS))
    sizes = [size for size, _ in RUNGS.brackets[0]]
    return sum(sizes) + COUNT - sizes[-1] if way == "rungs" else COUNT


def table(way: str, **options) -> dict[str, np.ndarray]:
    """The columns of the sweep, but the seconds, and the best state."""
    run, how = WAYS[way]
    found = runs.sweep(run, TRIALS, **how, **options)
    columns = {name: x for name, x in found.columns.items() if name != "seconds"}
    columns["status"] = columns["status"].astype(str)
    return columns | ({} if found.state is None else {"best/w": found.state["w"]})


def train(directory: Path, way: str, quick: bool, pipe):
    """Tells each row, at the end the table; it saves as often as it can."""
    jax.config.update("jax_disable_most_optimizations", quick)
    told = lambda row: (pipe.send(int(row["id"])), time.sleep(0.01))
    often = mock.patch.multiple(_watch, EVERY=0.03, UNDER_WAY=0.03)
    cut = mock.patch.object(_calls.Calls, "_count", lambda self, left: min(left, CUT))
    with often, cut:
        pipe.send(table(way, checkpoint=directory, on_row=told))


def child(directory: Path, way: str, seconds: float | None) -> list:
    """What a child told until it was killed, so long after a save, or had come to its end."""
    receiver, sender = CHILDREN.Pipe(duplex=False)
    quick = jax.config.values["jax_disable_most_optimizations"]
    process = CHILDREN.Process(target=train, args=(directory, way, quick, sender), daemon=True)
    before = _steps(directory)
    process.start()
    sender.close()
    if seconds is not None:
        while process.is_alive() and _steps(directory) == before:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
    told = []
    with contextlib.suppress(EOFError):
        while True:
            told.append(receiver.recv())
    process.join()
    assert process.exitcode == 0 or seconds is not None
    return told


def kill(random: np.random.Generator, directory: Path, way: str) -> tuple[list[int], str]:
    """The rows of a child that was killed, and where in a save that was."""
    told = child(directory, way, random.uniform(0, 0.3))
    return [row for row in told if isinstance(row, int)], interrupted.phase(directory)


def end(directory: Path, way: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """The rows that were left, and the table."""
    *rows, columns = child(directory, way, None)
    return rows, columns


def other(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> list[str]:
    """The columns in which a bit differs."""
    assert got.keys() == want.keys()
    return [name for name, x in want.items() if x.tobytes() != got[name].tobytes()]


def _steps(directory):
    return damage.steps_of(directory) if directory.exists() else []
