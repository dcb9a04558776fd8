"""The one way in which objectives are called, and what they return."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import jax

from lossopt._mean import terms
from lossopt._typing import Means, PyTree

_KEYWORDS = ("key", "model_state", "hyperparameters")
_AUX = {"metrics", "model_state"}


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
        for name in ("model_state", "hyperparameters"):
            if name in named and named[name].default is inspect.Parameter.empty:
                _given(name, keywords[name])
        passed = {
            name: anew(keywords[name])
            for name, parameter in named.items()
            if keywords[name] is not None or parameter.default is parameter.empty
        }
        with _explained(passed):
            out = objective(params, batch, **passed)
        return split_aux(out, has_aux)

    return adapted


def anew(tree: PyTree) -> PyTree:
    """The same leaves in other containers, which modules of nnx and equinox may change or spend."""
    return jax.tree.map(lambda x: x, tree)


@contextmanager
def _explained(passed: dict[str, PyTree]) -> Iterator[None]:
    """An error within says what objectives are often written without."""
    try:
        yield
    except Exception as error:
        if passed.get("key", True) is None:
            error.add_note(
                "The objective was given no key: key is None in evaluation, by which it knows. "
                "Turn dropout and whatever else is random off there."
            )
        if type(error).__name__ == "TraceContextError":
            error.add_note(
                "A module of nnx may be changed in the trace that made it alone. Make one inside "
                "of the objective, nnx.merge(graph, params, model_state), and return its state "
                "(docs/models.md)."
            )
        raise


def _given(name, tree):
    if tree is None:
        raise TypeError(
            f"The objective names {name}, and there is none: pass {name}=..., or write "
            f"{name}=None in the objective, if it can do without."
        )


def names(objective: Callable, keyword: str) -> bool:
    """Whether an objective names a keyword that nothing has bound yet."""
    parameter = inspect.signature(objective).parameters.get(keyword)
    return parameter is not None and any(parameter.default is x for x in (parameter.empty, None))


def split_aux(out: PyTree, has_aux: bool) -> tuple[Means, dict[str, PyTree]]:
    """What an objective returned, as means and aux; raises where it is another thing."""
    pair = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)
    names = out[1].keys() if pair else set()
    if has_aux and not (pair and names <= _AUX):
        raise TypeError(
            "With has_aux the objective returns (means, aux), where the dict aux may hold "
            f"'metrics' and 'model_state'; got {jax.tree.structure(out)}."
        )
    if not has_aux and names & _AUX:
        raise TypeError("The objective returns (means, aux): say so with has_aux=True.")
    means, aux = out if has_aux else (out, {})
    if not terms(means):
        raise TypeError(f"Expected a tree of Mean with a leaf, got {means}: is a return missing?")
    terms(aux.get("metrics"))
    return means, aux
