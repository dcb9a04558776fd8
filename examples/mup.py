"""Does the best rate of a narrow network serve a wide one? Widths x rates x seeds, muP and not.

muP, here for Adam, is a start and factors: the head starts at zero, and the steps of the hidden and
head kernels are multiplied by 64 / width (Yang, Hu et al., Tensor Programs V, 2022). The score is
the mean training loss of all 100 steps: at their end the loss is too flat and too noisy to tell.
SGD with momentum shows nothing, for there the rate serves both widths as it is.
"""

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

WIDTHS = 64, 512
NAMES = "standard", "muP"


def objective(params, batch):
    """Cross entropy of a perceptron with two hidden layers."""
    dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]
    x = jax.nn.relu(dense(batch["x"], params["input"]))
    logits = dense(jax.nn.relu(dense(x, params["hidden"])), params["head"])
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


def start(width, mup, key):
    """Kernels of variance 2 / inputs, biases of 0; with muP the head is 0, too."""
    draw, keys = jax.nn.initializers.he_uniform(), jax.random.split(key, 3)
    sizes = {"input": (64, width), "hidden": (width, width), "head": (width, 10)}
    kernels = {name: draw(key, size) for key, (name, size) in zip(keys, sizes.items())}
    kernels["head"] *= 1 - mup
    return {name: {"kernel": x, "bias": jnp.zeros(x.shape[1])} for name, x in kernels.items()}


def cost(narrow, wide, score):
    """What the best rate of the narrow network costs the wide one, in the best of its scores."""
    return wide[score][np.nanargmin(narrow[score])] / np.nanmin(wide[score])


def main():
    """Sweeps, prints, plots; fails unless the rate is kept with muP, and costs much without."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rates and seeds")
    points, seeds = (7, 2) if parser.parse_args().quick else (11, 4)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:1600]  # 25 batches of 64
    data = {"x": np.float32(x[rows] / 16), "y": y[rows]}

    def trial(numbers, key):
        first, order = jax.random.split(key)
        width, mup = numbers["width"], numbers["mup"]
        factors = {"(hidden|head)/kernel": (WIDTHS[0] / width) ** mup}  # 1 without
        rule = lo.transforms.scale_by_path(lo.transforms.adam(numbers["rate"]), factors)
        sizes = {"epochs": 4, "batch_size": 64, "key": order}
        run = lo.training.run(objective, start(width, mup, first), data, rule, **sizes)
        losses = run.history["train/value"]  # of 25 steps each
        return {"loss": jnp.mean(losses), "last": losses[-1]}

    space = {
        "width": lo.sweeps.Static(WIDTHS),  # a program each
        "mup": lo.sweeps.Choice([0, 1]),  # a number: so are the factors and the start
        "rate": lo.sweeps.Log(2**-13, 2**-3),
    }
    trials = lo.sweeps.grid(space, {"rate": points}).repeat(seeds)
    means = lo.sweep(trial, trials, jax.random.key(1)).mean()

    table = Table("", "best rate at 64", "at 512", "cost at 512", "by the last 25 steps")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    costs = []
    for mup, (name, axis) in enumerate(zip(NAMES, axes)):
        narrow, wide = (means[(means["mup"] == mup) & (means["width"] == x)] for x in WIDTHS)
        best = [f"2^{np.log2(part.best['rate']):.1f}" for part in (narrow, wide)]
        costs.append(cost(narrow, wide, "loss"))
        table.add_row(name, *best, f"{costs[mup]:.2f} x", f"{cost(narrow, wide, 'last'):.2f} x")
        for part, color in zip((narrow, wide), ("tab:blue", "tab:orange")):
            label = f"width {part['width'][0]}"
            axis.errorbar(part["rate"], part["loss"], part["loss/error"], color=color, label=label)
            axis.axvline(part.best["rate"], color=color, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(xlabel="learning rate", title=f"{name}: the rate of 64 costs {costs[mup]:.2f} x")
    Console().print(table)
    axes[0].set_ylabel("mean training loss of 100 steps")
    axes[0].legend()
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/mup.png", dpi=150)
    standard, mup = costs
    print("what the best rate of width 64 costs width 512: ", end="")
    print(f"with muP {mup:.2f} times its best loss (wanted: at most 1.05), ", end="")
    print(f"without {standard:.2f} (wanted: at least 1.5), figures/mup.png")
    return int(not (mup <= 1.05 and standard >= 1.5))


if __name__ == "__main__":
    sys.exit(main())
