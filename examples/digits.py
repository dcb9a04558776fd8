"""Handwritten digits: an objective of two terms, a fit that survives Ctrl-C, one compiled sweep."""

import pathlib
import signal
import sys
import tempfile
from functools import partial

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lossopt as lo

BATCH, EPOCHS = 64, 15


class Classifier(nn.Module):
    """A multilayer perceptron whose dropout is on when there is a key."""

    @nn.compact
    def __call__(self, x, key):
        """Logits of 10 classes for rows of 64 pixels."""
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
            x = nn.Dropout(0.2, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


def objective(params, batch, key, hyperparameters):
    """Cross entropy and a penalty on the kernels; accuracy is measured beside them."""
    logits = Classifier().apply(params, batch["x"], key)
    penalty = lo.regularizers.by_path({r"kernel$": lo.regularizers.L2(hyperparameters["strength"])})
    means = {
        "fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"])),
        "penalty": lo.constant(penalty(params)),
    }
    return means, {"metrics": {"accuracy": lo.mean(logits.argmax(-1) == batch["y"])}}


def optimizer(hyperparameters):
    """Adam behind a clipped gradient, with a warmed-up cosine."""
    rate, steps = hyperparameters["rate"], hyperparameters["steps"]
    first = hyperparameters["warmup"] * steps
    schedule = lo.schedules.warmup(lo.schedules.cosine(rate, steps - first), first)
    clip = lo.transforms.clip_by_global_norm(hyperparameters["clip"])
    return optax.chain(clip, optax.adam(schedule))


def main():
    """Fits, sweeps, prints, plots; fails below an accuracy of 0.97, or where a bit is lost."""
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits = load_digits()
    data = {"x": digits.data.astype(np.float32) / 16, "y": digits.target}
    rest, test = train_test_split(np.arange(len(digits.target)), test_size=360, random_state=0)
    train, valid = train_test_split(rest, test_size=300, random_state=0)
    train, valid, test = ({k: x[rows] for k, x in data.items()} for rows in (train, valid, test))
    steps = -(-len(train["y"]) // BATCH)  # an epoch
    key = jax.random.key(0)
    params = Classifier().init(key, train["x"][:1], None)
    common = {"batch_size": BATCH, "key": key, "validation": valid, "has_aux": True}

    fit = partial(
        lo.fit,
        objective,
        params,
        train,
        optimizer,
        epochs=100,
        hyperparameters={
            "rate": 3e-3,
            "strength": 1e-5,
            "warmup": 0.1,
            "clip": 1.0,
            "steps": 60 * steps,
        },
        stop=lo.training.Patience(15),
        **common,
    )
    run = fit()
    ended = len(run.history["step"])
    print(f"stopped after {ended} epochs: {run.stopped.value}; best epoch: {run.best_epoch + 1}")

    def ctrl_c(row, state):
        if row["step"] == 20 * steps:
            signal.raise_signal(signal.SIGINT)

    with tempfile.TemporaryDirectory() as folder:
        half = fit(checkpoint=folder, on_epoch=ctrl_c)
        again = fit(checkpoint=folder)  # the same call goes on
    kept = lambda run: jax.tree.leaves((run.params, run.opt_state, run.best_params, run.best_epoch))
    same = all(map(np.array_equal, kept(again), kept(run)))
    epochs = f"{half.steps // steps} and then to {again.steps // steps} epochs"
    print(f"{half.stopped.value} after {epochs}: the same bits: {same} (wanted: True)")

    task = lo.sweeps.task(
        objective,
        lambda key: Classifier().init(key, train["x"][:1], None),
        train,
        lambda numbers: optimizer({**numbers, "steps": EPOCHS * steps}),
        epochs=EPOCHS,
        batch_size=BATCH,
        validation=valid,
        has_aux=True,
    )
    space = {
        "rate": lo.sweeps.Log(1e-4, 1e-1),
        "strength": lo.sweeps.Log(1e-6, 1e-2),
        "warmup": lo.sweeps.Linear(0, 0.5),
        "clip": lo.sweeps.Log(0.03, 30),
    }
    trials = lo.sweeps.sobol(space, 64, jax.random.key(1))
    sweep = lo.sweep(task, trials, jax.random.key(2), score="validation/fit")
    print(sweep)
    print(sweep.interval("rate", within=0.25))

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 5), width_ratios=(2, 3), layout="constrained"
    )
    lo.plots.loss_curves(run, "fit", axis=left)
    left.set(ylabel="cross entropy", title=f"Digits: best after {run.best_epoch + 1} epochs")
    lo.plots.sweep(sweep, axis=right)
    most = next(iter(sweep.importance()))
    right.set_title(f"{len(sweep)} trials: the {most} matters most", pad=24)
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/digits.png", dpi=150)
    lo.plots.report(run, "figures/digits.html", title="Handwritten digits")
    lo.plots.report(sweep, "figures/sweep.html", title="A sweep on handwritten digits")

    given = {"has_aux": True, "hyperparameters": {"strength": 1e-5}}
    measured = lo.training.evaluate(objective, run.best_params, test, **given)
    accuracy = float(measured["accuracy"])
    print(f"test accuracy {accuracy:.4f} (wanted: 0.97)")
    print("figures/digits.png; a page for the run, digits.html, and one for the sweep, sweep.html")
    return 0 if same and accuracy >= 0.97 else 1


if __name__ == "__main__":
    sys.exit(main())
