"""Bounds on single coordinates."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import numpy as np
import optax
from jax.core import Tracer

from lossopt import _checks
from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
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

    _after: ClassVar[tuple[type, ...]] = (L1,)
    _joined: ClassVar[str] = "one Box"

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

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["low", "high"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Box:
    r"""The constraint $l \le \theta_i \le h$. Its value is 0 everywhere: only its prox acts.

    Attributes:
      low: $l$, one number; `-jnp.inf` for none.
      high: $h \ge l$, one number; `jnp.inf` for none.

    Examples:
      >>> print(lo.regularizers.Box(-1.0, 1.0).prox(jnp.array([-3.0, 0.5]), 0.1))
      [-1.   0.5]

    References:
      Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", 1982.
    """

    low: Number
    high: Number
    _after: ClassVar[tuple[type, ...]] = (L1,)
    _joined: ClassVar[str] = "one Box"

    def __call__(self, params: PyTree) -> Scalar:
        """0, shape `()`, outside of the constraint too."""
        self._check()
        return _leaves.nothing(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The projection $\min(\max(\theta, l), h)$, in every metric.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if `low` is above `high`.
        """
        self._check()
        project = lambda x, _: optax.projections.projection_box(x, self.low, self.high)
        return _leaves.prox(project, params, step_size)

    def _check(self):
        _checks.exact_shape((), low=self.low, high=self.high)
        known = not isinstance(self.low, Tracer) and not isinstance(self.high, Tracer)
        if known and np.asarray(self.low) > np.asarray(self.high):
            raise ValueError(f"Expected low <= high, got {self.low} and {self.high}. Swap them.")

    __add__ = add
    __radd__ = add_to
