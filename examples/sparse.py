"""Feature selection: the weights of a diagnosis that are exactly zero, against scikit-learn."""

import argparse
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import lossopt as lo


def objective(params, batch, lasso):
    """Cross entropy, and the value of the penalty; its slope is the optimizer's."""
    logits = batch["x"] @ params["kernel"] + params["bias"]
    fit = lo.mean(lo.losses.sigmoid_cross_entropy(logits, batch["y"]))
    return {"fit": fit, "penalty": lo.constant(lasso(params), gradient=False)}


def main():
    """Sweeps the strength in one program, prints, plots; fails where the zeros are others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer strengths")
    count = 3 if parser.parse_args().quick else 12
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    data, labels = load_breast_cancer(return_X_y=True)
    train, valid = train_test_split(np.arange(len(labels)), test_size=169, random_state=0)
    x = StandardScaler().fit(data[train]).transform(data)
    rows = lambda rows: {"x": np.float32(x[rows]), "y": np.float32(labels[rows])}
    start = {"kernel": jnp.zeros(x.shape[1]), "bias": jnp.zeros(())}
    strengths = np.float32(np.geomspace(0.2, 0.02, count))

    def fit(strength, batch_size, epochs):
        lasso = lo.regularizers.by_path({"kernel": lo.regularizers.L1(strength)})
        steps = epochs * -(-len(train) // batch_size)
        rate = 0.3 if batch_size == len(train) else lo.schedules.cosine(0.03, steps)
        optimizer = lo.transforms.momentum(rate, 0.9, regularizer=lasso)
        sizes = {"epochs": epochs, "batch_size": batch_size, "key": jax.random.key(0)}
        penalized = partial(objective, lasso=lasso)
        run = lo.training.run(penalized, start, rows(train), optimizer, **sizes)
        return run.params, penalized(run.params, rows(valid))["fit"].value

    whole, losses = jax.jit(jax.vmap(lambda s: fit(s, len(train), 10_000)))(strengths)
    noisy, _ = jax.jit(jax.vmap(lambda s: fit(s, 32, 200)))(strengths)

    table = Table("strength", "validation", "kept", "scikit-learn: validation", "kept", "batches")
    missed = 0
    for i, strength in enumerate(strengths):
        numbers = {"C": 1 / (strength * len(train)), "l1_ratio": 1, "solver": "saga"}
        model = LogisticRegression(**numbers, tol=1e-8, max_iter=100_000)
        model.fit(x[train], labels[train])
        want, kept = model.coef_[0] != 0, np.asarray(whole["kernel"][i]) != 0
        loss = log_loss(labels[valid], model.predict_proba(x[valid]))
        drawn = np.asarray(noisy["kernel"][i]) != 0
        flips = f"{drawn.sum()}, {(drawn != want).sum()} other"
        row = (f"{strength:.3f}", f"{losses[i]:.4f}", kept.sum(), f"{loss:.4f}", want.sum(), flips)
        table.add_row(*map(str, row))
        missed += (kept != want).any() or abs(losses[i] - loss) > 1e-3
    Console().print(table)
    print("batches: what minibatches of 32 keep, and how many of these choices differ")

    figure, axes = plt.subplots(layout="constrained")
    axes.plot(strengths, whole["kernel"])
    axes.set(xlabel="strength of L1", ylabel="weight", xscale="log", title="breast cancer")
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/sparse.png", dpi=150)
    print(f"strengths with other zeros or another loss: {missed} (wanted: 0), figures/sparse.png")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
