"""Penalties on singular values."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lossopt._typing import Number, Params, PyTree, Scalar, StepSize
from lossopt.regularizers import _leaves
from lossopt.regularizers._sums import add, add_to


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Nuclear:
    r"""Sum of singular values, whose prox lowers the rank of matrices.

    $$R(\theta) = \lambda \sum_i \sigma_i(\theta)$$

    The last two axes of a leaf are a matrix, those before count matrices.

    Attributes:
      strength: $\lambda \ge 0$, in units of loss per unit of parameter.

    Examples:
      >>> nuclear = lo.regularizers.Nuclear(1.0)
      >>> kernel = jnp.array([[3.0, 0.0], [0.0, 0.5]])
      >>> float(nuclear(kernel))
      3.5
      >>> print(nuclear.prox(kernel, 1.0).round(3) + 0.0)
      [[2. 0.]
       [0. 0.]]

    References:
      Cai, Candès and Shen, "A Singular Value Thresholding Algorithm for Matrix Completion", 2010.
    """

    strength: Number

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`; the gradient of a zero matrix is 0."""
        _leaves.at_least_zero(strength=self.strength)

        def amount(x):
            values = jnp.linalg.svd(_matrices(x), compute_uv=False)
            return jnp.sum(jnp.where(values == 0, 0, values))

        return jnp.multiply(self.strength, _leaves.penalty(amount, params))

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""Soft thresholding of the singular values by $t \lambda$.

        Args:
          params: any tree of floating arrays of two axes or more.
          step_size: $t \ge 0$, one number, or a tree of one for each leaf.

        Returns:
          A tree like `params`, with its dtypes.

        Raises:
          ValueError: if a leaf is no matrix, or if `step_size` is one for each coordinate.
        """
        _leaves.at_least_zero(strength=self.strength)
        jax.tree.map(_matrices, params)

        def shrink(x, t, strength):
            _leaves.one_step_size("Nuclear", t)
            return _shrunk(x, t * strength)

        return _leaves.prox(shrink, params, step_size, axis=(-2, -1), strength=self.strength)

    __add__ = add
    __radd__ = add_to


@jax.custom_jvp
def _shrunk(x, threshold):
    """Has its own derivative: that of the factors alone is infinite where values are equal."""
    u, values, vt = jnp.linalg.svd(x, full_matrices=False)
    return _product(u * jnp.maximum(values - threshold, 0)[..., None, :], vt)


@_shrunk.defjvp
def _shrunk_jvp(primals, tangents):
    (x, threshold), (dx, dthreshold) = primals, tangents
    u, values, vt = jnp.linalg.svd(x, full_matrices=False)
    ut, v = u.mT, vt.mT
    left, kept = jnp.maximum(values - threshold, 0), values > threshold
    inner = _product(ut, dx, v)
    core = _differences(values, left, kept, inner) - dthreshold * _diagonal(kept, x.dtype)
    share = left / jnp.where(kept, values, 1)
    outer = (_product(dx, v) - _product(u, inner)) * share[..., None, :]
    other = share[..., :, None] * (_product(ut, dx) - _product(inner, vt))
    out = _product(u, core, vt) + _product(outer, vt) + _product(u, other)
    return _product(u * left[..., None, :], vt), out


def _differences(values, left, kept, inner):
    """The change within the singular spaces, by divided differences of the thresholded values."""
    pair = lambda x: (x[..., :, None], x[..., None, :])
    (a, b), (fa, fb), (ka, kb) = pair(values), pair(left), pair(kept)
    one = ka ^ kb  # then the values differ; else the quotient is 1 or 0 even if they are equal
    minus = jnp.where(one, (fa - fb) / jnp.where(one, a - b, 1), ka & kb)
    plus = (fa + fb) / jnp.where(ka | kb, a + b, 1)
    return (minus * (inner + inner.mT) + plus * (inner - inner.mT)) / 2


def _diagonal(kept, dtype):
    return kept[..., None, :] * jnp.broadcast_to(
        jnp.eye(kept.shape[-1], dtype=dtype), (*kept.shape, kept.shape[-1])
    )


def _product(*factors):
    first, *rest = factors
    for factor in rest:  # accelerators multiply float32 with the bits of less by default
        first = jnp.matmul(first, factor, precision=lax.Precision.HIGHEST)
    return first


def _matrices(x):
    if jnp.ndim(x) < 2:
        raise ValueError(
            f"Expected params of two axes or more for Nuclear, got shape {jnp.shape(x)}. Name the "
            "matrices with lossopt.regularizers.by_path."
        )
    return x
