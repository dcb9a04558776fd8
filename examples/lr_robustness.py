"""How forgiving is the learning rate of Adam, momentum and RMSProp? One sweep of all three."""

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

T = lo.transforms
RULES = {"adam": T.adam, "momentum": lambda rate: T.momentum(rate, 0.9), "rmsprop": T.rmsprop}


def objective(params, batch):
    """Cross entropy of a perceptron with one hidden layer."""
    logits = jax.nn.relu(batch["x"] @ params["in"] + params["bias"]) @ params["out"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


def main():
    """Sweeps rates x rules x seeds, prints, plots; fails where an interval has no two ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rates, seeds and epochs")
    points, seeds, epochs = (9, 2, 4) if parser.parse_args().quick else (25, 5, 20)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits = load_digits()
    data = {"x": np.float32(digits.data / 16), "y": digits.target}
    train, validation = lo.training.split(data, 0.25, jax.random.key(0))

    def trial(numbers, key):
        layers, bias, order = jax.random.split(key, 3)
        draw = jax.nn.initializers.he_normal()
        params = {"in": draw(layers, (64, 32)), "bias": jnp.zeros(32), "out": draw(bias, (32, 10))}
        rule = RULES[numbers["rule"]](numbers["rate"])
        sizes = {"epochs": epochs, "batch_size": 32, "key": order}
        run = lo.training.run(objective, params, train, rule, **sizes)
        return lo.value(objective(run.params, validation))

    space = {"rate": lo.sweeps.Log(1e-4, 10), "rule": lo.sweeps.Static(tuple(RULES))}
    trials = lo.sweeps.grid(space, points).repeat(seeds)
    sweep = lo.sweep(trial, trials, jax.random.key(1))
    print(sweep)

    table = Table("rule", "lowest loss", "at rate", "good from", "to", "decades")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for rule, axis in zip(RULES, axes):
        part = sweep[sweep["rule"] == rule]
        best, good = part.best, part.interval("rate", within=0.25)
        numbers = best["rate"], good.low, good.high, good.decades
        table.add_row(rule, f"{best['loss']:.4f}", *(f"{x:.2g}" for x in numbers))
        lo.plots.sweep(part, "rate", within=0.25, axis=axis)
    Console().print(table)
    figure.savefig("/tmp/wt/scratch-docs/lr.png", dpi=100)


if __name__ == "__main__":
    sys.exit(main())
