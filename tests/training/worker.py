"""Runs of one and of several processes for `test_processes.py`, all at once: `worker.py folder`.

They are forks of this process, which has imported what they need, and not started jax.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  # takes a third of a second, once for all
from jax.sharding import Mesh

import lossopt as lo
from lossopt import _jax
from lossopt.training import STOP, Patience

ROWS, BATCH, EPOCHS = 23, 8, 5  # odd, so that the last batch has a row that no devices divide
STEPS, DEATH = 3 * EPOCHS, 6  # of a run; the row at which one dies
HEARTBEAT, LONG = 6, 120  # seconds; after the last a process is lost
WIDTH = 256
OPTIMIZER = optax.adam(0.01)
SIGNALS = {"killed": signal.SIGKILL, "first_killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


class Scene(NamedTuple):
    """So many processes of so many devices, and what each of them does."""

    processes: int
    devices: int
    act: Callable[["Place"], None]


@dataclasses.dataclass(frozen=True)
class Place:
    """A process of a scene, and where it leaves what it finds."""

    scene: str
    rank: int
    processes: int
    folder: Path

    def tell(self, name: str, value: Any):
        """Leaves what is found for the test."""
        (self.folder / f"{self.scene}_{self.rank}.{name}").write_bytes(pickle.dumps(value))

    def here(self, batches):
        """A stream of the part of each batch that this process reads."""
        mine = (jax.tree.map(lambda x: np.array_split(x, self.processes)[self.rank], b) for b in batches)
        return collections.deque(mine)


def rows(count, seed=0):
    random = np.random.default_rng(seed)
    x, w = random.normal(size=(count, 4)), random.uniform(0.5, 1.5, count)
    return jax.tree.map(np.float32, {"x": x, "y": x @ [1, -2, 0.5, 0] + 1, "w": w})


TRAIN, VALIDATION = rows(ROWS), rows(7, seed=1)
PARAMS = {"in": np.float32(np.random.default_rng(2).normal(size=(4, WIDTH))), "out": np.zeros(WIDTH, np.float32)}


def objective(params, batch, key=None):
    """A weighted fit of a hidden layer, with dropout where there is a key, and a penalty."""
    hidden = jnp.tanh(batch["x"] @ params["in"])
    if key is not None:
        hidden *= jax.random.bernoulli(key, 0.9, hidden.shape)
    errors = lo.losses.squared_error(hidden @ params["out"], batch["y"])
    penalty = lo.constant(lo.regularizers.L2(1e-3)(params))
    return {"fit": lo.mean(errors, batch["w"]), "penalty": penalty}


def quiet(params, batch):
    """Without dropout, which follows how batches are cut."""
    return objective(params, batch)


def fit(mesh, objective=objective, params=None, train=None, **options):
    """The run of these tests, or what differs from it."""
    given = {"mesh": mesh, "epochs": EPOCHS, "key": jax.random.key(3), "progress": False}
    if train is None:
        train = TRAIN
        given |= {"batch_size": BATCH, "validation": VALIDATION}
    params = PARAMS if params is None else params
    return lo.fit(objective, params, train, OPTIMIZER, **given | options)


def leaves(run):
    """All numbers of a run, by path, but the seconds; and why it stopped."""
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    found = jax.tree_util.tree_leaves_with_path(dataclasses.replace(run, history=history))
    return {jax.tree_util.keystr(path): _jax.on_host(x) for path, x in found}


def raised(do):
    """The error that it raises."""
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


# The deaths


def dies(place):
    """A run whose process dies at a row, after the steps before it were saved."""
    victim = 0 if place.scene == "first_killed" else 1

    def act(row, state):
        if row["step"] == DEATH and place.rank == victim:
            print(f"{time.time()} is when it begins", flush=True)
            os.kill(os.getpid(), SIGNALS[place.scene])

    run = partial(fsdp, on_epoch=act, check=False, evaluate_every=1)
    run(lo.parallel.mesh(1, -1), checkpoint=place.folder / place.scene, checkpoint_every=0)


def fsdp(mesh, **options):
    return fit(mesh, partition="fsdp", **options)


def act(name, scene, rank, port, folder):
    signal.alarm(LONG)
    out = os.open(folder / f"{name}_{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", scene.devices)
    if scene.processes > 1:
        lo.parallel.initialize(
            f"localhost:{port}", scene.processes, rank, heartbeat_timeout_seconds=HEARTBEAT
        )
    scene.act(Place(name, rank, scene.processes, folder))


SCENES = {name: Scene(2, 1, dies) for name in ("stopped", "killed", "first_killed")}


def main(folder, *names):
    runs, ended = {}, []
    for name in names or SCENES:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(SCENES[name].processes):
            run = os.fork()
            if not run:
                act(name, SCENES[name], rank, port, folder)
                return
            runs[name, rank] = run
    while len(ended) < len(runs):
        run, status = os.wait()
        [(name, rank)] = [key for key in runs if runs[key] == run]
        ended.append((name, rank, os.waitstatus_to_exitcode(status), time.time()))
        (folder / f"{name}_{rank}.ended").touch()
        if (name, rank) == ("stopped", 0):  # who is stopped hears no other signal
            os.kill(runs["stopped", 1], signal.SIGKILL)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
