"""Rules of optax, with a regularizer or a constraint respected exactly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from lossopt import _checks
from lossopt._typing import Number, PyTree
from lossopt.regularizers import Regularizer
from lossopt.transforms._numbers import decay_rates
from lossopt.transforms._rules import only_regularizer, rule

Metric = Callable[[Any], PyTree]  # of the state of a direction

STEPS, WATCHED = 16384, 4096  # an average of 0.999 needs 10 000 steps to settle
SIZES = (1e-4, 1.0, 1e4)
GRADIENT = np.array([[-2.0, 0.3], [0.5, -4.0], [1.0, 2.0]])  # matrix rules take nothing else


def proximal(
    regularizer: Regularizer,
    learning_rate: optax.ScalarOrSchedule,
    direction: optax.GradientTransformation | None = None,
    *,
    metric: Metric | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends on `objective + regularizer`, touching the regularizer only by its prox.

    $$\theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta d), \qquad d \to D g$$

    It rests exactly where the sum is least, with exact zeros, if a constant gradient $g$ makes
    `direction` settle on $D g$. That is tried when it is built. Momentum is `optax.ema`, because
    `optax.trace` settles on $g / (1 - \beta)$; an adaptive rule needs its `metric`. The rules of
    this room know theirs: give them `regularizer=`.

    Wrap `optax.MultiSteps` or `accumulate` around it, not the other way round.

    Args:
      regularizer: $R$, which the objective holds by its value alone, as for `sgd`.
      learning_rate: $\eta \ge 0$, a number, a tracer or a schedule.
      direction: the rule that gives $d$, without a learning rate and its sign; None takes $d = g$.
      metric: reads $D$, a number or a tree like the parameters, from the state of `direction`;
        None takes 1. See `adam_metric` and `rms_metric`.

    Returns:
      A complete transformation, whose `update` requires `params`.

    Raises:
      ValueError: if `direction` does not settle on $D g$.

    Examples:
      >>> lasso, rule = lo.regularizers.L1(0.5), optax.scale_by_adam()
      >>> metric = lo.transforms.adam_metric()
      >>> optimizer = lo.transforms.proximal(lasso, 0.1, rule, metric=metric)
      >>> params, grads = jnp.array([1.0, 0.01]), jnp.array([-1.0, 0.25])
      >>> print(optimizer.update(grads, optimizer.init(params), params)[0].round(4))
      [ 0.05 -0.01]

    References:
      Yun, Lozano and Yang, "Adaptive Proximal Gradient Methods for Structured Neural Networks",
      2021.
    """
    only_regularizer(regularizer)
    given = optax.with_extra_args_support(optax.identity() if direction is None else direction)
    read = (lambda state: 1.0) if metric is None else metric
    if direction is not None:
        _try(given, read, "its metric" if metric else "1, for want of a metric")

    def move(gradients, state, count, params, extra):
        moved, inner = given.update(gradients, state, params, **extra)
        return moved, read(inner), inner

    return rule(given.init, move, learning_rate, regularizer=regularizer)


def adam_metric(b2: Number = 0.999, eps: Number = 1e-8, eps_root: Number = 0.0) -> Metric:
    r"""The metric of `optax.scale_by_adam`, for `proximal`.

    $$D = 1 / (\sqrt{\hat\nu + \epsilon_0} + \epsilon)$$

    Args:
      b2: that of the rule, in [0, 1).
      eps: that of the rule.
      eps_root: $\epsilon_0$, that of the rule.

    Returns:
      A function from the state of the rule to $D$, a tree like the parameters.

    Examples:
      >>> rule = optax.scale_by_adam(eps=1.0)
      >>> _, state = rule.update(jnp.array([3.0]), rule.init(jnp.zeros(1)))
      >>> print(lo.transforms.adam_metric(eps=1.0)(state))
      [0.25]
    """
    decay_rates(b2=b2)

    def metric(state):
        seen = -jnp.expm1(state.count * jnp.log1p(-jnp.asarray(1 - b2)))
        root = lambda nu: jnp.sqrt(nu / seen.astype(nu.dtype) + eps_root)
        return jax.tree.map(lambda nu: 1 / (root(nu) + eps), state.nu)

    return metric


def rms_metric(eps: Number = 1e-8, *, eps_in_sqrt: bool = True) -> Metric:
    r"""The metric of `optax.scale_by_rms`, for `proximal`.

    $$D = 1 / \sqrt{\nu + \epsilon}$$

    Args:
      eps: that of the rule.
      eps_in_sqrt: that of the rule; False is $1 / (\sqrt{\nu} + \epsilon)$.

    Returns:
      A function from the state of the rule to $D$, a tree like the parameters.

    Examples:
      >>> rule = optax.scale_by_rms(decay=0.75, eps=1e-12)
      >>> _, state = rule.update(jnp.array([4.0]), rule.init(jnp.zeros(1)))
      >>> print(lo.transforms.rms_metric(1e-12)(state))
      [0.5]
    """
    if eps_in_sqrt:
        return lambda state: jax.tree.map(lambda nu: jax.lax.rsqrt(nu + eps), state.nu)
    return lambda state: jax.tree.map(lambda nu: 1 / (jnp.sqrt(nu) + eps), state.nu)


def _try(direction, read, metric):
    """Refuses a direction that does not settle on the metric times a constant gradient."""
    with jax.ensure_compile_time_eval():
        errors = jax.jit(jax.vmap(lambda size: _error(direction, read, size)))
        try:
            worst = jnp.max(errors(jnp.array(SIZES)))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                "Expected a direction and a metric that can be tried on one matrix, got the error "
                f"below from them. Give masks as functions of the parameters. {error}"
            ) from error
    message = (
        "Expected a direction that settles on D g for every constant gradient g, D being "
        f"{metric}; it is off by a factor of up to {{worst}}. Heavy-ball momentum "
        "(optax.trace) becomes optax.ema; a learning rate, weight decay, clipping, MultiSteps or "
        "accumulate belong around or beside proximal; adaptive rules need metric=, with the "
        "rule's own numbers; sign and matrix rules have no metric."
    )
    if isinstance(worst, Tracer):
        _checks.condition(worst < 1e-2, message, worst=worst)
    elif not float(worst) < 1e-2:
        raise ValueError(message.format(worst=f"{float(worst):.3g}"))


def _error(direction, read, size):
    """The largest |d - D g| / |D g| over the last steps of many with one gradient.

    The first quarter has a larger one: a rule that remembers its maximum is no longer D g.
    """
    last = size * jnp.asarray(GRADIENT, jnp.float32)
    params = jnp.full_like(last, 0.1)

    def step(i, carry):
        state, worst = carry
        gradient = jnp.where(i < STEPS // 4, 10, 1) * last
        moved, state = direction.update(gradient, state, params)
        steady = read(state) * gradient
        here = jnp.max(jnp.abs(moved - steady) / jnp.abs(steady))
        return state, jnp.where(i < STEPS - WATCHED, worst, jnp.maximum(worst, here))

    return jax.lax.fori_loop(0, STEPS, step, (direction.init(params), jnp.zeros(())))[1]
