"""Steps of single leaves, multiplied: rates by layer, and what is frozen."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks, _paths
from lossopt._typing import Array
from lossopt.transforms._codes import widen
from lossopt.transforms._factors import offered, withdrawn
from lossopt.transforms._iterates import AverageState
from lossopt.transforms._numbers import at, known
from lossopt.transforms._rounding import KahanState, StochasticRoundingState
from lossopt.transforms._rules import ProximalState, RuleState

_RULES = RuleState, ProximalState
_POINTS = (
    AverageState,
    KahanState,
    StochasticRoundingState,
    optax.contrib.ScheduleFreeState,
)


class ScaleByPathState(NamedTuple):
    """State of `scale_by_path`.

    Attributes:
      count: steps taken, an integer of shape `()`.
      inner: state of the rule.
    """

    count: Array
    inner: optax.OptState


def scale_by_path(
    rule: optax.GradientTransformation, factors: Mapping[str, optax.ScalarOrSchedule]
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the steps of the leaves whose paths match a pattern, decay and all.

    $$\theta \leftarrow \theta + f u, \qquad \text{or} \qquad
    \theta \leftarrow \text{prox}_{f \eta D R}(\theta - f \eta (d + w \theta))$$

    The factor of a leaf multiplies its learning rate. In a rule with `regularizer=`, and in
    `proximal`, that is also the step size of the prox, so that zeros stay exact and the rule rests
    where it did. At a factor of 0 a leaf keeps its bits, whatever its gradient is, while the
    state of the rule goes on.

    Args:
      rule: a complete optax transformation or a chain. `average`, `kahan`, `stochastic_rounding`
        and `optax.contrib.schedule_free` go around the result. A projection that is no rule of this
        room, as `optax.keep_params_nonnegative`, stands behind it in a chain.
      factors: from regular expressions to factors $f \ge 0$, each a number, a tracer, or a schedule
        of the step count. A pattern is searched in a leaf's path, as in `by_path`. A leaf takes
        the first that matches; one that none matches steps as before.

    Returns:
      A transformation, which hands extra arguments on.

    Raises:
      TypeError: if `rule` is no transformation, or `factors` no mapping.
      ValueError: if a factor is negative or not finite; or, when it is used, if a pattern takes no
        leaf (inside of `optax.partition`, which hides the leaves of other groups, it may), or one
        that is not floating; if the rule keeps the points that its own steps lead to; or if a
        rule with a proximal step within it is given another tree, as by `optax.flatten`.

    Examples:
      >>> rule = lo.transforms.scale_by_path(optax.sgd(1.0), {"body/": 0.1, "embedding": 0.0})
      >>> params = {"body": {"w": jnp.ones(1)}, "embedding": jnp.ones(1), "head": jnp.ones(1)}
      >>> updates, _ = rule.update(params, rule.init(params))
      >>> print(updates["body"]["w"], optax.apply_updates(params, updates)["embedding"])
      [-0.1] [1.]
    """
    if not hasattr(rule, "update"):
        raise TypeError(
            f"Expected rule as an optax.GradientTransformation, got {rule!r}. Call what makes one, "
            "as in scale_by_path(optax.adam(1e-3), factors)."
        )
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"Expected factors as a dict from patterns to numbers, got {factors!r}. Write "
            "scale_by_path(rule, {'encoder/': 0.1})."
        )
    numbers = {f"the factor of {pattern!r}": x for pattern, x in factors.items()}
    _checks.at_least(0, **known(**numbers))
    _checks.below(float("inf"), **known(**numbers))
    factors, rule = dict(factors), optax.with_extra_args_support(rule)

    def init(params):
        _takers(factors, params)
        return ScaleByPathState(jnp.zeros((), jnp.int32), _accepted(rule.init(params)))

    def update(updates, state, params=None, **extra):
        names, takers = tuple(_paths.paths(updates)), _takers(factors, updates)
        numbers = {pattern: jnp.asarray(at(state.count, x)) for pattern, x in factors.items()}
        own = {name: numbers[pattern] for name, pattern in takers.items()}
        inner = offered(state.inner, _RULES, own, names)
        moved, inner = rule.update(updates, inner, params, **extra)
        inner, left = withdrawn(inner, _RULES, own)
        leaves, structure = jax.tree.flatten(moved)
        for i, name in enumerate(_paths.paths(moved)):
            if name in own:
                leaves[i] = _scaled(leaves[i], own[name], left[name])
        count = jnp.asarray(optax.safe_increment(state.count))
        return structure.unflatten(leaves), ScaleByPathState(count, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _takers(factors, tree):
    """From the path of each leaf that a pattern takes to the pattern."""
    names, leaves = _paths.paths(tree), jax.tree.leaves(tree)
    taken = _paths.places(factors, names, hides=_paths.hides(tree))
    takers = {names[i]: pattern for pattern, some in zip(factors, taken) for i in some}
    for name, x in zip(names, leaves):
        if name in takers and not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            raise ValueError(
                f"Expected floating leaves for the factor of {takers[name]!r}, got {name} of "
                f"{jnp.result_type(x)}. Write a pattern that leaves it out."
            )
    return takers


def _accepted(state):
    """The state of a rule, unless it holds points that multiplied steps would not lead to."""

    def refuse(node):
        if isinstance(node, _POINTS):
            raise ValueError(
                f"Expected a rule whose steps may be multiplied, got one that keeps a "
                f"{type(node).__name__}, of the points that its own steps lead to. Put "
                "scale_by_path inside of it, as in average(scale_by_path(rule, factors))."
            )
        return False

    jax.tree.leaves(state, is_leaf=refuse)
    return state


def _scaled(update, factor, left):
    """The update times what is left of its factor; -0.0 for a frozen leaf: -0.0 + 0.0 is 0.0."""
    wide = widen(update)
    product = jnp.asarray(left, wide.dtype) * wide
    return jnp.where(factor == 0, -0.0, product).astype(jnp.result_type(update))
