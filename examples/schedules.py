"""Does a schedule beat a fixed rate? Lengths of the decay x rates x seeds, all one program."""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo


def objective(params, batch):
    """Cross entropy of a perceptron with one hidden layer."""
    logits = jax.nn.relu(batch["x"] @ params["in"] + params["bias"]) @ params["out"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


def main():
    """Sweeps, runs the winners again under new keys, prints; fails where all decays are worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rates, seeds and epochs")
    points, seeds, epochs = (4, 3, 4) if parser.parse_args().quick else (10, 8, 10)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits = load_digits()
    data = {"x": np.float32(digits.data / 16), "y": digits.target}
    parts = np.split(np.random.default_rng(0).permutation(len(digits.target)), [1088])
    train, validation = ({name: x[rows] for name, x in data.items()} for rows in parts)
    steps = epochs * 1088 // 16

    def trial(numbers, key):
        first, last, order = jax.random.split(key, 3)
        draw = jax.nn.initializers.he_normal()
        params = {"in": draw(first, (64, 32)), "bias": jnp.zeros(32), "out": draw(last, (32, 10))}
        decay = numbers["decay"] * steps  # a length, traced; 0 is the fixed rate
        schedule = lo.schedules.trapezoid(numbers["rate"], steps, warmup=0, decay=decay)
        rule = lo.transforms.momentum(schedule, 0.9)
        sizes = {"epochs": epochs, "batch_size": 16, "key": order}
        params = lo.training.run(objective, params, train, rule, **sizes).params
        return lo.value(objective(params, validation))

    space = {"rate": lo.sweeps.Log(0.01, 0.5), "decay": lo.sweeps.Choice([0, 0.25, 0.5, 1])}
    trials = lo.sweeps.grid(space, {"rate": points})
    sweep = lo.sweep(trial, trials.repeat(seeds), jax.random.key(1))
    tuned = sweep.mean()
    best = [tuned[tuned["decay"] == decay].best["id"] for decay in np.unique(tuned["decay"])]
    # The luckiest of many rates is not as good as it looked: each winner again, under new keys.
    again = lo.sweep(trial, trials[best].repeat(2 * seeds), jax.random.key(2))

    fixed, *others = (again.mean()[row] for row in range(len(best)))
    table = Table("decay over", "best rate", "loss as tuned", "under new keys", "against none")
    for at, row in zip(best, (fixed, *others)):
        apart = abs(row["loss"] - fixed["loss"]) - 2 * (row["loss/error"] + fixed["loss/error"])
        lower = "lower" if row["loss"] < fixed["loss"] else "higher"
        told = "" if row is fixed else lower if apart > 0 else f"{lower}, but intervals overlap"
        loss = f"{row['loss']:.4f} ± {2 * row['loss/error']:.4f}"
        tuned_loss = f"{tuned['loss'][tuned['id'] == at][0]:.4f}"
        table.add_row(f"{row['decay']:.0%}", f"{row['rate']:.2g}", tuned_loss, loss, told)
    Console().print(table)
    print(f"intervals: two standard errors of {2 * seeds} seeds to either side")

    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    lo.plots.sweep(sweep, ["rate", "decay"], axis=axis)
    axis.set(xlabel="learning rate", ylabel="share of the steps that decay to 0")
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/schedules.png", dpi=150)
    ratio = min(row["loss"] for row in others) / fixed["loss"]
    print(f"best decay over the best fixed rate: {ratio:.2f} (wanted: below 0.95)")
    return int(ratio >= 0.95)


if __name__ == "__main__":
    sys.exit(main())
