"""Penalties on groups of coordinates, which become zero together."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Regularizer
from lossopt.regularizers._constraints import NonNegative
from lossopt.regularizers._norms import L1
from lossopt.regularizers._secular import solution
from lossopt.regularizers._sums import Sum, add, add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class GroupLasso:
    r"""Sum of the Euclidean norms of groups, whose prox makes whole groups exactly zero.

    $$R(\theta) = \lambda \sum_g \|\theta_g\|_2$$

    There is no factor for the size of a group.

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per unit of parameter.
      axis: the axes that a group runs over, static: `axis=1` on a kernel of shape `(inputs,
        outputs)` makes each row a group, which drops or keeps an input. None is the whole leaf,
        `"tree"` all leaves together.

    Examples:
      >>> lasso = lo.regularizers.GroupLasso(1.0, axis=1)
      >>> kernel = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> float(lasso(kernel))
      5.5
      >>> print(lasso.prox(kernel, 1.0)[1])
      [0. 0.]

    References:
      Yuan and Lin, "Model Selection and Estimation in Regression with Grouped Variables", 2006.
    """

    strength: Number
    axis: _leaves.Axis

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; the gradient of a zero group is 0."""
        _leaves.at_least_zero(strength=self.strength)
        return jnp.multiply(self.strength, _leaves.sum_of_norms(params, self.axis))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Shrinkage of each group, so that its norm falls by $t \lambda$, or to 0.

        $$z_g = \theta_g \max(1 - t \lambda / \|\theta_g\|, 0)$$

        In a diagonal metric each coordinate has its own factor. The group is zero if
        $\|\theta_g / t\| \le \lambda$; otherwise the norm of the result solves one
        equation, to rounding.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf does not have the axes.
        """
        _leaves.at_least_zero(strength=self.strength)
        shrink = lambda x, t, strength: _shrunk(x, t * strength)
        return _leaves.prox_of_groups(
            shrink, params, step_size, axis=self.axis, strength=self.strength
        )

    def stands(self, other: Regularizer) -> Literal["after"] | None:
        """After L1 and NonNegative, in a sum."""
        return "after" if isinstance(other, L1 | NonNegative) else None

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength", "mix"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class SparseGroupLasso:
    r"""A mixture of absolute values and norms of groups: few groups, and few within them.

    $$R(\theta) = \lambda \Big( m \sum_i |\theta_i| + (1 - m) \sum_g \|\theta_g\|_2 \Big)$$

    In a sum it counts as `L1(strength * mix) + GroupLasso(strength * (1 - mix), axis)`.

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per unit of parameter.
      mix: $m$ in [0, 1], the share of the absolute values.
      axis: the axes that a group runs over, static, as in `GroupLasso`.

    Examples:
      >>> both = lo.regularizers.SparseGroupLasso(10.0, mix=0.5, axis=1)
      >>> kernel = jnp.array([[11.0, 13.0], [6.0, 2.0]])
      >>> print(both.prox(kernel, 1.0))
      [[3. 4.]
       [0. 0.]]

    References:
      Simon, Friedman, Hastie and Tibshirani, "A Sparse-Group Lasso", 2013.
    """

    strength: Number
    mix: Number
    axis: _leaves.Axis

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; the gradient of a zero group is 0."""
        return Sum(self.summands)(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Soft thresholding by $t \lambda m$, then shrinkage of each group.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf does not have the axes.
        """
        return Sum(self.summands).prox(params, step_size)

    @property
    def summands(self) -> tuple[Regularizer, ...]:
        """What it counts as in a sum."""
        strength, mix = _leaves.mixture(self.strength, self.mix)
        return L1(strength * mix), GroupLasso(strength * (1 - mix), self.axis)

    __add__ = add
    __radd__ = add_to


def _shrunk(x, threshold):
    if not threshold.ndim:
        norm = _leaves.norms(x)
        kept = ~(norm <= threshold) | (threshold == 0)
        return x * jnp.where(kept, 1 - threshold / jnp.where(norm > 0, norm, 1), 0)
    largest = _leaves.scale(x)
    one = jnp.ones([1] * x.ndim, x.dtype)
    return x * solution(jnp.abs(x) / largest, one, threshold / largest)[1]
