"""What `benchmarks.fit` trains: data, models with their first parameters, and for how long."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

import lossopt as lo

LOSSES = {  # of this library and of optax
    "squared": (lo.losses.squared_error, optax.squared_error),
    "sigmoid": (lo.losses.sigmoid_cross_entropy, optax.sigmoid_binary_cross_entropy),
    "softmax": (
        lo.losses.softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Data, a model, and how it is trained with Adam.

    Attributes:
      name: with its sizes.
      x: features.
      y: targets or labels.
      params: the first ones; of a dense network a tuple of pairs (kernel, bias).
      apply: maps `(params, x)` to what the loss takes.
      loss: its name in `LOSSES`.
      rate: the learning rate.
      batch_size: rows a step.
      epochs: of one call.
    """

    name: str
    x: Any
    y: Any
    params: Any
    apply: Callable
    loss: str
    rate: float
    batch_size: int
    epochs: int

    @property
    def steps(self) -> int:
        """Of all epochs; the last of each may be of fewer rows."""
        return self.epochs * -(-len(self.x) // self.batch_size)

    def on_all_rows(self, steps: int) -> "Task":
        """The same with no minibatches, so that no order of rows matters."""
        return dataclasses.replace(self, batch_size=len(self.x), epochs=steps)

    def mean_loss(self) -> Callable:
        """The loss of all rows, a function of the parameters."""
        loss = LOSSES[self.loss][1]
        return jax.jit(lambda params: jnp.mean(loss(self.apply(params, self.x), self.y)))


def small(epochs: int) -> list[Task]:
    """Linear and logistic regression and a network, on the sets that scikit-learn brings."""
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = _floats(StandardScaler().fit_transform(x)), _floats((y - y.mean()) / y.std())
    given = {"params": layers((10, 1)), "apply": dense, "batch_size": 32}
    linear = Task("linear regression", x, y, **given, loss="squared", rate=1e-2, epochs=4 * epochs)
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x, y = _floats(StandardScaler().fit_transform(x)), _floats(y)
    given["params"] = layers((30, 1))
    logistic = Task(
        "logistic regression", x, y, **given, loss="sigmoid", rate=1e-2, epochs=3 * epochs
    )
    return [linear, logistic, _digits("network", (64, 64, 10), epochs)]


def wide(epochs: int) -> Task:
    """A network of 1.6 M parameters."""
    return _digits("wide network", (64, 1232, 1232, 10), epochs)


def convolutional(epochs: int) -> Task:
    """A network of two convolutions, in flax."""
    x, y = datasets.load_digits(return_X_y=True)
    model, x = _Convolutional(), _floats(x / 16).reshape(-1, 8, 8, 1)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), x[:1]))
    y = y.astype(np.int32)
    return Task("convolutions", x, y, params, model.apply, "softmax", 1e-3, 64, epochs)


def many_rows(rows: int, batch_size: int, epochs: int) -> Task:
    """Linear regression on 10 features, the data on the device."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 10), np.float32)
    y = x @ random.standard_normal(10, np.float32) + random.standard_normal(rows, np.float32)
    given = {"loss": "squared", "rate": 1e-3, "batch_size": batch_size, "epochs": epochs}
    return Task("linear", jnp.asarray(x), jnp.asarray(y), layers((10, 1)), dense, **given)


def dense(params, x):
    """Dense layers, relu between them; a single output loses its axis."""
    *hidden, (kernel, bias) = params
    for inner_kernel, inner_bias in hidden:
        x = jax.nn.relu(x @ inner_kernel + inner_bias[None])
    out = x @ kernel + bias[None]
    return out[:, 0] if out.shape[1] == 1 else out


class _Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def _digits(name, sizes, epochs):
    x, y = datasets.load_digits(return_X_y=True)
    x, y = _floats(x / 16), y.astype(np.int32)
    return Task(name, x, y, layers(sizes), dense, "softmax", 1e-3, 32, epochs)


def layers(sizes):
    random = np.random.default_rng(0)
    kernel = lambda a, b: _floats(random.standard_normal((a, b)) * np.sqrt(2 / a))
    return tuple((kernel(a, b), np.zeros(b, np.float32)) for a, b in itertools.pairwise(sizes))


def _floats(x):
    return np.asarray(x, np.float32)
