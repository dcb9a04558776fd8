"""Cross entropy of a linear layer over many classes, without its logits. Natural logarithms."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import softplus

from lossopt import _checks
from lossopt._numerics import NO_LOGIT
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Number
from lossopt.fused._distillation import Distillation, Teacher, teacher_of
from lossopt.fused._how import Form, How, MeanOrValues, Memory
from lossopt.fused._layer import Features, Kernel, Layer, Weights
from lossopt.fused._logits import LogSum, joined, log_sum, logits
from lossopt.fused._walk import Facts, Operands


def linear_softmax_cross_entropy(
    features: Features,
    kernel: Kernel,
    labels: Int[ArrayLike, "*tokens"] | tuple[Features, Kernel] | Teacher,
    weights: Weights = None,
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    where: Bool[ArrayLike, " classes"] | None = None,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    soft_cap: Number | None = None,
    temperature: Number | None = None,
    ignore_index: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Softmax cross entropy of a linear layer, whose logits never exist all at once.

    $$\ell = (1 - a) \log \frac{Z}{e^{z_y}} + \frac{a}{V} \sum_j \log \frac{Z}{e^{z_j}}
        + \zeta \log^2 Z, \qquad z = \frac{s}{T} \tanh \frac{x W + b}{s},
        \quad Z = \sum_j e^{z_j}$$

    over the $V$ classes that exist. The gradient is exact and made on the way, one tile of logits
    after another.

    Args:
      features: $x$, shape `[*tokens, depth]`.
      kernel: $W$, shape `[depth, classes]`.
      labels: class numbers $y$, shape `[*tokens]`; one out of range makes the loss NaN. Or the
        features and the kernel of a teacher, `[*tokens, other depth]` and `[other depth,
        classes]`, or a `lossopt.fused.Teacher` with bias and soft cap of its own: the loss is then
        the divergence $\text{KL}(q \Vert p)$ from its softmax $q$, a constant to the gradient, to
        that of $z$, both at the temperature.
      weights: shape `[*tokens]` or leading axes of it, at least 0; tokens of weight 0 are not
        read, even if NaN.
      bias: $b$, shape `[classes]`.
      where: which classes exist, shape `[classes]`, as in a vocabulary that is padded; a label of
        another makes the loss NaN. Kernel and bias of others are not read, even if NaN, at the
        price of a copy of the kernel.
      label_smoothing: $a$, from 0 to 1.
      z_loss: $\zeta$, at least 0.
      soft_cap: $s > 0$, the largest size of a logit before the temperature; None or infinity
        leaves them as they are.
      temperature: $T > 0$, the units of the logits; None is 1.
      ignore_index: a label whose tokens have weight 0.
      transposed: whether kernels have shape `[classes, depth]`, as a tied embedding.
      memory: a budget for the tile of logits and temporaries of its shape, see
        `lossopt.fused.plan`.
      per_example: whether to return the loss of each token; gradients then recompute the tiles,
        at 4/3 of the arithmetic.
      token_shards: over how many devices the first axis of the tokens is spread. None reads it
        from an Explicit sharding, or takes the size of the only axis of the mesh.
      differentiable: `"jvp"` also allows `jax.jvp` and forward over reverse over forward, at 4/3
        of the arithmetic; `"vjp"` has reverse mode, and every mode over it.

    Returns:
      The `Mean` over tokens, or shape `[*tokens]`, 0 where the weight is 0.

    Raises:
      ValueError: if shapes do not fit, weights or `z_loss` are negative, `label_smoothing` is
        outside of [0, 1], `soft_cap` or `temperature` is not positive, or the budget is below one
        tile.
      TypeError: if labels are not integers, or `where` is not boolean.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
      >>> loss = lo.fused.linear_softmax_cross_entropy(features, kernel, jnp.array([0, 2]))
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      1.3296 2

    References:
      Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2025.
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
      Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    how = How(memory, differentiable, shards=token_shards)
    layer = Layer.of(
        features,
        kernel,
        transposed=transposed,
        bias=bias,
        where=where,
        soft_cap=soft_cap,
        temperature=temperature,
    )
    numbers = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    _checks.exact_shape((), **numbers)
    _checks.at_least(0, **numbers)
    _checks.at_most(1, label_smoothing=label_smoothing)
    known = {name for name, x in numbers.items() if isinstance(x, float | int) and x == 0}
    numbers = {name: x for name, x in numbers.items() if name not in known}
    name, rows = "linear_softmax_cross_entropy", {"weights": weights}
    if not isinstance(labels, tuple):
        rows |= {"labels": class_numbers(labels, layer.tokens)}
        _checks.fits(ignore_index=-1 if ignore_index is None else ignore_index)
        criterion, more = Softmax(), {"numbers": numbers, "ignore_index": ignore_index}
        return layer.loss(name, criterion, how, per_example, rows, **more)
    if "label_smoothing" in numbers or ignore_index is not None:
        raise ValueError(
            "Expected class numbers with label_smoothing or ignore_index, got a teacher. "
            "Smooth it by the temperature; give tokens to ignore the weight 0."
        )
    teacher = teacher_of(layer, labels)
    criterion, rows = Distillation(layer.matrix), rows | {"teacher": teacher.features}
    numbers |= {f"teacher_{name}": x for name, x in teacher.numbers.items()}
    more = {"numbers": numbers, "teacher": {"kernel": teacher.kernel} | teacher.columns}
    return layer.loss(name, criterion, how, per_example, rows, **more)


class Surprise(NamedTuple):
    """What is seen of the logits of each row.

    Attributes:
      rivals: the log-sum of all but the label's, below the top of all.
      own: the label's.
      gap: the sum of what they lack to the top, where labels are smoothed.
      count: how many there are, likewise.
    """

    rivals: LogSum
    own: Array
    gap: Array
    count: Array


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Cross entropy of class numbers, the labels of the rows among the classes of the columns."""

    copies = 2

    def look(self, tile: Array, operands: Operands, facts: Facts) -> Surprise:
        """See `Surprise`."""
        exist, classes = facts.columns.get("exist"), facts.columns["classes"]
        labels = facts.rows["labels"]
        own = labels[:, None] == classes[None, :]
        z = logits(exist, tile, operands.columns, operands.numbers)
        label = jnp.sum(jnp.where(own, z, 0), axis=-1)
        here = (labels >= classes[0]) & (labels <= classes[-1])
        rivals = log_sum(z, ~own, after=jnp.where(here, label, -jnp.inf))
        gap = count = jnp.zeros_like(label)
        if "label_smoothing" in operands.numbers:
            gap, count = _gap(rivals.top, z, exist)
        return Surprise(rivals, label, gap, count)

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: Surprise, asked: Surprise
    ) -> tuple[Array, dict, dict]:
        """By the shares among the rivals, 1 at the label, -1 everywhere."""
        fn = partial(logits, facts.columns.get("exist"))
        z, back = jax.vjp(fn, tile, operands.columns, operands.numbers)
        top, rest = seen.rivals
        shares = jnp.exp(z - top[:, None]) * (jnp.exp(-rest) * asked.rivals.rest)[:, None]
        own = facts.rows["labels"][:, None] == facts.columns["classes"][None, :]
        slope = jnp.where(own, asked.own[:, None], shares)
        return back(slope - asked.gap[:, None])

    def close(self, seen: Surprise, numbers: dict) -> Array:
        """The lead of the rivals through softplus, exact near 0; smoothing; z-loss."""
        loss, short = softplus(seen.rivals.over(seen.own)), seen.rivals.top - seen.own
        if "label_smoothing" in numbers:
            loss += numbers["label_smoothing"] * (seen.gap / numbers["classes"] - short)
        if "z_loss" in numbers:
            log_sum = seen.rivals.top + jnp.logaddexp(seen.rivals.rest, -short)
            loss += numbers["z_loss"] * log_sum**2
        return loss

    def nothing(self, rows: int, dtype: Any) -> Surprise:
        """No rival, no label."""
        zeros = jnp.zeros(rows, dtype)
        return Surprise(LogSum(zeros + NO_LOGIT[dtype], zeros), zeros, zeros, zeros)

    def merge(self, one: Surprise, other: Surprise) -> Surprise:
        """Sums, below the higher top."""
        rivals = joined(one.rivals, other.rivals)
        one_gap, other_gap = (x.gap + x.count * (rivals.top - x.rivals.top) for x in (one, other))
        count = one.count + other.count
        return Surprise(rivals, one.own + other.own, one_gap + other_gap, count)


def class_numbers(
    labels: Int[ArrayLike, "*tokens"], tokens: tuple[int, ...], name: str = "labels"
) -> ArrayLike:
    """The labels, which must be integers of this shape."""
    (labels,) = _checks.integers(**{name: labels})
    _checks.exact_shape(tokens, **{name: labels})
    return labels


def _gap(top, z, exist):
    """Sum, and count, of `top - z`, by way of the middle: around it a sum keeps its digits."""
    exist = jnp.ones(z.shape[-1:], bool) if exist is None else exist
    count = jnp.full_like(top, jnp.sum(exist))
    add = lambda x: jnp.sum(jnp.where(exist[None, :], x, 0), axis=-1)
    middle = lax.stop_gradient(add(z) / jnp.maximum(1, count))
    middle = jnp.maximum(middle, NO_LOGIT[z.dtype])
    return count * (top - middle) + add(middle[:, None] - z), count
