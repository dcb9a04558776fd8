"""What `benchmarks.sweeps` searches over: networks on digits, trained with AdamW for 300 steps.

All trials begin with the same parameters: what draws them takes XLA as long to compile as what
trains, several times as long side by side, and no rival is about that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import lossopt as lo
from lossopt.sweeps import Linear, Log, Task

ROWS = 1280  # to train on; the others are held out
SPACE = {"rate": Log(1e-4, 1e-1), "momentum": Linear(0.0, 0.95), "decay": Log(1e-6, 1e-1)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, and how long a trial trains it.

    Attributes:
      name: with its width.
      params: the first ones.
      apply: maps `(params, x)` to logits.
      short: epochs of a trial where only modes are compared, of which some are slow.
      small: whether the loop over minibatches is to be beaten.
      epochs: of a trial.
      batch_size: rows a step.
    """

    name: str
    params: Any
    apply: Callable
    short: int = 15
    small: bool = False
    epochs: int = 15
    batch_size: int = 64

    @property
    def steps(self) -> int:
        """Of a trial."""
        return self.epochs * (ROWS // self.batch_size)

    def shorter(self) -> "Model":
        """The same for as long as modes are compared."""
        return dataclasses.replace(self, epochs=self.short)

    def on_all_rows(self, steps: int) -> "Model":
        """The same with no minibatches, so that no order of rows matters."""
        return dataclasses.replace(self, epochs=steps, batch_size=ROWS)

    def task(self) -> Task:
        """A trial, made anew from equal arguments."""
        (x, y), (x_held, y_held) = digits()
        train, held = {"x": x, "y": y}, {"x": x_held, "y": y_held}
        return lo.sweeps.task(
            self.objective,
            lambda key: self.params,
            train,
            optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation=held,
        )

    def objective(self, params: Any, batch: Any) -> dict[str, lo.Mean]:
        """The mean cross entropy."""
        losses = lo.losses.softmax_cross_entropy(self.apply(params, batch["x"]), batch["y"])
        return {"fit": lo.mean(losses)}


def models() -> list[Model]:
    """Four dense networks of one hidden layer, and one of two convolutions."""
    tiny = [perceptron(width, small=True) for width in (8, 32)]
    return [*tiny, perceptron(128, short=3), perceptron(512, short=1), convolutional(short=1)]


def perceptron(width: int, **options: Any) -> Model:
    """One hidden layer."""

    def apply(params, x):
        kernel, bias, last, offset = params
        return jax.nn.relu(x @ kernel + bias[None]) @ last + offset[None]

    return Model(f"MLP {width}", _drawn((64, width), (width, 10)), apply, **options)


def convolutional(**options: Any) -> Model:
    """Two convolutions of stride 2."""
    layout = ("NHWC", "HWIO", "NHWC")

    def apply(params, x):
        x = x.reshape(-1, 8, 8, 1)
        for kernel, bias in zip(params[:4:2], params[1:4:2]):
            convolve = jax.lax.conv_general_dilated
            x = jax.nn.relu(convolve(x, kernel, (2, 2), "SAME", dimension_numbers=layout) + bias)
        return x.reshape(len(x), -1) @ params[-2] + params[-1][None]

    params = _drawn((3, 3, 1, 8), (3, 3, 8, 16), (64, 10))
    return Model("CNN", params, apply, **options)


def digits() -> tuple[tuple, tuple]:
    """Rows to train on and rows held out, pairs of features and labels."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    return (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def optimizer(numbers: dict[str, Any]) -> optax.GradientTransformation:
    """AdamW, of numbers or tracers."""
    return optax.adamw(numbers["rate"], b1=numbers["momentum"], weight_decay=numbers["decay"])


def mean_loss(model: Model, params: Any, x: Any, y: Any) -> Any:
    """The cross entropy as optax has it."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y)
    return jnp.mean(losses)


def _drawn(*shapes):
    """Kernels of He's variance, each with a bias of zeros."""
    random = np.random.default_rng(0)
    draw = lambda shape: random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    pairs = [(draw(shape).astype(np.float32), np.zeros(shape[-1], np.float32)) for shape in shapes]
    return tuple(x for pair in pairs for x in pair)
