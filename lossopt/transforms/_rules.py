"""What all rules share: the rate, the decay and the proximal step, in float32 or wider."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt import _checks, _jaxprs, _paths
from lossopt._typing import Array, Params, PyTree
from lossopt.regularizers import Regularizer
from lossopt.transforms._codes import together, widen
from lossopt.transforms._factors import around, bare, take
from lossopt.transforms._numbers import at, known
from lossopt.transforms._quantized import Moments, with_moments

Where = str | Callable[[PyTree], PyTree] | None


class RuleState(NamedTuple):
    """State of a complete rule.

    Attributes:
      count: steps taken, an integer of shape `()`.
      inner: state of what gives the direction: moments, in float32 or wider.
    """

    count: Array
    inner: PyTree


class ProximalState(NamedTuple):
    """State of a complete rule with a regularizer that has a value.

    By its type `fit` knows that the objective must hold the value. The value of a constraint is 0
    everywhere: its rule keeps a `RuleState`.

    Attributes:
      count: steps taken, an integer of shape `()`.
      inner: state of what gives the direction: moments, in float32 or wider.
    """

    count: Array
    inner: PyTree


def rule(
    start: Callable[[PyTree], PyTree],
    move: Callable[..., tuple[PyTree, PyTree, PyTree]],
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    """A complete rule from a direction that knows its metric.

    Args:
      start: from wide parameters to the state of the direction.
      move: from `(gradients, state, count, params, extra)`, wide, to the direction d, its metric D
        and the next state: a constant gradient g settles on d = D g. D is a number, or a tree.
      learning_rate: its unit is parameter per unit of d, at least 0.
      weight_decay: per unit of `learning_rate`, at least 0.
      weight_decay_where: the leaves that decay.
      regularizer: touched only by its prox, in the metric.
      moments: how the state is stored.

    Returns:
      A transformation whose updates look like the parameters.
    """
    _checks.at_least(0, **known(learning_rate=learning_rate, weight_decay=weight_decay))
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    if regularizer is not None:
        only_regularizer(regularizer)
    _only_names(weight_decay_where)

    def init(params):
        return RuleState(jnp.zeros((), jnp.int32), start(widen(_floating(params))))

    def update(updates, state, params=None, **extra):
        if params is None and (decays or regularizer is not None):
            needs = "weight_decay" if regularizer is None else "regularizer"
            raise ValueError(
                f"A rule with {needs}= needs the current point, got no params. "
                "Call update(grads, state, params). (optax.inject_hyperparams makes an array of "
                "weight_decay=0.0: name it in static_args.)"
            )
        gradients, point = together(_floating(updates), _floating(params))
        rate, held = at(state.count, learning_rate), state.inner
        direction, metric, inner = move(gradients, bare(held), state.count, point, extra)
        if decays:
            strength = at(state.count, weight_decay)
            direction = _decay(direction, point, strength, _named(weight_decay_where, point))
        if regularizer is not None:
            held, direction, metric = take(held, point, direction, metric)
        change = jax.tree.map(lambda d: -like(d, rate) * d, direction)
        if regularizer is not None:
            steps = jax.tree.map(lambda d: rate * d, metric)
            near = regularizer.prox(jax.tree.map(jnp.add, point, change), steps)
            change = jax.tree.map(jnp.subtract, near, point)
        narrow = lambda u, x: u.astype(jnp.result_type(x))
        change = jax.tree.map(narrow, change, updates if params is None else params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return change, state._replace(count=count, inner=around(held, inner))

    stored = with_moments(optax.GradientTransformationExtraArgs(init, update), moments)
    return stored if regularizer is None else _told_apart(stored, regularizer)


def like(x: Array, number: Any) -> Array:
    """The number in the dtype of `x`, so that a wider one never widens a state."""
    return jnp.asarray(number, x.dtype)


def only_regularizer(regularizer: Any) -> None:
    """Raises unless it is one, and no class of them."""
    if isinstance(regularizer, type) or not isinstance(regularizer, Regularizer):
        raise ValueError(
            f"Expected regularizer as a lossopt regularizer, got {regularizer!r}. "
            "Under optax.inject_hyperparams, name it in static_args."
        )


def _told_apart(rule, regularizer):
    """The rule, whose state has another type where the regularizer has a value."""
    other = lambda x: ProximalState(*x) if isinstance(x, RuleState) else x

    def init(params):
        state = rule.init(params)
        _, (valued,) = _jaxprs.prune(regularizer, params)
        if not any(jax.tree.leaves(valued)):
            return state
        return jax.tree.map(other, state, is_leaf=lambda x: isinstance(x, RuleState))

    return optax.GradientTransformationExtraArgs(init, rule.update)


def _floating(tree: Params) -> Params:
    for dtype in map(jnp.result_type, jax.tree.leaves(tree)):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"Expected real floating parameters, got a leaf of {dtype}. "
                "Leave it out with optax.masked or optax.partition."
            )
    return tree


def _only_names(where):
    if where is not None and not isinstance(where, str) and not callable(where):
        raise ValueError(
            f"Expected weight_decay_where as a pattern of paths or a function, got {where!r}. "
            "Give a tree of booleans as lambda params: tree."
        )


def _decay(direction, params, strength, named):
    decayed = lambda d, x, yes: d + like(d, strength) * x if yes else d
    return jax.tree.map(decayed, direction, params, named)


def _named(where: Where, params):
    """A tree like the parameters: which leaves decay."""
    if where is None:
        return jax.tree.map(lambda x: x.ndim >= 2, params)
    if callable(where):
        named = jax.tree.broadcast(where(params), params)
        for yes in jax.tree.leaves(named):
            if not isinstance(yes, bool | np.bool_):
                raise ValueError(
                    f"Expected booleans from weight_decay_where, got {yes!r}. Decide by names and "
                    "shapes, not by values."
                )
        return named
    (places,) = _paths.places([where], _paths.paths(params), hides=_paths.hides(params))
    structure = jax.tree.structure(params)
    return structure.unflatten([i in places for i in range(structure.num_leaves)])
