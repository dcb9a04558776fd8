"""What a trial begins with: its keys, its first parameters and model state."""

import inspect
from collections.abc import Callable

import jax

from lossopt import _checks
from lossopt._typing import Array, Key, PyTree
from lossopt.sweeps._options import opened


def informed(init: Callable) -> bool:
    """Whether `init` takes hyperparameters beside the key; refuses what takes others."""
    if not callable(init):
        raise TypeError(
            f"Expected init as a function that makes the first parameters, got "
            f"{type(init).__name__}. Write lambda key: params, if all trials begin alike."
        )
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(init).parameters.values()
    needed = [x.name for x in parameters if x.kind in positional and x.default is x.empty]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"Expected init(key) or init(hyperparameters, key), got one that needs {needed}. Bind "
            "the rest, as in lambda key: model.init(key, example)."
        )
    return len(needed) == 2


def keys(key: Key[Array, ""]) -> Array:
    """Of the key of a trial: one for `init`, one for the run."""
    _checks.given_key(key)
    return jax.random.split(key)


def made(
    init: Callable, informed: bool, passes: bool, hyperparameters: PyTree, key: Key[Array, ""]
) -> tuple[PyTree, PyTree]:
    """The first parameters and the first model state, which is None where none is passed on.

    Args:
      init: of the user.
      informed: whether it takes hyperparameters.
      passes: whether the objective names a model state.
      hyperparameters: of the trial, as `known` gives them.
      key: the first of `keys`.
    """
    made = init(opened(hyperparameters), key) if informed else init(key)
    if not passes:
        return made, None
    if type(made) is not tuple or len(made) != 2:
        raise TypeError(
            "The objective names model_state: expected (params, model_state) of init, got "
            f"{jax.tree.structure(made)}. Return both, or bind model_state to the objective."
        )
    return made
