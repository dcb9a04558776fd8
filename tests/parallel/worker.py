"""Two processes for each scene of `test_processes.py`, all at once: `worker.py folder`.

They are forks of this one, which has imported what they need, and not started jax.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import lossopt as lo
from lossopt import _processes

SCENES = "stopped", "killed", "first_killed", "raises", "agree"
SIGNALS = {"killed": signal.SIGKILL, "first_killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
LONG = 120  # seconds, after which a process is lost


def objective(params, batch):
    return {"fit": lo.mean(lo.losses.squared_error(batch["x"] @ params, batch["y"]))}


def rows(rank):
    x = np.random.default_rng(rank).normal(size=(3, 4)).astype(np.float32)
    return {"x": x, "y": x[:, 0]}


def train(rank, steps, event=lambda step: None):
    """Trains, with an event before each step, and returns the losses."""
    mesh, losses = lo.parallel.mesh(), []
    init, step = lo.train_step(objective, optax.sgd(0.1), mesh=mesh)
    state = init(np.ones(4, np.float32))
    batch = lo.parallel.global_batch(mesh, rows(rank))
    with lo.parallel.guard(), lo.parallel.guard():
        for i in range(steps):
            event(i)
            state, measured = step(state, batch)
            losses.append(float(measured.value))
    return losses


def dies(scene, rank):
    """Before its sixth step one of the two gets a signal, or raises."""

    def event(step):
        if step == 5 and rank == (scene != "first_killed"):
            begins()
            if scene == "raises":
                raise ValueError("an error of the user's")
            os.kill(os.getpid(), SIGNALS[scene])

    train(rank, 1000, event)


def begins():
    print(f"{time.time()} is when it begins", flush=True)


def agree(rank):
    """What processes tell each other, and what they refuse; then the first raises."""
    with pytest.raises(RuntimeError, match=f"another in process {rank} of 2. Leave it out"):
        lo.parallel.initialize("localhost:1", 2, rank)
    assert _processes.several()
    assert _processes.gathered([rank, -7]).tolist() == [[0, -7], [1, -7]]
    words = [{"rank": rank, "text": "ü" * 9 * rank} for rank in range(2)]
    assert _processes.told(words[rank]) == words
    large = np.array([2**32 - 1, rank], np.uint32)
    assert _processes.summed(large).tolist() == [2**32 - 2, 1]
    assert _processes.of_first(lambda: [rank, 3]) == [0, 3]
    with pytest.raises(LookupError, match="nothing in 0"):
        _processes.of_first(lambda: {}[f"nothing in {rank}"], [ValueError, LookupError])
    with pytest.raises(RuntimeError, match="division"):
        _processes.of_first(lambda: 1 // 0, [ValueError])
    _processes.same({"size": "3"}, "")
    text = "got 0 on process 0 and 1 on process 1. Do this."
    with pytest.raises(ValueError, match=f"Expected size alike on all processes, {text}"):
        _processes.same({"name": "a", "size": f"{rank}"}, "Do this.")
    lies(rank)
    refused(rank)
    losses = train(rank, 3)
    joined = [np.concatenate(pair) for pair in zip(*(rows(i).values() for i in range(2)))]
    np.testing.assert_allclose(losses, by_hand(*joined), rtol=1e-5)
    with lo.parallel.guard():
        if rank == 0:
            begins()
            raise SystemExit(3)
        _processes.gathered([0])


def by_hand(x, y):
    params, losses = np.ones(4), []
    for _ in range(3):
        error = x @ params - y
        losses.append(np.mean(error**2))
        params -= 0.1 * 2 * error @ x / len(x)
    return losses


def lies(rank):
    mesh = lo.parallel.mesh()
    mine = rows(rank) | {"wide": np.full(3, rank, np.float64)}
    batch = lo.parallel.global_batch(mesh, mine)
    mine["x"][:] = 0
    assert jax.tree.map(np.shape, batch) == {"x": (6, 4), "y": (6,), "wide": (6,)}
    [part] = batch["x"].addressable_shards
    assert part.index[0] == slice(3 * rank, 3 * rank + 3)
    np.testing.assert_array_equal(part.data, rows(rank)["x"])
    assert batch["wide"].dtype == np.float32
    with pytest.raises(ValueError, match=r"got local_rows.*, which lies on others, too"):
        lo.parallel.global_batch(mesh, batch)


def refused(rank):
    """Alike on both, though one of them alone gives what is wrong."""
    mesh, good, first = lo.parallel.mesh(), rows(0), rank == 0
    alone = Mesh(jax.devices()[:1], ("data",))
    turned = Mesh(jax.devices()[::-1], ("data",))
    for given, text in {
        "another number of rows": ({"x": good["x"][: 3 - rank]}, r"'x'\] .*\(3, 4\) on process 0 "),
        "another dtype": ({"x": good["y"].astype(int if first else float)}, "int32.*and float32"),
        "another structure": (good if first else {"x": good["x"]}, "structure of local_rows alike"),
        "ragged": (good if first else good | {"z": np.ones(2)}, "got no error .* leading axis"),
        "no arrays": (np.array(["a"]) if first else good, "TypeError.* on process 0 and no error"),
    }.values():
        with pytest.raises(ValueError, match=text):
            lo.parallel.global_batch(mesh, given)
    with pytest.raises(ValueError, match=r"all 2 processes, got none of process 1\. Make it"):
        lo.parallel.global_batch(alone, good)
    with pytest.raises(ValueError, match="Expected mesh alike on all processes"):
        lo.parallel.global_batch(turned if first else mesh, good)


def act(scene, rank, port, folder):
    signal.alarm(LONG)
    out = os.open(folder / f"{scene}_{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    lo.parallel.initialize(f"localhost:{port}", 2, rank)
    agree(rank) if scene == "agree" else dies(scene, rank)


def main(folder):
    runs, ended = {}, []
    for scene in SCENES:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(2):
            run = os.fork()
            if not run:
                act(scene, rank, port, folder)
                return
            runs[scene, rank] = run
    while len(ended) < len(runs):
        run, status = os.wait()
        [(scene, rank)] = [name for name in runs if runs[name] == run]
        ended.append((scene, rank, os.waitstatus_to_exitcode(status), time.time()))
        if (scene, rank) == ("stopped", 0):  # who is stopped hears no other signal
            os.kill(runs["stopped", 1], signal.SIGKILL)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
