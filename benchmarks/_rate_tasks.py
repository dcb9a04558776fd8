"""What `benchmarks.learning_rate` trains: twelve tasks, each with an optimizer and a length."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

import lossopt as lo
from benchmarks import _tasks

momentum = lambda rate: optax.sgd(rate, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Task:
    """An objective, its data and first parameters, and how it is trained.

    Attributes:
      name: of data, model and optimizer.
      objective: from parameters and rows.
      params: the first ones.
      train: the rows.
      optimizer_of: maps a learning rate to an optimizer.
      batch_size: rows a step.
      epochs: of a whole run.
    """

    name: str
    objective: Callable
    params: Any
    train: Any
    optimizer_of: Callable
    batch_size: int
    epochs: int

    @classmethod
    def of(cls, name, apply, loss, params, train, *how):
        """A task whose objective is the mean of a loss of a model."""

        def objective(params, batch):
            x, y = batch
            return {"fit": lo.mean(loss(apply(params, x), y))}

        return cls(name, objective, params, train, *how)


def quick() -> Task:
    """The first of the twelve, which needs no other data or models."""
    given = _tasks.layers((10, 1)), _load("diabetes")
    return Task.of("linear, sgd", _tasks.dense, lo.losses.squared_error, *given, optax.sgd, 32, 50)


def twelve() -> list[Task]:
    """Regression and classification, dense and convolutional, under eight optimizers."""
    dense, layers, network = _tasks.dense, _tasks.layers, _tasks.convolutional(1)
    squared, huber, poisson = lo.losses.squared_error, lo.losses.huber, lo.losses.poisson_nll
    sigmoid, softmax = lo.losses.sigmoid_cross_entropy, lo.losses.softmax_cross_entropy
    sgd, adam, adamw, rms = optax.sgd, optax.adam, optax.adamw, optax.rmsprop
    cancer, wine, digits = map(_load, ("breast_cancer", "wine", "digits"))
    images, coded = (digits[0].reshape(-1, 8, 8, 1), digits[1]), (digits[0], digits[0])
    tails, count, flat = (layers((inputs, 1)) for inputs in (20, 8, 30))
    net, deep, narrow = layers((64, 64, 10)), layers((64, 64, 64, 10)), layers((64, 8, 64))
    little, curve, moon = layers((13, 16, 3)), layers((10, 32, 1)), layers((2, 32, 32, 1))
    rows = [
        ("wine, adagrad", dense, softmax, little, wine, optax.adagrad, 16, 60),
        ("heavy tails, adam", dense, huber, tails, _tailed(), adam, 16, 12),
        ("counts, rmsprop", dense, poisson, count, _counts(), rms, 64, 30),
        ("logistic, momentum", dense, sigmoid, flat, cancer, momentum, 32, 40),
        ("digits, sgd", dense, softmax, net, digits, sgd, 32, 12),
        ("digits, adam", dense, softmax, net, digits, adam, 32, 12),
        ("deeper digits, momentum", dense, softmax, deep, digits, momentum, 128, 45),
        ("coder, adam", dense, squared_rows, narrow, coded, adam, 64, 25),
        ("friedman, adamw", dense, squared, curve, _friedman(), adamw, 32, 25),
        ("moons, lion", dense, sigmoid, moon, _moons(), optax.lion, 32, 25),
        ("convolutions, adam", network.apply, softmax, network.params, images, adam, 64, 20),
    ]
    return [quick(), *(Task.of(*row) for row in rows)]


def squared_rows(predictions, targets):
    """The mean of squares of each row."""
    return jnp.mean(lo.losses.squared_error(predictions, targets), axis=1)


def _load(name):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "digits":
        return _floats(x / 16), y.astype(np.int32)
    y = (y - y.mean()) / y.std() if name == "diabetes" else y
    whole = name == "wine"
    return _floats(StandardScaler().fit_transform(x)), y.astype(np.int32 if whole else np.float32)


def _tailed():
    random = np.random.default_rng(0)
    x = random.standard_normal((1000, 20))
    y = x @ random.standard_normal(20) + random.standard_t(1.5, 1000)
    return _floats(x), _floats(y)


def _counts():
    random = np.random.default_rng(1)
    x = random.standard_normal((1500, 8))
    return _floats(x), _floats(random.poisson(np.exp(0.5 + x @ random.standard_normal(8) / 3)))


def _friedman():
    x, y = datasets.make_friedman1(1000, noise=1.0, random_state=0)
    return _floats(x), _floats((y - y.mean()) / y.std())


def _moons():
    x, y = datasets.make_moons(1000, noise=0.2, random_state=0)
    return _floats(x), _floats(y)


def _floats(x):
    return np.asarray(x, np.float32)
