"""A learning rate that falls when a value stops falling."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._typing import Array
from lossopt.transforms._clipping import scaled
from lossopt.transforms._numbers import at, known


class ReduceOnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`; every field has the shape `()`.

    Attributes:
      count: updates so far, an integer.
      scale: what updates are multiplied by, float32 or wider; 1 at first.
      best: the lowest average so far; inf at first.
      waited: averages without improvement, an integer.
      cooldown: averages that are still to be let pass, an integer.
      total: sum of the values of the average that is open.
      values: how many those are, an integer.
    """

    count: Array
    scale: Array
    best: Array
    waited: Array
    cooldown: Array
    total: Array
    values: Array


def reduce_on_plateau(
    factor: optax.ScalarOrSchedule = 0.1,
    patience: optax.ScalarOrSchedule = 10,
    *,
    threshold: optax.ScalarOrSchedule = 1e-4,
    cooldown: optax.ScalarOrSchedule = 0,
    accumulation_size: optax.ScalarOrSchedule = 1,
    min_scale: optax.ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates down by a factor whenever a value has stopped improving.

    A value improves on the best one if it is lower by more than the threshold $\epsilon$, an
    absolute one, because a part of a negative best value points the wrong way:

    $$v < v_{\text{best}} - \epsilon$$

    After `patience` values in a row without improvement the scale is multiplied by `factor`. A
    value that is not finite is no improvement. Put it last in `optax.chain`, and pass the value
    with each update: `update(grads, state, params, value=loss)`, as `fit` does.

    Args:
      factor: in (0, 1). This and every other number may be a number, a tracer, or a schedule of the
        step count.
      patience: averages without improvement before the scale falls, at least 1.
      threshold: $\epsilon \ge 0$, in units of the value.
      cooldown: averages after a fall that do not count as waiting, at least 0.
      accumulation_size: values that are averaged into one, at least 1: a minibatch's loss is noisy.
      min_scale: the scale goes no lower, in [0, 1].

    Returns:
      A transformation of updates. Its state holds the scale.

    Raises:
      ValueError: if a number is out of its range, or `update` gets no `value`.

    Examples:
      >>> plateau = lo.transforms.reduce_on_plateau(0.5, patience=2)
      >>> state = plateau.init(jnp.array(0.0))
      >>> for loss in (-1.0, -2.0, -2.0, -2.0):
      ...     updates, state = plateau.update(jnp.array(1.0), state, value=loss)
      >>> print(updates, state.best)
      0.5 -2.0
    """
    _checks.above(0, **known(factor=factor))
    _checks.below(1, **known(factor=factor))
    _checks.at_least(1, **known(patience=patience, accumulation_size=accumulation_size))
    _checks.at_least(0, **known(threshold=threshold, cooldown=cooldown, min_scale=min_scale))
    _checks.at_most(1, **known(min_scale=min_scale))

    def init(params):
        del params
        count, waited, resting, values = (jnp.zeros((), jnp.int32) for _ in range(4))
        scale, best, total = jnp.ones(()), jnp.full((), jnp.inf, float), jnp.zeros(())
        return ReduceOnPlateauState(count, scale, best, waited, resting, total, values)

    def update(updates, state, params=None, *, value: Any = None, **extra):
        del params, extra
        now = lambda number: at(state.count, number)
        read = state._replace(
            count=optax.safe_increment(state.count),
            total=state.total + _value(value, state.total.dtype),
            values=state.values + 1,
        )
        average, resting = read.total / read.values, state.cooldown > 0
        better = jnp.isfinite(average) & (average < state.best - now(threshold))
        waited = jnp.where(better | resting, 0, state.waited + 1)
        falls = waited >= now(patience)
        scale = jnp.where(falls, state.scale * now(factor), state.scale)
        judged = read._replace(
            scale=jnp.maximum(scale, now(min_scale)),
            best=jnp.where(better, average, state.best),
            waited=jnp.where(falls, 0, waited),
            cooldown=jnp.where(falls, now(cooldown), jnp.maximum(state.cooldown - 1, 0)),
            total=0,
            values=0,
        )
        ends = read.values >= now(accumulation_size)
        state = jax.tree.map(lambda x, y: jnp.where(ends, x, y).astype(y.dtype), judged, read)
        return jax.tree.map(lambda u: scaled(u, state.scale), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _value(value, dtype):
    if value is None:
        raise ValueError(
            "reduce_on_plateau watches a value, got none. "
            "Call update(grads, state, params, value=loss)."
        )
    _checks.exact_shape((), value=value)
    return jnp.asarray(value, dtype)
