"""The ladder: linear, logistic, perceptron, convolutions and attention, through one `fit`."""

import argparse
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo


class Images(nn.Module):
    """Logits of 10 digits for images `[rows, 8, 8]`; dropout is on where there is a key."""

    kind: str

    @nn.compact
    def __call__(self, x, key):
        """One layer, behind what the kind of the model puts before it."""
        if self.kind == "CNN":
            x = nn.max_pool(nn.relu(nn.Conv(24, (3, 3))(x[..., None])), (2, 2), (2, 2))
        if self.kind == "transformer":  # over the rows of an image
            x = nn.Dense(32)(x) + self.param("places", nn.initializers.normal(0.1), (8, 32))
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(32)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))
        x = x.reshape(len(x), -1)
        if self.kind in ("MLP", "CNN", "transformer"):
            x = nn.Dropout(0.2, deterministic=key is None)(nn.relu(nn.Dense(64)(x)), rng=key)
        return nn.Dense(10)(x)


def squared(logits, labels):
    """Squared error against 1 for the class and 0 for others, summed over them."""
    return lo.losses.squared_error(logits, jax.nn.one_hot(labels, 10)).sum(axis=-1)


def main():
    """Fits each model in the same way, prints; fails where one of them does not learn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    epochs, least = (6, 0.85) if parser.parse_args().quick else (60, 0.92)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    digits, key = load_digits(), jax.random.key(0)
    data = {"x": np.float32(digits.images / 16), "y": digits.target}
    rest, test = lo.training.split(data, 0.2, jax.random.key(1))
    common = {"epochs": epochs, "batch_size": 32, "validation": 0.2, "key": key}
    common |= {"stop": lo.training.Patience(10), "drop_last": True}

    table, errors = Table("model", "parameters", "best epoch", "test error"), {}
    for name in track(("linear", "logistic", "MLP", "CNN", "transformer"), "models"):
        model = Images(name)
        loss = squared if name == "linear" else lo.losses.softmax_cross_entropy

        def objective(params, batch, key, model=model, loss=loss):
            return {"fit": lo.mean(loss(model.apply(params, batch["x"], key), batch["y"]))}

        params = jax.jit(lambda key, x, model=model: model.init(key, x, None))(key, data["x"][:1])
        run = lo.fit(objective, params, rest, optax.adam(3e-3), **common)
        predict = lambda params, x, model=model: model.apply(params, x, None).argmax(axis=-1)
        found = lo.training.predict(predict, run.best_params, test["x"], batch_size=100)
        errors[name] = float(jnp.mean(found != test["y"]))
        size = sum(x.size for x in jax.tree.leaves(params))
        table.add_row(name, f"{size}", f"{run.best_epoch + 1}", f"{errors[name]:.3f}")
    Console().print(table)
    ratio = max(errors["CNN"], errors["transformer"]) / min(errors["linear"], errors["logistic"])
    print(f"largest error {max(errors.values()):.3f} (wanted: at most {1 - least:.2f})")
    print(f"error of CNN and transformer over that of linear models {ratio:.2f} (wanted: below 1)")
    return int(max(errors.values()) > 1 - least or ratio >= 1)


if __name__ == "__main__":
    sys.exit(main())
