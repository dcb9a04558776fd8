"""Penalties on single coordinates."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._base import Regularizer
from lossopt.regularizers._sums import Sum, add, add_to
from lossopt.regularizers._variation import TotalVariation


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class L1:
    r"""Sum of absolute values, whose prox makes coordinates exactly zero.

    $$R(\theta) = \lambda \sum_i |\theta_i|$$

    A pytree, so `jax.vmap(run)` over `L1(strengths)` is a sweep over $\lambda$.

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per unit of parameter.

    Examples:
      >>> l1 = lo.regularizers.L1(0.5)
      >>> float(l1(jnp.array([-3.0, 1.0])))
      2.0
      >>> print(l1.prox(jnp.array([-3.0, 0.5, 2.0]), 2.0))
      [-2.  0.  1.]

    References:
      Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.
    """

    strength: Number

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; its gradient at 0 is 0."""
        _leaves.at_least_zero(strength=self.strength)
        value = _leaves.penalty(lambda x: jnp.sum(_leaves.magnitude(x)), params)
        return jnp.multiply(self.strength, value)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Soft thresholding, $\text{sign}(\theta) \max(|\theta| - t \lambda, 0)$.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.
        """
        _leaves.at_least_zero(strength=self.strength)
        shrink = lambda x, t, strength: jnp.sign(x) * jnp.maximum(jnp.abs(x) - t * strength, 0)
        return _leaves.prox(shrink, params, step_size, strength=self.strength)

    def stands(self, other: Regularizer) -> Literal["after"] | None:
        """After TotalVariation, in a sum."""
        return "after" if isinstance(other, TotalVariation) else None

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class L2:
    r"""Sum of squares, without a half. It may be added to every other regularizer.

    $$R(\theta) = \lambda \sum_i \theta_i^2$$

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per squared unit of parameter. The gradient is
        $2 \lambda \theta$.

    Examples:
      >>> l2 = lo.regularizers.L2(0.5)
      >>> float(l2(jnp.array([-3.0, 1.0])))
      5.0
      >>> print(l2.prox(jnp.array([-3.0, 1.0]), 1.0))
      [-1.5  0.5]

    References:
      Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970.
    """

    strength: Number

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`."""
        _leaves.at_least_zero(strength=self.strength)
        value = _leaves.penalty(lambda x: jnp.sum(jnp.square(x)), params)
        return jnp.multiply(self.strength, value)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Shrinkage by a factor, $\theta / (1 + 2 t \lambda)$.

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.
        """
        _leaves.at_least_zero(strength=self.strength)
        shrink = lambda x, t, strength: x / (1 + 2 * t * strength)
        return _leaves.prox(shrink, params, step_size, strength=self.strength)

    def absorb(self, params: Params, step_size: PyTree) -> tuple[Params, PyTree]:
        """Where the prox of any R alone is that of R and this one together."""
        factor = lambda t: 1 + 2 * t * self.strength
        return self.prox(params, step_size), jax.tree.map(lambda t: t / factor(t), step_size)

    __add__ = add
    __radd__ = add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength", "mix"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ElasticNet:
    r"""A mixture of absolute values and squares, the latter without a half.

    $$R(\theta) = \lambda \Big( m \sum_i |\theta_i| + (1 - m) \sum_i \theta_i^2 \Big)$$

    In a sum it counts as `L1(strength * mix) + L2(strength * (1 - mix))`.

    Attributes:
      strength: $\lambda \ge 0$.
      mix: $m$ in [0, 1], the share of the absolute values.

    Examples:
      >>> net = lo.regularizers.ElasticNet(1.0, mix=0.5)
      >>> float(net(jnp.array([-3.0, 1.0])))
      7.0
      >>> print(net.prox(jnp.array([-2.5, 0.25]), 1.0))
      [-1.  0.]

    References:
      Zou and Hastie, "Regularization and Variable Selection via the Elastic Net", 2005.
    """

    strength: Number
    mix: Number

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; its gradient at 0 is 0."""
        return Sum(self.summands)(params)

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Soft thresholding by $t \lambda m$, then shrinkage.

        $$z = \frac{\text{sign}(\theta) \max(|\theta| - t \lambda m, 0)}
        {1 + 2 t \lambda (1 - m)}$$

        Args:
          params: any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.
        """
        return Sum(self.summands).prox(params, step_size)

    @property
    def summands(self) -> tuple[Regularizer, ...]:
        """What it counts as in a sum."""
        strength, mix = _leaves.mixture(self.strength, self.mix)
        return L1(strength * mix), L2(strength * (1 - mix))

    __add__ = add
    __radd__ = add_to
