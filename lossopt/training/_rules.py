"""What an optimizer must not be in a step on a batch, and what it asks of an objective."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lossopt import _jaxprs
from lossopt._mean import terms
from lossopt._typing import Batch, PyTree

_GATHERS = (
    "gathers the gradients of several steps as a plain mean, without their weights, and loses what "
    "it holds when the run ends. Use a larger batch_size and microbatches=, which is exact. (In a "
    "loop of your own around value_and_grad, accumulate takes weight= and flush=.)"
)
_EACH = (
    "needs the gradient of each example, and a step has one of the batch, whose first axis would "
    "be taken for the examples. Write a loop of your own, with jax.vmap of the gradient."
)
_REFUSED = {
    "AccumulateState": f"lossopt.transforms.accumulate {_GATHERS}",
    "MultiStepsState": f"optax.MultiSteps {_GATHERS}",
    "ApplyEvery": f"optax.apply_every {_GATHERS}",
    "DifferentiallyPrivateAggregateState": f"optax.contrib.dpsgd {_EACH}",
    "LookaheadState": (
        "optax.lookahead needs parameters that are a pair, fast and slow, where gradients are not. "
        "Write a loop of your own; or average the parameters: lossopt.transforms.average."
    ),
}
_READERS = {
    "AverageState": "lossopt.transforms.averaged",
    "ScheduleFreeState": "optax.contrib.schedule_free_eval_params",
}
_WRAP = (
    "a step offers value_fn=. Wrap it: optax.GradientTransformationExtraArgs(rule.init, "
    "lambda grads, state, params, *, value_fn, **_: rule.update(grads, state, params, {}))."
)
_SHARP = (
    "optax.contrib.sam needs opaque_mode=True, without which every other step is measured at "
    "parameters that are no result, and grad_fn=, the gradient as a function; "
) + _WRAP.format("grad_fn=lambda point, _: jax.grad(value_fn)(point)")
_NEEDS = {
    "HutchinsonState": "optax.contrib.sophia needs obj_fn=, the objective as a function; "
    + _WRAP.format("obj_fn=value_fn"),
    "SAMState": _SHARP,
}


def started(rule: optax.GradientTransformation, params: PyTree) -> optax.OptState:
    """The first state of an optimizer; refuses one that would be wrong in silence."""
    with _named(rule, "init"):
        state = rule.init(params)
    for node in _nodes(state):
        why = _REFUSED.get(_kind(node))
        if _kind(node) == "SAMState" and node.cache is not None:
            why = _SHARP
        if why:
            raise ValueError(f"The optimizer holds a rule that does not fit: {why}")
    return state


def moved(
    rule: optax.GradientTransformation,
    grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    **extra: Any,
) -> tuple[PyTree, optax.OptState]:
    """The updates and the next state of an optimizer, which look as they must."""
    with _named(rule, "update", state), _begun(rule, state, params):
        update = optax.with_extra_args_support(rule).update
        updates, after = update(grads, state, params, **extra)
    odd = _differences(params, updates, lambda x: str(jnp.shape(x)))
    if odd:
        raise ValueError(
            f"The optimizer, {_maker(rule, 'update')}, returned updates that are not like the "
            f"parameters: {odd}. It must return a number for each parameter."
        )
    odd = _differences(state, after, lambda x: f"{jnp.result_type(x)}{jnp.shape(x)}")
    if odd:
        raise ValueError(
            f"The optimizer, {_maker(rule, 'update')}, returned a state of another form than the "
            f"one before, which no compiled loop can carry: {odd}. Its init must return that form."
        )
    return updates, after


def judged(
    objective: Callable, opt_state: optax.OptState, params: PyTree, batch: Batch, **given: PyTree
) -> None:
    """Refuses an optimizer with a regularizer whose value no term of the objective holds.

    Such a term depends on the parameters by its value and has no slope.
    """
    if not any(_kind(node) == "ProximalState" for node in _nodes(opt_state)):
        return

    def values(params):
        means, _ = objective(params, batch, **given)
        return {name: term.value for name, term in terms(means).items()}

    def slope(factors):
        scaled = lambda params: sum(factors[name] * x for name, x in values(params).items())
        return jax.grad(scaled)(params)

    shapes = jax.eval_shape(values, params)
    factors = {name: jnp.ones((), x.dtype) for name, x in shapes.items()}
    _, (sloped,) = _jaxprs.prune(slope, factors)
    flat = lambda params: [x for name, x in values(params).items() if not sloped[name]]
    _, (used,) = _jaxprs.prune(flat, params)
    if not any(jax.tree.leaves(used)):
        shown = ", ".join(name or "its only one" for name in shapes)
        raise ValueError(
            "The optimizer has a regularizer R and so its gradient; the objective must hold the "
            f"value of R alone, or another sum is judged than is minimized. Of its terms ({shown}) "
            'none does. Return beside them "penalty": lo.constant(R(params), gradient=False), or '
            "pass check=False."
        )


def average_reader(opt_state: optax.OptState) -> str | None:
    """The function that reads the average of the parameters in a state; None if it holds none."""
    return next(filter(None, (_READERS.get(_kind(node)) for node in _nodes(opt_state))), None)


def _kind(node):
    """The name of the type of a state of optax or of this library, else of none."""
    room = type(node).__module__.split(".")[0]
    return type(node).__name__ if room in ("optax", "lossopt") else ""


def _nodes(tree: PyTree) -> list[Any]:
    """The nodes of a tree, at every depth."""
    nodes = []

    def seen(node):
        nodes.append(node)
        return False

    jax.tree.leaves(tree, is_leaf=seen)
    return nodes


@contextmanager
def _named(rule: optax.GradientTransformation, verb: str, state: PyTree = ()) -> Iterator[None]:
    """Says whose error it is; or what the rule needs, where that is known."""
    try:
        yield
    except Exception as error:
        for kind in filter(_NEEDS.get, map(_kind, _nodes(state))):
            raise ValueError(_NEEDS[kind]) from error
        error.add_note(
            f"In {verb} of the optimizer, {_maker(rule, verb, error)}. A step gives it one "
            "gradient, like the parameters, and value=, grad= and value_fn=."
        )
        raise


@contextmanager
def _begun(rule, state, params):
    """Says of an error that the state is not what the rule begins with for such parameters."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            first = jax.eval_shape(rule.init, params)
            odd = _differences(first, state, lambda x: str(jnp.shape(x)))
            if odd:
                error.add_note(
                    "The state is not the one that this optimizer begins with for these "
                    f"parameters: {odd}. Begin with init(params) of the same train_step."
                )
        raise


def _maker(rule, verb, error=None):
    """The functions that made the rule and those within it, down to the one that failed."""
    frames = traceback.walk_tb(error and error.__traceback__)
    places = [frame.f_code.co_qualname for frame, _ in frames]
    inner = [x for x in places if ".<locals>." in x and x.endswith((verb, f"{verb}_fn"))]
    names = [getattr(getattr(rule, verb), "__qualname__", type(rule).__name__), *inner]
    makers = dict.fromkeys(name.split(".<locals>")[0] for name in names)
    return " > ".join(name for name in makers if name != "with_extra_args_support")


def _differences(before, after, outline):
    """The first places where two trees differ, in words; empty where they are alike."""
    named = lambda tree: {
        jax.tree_util.keystr(path): outline(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    had, got = named(before), named(after)
    odd = [name for name in had | got if had.get(name) != got.get(name)]
    told = [f"{had.get(x)} became {got.get(x)}" + f" at {x}" * bool(x) for x in odd[:3]]
    if not told and jax.tree.structure(before) != jax.tree.structure(after):
        return f"{jax.tree.structure(before)} became {jax.tree.structure(after)}"
    return ", ".join(told)
