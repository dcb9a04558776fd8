"""A U curve: loss on held-out rows over the strength of L2, five folds a strength, one program."""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures, scale

import lossopt as lo


def objective(params, batch, hyperparameters):
    """Squared error of the rows that train, and the penalty."""
    errors = lo.losses.squared_error(predict(params, batch), batch["y"])
    penalty = lo.regularizers.L2(hyperparameters["strength"])
    return {
        "fit": lo.mean(errors, hyperparameters["trains"]),
        "penalty": lo.constant(penalty(params["kernel"])),
    }


def predict(params, batch):
    """One number for each patient, in standard deviations."""
    return batch["x"] @ params["kernel"] + params["bias"]


def main():
    """Sweeps strengths x folds, prints, plots; fails where the best strength is at an end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer strengths and steps")
    points, steps = (9, 300) if parser.parse_args().quick else (33, 3000)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    x, y = load_diabetes(return_X_y=True)
    x = scale(PolynomialFeatures(2, include_bias=False).fit_transform(scale(x)))
    rows = np.random.default_rng(0).permutation(len(y))[:200]  # patients, of 65 columns
    data = {"x": np.float32(x[rows]), "y": np.float32(scale(y)[rows])}
    start = {"kernel": jnp.zeros(x.shape[1]), "bias": jnp.zeros(())}

    def trial(numbers, key):
        rule = lo.transforms.momentum(0.01, 0.9)
        common = {"epochs": steps, "key": key, "hyperparameters": numbers}
        params = lo.training.run(objective, start, data, rule, **common).params
        errors = lo.losses.squared_error(predict(params, data), data["y"])
        masks = {"train": numbers["trains"], "validation": ~numbers["trains"]}
        return {name: lo.mean(errors, mask).value for name, mask in masks.items()}

    masks = lo.sweeps.folds(data, 5, jax.random.key(0))
    trials = lo.sweeps.grid({"strength": lo.sweeps.Log(1e-3, 10)}, points)
    sweep = lo.sweep(trial, trials.repeat(5, trains=masks), jax.random.key(1), score="validation")
    print(sweep)

    path, best = sweep.mean(), sweep.best
    left, right = path["validation"][[0, -1]] / best["validation"]
    axis = lo.plots.sweep(sweep, "strength")
    axis.plot(path["strength"], path["train"], color="0.4", linestyle="--", label="train")
    axis.set_ylim(0, 1.3 * max(path["validation"]))
    axis.set(title="Too little penalty memorizes, too much learns nothing", ylabel="squared error")
    axis.legend(loc="lower right", fontsize="small")
    pathlib.Path("figures").mkdir(exist_ok=True)
    axis.figure.savefig("figures/penalty_path.png", dpi=150)
    print(f"best strength {best['strength']:.2g}; loss at the ends over the best: ", end="")
    print(f"{left:.2f} and {right:.2f} (wanted: above 1.05), figures/penalty_path.png")
    return int(min(left, right) <= 1.05)


if __name__ == "__main__":
    sys.exit(main())
