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
WITHIN = 0.5
RULES = {"adam": T.adam, "momentum": lambda rate: T.momentum(rate, 0.9), "rmsprop": T.rmsprop}


def objective(params, batch):
    """Cross entropy of a perceptron with one hidden layer."""
    logits = jax.nn.relu(batch["x"] @ params["in"] + params["bias"]) @ params["out"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


def main():
    """Sweeps rates x rules x seeds, prints, plots; fails where an interval has no two ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rates, seeds and epochs")
    points, seeds, epochs = (9, 2, 3) if parser.parse_args().quick else (25, 5, 20)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits = load_digits()
    data = {"x": np.float32(digits.data / 16), "y": digits.target}
    parts = np.split(np.random.default_rng(0).permutation(len(digits.target)), [1344])
    train, validation = ({name: x[rows] for name, x in data.items()} for rows in parts)

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
    ends = []
    for rule, axis in zip(RULES, axes):
        part = sweep[sweep["rule"] == rule]
        best, good = part.best, part.interval("rate", within=WITHIN)
        numbers = best["rate"], good.low, good.high, good.decades
        table.add_row(rule, f"{best['loss']:.4f}", *(f"{x:.2g}" for x in numbers))
        lo.plots.sweep(part, "rate", within=WITHIN, axis=axis)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small")
        axis.set_title(f"{rule}: good over {good.decades:.1f} decades")
        ends += [good.below, good.above]
    Console().print(table)
    told = f"good: a mean of {seeds} seeds of at most {1 + WITHIN} times the lowest of the rule"
    print(f"{told}; ends to {np.log10(10 / 1e-4) / (points - 1):.2g} decades, and of this task")
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/lr_robustness.png", dpi=150)
    inside = int(np.sum(np.isfinite(ends)))
    print(f"ends inside of the rates tried: {inside} of 6 (wanted: 6), figures/lr_robustness.png")
    return int(inside < 6)


if __name__ == "__main__":
    sys.exit(main())
