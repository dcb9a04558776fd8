"""Bounds on single coordinates."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import numpy as np
import optax
from jax.core import Tracer

from lossopt import _checks
from lossopt._typing import Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Regularizer
from lossopt.regularizers._norms import L1
from lossopt.regularizers._sums import add, add_to


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class NonNegative:
    r"""The constraint $\theta_i \ge 0$. Its value is 0 everywhere: only its prox acts.

    Examples:
      >>> print(lo.regularizers.NonNegative().prox(jnp.array([-1.0, 2.0]), 0.1))
      [0. 2.]

    References:
      Lawson and Hanson, "Solving Least Squares Problems", 1974.
    """

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\max(\theta, 0)$, in every metric.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.
        """
        project = lambda x, _: optax.projections.projection_non_negative(x)
        return _leaves.prox(project, params, step_size)

    def stands(self, other: Regularizer) -> Literal["after"] | None:
        """After L1, in a sum."""
        return "after" if isinstance(other, L1) else None

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["low", "high"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Box:
    r"""The constraint $l \le \theta_i \le h$. Its value is 0 everywhere: only its prox acts.

    Attributes:
      low: $l$, one number; `-jnp.inf` for none. Bounds for each coordinate are an array of the
        leaf's shape, or a tree like the parameters of numbers and arrays.
      high: $h \ge l$, in the same way; `jnp.inf` for none.

    Examples:
      >>> print(lo.regularizers.Box(-1.0, 1.0).prox(jnp.array([-3.0, 0.5]), 0.1))
      [-1.   0.5]
      >>> print(lo.regularizers.Box(0.0, jnp.array([1.0, 2.0])).prox(jnp.array([3.0, 3.0]), 0.1))
      [1. 2.]

    References:
      Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", 1982.
    """

    low: PyTree
    high: PyTree

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        self._check(params)
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\min(\max(\theta, l), h)$, in every metric.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if `low` is above `high`, or if bounds do not fit the parameters.
        """
        self._check(params)
        project = lambda x, _, low, high: optax.projections.projection_box(x, low, high)
        return _leaves.prox(project, params, step_size, low=self.low, high=self.high)

    def _check(self, params):
        bounds = _leaves.spread(params, low=self.low, high=self.high)
        jax.tree.map(_in_order, params, *bounds)

    def stands(self, other: Regularizer) -> Literal["after"] | None:
        """After L1, in a sum."""
        return "after" if isinstance(other, L1) else None

    __add__ = add
    __radd__ = add_to


def _in_order(x, low, high):
    _leaves.fits(x, low=low, high=high)
    _checks.fits(low=low, high=high)
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return
    pairs = np.stack(np.broadcast_arrays(low, high), -1).reshape(-1, 2)
    for low, high in pairs[pairs[:, 0] > pairs[:, 1]]:
        raise ValueError(f"Expected low <= high, got {low} and {high}. Swap them.")
