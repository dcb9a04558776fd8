"""The simplex and balls of norms."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._secular import solution
from lossopt.regularizers._sums import add, add_to


@partial(jax.tree_util.register_dataclass, data_fields=["total"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class Simplex:
    r"""The constraint $\theta_i \ge 0$, $\sum_i \theta_i = s$. Its value is 0 everywhere.

    Attributes:
      total: $s \ge 0$.
      axis: the axes that a sum runs over, static; None is the whole leaf, `"tree"` all leaves
        together.

    Examples:
      >>> simplex = lo.regularizers.Simplex()
      >>> print(simplex.prox(jnp.array([0.5, 1.0, -2.0]), 0.1))
      [0.25 0.75 0.  ]
      >>> print(simplex.prox(jnp.array([0.5, 1.0]), jnp.array([0.1, 0.4])).round(3))
      [0.4 0.6]

    References:
      Held, Wolfe and Crowder, "Validation of Subgradient Optimization", 1974.
    """

    total: Number = 1.0
    axis: _leaves.Axis = None

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        _leaves.at_least_zero(total=self.total)
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\max(\theta - \tau \, t, 0)$, of the right sum by its $\tau$.

        A coordinate of minus infinity has no share.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate. Only the
            ratios within a group count.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf does not have the axes.
        """
        _leaves.at_least_zero(total=self.total)
        project = lambda x, t, total: _on_simplex(x, _leaves.relative(t, x), total)
        return _leaves.prox_of_groups(project, params, step_size, axis=self.axis, total=self.total)

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["radius"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class L1Ball:
    r"""The constraint $\sum_i |\theta_i| \le r$. Its value is 0 everywhere: only its prox acts.

    Attributes:
      radius: $r \ge 0$.
      axis: the axes that a sum runs over, static; None is the whole leaf, `"tree"` all leaves
        together.

    Examples:
      >>> print(lo.regularizers.L1Ball(1.0).prox(jnp.array([0.5, -1.0, 0.1]), 0.1))
      [ 0.25 -0.75  0.  ]

    References:
      Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient Projections onto the l1-Ball for
      Learning in High Dimensions", 2008.
    """

    radius: Number
    axis: _leaves.Axis = None

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        _leaves.at_least_zero(radius=self.radius)
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\text{sign}(\theta) \max(|\theta| - \tau \, t, 0)$.

        What lies within the ball stays as it is. Otherwise the result has the radius by its $\tau$.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate. Only the
            ratios within a group count.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf does not have the axes.
        """
        _leaves.at_least_zero(radius=self.radius)

        def project(x, t, radius):
            size = jnp.abs(x)
            inside = jnp.sum(size, -1, keepdims=True) <= radius
            onto = _on_simplex(size, _leaves.relative(t, x), radius)
            return jnp.where(inside, x, jnp.sign(x) * onto)

        return _leaves.prox_of_groups(
            project, params, step_size, axis=self.axis, radius=self.radius
        )

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["radius"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class L2Ball:
    r"""The constraint $\|\theta\|_2 \le r$. Its value is 0 everywhere: only its prox acts.

    Attributes:
      radius: $r \ge 0$.
      axis: the axes that a norm runs over, static: `axis=0` on a kernel of shape `(inputs,
        outputs)` bounds the weights of each output. None is the whole leaf, `"tree"` all leaves
        together.

    Examples:
      >>> print(lo.regularizers.L2Ball(1.0).prox(jnp.array([3.0, -4.0]), 0.1).round(3))
      [ 0.6 -0.8]

    References:
      Moré and Sorensen, "Computing a Trust Region Step", 1983.
    """

    radius: Number
    axis: _leaves.Axis = None

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        _leaves.at_least_zero(radius=self.radius)
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\theta / (1 + \mu \, t)$, $\mu \ge 0$.

        With one step size it is $\theta \min(1, r / \|\theta\|)$. In a diagonal metric $\mu$ solves
        one equation, to rounding.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate. Only the
            ratios within a group count.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf does not have the axes.
        """
        _leaves.at_least_zero(radius=self.radius)
        return _leaves.prox_of_groups(
            _in_ball, params, step_size, axis=self.axis, radius=self.radius
        )

    __add__ = add
    __radd__ = add_to


def _in_ball(x, step_size, radius):
    largest = _leaves.scale(x)
    part, bound = x * (1 / largest), radius / largest
    if not step_size.ndim:
        norm = _leaves.root_of_squares(part)
        outside = ~(norm <= bound)
        inverse = 1 / jnp.where(outside, norm, 1)
    else:
        inverse, moved = solution(jnp.abs(part), _leaves.relative(step_size, x), bound)
        outside = jnp.any(moved != 0, -1, keepdims=True)
    return jnp.where(outside, part * (radius * inverse), x)


@jax.jit
def _on_simplex(x, step_size, total):
    top = jnp.maximum(jnp.abs(jnp.max(x, -1, keepdims=True)), total)
    size = _leaves.scale(top)
    # At least one coordinate has all: from there on, what is kept lies within 0 and the total,
    # and no sum loses it to large numbers that cancel.
    least = lax.stop_gradient(jnp.max((x / size - total / size) / step_size, -1, keepdims=True))
    x = x / size - least * step_size
    unit = jnp.where(total > 0, lax.stop_gradient(total), size)
    x, total = x * size / unit, total / unit
    kept = _kept(*map(lax.stop_gradient, (x, step_size, total)))
    step_size = step_size / _leaves.scale(jnp.where(kept, step_size, 0))
    for _ in range(2):  # the second time takes the rounding of the first
        excess = jnp.sum(jnp.where(kept, x, 0), -1, keepdims=True) - total
        x = x - excess / jnp.sum(jnp.where(kept, step_size, 0), -1, keepdims=True) * step_size
    return unit * jnp.where(kept | jnp.isnan(x), jnp.maximum(x, 0), 0)


def _kept(x, step_size, total):
    """Which coordinates the projection keeps: a beginning of them by descending ratio."""
    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    falling, xs, steps, order = lax.sort((-x / step_size, x, step_size, places), num_keys=1)
    sums, widths = jnp.cumsum(xs, -1), jnp.cumsum(steps, -1)
    above = -falling * widths > sums - total
    count = jnp.sum(above & (xs > 0), -1, keepdims=True)  # below 0 both sides may be one number
    last = jnp.take_along_axis(falling, jnp.maximum(count, 1) - 1, -1)
    # Sorted ratios are compared with one of themselves: computed anew they may round otherwise.
    return lax.sort((order, falling <= last), num_keys=1)[1]
