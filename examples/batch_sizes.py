"""Batch, stochastic, mini-batch: one fit with batches of all rows, of 1 and of 32."""

import argparse
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo

RATES = np.float32([0.03, 0.1, 0.3, 1, 3, 10])


def objective(params, batch):
    """Cross entropy of a linear classifier."""
    logits = batch["x"] @ params["kernel"] + params["bias"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


def main():
    """Fits with each size at its own best rate, prints, plots; fails unless small sizes lead."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs and rows")
    epochs, rows = (3, 384) if parser.parse_args().quick else (20, 1797)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits = load_digits()
    train = {"x": np.float32(digits.data[:rows] / 16), "y": digits.target[:rows]}
    start = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    first = float(lo.training.evaluate(objective, start, train)["fit"])

    table = Table("batch", "best rate", "loss", "steps", "seconds", title=f"{epochs} epochs")
    figure, (by_examples, by_seconds) = plt.subplots(1, 2, sharey=True, layout="constrained")
    common = {"epochs": epochs, "key": jax.random.key(0), "best": "train"}
    last = {}
    for size in track((rows, 1, 32), "sizes"):
        curves, seconds = {}, []
        for rate in RATES:  # a number given at run time: the first fit compiles for all
            begun, given = time.perf_counter(), {"batch_size": size, "hyperparameters": rate}
            run = lo.fit(objective, start, train, optax.sgd, **given, **common)
            seconds.append(time.perf_counter() - begun)
            if run.stopped is lo.training.Stopped.FINISHED:
                curves[rate] = np.append(first, run.history["trained/fit"])
        rate = min(curves, key=lambda rate: curves[rate].mean())
        last[size], steps = curves[rate][-1], epochs * -(-rows // size)
        row = f"{size}", f"{rate:.2g}", f"{last[size]:.4f}", f"{steps}", f"{min(seconds):.2f}"
        table.add_row(*row)
        for axes, end in ((by_examples, epochs * rows), (by_seconds, min(seconds))):
            axes.plot(np.linspace(0, end, epochs + 1), curves[rate], label=f"batches of {size}")
    Console().print(table)

    by_examples.set(xlabel="examples", ylabel="cross entropy", yscale="log", title="digits")
    by_seconds.set(xlabel="seconds")
    figure.legend(*by_examples.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/batch_sizes.png", dpi=150)
    share = max(last[1], last[32]) / last[rows]
    print(f"loss of small batches over that of all rows, after as many examples: {share:.2f}")
    print("wanted: below 0.5, curves in figures/batch_sizes.png")
    return int(share >= 0.5)


if __name__ == "__main__":
    sys.exit(main())
