"""Norm penalties."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._typing import Number, Params, PyTree, Scalar, Step


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
        magnitude = lambda x: jnp.maximum(x, -x)  # the slope of `jnp.abs` at 0 is 1
        return _penalty(self.strength, magnitude, params)

    def prox(self, params: Params, step: Step) -> Params:
        r"""Soft thresholding, $\text{sign}(\theta) \max(|\theta| - \text{step} \cdot \lambda, 0)$.

        Args:
          params: any tree of floating arrays.
          step: one number, or a tree like `params` of one number per coordinate, at least 0.

        Returns:
          A tree like `params`, with its dtypes.
        """
        shrink = lambda x, t: jnp.sign(x) * jnp.maximum(jnp.abs(x) - t, 0)
        return _prox(self.strength, shrink, params, step)


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class L2:
    r"""Sum of squares, without a half.

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
        return _penalty(self.strength, jnp.square, params)

    def prox(self, params: Params, step: Step) -> Params:
        r"""Shrinkage by a factor, $\theta / (1 + 2 \, \text{step} \cdot \lambda)$.

        Args:
          params: any tree of floating arrays.
          step: one number, or a tree like `params` of one number per coordinate, at least 0.

        Returns:
          A tree like `params`, with its dtypes.
        """
        return _prox(self.strength, lambda x, t: x / (1 + 2 * t), params, step)


def _penalty(strength, magnitude, params):
    _checks.at_least(0, strength=strength)
    _checks.exact_shape((), strength=strength)
    leaves = (_wide(params=x)[0] for x in jax.tree.leaves(params))
    return jnp.multiply(strength, sum((jnp.sum(magnitude(x)) for x in leaves), start=0.0))


def _prox(strength, shrink, params, step):
    _checks.at_least(0, strength=strength)
    _checks.exact_shape((), strength=strength)

    def leaf(x, step):
        _checks.at_least(0, step=step)
        _checks.exact_shape(jnp.shape(x) if jnp.ndim(step) else (), step=step)
        wide, step = _wide(params=x, step=step)
        return shrink(wide, step * strength).astype(jnp.result_type(x))

    return jax.tree.map(leaf, params, jax.tree.broadcast(step, params))


def _wide(*, params, **others):
    _checks.floating(params=params)
    return _checks.floats(params=params, **others)
