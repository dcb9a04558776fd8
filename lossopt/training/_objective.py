"""The one way in which objectives are called: each receives the keywords that it names."""

import inspect
from collections.abc import Callable
from functools import wraps

from lossopt._grad import split_aux
from lossopt._mean import terms, value
from lossopt._typing import Array, Means, PyTree

_KEYWORDS = ("key", "model_state", "hyperparameters")


def adapt(objective: Callable, has_aux: bool, **given: PyTree) -> Callable:
    """The objective with all keywords and always with aux; `given` ones must be named by it."""
    parameters = inspect.signature(objective).parameters
    named = {name: parameters[name] for name in _KEYWORDS if name in parameters}
    for name, tree in given.items():
        if tree is not None and name not in named:
            raise ValueError(
                f"{name} was given, but the objective does not name it: "
                f"write objective(params, batch, {name})."
            )

    @wraps(objective)
    def adapted(params, batch, **keywords):
        passed = {
            name: keywords[name]
            for name, parameter in named.items()
            if keywords[name] is not None or parameter.default is parameter.empty
        }
        out = objective(params, batch, **passed)
        return split_aux(out, has_aux)

    return adapted


def columns(means: Means, metrics: Means) -> dict[str, Array]:
    """One number per name: `"value"`, the objective, then its terms and the metrics."""
    table = {"value": value(means)}
    for name, term in [*terms(means).items(), *terms(metrics).items()]:
        if name in table or (name == "" and term is not means):
            raise ValueError(
                f"Terms and metrics need names of their own, none of them 'value'; got {name!r} "
                "twice or no name at all. Return them in dicts."
            )
        table |= {name: term.value} if name else {}
    return table
