"""`Mean`: an average that remembers what it is an average of.

Three rules make every loss exact under masks, microbatches and devices:

- a term is a `Mean`; an objective returns any tree of them;
- to **pool** examples, add leaves: `pool`, `jax.tree.map(add)`, `lax.psum`, a scan carry;
- to **read** the objective, sum the values of its terms: `value`.
"""

import dataclasses
import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._numerics import common
from lossopt._typing import Array, ArrayLike, Means, Number, Scalar


@partial(jax.tree_util.register_dataclass, data_fields=["total", "weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Mean:
    r"""The pair $(\sum_i w_i x_i, \sum_i w_i)$, whose value is the quotient.

    `0.1 * term` scales a term. `term + term` is refused, because it has two readings.

    Attributes:
      total: weighted sum, shape `()`; batched under `vmap`.
      weight: sum of weights, same shape. It comes from the batch, never from parameters.

    Examples:
      >>> term = lo.mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0]))
      >>> float(term.value), float((10 * term).value)
      (1.5, 15.0)
    """

    __array_ufunc__ = None  # numpy numbers, too, leave `number * term` to `__rmul__`

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        """The average; 0, with zero gradient, when nothing was weighed."""
        return self.total / jnp.where(self.weight == 0, 1, self.weight)

    def __mul__(self, scale: Number) -> "Mean":
        if is_mean(scale):
            raise TypeError("Mean * Mean is no average. Multiply the values: mean(a * b, weights).")
        _checks.exact_shape((), scale=scale)
        scale = jnp.asarray(scale, common(scale, self.total))
        return Mean(scale * self.total, self.weight)

    __rmul__ = __mul__

    def __add__(self, other):
        raise TypeError(
            "Mean + Mean has two readings. To merge examples of one term write pool(a, b); "
            "to sum two terms return both, as in {'fit': a, 'penalty': b}."
        )

    __radd__ = __add__


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
    r"""Weighs per-example values: $(\sum_i w_i x_i, \sum_i w_i)$. The one door for masks.

    Args:
      values: per-example numbers, shape `[*batch, *rest]`.
      weights: shape `[*batch]`, at least 0; booleans act as 0 and 1. Values of weight 0 are not
        read, even if NaN; but keep the inputs that led to them finite, because the model's own
        derivative there may be NaN times 0.

    Returns:
      The mean over all axes, in float32 or wider.

    Raises:
      ValueError: if `weights` do not index the leading axes of `values`.
      TypeError: for lists, and for complex values.

    Examples:
      >>> mask = jnp.array([True, True, False])
      >>> float(lo.mean(jnp.array([1.0, 2.0, jnp.nan]), mask).value)
      1.5
    """
    shape = _checks.shape("values", values)
    _checks.prefix_shape(shape, weights=True if weights is None else weights)
    values, weights = _checks.floats(values=values, weights=True if weights is None else weights)
    _checks.nonnegative("mean", weights=weights)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    weights = jnp.broadcast_to(weights, values.shape)
    unread = (weights == 0) & ~jnp.isfinite(values)  # finite ones keep their slope in the weight
    return Mean(jnp.sum(jnp.where(unread, 0, values) * weights), jnp.sum(weights))


def constant(value: Number, *, gradient: bool = True) -> Mean:
    """A term that does not depend on the batch, such as a penalty on the parameters.

    Args:
      value: one number, shape `()`.
      gradient: whether it has one. False is for what the optimizer does by itself, as a rule with
        `regularizer=`: the term counts in the value and not in the gradient.

    Returns:
      A `Mean` of weight 1.

    Raises:
      ValueError: if `value` is not a single number; the penalty of each leaf must be summed.

    Examples:
      >>> float(lo.constant(0.5).value)
      0.5
      >>> float(jax.grad(lambda w: lo.constant(w**2, gradient=False).value)(3.0))
      0.0
    """
    _checks.exact_shape((), value=value)
    (total,) = _checks.floats(value=value)
    total = total if gradient else jax.lax.stop_gradient(total)
    return Mean(total, jnp.ones_like(total))


def pool(*trees: Means) -> Means:
    """Merges the same terms measured on disjoint sets of examples.

    Args:
      *trees: trees of `Mean` of one structure, at least one.

    Returns:
      One such tree: totals and weights added.

    Raises:
      TypeError: if a leaf is not a `Mean`.
      ValueError: if the structures differ.

    Examples:
      >>> halves = lo.mean(jnp.array([1.0, 2.0])), lo.mean(jnp.array([6.0]))
      >>> float(lo.pool(*halves).value)
      3.0
    """
    for tree in trees:
        terms(tree)
    return reduce(partial(jax.tree.map, operator.add), trees)


def value(means: Means) -> Scalar:
    r"""Reads the objective: the sum of the values of its terms, $\sum_k T_k / W_k$.

    Args:
      means: any tree of `Mean`.

    Returns:
      Shape `()`.

    Raises:
      TypeError: if a leaf is not a `Mean`.

    Examples:
      >>> fit = lo.mean(jnp.array([1.0, 3.0]))
      >>> float(lo.value({"fit": fit, "penalty": lo.constant(0.5)}))
      2.5
    """
    return jnp.asarray(sum((term.value for term in terms(means).values()), start=0.0))


def terms(means: Means) -> dict[str, Mean]:
    """The leaves of a tree of means by their paths, as in `"fit"` or `"heads/0"`."""
    leaves = jax.tree_util.tree_leaves_with_path(means, is_leaf=is_mean)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError(f"Two terms have one name among {list(named)}: rename one.")
    for name, leaf in named.items():
        if not is_mean(leaf):
            raise TypeError(
                f"Expected a tree of Mean, got {type(leaf).__name__} at {name!r}. Average values "
                "with lossopt.mean(values, weights); wrap a penalty in lossopt.constant."
            )
    return named


def is_mean(x: object) -> bool:
    """Whether `x` is a `Mean`, a leaf of objectives."""
    return isinstance(x, Mean)
