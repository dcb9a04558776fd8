"""Hyperparameters that are no arrays, where only arrays may be."""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial, wraps

import jax

from lossopt._typing import PyTree
from lossopt.training._arrays import on_device


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["value"])
@dataclasses.dataclass(frozen=True)
class Option:
    """A hyperparameter that is no array: part of the structure of a tree, not one of its leaves."""

    value: Hashable


def known(hyperparameters: PyTree) -> PyTree:
    """Trees of arrays as they are, what else is in a dict as an `Option`."""
    if not isinstance(hyperparameters, dict):
        return on_device(hyperparameters=hyperparameters)[0]
    return {name: _array_or_option(name, x) for name, x in hyperparameters.items()}


def opened(hyperparameters: PyTree) -> PyTree:
    """As the user gave them."""
    if not isinstance(hyperparameters, dict):
        return hyperparameters
    value = lambda x: x.value if isinstance(x, Option) else x
    return {name: value(x) for name, x in hyperparameters.items()}


def has_options(hyperparameters: PyTree) -> bool:
    """Whether one of them is no array."""
    values = hyperparameters.values() if isinstance(hyperparameters, dict) else ()
    return any(isinstance(x, Option) for x in values)


def with_options(objective: Callable) -> Callable:
    """An objective that receives hyperparameters as the user gave them."""

    @wraps(objective)
    def as_given(*args, **keywords):
        if "hyperparameters" in keywords:
            keywords["hyperparameters"] = opened(keywords["hyperparameters"])
        return objective(*args, **keywords)

    return as_given


def of_options(optimizer: Callable) -> Callable:
    """A function to an optimizer from hyperparameters as the user gave them."""
    return lambda hyperparameters: optimizer(opened(hyperparameters))


def _array_or_option(name, x):
    leaves = jax.tree.leaves(x)
    if leaves and all(hasattr(leaf, "dtype") for leaf in leaves):
        return on_device(**{name: x})[0]
    if not isinstance(x, Hashable):
        raise TypeError(
            f"Expected the hyperparameter {name!r} as an array or something hashable, got "
            f"{type(x).__name__}. Make an array or a tuple of it."
        )
    return Option(x)
