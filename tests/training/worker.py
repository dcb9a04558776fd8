"""Runs of one and of several processes for `test_processes.py`, all at once: `worker.py folder`.

They are forks of this process, which has imported what they need, and not started jax. What a
process finds it pickles for the test.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import shutil
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
import orbax.checkpoint  # noqa: F401  # so that not each of them imports it
from jax.sharding import Mesh

import lossopt as lo
from lossopt._processes import whole
from lossopt.training import STOP, Patience

ROWS, BATCH, EPOCHS = 32, 8, 6  # of which a quarter validates
ODD = 23  # rows, which devices do not divide
WIDTH = 256  # so that FSDP spreads a matrix
DEATH = 3  # the row of history after which one dies
HEARTBEAT = int(os.environ.get("HEARTBEAT", "6"))  # seconds
LONG = 1800  # likewise, after which a process is lost
OPTIMIZER = optax.adam(0.01)
SIGNALS = {"killed": signal.SIGKILL, "first_killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def rows(count, seed=0):
    random = np.random.default_rng(seed)
    x, w = random.normal(size=(count, 4)), random.uniform(0.5, 1.5, count)
    return jax.tree.map(np.float32, {"x": x, "y": x @ [1, -2, 0.5, 0] + 1, "w": w})


PARAMS = {
    "in": np.float32(np.random.default_rng(2).normal(size=(4, WIDTH))),
    "out": np.zeros(WIDTH, np.float32),
}
TRAIN, VALIDATION = rows(ROWS), rows(7, seed=1)
# Rows that two processes read of each batch. The pass of the first ends before that of the second.
PARTS = ((6, 6), (5, 3), (0, 6))


def objective(params, batch, key=None):
    """A weighted fit of a hidden layer, with dropout where there is a key, and a penalty."""
    hidden = jnp.tanh(batch["x"] @ params["in"])
    if key is not None:
        hidden *= jax.random.bernoulli(key, 0.9, hidden.shape)
    errors = lo.losses.squared_error(hidden @ params["out"], batch["y"])
    penalty = lo.constant(lo.regularizers.L2(1e-3)(params))
    return {"fit": lo.mean(errors, batch["w"]), "penalty": penalty}


def quiet(params, batch):
    """Without dropout, which follows how rows are cut."""
    return objective(params, batch)


def fit(mesh, objective=objective, params=PARAMS, train=TRAIN, **options):
    """A run of batches with validation, which stops early; or what differs from it."""
    given = {"mesh": mesh, "epochs": EPOCHS, "key": jax.random.key(3), "progress": False}
    given |= {"batch_size": BATCH, "validation": 0.25, "stop": Patience(1, min_delta=0.1)}
    return lo.fit(objective, params, train, OPTIMIZER, **given | options)


def four(mesh, **options):
    """FSDP of rows that are drawn as two devices draw them."""
    return fit(mesh, partition="fsdp", check=False, **{"shards": 2} | options)


def odd(mesh, **options):
    """FSDP of batches of all rows, which devices do not divide."""
    given = {"batch_size": None, "validation": VALIDATION, "stop": None, "partition": "fsdp"}
    return fit(mesh, train=rows(ODD), check=False, **given | options)


def streamed(mesh, train, **options):
    """A run of batches of a stream."""
    given = {"batch_size": None, "validation": None, "stop": None, "epochs": 2, "check": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "train has (no state|batches of)")
        return fit(mesh, quiet, train=train, **given | options)


def leaves(run):
    """All numbers of a run, by path, but the seconds."""
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    found = jax.tree_util.tree_leaves_with_path(dataclasses.replace(run, history=history))
    return {jax.tree_util.keystr(path): whole(x) for path, x in found}


def raised(do):
    """The error that it raises, in words."""
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def parts(rank=None):
    """What one of two processes reads of each batch, or all of it."""
    ends = np.cumsum([0, *np.ravel(PARTS)])
    cut = [jax.tree.map(lambda x, i=i: x[ends[i] : ends[i + 1]], rows(99)) for i in range(6)]
    joined = [jax.tree.map(lambda *xs: np.concatenate(xs), *cut[i : i + 2]) for i in (0, 2, 4)]
    return joined if rank is None else [b for b in cut[rank::2] if len(b["y"])]


class Loader:
    """Batches that are read again in each pass; one that is None fails."""

    def __init__(self, batches):
        self.batches, self.at, self.begin = list(batches), 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.at, self.begin = self.begin, 0
        return self.rest(self.at)

    def rest(self, begin):
        for number, batch in enumerate(self.batches[begin:], begin):
            if batch is None:
                raise ConnectionError("the disk is away")
            self.at = number + 1
            yield batch


class Told(Loader):
    """A loader that tells where it is."""

    def state(self):
        return self.at

    def restore(self, state):
        self.begin = state


@dataclasses.dataclass(frozen=True)
class Place:
    """A process of a scene, and where it leaves what it finds."""

    scene: str
    rank: int
    folder: Path

    def tell(self, name: str, value: Any):
        """Leaves it for the test, whole or not at all."""
        path = self.folder / f"{self.scene}_{self.rank}.{name}"
        path.with_suffix(".half").write_bytes(pickle.dumps(value))
        path.with_suffix(".half").rename(path)

    def wait(self, *names: str):
        """Until others have left something of these names."""
        while not all((self.folder / name).exists() for name in names):
            time.sleep(0.1)

    def begins(self):
        """What is measured in seconds."""
        print(f"{time.time()} is when it begins", flush=True)

    def at(self, step: int, rank: int, do: Callable[[], Any]):
        """An `on_epoch` that does something in one process alone."""
        here = rank == self.rank
        return lambda row, state: do() if here and row["step"] == step else None


def dies(place):
    """A run one of whose processes dies at a row, after the steps before it were saved."""
    mesh, victim = lo.parallel.mesh(1, -1), 0 if place.scene == "first_killed" else 1

    def die():
        place.begins()
        os.kill(os.getpid(), SIGNALS[place.scene])

    act = place.at(DEATH, victim, die)
    odd(mesh, on_epoch=act, checkpoint=place.folder / place.scene, checkpoint_every=0)


def single(place):
    """What one process finds with two devices, with four and with one."""
    two, many = lo.parallel.mesh(1, 2), lo.parallel.mesh(1, 4)
    place.tell("data", leaves(fit(lo.parallel.mesh(2))))
    place.tell("odd", leaves(odd(two)))
    place.tell("four", leaves(four(many)))
    place.wait("pair_0.interrupted", "pair_1.interrupted")
    copy = shutil.copytree(place.folder / "data", place.folder / "copy")
    place.tell("restarted", leaves(four(many, checkpoint=copy, shards=None)))
    place.wait("pair_0.streamed", "pair_1.streamed")
    stream = partial(streamed, two, Told(parts()), validation=Loader([VALIDATION]))
    stream = partial(stream, checkpoint=place.folder / "stream", evaluate_every=1)
    place.tell("fewer", raised(stream))


def square(place):
    """The same with two processes of two devices; then one has an error of its own."""
    mesh = lo.parallel.mesh(1, 4)
    place.tell("four", leaves(four(mesh)))

    act, checkpoint = place.at(6, 1, {}.popitem), place.folder / "raises"
    place.tell("raised", raised(partial(four, mesh, on_epoch=act, checkpoint=checkpoint)))


def pair(place):
    """All that two processes of one device do together."""
    meshes = lo.parallel.mesh(2), lo.parallel.mesh(1, 2)
    in_memory(place, *meshes)
    interrupted(place, meshes[0])
    streams(place, meshes[0])
    refused(place, meshes[0])
    place.wait(*(f"{name}_{rank}.ended" for name in SIGNALS for rank in range(2)))
    for name in SIGNALS:
        seen = []
        act = lambda row, state, seen=seen: seen.append(int(row["step"]))
        run = odd(meshes[1], checkpoint=place.folder / name, on_epoch=act)
        place.tell(name, (seen[0], leaves(run)))
    batches = parts(place.rank)[:1] * 4 + [None] * (place.rank == 0)
    saved = {"checkpoint": place.folder / "loader", "checkpoint_every": 0}
    place.tell("raised", raised(partial(streamed, meshes[0], Loader(batches), **saved)))


def in_memory(place, data, fsdp):
    """Runs of rows in memory, which one process with two devices takes as well."""
    run = fit(data)
    place.tell("data", leaves(run))
    mine = jax.tree.map(lambda x: np.split(x, 2)[place.rank], TRAIN)
    place.tell("global", leaves(fit(data, train=lo.parallel.global_batch(data, mine))))
    found = odd(fsdp)
    place.tell("odd", leaves(found))
    place.tell("part", found.params["in"].addressable_shards[0].data.shape)
    part = jax.tree.map(lambda x: np.split(x, [3])[place.rank], VALIDATION)
    for name, given in {"array": VALIDATION, "stream": Loader([part])}.items():
        measured = lo.training.evaluate(quiet, run.params, given, mesh=data)
        place.tell(f"evaluated_{name}", {name: float(x) for name, x in measured.items()})


def interrupted(place, mesh):
    """Ends that one process alone asks for, and how the run goes on."""
    called, checkpoint = [], place.folder / "data"
    signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    end = partial(signal.raise_signal, signal.SIGINT)
    run = fit(mesh, on_epoch=place.at(3, 1, end), checkpoint=checkpoint)
    place.tell("interrupted", (run.stopped, int(run.steps)))
    end = partial(signal.raise_signal, signal.SIGTERM)
    run = fit(mesh, on_epoch=place.at(6, 0, end), checkpoint=place.folder / "terminated")
    place.tell("terminated", (run.stopped, int(run.steps), called))
    run = fit(mesh, on_epoch=place.at(6, 1, lambda: STOP))
    place.tell("asked", (run.stopped, int(run.steps)))
    place.tell("goes_on", leaves(fit(mesh, checkpoint=place.folder / "terminated")))


def streams(place, mesh):
    """Batches of which each process reads its part, whole and in two runs."""
    validation = Loader([jax.tree.map(lambda x: np.split(x, [3])[place.rank], VALIDATION)])
    given = {"evaluate_every": 1, "validation": validation}
    stream, told = partial(collections.deque, parts(place.rank)), Told(parts(place.rank))
    place.tell("stream", leaves(streamed(mesh, stream(), **given)))
    checkpoint = {"checkpoint": place.folder / "stream"} | given
    streamed(mesh, told, epochs=None, steps=3, **checkpoint)
    place.tell("streamed", leaves(streamed(mesh, told, epochs=None, steps=6, **checkpoint)))
    checkpoint = {"checkpoint": place.folder / "again"} | given
    streamed(mesh, stream(), epochs=None, steps=4, **checkpoint)
    place.tell("again", leaves(streamed(mesh, stream(), epochs=None, steps=6, **checkpoint)))


def refused(place, mesh):
    """What is wrong on one process, or on both."""
    rank, first = place.rank, place.rank == 0
    checkpoint = {"checkpoint": place.folder / "terminated"}
    other = {**TRAIN, "y": TRAIN["y"] + rank}
    halves = jax.tree.map(lambda x: x[: 16 + rank], TRAIN)
    wide = [{**parts(0)[0], "x": np.ones((6, 4 + rank), np.float32)}]
    model = Mesh(np.reshape(jax.devices(), (1, 2)), ("data", "model"))  # both have all rows
    given = {
        "data": {"train": other},
        "rows": {"train": halves},
        "params": {"params": {**PARAMS, "out": PARAMS["out"] + rank}},
        "key": {"key": jax.random.key(rank)},
        "batch_size": {"batch_size": 8 + 8 * rank},
        "stop": {"stop": Patience(1 + rank)},
        "check": {"check": first},
        "kind": {"train": TRAIN if first else Loader([TRAIN]), "batch_size": None},
        "checkpoint": checkpoint if first else {},
        "left_out": {"mesh": Mesh(jax.devices()[:1], ("data",))},
        "mesh": {"mesh": Mesh(jax.devices()[:: 1 if first else -1], ("data",))},
        "alike": {"mesh": model, "validation": Loader([TRAIN])},
        "shards": {"shards": 1} | checkpoint,
        "structure": {"params": {**PARAMS, "in": PARAMS["in"][:, :4], "out": np.zeros(4)}}
        | checkpoint,
    }
    common = {"mesh": mesh, "check": False}
    found = {name: raised(partial(fit, **common | x)) for name, x in given.items()}
    found["wide"] = raised(partial(streamed, mesh, Loader(wide)))
    found["first"] = raised(partial(streamed, mesh, Loader([None if first else parts(1)[0]])))
    found["measured"] = raised(
        partial(lo.training.evaluate, objective, PARAMS, Loader([TRAIN]), mesh=model)
    )
    place.tell("refused", found)


def act(name, scene, rank, port, folder):
    signal.alarm(LONG)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    out = os.open(folder / f"{name}_{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", scene.devices)
    if scene.processes > 1:
        address = f"localhost:{port}"
        lo.parallel.initialize(address, scene.processes, rank, heartbeat_timeout_seconds=HEARTBEAT)
    scene.do(Place(name, rank, folder))


class Scene(NamedTuple):
    """So many processes of so many devices, and what each of them does."""

    processes: int
    devices: int
    do: Callable[[Place], None]


SCENES = {"pair": Scene(2, 1, pair), "single": Scene(1, 4, single), "square": Scene(2, 2, square)}
SCENES |= {name: Scene(2, 1, dies) for name in SIGNALS}


def main(folder, scenes):
    """Tells how each process ended, when all have."""
    runs, ended = {}, []
    for name, scene in scenes.items():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(scene.processes):
            run = os.fork()
            if not run:
                act(name, scene, rank, port, folder)
                return
            runs[name, rank] = run
    while len(ended) < len(runs):
        run, status = os.wait()
        [(name, rank)] = [key for key in runs if runs[key] == run]
        ended.append((name, rank, os.waitstatus_to_exitcode(status), time.time()))
        (folder / f"{name}_{rank}.ended").touch()
        if (name, rank) == ("stopped", 0):  # who is stopped hears no other signal
            with contextlib.suppress(ProcessLookupError):
                os.kill(runs["stopped", 1], signal.SIGKILL)
    print(json.dumps(ended))


if __name__ == "__main__":
    names = sys.argv[2:] or SCENES
    main(Path(sys.argv[1]), {name: SCENES[name] for name in names})
