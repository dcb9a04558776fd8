"""A run of all kinds of state at once, whole, interrupted, and killed in a process of its own."""

import contextlib
import dataclasses
import signal
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lossopt as lo
from lossopt.training import Patience, _host
from tests.checkpoint.interrupted import CHILDREN

ROWS, BATCH, EVERY, EPOCHS = 22, 8, 4, 16  # a ragged last batch; rows of history across epochs
PER_EPOCH = 3
KEY = jax.random.key(3)
RATE = optax.cosine_decay_schedule(0.3, EPOCHS * PER_EPOCH)
OPTIMIZER = optax.contrib.schedule_free(optax.adam(RATE, b1=0.0), RATE)
RNG = np.random.default_rng(0)
TRAIN = {"x": RNG.normal(size=(ROWS, 3)).astype(np.float32)}
TRAIN["y"] = TRAIN["x"] @ np.float32([1, -2, 0.5]) + RNG.normal(size=ROWS).astype(np.float32)
VALIDATION = jax.tree.map(lambda x: x[:5] + 1, TRAIN)
STOP = Patience(3, min_delta=0.2)  # it waits at row 2, accepts row 3, and stops at row 6


def objective(params, batch, key, model_state, hyperparameters):
    """Dropout, a running mean, a metric, and a penalty."""
    x = batch["x"]
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.8, x.shape)
    errors = (x @ params["w"] - batch["y"]) ** 2
    means = {
        "fit": lo.mean(errors),
        "penalty": lo.constant(hyperparameters * jnp.sum(params["w"] ** 2)),
    }
    seen = {**model_state, "mean": 0.9 * model_state["mean"] + 0.1 * x.mean(axis=0)}
    return means, {"metrics": {"near": lo.mean(errors < 1)}, "model_state": seen}


def fit(params=None, train=None, optimizer=OPTIMIZER, objective=objective, **options):
    """The run, or what differs from it."""
    given = {"epochs": EPOCHS, "evaluate_every": EVERY, "batch_size": BATCH, "key": KEY}
    given |= {"validation": VALIDATION, "stop": STOP, "microbatches": 2, "has_aux": True}
    given |= {"model_state": {"mean": jnp.zeros(3)}, "hyperparameters": 0.01, "progress": False}
    given |= {"evaluate_at": optax.contrib.schedule_free_eval_params}
    params = {"w": jnp.zeros(3)} if params is None else params
    train = TRAIN if train is None else train
    return lo.fit(objective, params, train, optimizer, **given | options)


def leaves(run):
    """All numbers of a run, by path, but the seconds."""
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    found = jax.tree_util.tree_leaves_with_path(dataclasses.replace(run, history=history))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}


def same(got, want):
    """Fails where a bit differs."""
    assert got.keys() == want.keys()
    other = [name for name, x in want.items() if x.tobytes() != got[name].tobytes()]
    assert not other, {name: (got[name], want[name]) for name in other}


@contextlib.contextmanager
def interrupted(step):
    """Ctrl-C once so many steps were taken, in calls of one step."""

    @contextlib.contextmanager
    def bar(unit, total, shown):
        def show(done, row, seconds):
            if round(done * (PER_EPOCH if unit == "epochs" else 1)) == step:
                signal.raise_signal(signal.SIGINT)

        yield show

    adapted = mock.patch.object(_host, "_adapted", return_value=1)
    with mock.patch.object(_host, "bar", bar), adapted:
        yield


def train(directory: Path, patience, pipe):
    """Tells each row of history, and at the end all numbers."""

    def told(row, state):
        pipe.send(int(row["step"]))
        time.sleep(0.01)

    stop = Patience(patience, min_delta=0.2)
    run = fit(epochs=999, stop=stop, checkpoint=directory, checkpoint_every=0, on_epoch=told)
    pipe.send(leaves(run))


def child(directory, patience, rows, seconds):
    """Rows that a child told until it was killed, or had come to its end, and what it left."""
    receiver, sender = CHILDREN.Pipe(duplex=False)
    process = CHILDREN.Process(target=train, args=(directory, patience, sender), daemon=True)
    process.start()
    sender.close()
    told = []
    with contextlib.suppress(EOFError):
        while rows is None or len(told) < rows:
            told.append(receiver.recv())
        time.sleep(seconds)
    if rows is not None:
        process.kill()
    process.join()
    assert process.exitcode == (0 if rows is None else -9)
    return told
