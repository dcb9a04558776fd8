"""Divergence of a linear layer's softmax from that of a teacher, another linear layer."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lossopt import _checks
from lossopt._numerics import NO_LOGIT, wide
from lossopt._typing import Array, ArrayLike, Float, Number
from lossopt.fused._layer import Layer
from lossopt.fused._logits import InnerProduct, LogSum, joined, log_sum, logits
from lossopt.fused._walk import Facts, Operands


class Teacher(NamedTuple):
    """A linear layer whose softmax another is to have; all of it is constant to the gradient.

    Attributes:
      features: shape `[*tokens, depth]`.
      kernel: shape `[depth, classes]`, or `[classes, depth]` where the student's lies so.
      bias: shape `[classes]`.
      soft_cap: the largest size of its logits, above 0; None or infinity leaves them as they are.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.zeros((2, 3))
      >>> teacher = lo.fused.Teacher(features, kernel, bias=jnp.log(jnp.array([0.7, 0.2, 0.1])))
      >>> print(f"{lo.fused.linear_softmax_cross_entropy(features, kernel, teacher).value:.4f}")
      0.2968
    """

    features: Float[ArrayLike, "*tokens depth"]
    kernel: Float[ArrayLike, "depth classes"]
    bias: Float[ArrayLike, " classes"] | None = None
    soft_cap: Number | None = None


def teacher_of(student: Layer, given: Any) -> Layer:
    """The layer of a teacher, which sees the tokens and classes of a student."""
    if not 2 <= len(given) <= 4:
        raise ValueError(
            "Expected a teacher as (features, kernel) or lossopt.fused.Teacher, got a tuple of "
            f"{len(given)}."
        )
    features, kernel, *more = given
    more = dict(zip(("bias", "soft_cap"), more, strict=False))
    lies = student.matrix.transposed
    teacher = Layer.of(features, kernel, transposed=lies, prefix="teacher_", **more)
    depth = jnp.shape(teacher.features)[-1]
    _checks.exact_shape((*student.tokens, depth), teacher_features=teacher.features)
    if teacher.classes != student.classes:
        raise ValueError(
            f"Expected a teacher of {student.classes} classes, got {teacher.classes}. Align them."
        )
    return teacher


class Divergence(NamedTuple):
    """Logs of the sums of exponentials; divergence of the shares within these columns."""

    student: LogSum
    teacher: LogSum
    divergence: Array


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Divergence from the distribution of the teacher of the rows and the columns."""

    matrix: InnerProduct
    copies = 7

    def look(self, tile: Array, operands: Operands, facts: Facts) -> Divergence:
        """See `Divergence`."""
        z = logits(facts.columns.get("exist"), tile, operands.columns, operands.numbers)
        student, teacher = self._both(z, facts, operands.numbers)
        own, others = log_sum(student), log_sum(teacher)
        terms, _ = _compare(-own.over(student), -others.over(teacher))
        return Divergence(own, others, jnp.sum(terms, axis=-1))

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: Divergence, asked: Divergence
    ) -> tuple[Array, dict, dict]:
        """By the student's shares, and how far these are from the teacher's."""
        fn = partial(logits, facts.columns.get("exist"))
        z, back = jax.vjp(fn, tile, operands.columns, operands.numbers)
        student, teacher = self._both(z, facts, operands.numbers)
        student, teacher = -seen.student.over(student), -seen.teacher.over(teacher)
        _, excess = _compare(student, teacher)
        slope = jnp.exp(student) * asked.student.rest[:, None]
        return back((slope + excess * asked.divergence[:, None]).astype(z.dtype))

    def close(self, seen: Divergence, numbers: dict) -> Array:
        """The divergence, and the z-loss of the student."""
        log_sum = sum(seen.student)
        return seen.divergence + (numbers["z_loss"] * log_sum**2 if "z_loss" in numbers else 0)

    def nothing(self, rows: int, dtype: Any) -> Divergence:
        """No column."""
        zeros = jnp.zeros(rows, dtype)
        nothing = LogSum(zeros + NO_LOGIT[dtype], zeros)
        return Divergence(nothing, nothing, zeros)

    def merge(self, one: Divergence, other: Divergence) -> Divergence:
        """The chain rule: divergence between the sets, and the average of those within."""
        student, teacher = joined(one.student, other.student), joined(one.teacher, other.teacher)

        def share(part):
            own, others = student.log_share(part.student), teacher.log_share(part.teacher)
            (between, _), size = _compare(own, others), jnp.exp(others)
            return between + size * jnp.where(size == 0, 0, part.divergence)

        return Divergence(student, teacher, share(one) + share(other))

    def _both(self, student, facts, numbers):
        """The logits of both in one dtype; those of the teacher are constants."""
        columns = facts.columns["teacher"]
        names = {"teacher_soft_cap": "soft_cap", "temperature": "temperature"}
        numbers = {names[name]: x for name, x in numbers.items() if name in names}
        tile = self.matrix.tile(facts.rows["teacher"], columns["kernel"])
        teacher = logits(facts.columns.get("exist"), tile, columns, numbers)
        dtype = wide(jnp.result_type(student, teacher))
        return student.astype(dtype), lax.stop_gradient(teacher.astype(dtype))


def _compare(student, teacher):
    r"""Terms $q (\delta + e^{-\delta} - 1)$ of the divergence, all positive, and $p - q$."""
    shares, own = jnp.exp(teacher), jnp.exp(student)
    near = jnp.abs(teacher - student) < 1
    log_ratio = jnp.where(near, teacher - student, 0)
    far = jnp.where(shares == 0, 0, shares * (teacher - student)) - shares + own
    terms = jnp.where(near, shares * (log_ratio + jnp.expm1(-log_ratio)), far)
    return terms, jnp.where(near, shares * jnp.expm1(-log_ratio), own - shares)
