"""Cross entropy of a linear layer with many labels each, without its logits. Natural logarithms."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, softplus

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Bool, Float, Num, Number
from lossopt.fused._how import Form, How, MeanOrValues, Memory
from lossopt.fused._layer import Features, Kernel, Layer, Weights
from lossopt.fused._logits import logits
from lossopt.fused._walk import Facts, Operands


def linear_sigmoid_cross_entropy(
    features: Features,
    kernel: Kernel,
    labels: Num[ArrayLike, "*tokens classes"],
    weights: Weights = None,
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    where: Bool[ArrayLike, " classes"] | None = None,
    soft_cap: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Sigmoid cross entropy of a linear layer with many labels, whose logits never exist at once.

    $$\ell = \frac{1}{V} \sum_j -y_j \log p_j - (1 - y_j) \log(1 - p_j), \qquad
        p = \frac{1}{1 + e^{-z}}$$

    over the $V$ classes that exist, with $z$ as in `linear_softmax_cross_entropy`.

    Args:
      features: shape `[*tokens, depth]`.
      kernel: shape `[depth, classes]`.
      labels: $y$, constants, 0 or 1 or a probability between, shape `[*tokens, classes]`; booleans
        and small integers take the least memory. Outside of $[0, 1]$ the loss is NaN.
      weights: as in `linear_softmax_cross_entropy`.
      bias: shape `[classes]`.
      where: as in `linear_softmax_cross_entropy`; labels of other classes are not read either.
      soft_cap: as in `linear_softmax_cross_entropy`.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: as in `linear_softmax_cross_entropy`.
      per_example: as in `linear_softmax_cross_entropy`.
      token_shards: as in `linear_softmax_cross_entropy`.
      differentiable: as in `linear_softmax_cross_entropy`.

    Returns:
      The `Mean` over tokens of the average over classes, or shape `[*tokens]`, 0 where the weight
      is 0.

    Raises:
      ValueError: if shapes do not fit, weights are negative, `soft_cap` is not positive, or the
        budget is below one tile.
      TypeError: if `where` is not boolean.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.array([[2.0, -1.0], [0.0, 3.0]])
      >>> loss = lo.fused.linear_sigmoid_cross_entropy(features, kernel, jnp.eye(2))
      >>> print(f"{loss.value:.4f}")
      0.2955

    References:
      Cox, "The Regression Analysis of Binary Sequences", 1958.
    """
    how = How(memory, differentiable, shards=token_shards)
    layer = Layer.of(
        features, kernel, transposed=transposed, bias=bias, where=where, soft_cap=soft_cap
    )
    _checks.exact_shape((*layer.tokens, layer.classes), labels=labels)
    rows = {"weights": weights, "labels": labels}
    return layer.loss("linear_sigmoid_cross_entropy", Sigmoid(), how, per_example, rows)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Cross entropy of yes or no, averaged: labels of the rows at classes of the columns."""

    copies = 4

    def look(self, tile: Array, operands: Operands, facts: Facts) -> Array:
        """The sum over these columns."""
        z = logits(facts.columns.get("exist"), tile, operands.columns, operands.numbers)
        labels, valid = self._labels(z, facts)
        # softplus(z) - y z cancels where the label is likely.
        loss = labels * softplus(-z) + (1 - labels) * softplus(z)
        return jnp.sum(jnp.where(valid, loss, jnp.nan), axis=-1)

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: Array, asked: Array
    ) -> tuple[Array, dict, dict]:
        """By the probability less the label, without cancellation."""
        del seen
        fn = partial(logits, facts.columns.get("exist"))
        z, back = jax.vjp(fn, tile, operands.columns, operands.numbers)
        labels, valid = self._labels(z, facts)
        slope = jnp.where(valid, (1 - labels) * sigmoid(z) - labels * sigmoid(-z), 0)
        return back(slope * asked[:, None])

    def close(self, seen: Array, numbers: dict) -> Array:
        """The average."""
        return seen / numbers["classes"]

    def nothing(self, rows: int, dtype: Any) -> Array:
        """No column."""
        return jnp.zeros(rows, dtype)

    def merge(self, one: Array, other: Array) -> Array:
        """The sum."""
        return one + other

    def _labels(self, z, facts):
        classes = facts.columns["classes"]
        block = lax.dynamic_slice_in_dim(facts.rows["labels"], classes[0], len(classes), axis=1)
        if "exist" in facts.columns:
            block = jnp.where(facts.columns["exist"][None, :], block, 0)
        valid = (block >= 0) & (block <= 1)
        return jnp.where(valid, block, 0).astype(z.dtype), valid
