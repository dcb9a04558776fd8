"""Penalties on differences of neighbors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._sums import add, add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class TotalVariation:
    r"""Sum of the jumps along sequences, whose prox makes them exactly constant in segments.

    $$R(\theta) = \lambda \sum_i |\theta_{i+1} - \theta_i|$$

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per unit of parameter.
      axis: the axis that a sequence runs along, static; each line along it is one.

    Examples:
      >>> smooth = lo.regularizers.TotalVariation(1.0)
      >>> noisy = jnp.array([0.0, 1.0, 0.5, 6.0, 6.5])
      >>> float(smooth(noisy))
      7.5
      >>> print(smooth.prox(noisy, 0.75))
      [0.75  0.75  0.75  5.875 5.875]

    References:
      Johnson, "A Dynamic Programming Algorithm for the Fused Lasso and L0-Segmentation", 2013.
    """

    strength: Number
    axis: int = -1

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; the gradient of equal neighbors is 0."""
        _leaves.at_least_zero(strength=self.strength)

        def amount(x):
            jumps = jnp.diff(x, axis=_leaves.one_axis(self.axis, x.shape))
            return jnp.sum(_leaves.magnitude(jumps))

        return jnp.multiply(self.strength, _leaves.penalty(amount, params))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The minimizer itself, in time linear in the length of a sequence.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree of one for each leaf.

        Returns:
          A tree like `params`, with its dtypes. Within a segment all numbers are equal.

        Raises:
          ValueError: if a leaf does not have the axis, or `step_size` is one for each coordinate.
        """
        _leaves.at_least_zero(strength=self.strength)

        def smooth(x, t, strength):
            _leaves.one_step_size("TotalVariation", t)
            x = jnp.moveaxis(x, axis := _leaves.one_axis(self.axis, x.shape), -1)
            lines = _smoothed(x.reshape(-1, x.shape[-1]), t * strength)
            return jnp.moveaxis(lines.reshape(x.shape), -1, axis)

        return _leaves.prox(smooth, params, step_size, axis=self.axis, strength=self.strength)

    __add__ = add
    __radd__ = add_to


@jax.jit  # a program of its own, so that use outside of jit compiles its loops once
@partial(jax.vmap, in_axes=(0, None))
def _smoothed(x, threshold):
    """Segments by dynamic programming, then each segment's number in closed form."""
    rough = _minimizer(*map(lax.stop_gradient, (x, threshold)))
    jumps = jnp.sign(jnp.diff(rough))
    # Where segments tie, rounding may leave a jump of the wrong sign: they are one.
    found = jnp.sign(jnp.diff(lax.stop_gradient(_levels(x, rough, jumps, threshold))))
    return _levels(x, rough, jnp.where(found == jumps, jumps, 0), threshold)


def _levels(x, rough, jumps, threshold):
    """The mean of each segment, moved by its jumps: as a correction, which rounds less."""
    segment = jnp.cumulative_sum(jumps != 0, include_initial=True)
    of_segments = {"segment_ids": segment, "num_segments": x.size}
    total = partial(jax.ops.segment_sum, **of_segments)
    level = jax.ops.segment_max(rough, **of_segments)[segment]
    pull = jnp.diff(jumps, prepend=0, append=0) * threshold  # of the jumps at both ends
    shift = total(x - level + pull) / jnp.maximum(total(jnp.ones_like(x)), 1)
    return level + shift[segment]


def _minimizer(x, threshold):
    r"""The sequence of least $\tfrac12 \|z - x\|^2 + \lambda \sum_i |z_{i+1} - z_i|$.

    The least cost of a beginning, as a function of its last number, has a derivative that increases
    and is linear between knots. The next number pays for it what lies within ±λ: where it is cut
    are the bounds that the next number puts on this one.
    """
    if x.size < 2:
        return x
    middle = jnp.mean(x)
    x = x - middle
    # Beyond the largest sum the result is constant; a threshold far above would drown the data.
    threshold = jnp.minimum(threshold, 2 * jnp.max(jnp.abs(jnp.cumsum(x))))
    first = x[0] - threshold, x[0] + threshold
    knots, bounds = lax.scan(_message, _start(*first, x.size), x[1:-1])
    last = _from_left(knots, -x[-1], threshold)[0]
    lows, highs = (jnp.append(y, rest) for y, rest in zip(first, bounds))

    def back(z, bounds):
        z = jnp.clip(z, *bounds)
        return z, z

    rest = lax.scan(back, last, (lows, highs), reverse=True)[1]
    return jnp.append(rest, last) + middle


def _start(low, high, length):
    """A queue that grows at both ends: places of knots, changes of slope there, first and last."""
    ends = jnp.array([length - 1, length])
    places = jnp.zeros(2 * length, low.dtype).at[ends].set(jnp.stack([low, high]))
    return places, jnp.zeros_like(places).at[ends].set(jnp.array([1, -1])), ends[0], ends[1]


def _message(knots, x):
    low, rise, first = _from_left(knots, -x, 0)
    high, fall, last = _from_right(knots, -x)
    ends = jnp.stack([first - 1, last + 1])
    places = knots[0].at[ends].set(jnp.stack([low, high]))
    bends = knots[1].at[ends].set(jnp.stack([rise, -fall]))
    return (places, bends, first - 1, last + 1), (low, high)


def _from_left(knots, offset, goal):
    """Where the derivative, raised by λ, reaches the goal, its slope there, the next knot."""
    places, bends, first, last = knots

    def short(state):
        slope, offset, i = state
        return (i <= last) & (slope * places[i] + offset < goal)

    def further(state):
        slope, offset, i = state
        return slope + bends[i], offset - bends[i] * places[i], i + 1

    slope, offset, i = lax.while_loop(short, further, (jnp.ones_like(offset), offset, first))
    return (goal - offset) / slope, slope, i


def _from_right(knots, offset):
    """Where the derivative, lowered by λ, falls to 0, its slope there, the knot before."""
    places, bends, first, last = knots

    def short(state):
        slope, offset, i = state
        return (i >= first) & (slope * places[i] + offset > 0)

    def further(state):
        slope, offset, i = state
        return slope - bends[i], offset + bends[i] * places[i], i - 1

    slope, offset, i = lax.while_loop(short, further, (jnp.ones_like(offset), offset, last))
    return -offset / slope, slope, i
