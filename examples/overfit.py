"""Early stopping: the parameters of the best epoch, against those of a run that nobody stops."""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import lossopt as lo


class Regressor(nn.Module):
    """A perceptron with many more weights than there are patients."""

    @nn.compact
    def __call__(self, x):
        """One number for each row of features."""
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(1)(x)[:, 0]


def objective(params, batch):
    """Squared error, in variances of the target."""
    predictions = Regressor().apply(params, batch["x"])
    return {"fit": lo.mean(lo.losses.squared_error(predictions, batch["y"]))}


def main():
    """Trains with and without a stop, prints, plots; fails where stopping does not help."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the run")
    options = parser.parse_args()
    epochs = 60 if options.quick else 120
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}, seed {options.seed}")
    x, y = map(scale, load_diabetes(return_X_y=True))
    rows = np.random.default_rng(options.seed).permutation(len(y))
    train, valid, test = ({"x": x[i], "y": y[i]} for i in np.split(rows, [202, 322]))
    key = jax.random.key(options.seed)
    params = Regressor().init(key, train["x"][:1])

    given = objective, params, train, optax.adam(1e-3)
    common = {"epochs": epochs, "batch_size": 32, "key": key, "validation": valid}
    stopped = lo.fit(*given, stop=lo.training.Patience(10), **common)
    whole = lo.fit(*given, **common)  # the same epochs, and then the others

    measure = lambda params: float(lo.training.evaluate(objective, params, test)["fit"])
    losses = measure(stopped.best_params), measure(whole.params)
    table = Table("parameters", "epochs trained", "test error, in variances")
    ended = len(stopped.history["step"])
    table.add_row(f"best, of epoch {stopped.best_epoch + 1}", str(ended), f"{losses[0]:.3f}")
    table.add_row("last, not stopped", str(epochs), f"{losses[1]:.3f}")
    Console().print(table)
    print(f"stopped after {ended} epochs: {stopped.stopped.value}")

    figure, axes = plt.subplots(layout="constrained")
    lo.plots.loss_curves({"not stopped": whole, "stopped": stopped}, "fit", axis=axes)
    worse = f"{100 * (losses[1] / losses[0] - 1):.0f} % worse on test rows"
    axes.set(ylabel="squared error, in variances", title=f"The last epoch is {worse} than the best")
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/overfit.png", dpi=150)
    print(f"best over last: {losses[0] / losses[1]:.2f} (wanted: below 1), figures/overfit.png")
    return int(losses[0] >= losses[1])


if __name__ == "__main__":
    sys.exit(main())
