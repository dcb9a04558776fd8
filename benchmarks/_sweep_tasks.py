"""What `benchmarks.sweeps` searches over: networks on digits, trained with AdamW for 300 steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import lossopt as lo
from lossopt.sweeps import Linear, Log

ROWS = 1280  # to train on; the others are held out
SPACE = {"rate": Log(1e-4, 1e-1), "momentum": Linear(0.0, 0.95), "decay": Log(1e-6, 1e-1)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, and how long a trial trains it.

    Attributes:
      name: with its width.
      init: maps a key to its first parameters.
      apply: maps `(params, x)` to logits.
      epochs: of a trial.
      batch_size: rows a step.
      small: whether the loop over minibatches is to be beaten.
    """

    name: str
    init: Callable
    apply: Callable
    epochs: int = 15
    batch_size: int = 64
    small: bool = False

    @property
    def steps(self) -> int:
        """Of a trial."""
        return self.epochs * (ROWS // self.batch_size)

    def on_all_rows(self, steps: int) -> "Model":
        """The same with no minibatches, so that no order of rows matters."""
        return dataclasses.replace(self, epochs=steps, batch_size=ROWS)

    def run(self) -> Callable:
        """A trial: a pure function of hyperparameters and key."""
        (x, y), held = digits()
        train, apply = {"x": x, "y": y}, self.apply

        def objective(params, batch):
            losses = lo.losses.softmax_cross_entropy(apply(params, batch["x"]), batch["y"])
            return {"fit": lo.mean(losses)}

        def run(numbers, key):
            first, rest = jax.random.split(key)
            options = {"epochs": self.epochs, "batch_size": self.batch_size, "key": rest}
            ended = lo.training.run(
                objective, self.init(first), train, optimizer(**numbers), **options
            )
            return scores(apply, ended.params, *held)

        return run


def models() -> list[Model]:
    """Four dense networks of one hidden layer, and one of two convolutions."""
    dense = [perceptron(width, small=width <= 32) for width in (8, 32, 128, 512)]
    return [*dense, convolutional()]


def perceptron(width: int, **options: Any) -> Model:
    """One hidden layer."""
    shapes = ((64, width), (width,), (width, 10), (10,))

    def apply(params, x):
        kernel, bias, last, offset = params
        return jax.nn.relu(x @ kernel + bias[None]) @ last + offset[None]

    return Model(f"MLP {width}", lambda key: _drawn(key, shapes), apply, **options)


def convolutional() -> Model:
    """Two convolutions of stride 2."""
    shapes = ((3, 3, 1, 8), (3, 3, 8, 16), (64, 10), (10,))

    def apply(params, x):
        *kernels, last, offset = params
        x = x.reshape(-1, 8, 8, 1)
        for kernel in kernels:
            convolved = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(convolved)
        return x.reshape(len(x), -1) @ last + offset[None]

    return Model("CNN", lambda key: _drawn(key, shapes), apply)


def digits() -> tuple[tuple, tuple]:
    """Rows to train on and rows held out, pairs of features and labels."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.float32(x[order] / 16), y[order].astype(np.int32)
    return (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def optimizer(rate: Any, momentum: Any, decay: Any) -> optax.GradientTransformation:
    """AdamW, of numbers or tracers."""
    return optax.adamw(rate, b1=momentum, weight_decay=decay)


def scores(apply: Callable, params: Any, x: Any, y: Any) -> dict[str, Any]:
    """Loss and accuracy on rows."""
    logits = apply(params, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return {"loss": jnp.mean(losses), "accuracy": jnp.mean(jnp.argmax(logits, 1) == y)}


def _drawn(key, shapes):
    """Kernels of He's variance, biases of zero."""
    scale = lambda shape: np.sqrt(2 / np.prod(shape[:-1]))
    draw = lambda key, shape: scale(shape) * jax.random.normal(key, shape)
    keys = jax.random.split(key, len(shapes))
    return tuple(
        draw(key, shape) if len(shape) > 1 else jnp.zeros(shape)
        for key, shape in zip(keys, shapes)
    )
