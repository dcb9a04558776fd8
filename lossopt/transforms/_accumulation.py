"""Gradients of several microbatches gathered into one step."""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._numerics import zeros
from lossopt._typing import Array, PyTree
from lossopt.transforms._gate import run_if
from lossopt.transforms._numbers import at, known


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
      count: windows that ended, an integer of shape `()`.
      microsteps: microbatches of the window that is open, an integer of shape `()`; 0 right after
        a window ended.
      dropped: microbatches dropped since the beginning, an integer of shape `()`.
      weight: sum of the weights of the window, shape `()`, float32 or wider.
      total: sum of weight times gradient, like the parameters, float32 or wider; that of the last
        window until the next one begins.
      inner: state of the rule.
    """

    count: Array
    microsteps: Array
    dropped: Array
    weight: Array
    total: PyTree
    inner: optax.OptState


def accumulate(
    rule: optax.GradientTransformation, every: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Gathers the gradients of several microbatches and runs the rule once on their average.

    $$\bar g = \frac{\sum_j W_j \, g_j}{\sum_j W_j}$$

    Here $g_j$ is the gradient of microbatch $j$'s own mean and $W_j$ the weight of that mean. So
    $\bar g$ is the gradient of the whole batch for an objective of one weighted term, with any
    penalties. Several weighted terms need more than one weight: `value_and_grad(microbatches=)`
    is exact for them, and where the pieces fit into one program it is faster, too. `fit` and
    `train_step` refuse it, because they have no one weight to give: there, `microbatches=` is it.

    `update(grads, state, params, *, weight=1.0, flush=False, **extra)` returns zeros until its
    window of `every` microbatches ends. A microbatch whose gradient or weight is not finite, or
    whose weight is negative, is dropped and counted; it still is one of its window. At weight 0 a
    gradient is not read. `flush=True` ends the window with this microbatch, however few there are.
    A window without weight leaves the rule as it was. Wrap the whole optimizer: what follows in a
    chain would run on the zeros, too.

    Args:
      rule: an optax transformation, a complete one or a chain. It gets the `params` and the extra
        arguments, such as `value=`, of the window's last microbatch.
      every: microbatches a window, at least 1. It may be a number, a tracer, or a schedule of the
        count of windows.

    Returns:
      A transformation. Its `weight` is a number such as a mask's sum or a `Mean`'s weight; `flush`
      is a boolean, perhaps traced.

    Raises:
      ValueError: if `every` is below 1, or a Python `weight` is negative.

    Examples:
      >>> optimizer = lo.transforms.accumulate(optax.sgd(1.0), every=2)
      >>> state = optimizer.init(jnp.array(0.0))
      >>> _, state = optimizer.update(jnp.array(1.0), state, weight=3)
      >>> print(optimizer.update(jnp.array(5.0), state, weight=1)[0])
      -2.0
    """
    _checks.at_least(1, **known(every=every))
    rule = optax.with_extra_args_support(rule)

    def init(params):
        total = jax.tree.map(zeros, params)
        count, microsteps, dropped = (jnp.zeros((), jnp.int32) for _ in range(3))
        weight = jnp.zeros(())
        return AccumulateState(count, microsteps, dropped, weight, total, rule.init(params))

    def update(updates, state, params=None, *, weight: Any = 1.0, flush: Any = False, **extra):
        own = _weight(weight, updates, state.weight.dtype)
        begun = state.microsteps > 0
        total = jax.tree.map(lambda t, g: _sum(begun, t, own, g), state.total, updates)
        weights = _sum(begun, state.weight, own, 1)
        microsteps = state.microsteps + 1
        ends = (microsteps >= jnp.asarray(at(state.count, every))) | jnp.asarray(flush, bool)

        def run():
            mean = lambda t, g: (t / weights.astype(t.dtype)).astype(jnp.result_type(g))
            return rule.update(jax.tree.map(mean, total, updates), state.inner, params, **extra)

        moved, inner = run_if(ends & (weights > 0), run, state.inner)
        return moved, AccumulateState(
            count=jnp.where(ends, optax.safe_increment(state.count), state.count),
            microsteps=jnp.where(ends, 0, microsteps),
            dropped=state.dropped + jnp.isnan(own),
            weight=weights,
            total=total,
            inner=inner,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _weight(weight, gradients, dtype):
    """The weight of a microbatch, NaN where it must be dropped."""
    if isinstance(weight, int | float) and weight < 0:
        raise ValueError(
            f"Expected weight >= 0, got {weight}. It is the sum of the microbatch's mask."
        )
    _checks.exact_shape((), weight=weight)
    weight = jnp.asarray(weight, dtype)
    peaks = (jnp.max(jnp.abs(g), initial=0).astype(dtype) for g in jax.tree.leaves(gradients))
    peak = reduce(jnp.maximum, peaks, jnp.zeros((), dtype))
    sound = (weight >= 0) & jnp.isfinite(weight * peak) | (weight == 0)
    # Not `where`: the compiler would repeat the maximum over all leaves in the loop of each leaf.
    return jax.lax.cond(sound, lambda: weight, lambda: jnp.full_like(weight, jnp.nan))


def _sum(begun, total, weight, x):
    term = jnp.where(weight > 0, weight.astype(total.dtype) * x, 0)
    return jnp.where(begun, total, 0) + term
