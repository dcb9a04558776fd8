"""What a row of logits is asked for: a few numbers that can be measured block by block.

A head looks at a tile (bias, soft cap), measures the row in it, merges the measures of blocks and
closes them to a loss. Labels and teachers are constants: gradients reach the logits only.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, softplus

from lossopt._typing import Array, ArrayLike, PyTree
from lossopt.fused._tiles import InnerProduct, wide

Seen = tuple[Array, Array | None]  # logits, and a teacher's


class Head(Protocol):
    """A loss of rows that a few numbers of each row determine.

    Attributes:
      copies: how many arrays of the shape of a tile exist at a time.
    """

    copies: int

    def look(self, tile: Array, rows: PyTree, columns: PyTree, numbers: PyTree) -> Seen:
        """The logits of a tile, and those of a teacher."""
        ...

    def measure(self, logits: Array, teacher: Array | None, rows: PyTree, columns: PyTree) -> Any:
        """The numbers of each row, leaves `[rows]`."""
        ...

    def slopes(
        self, logits: Array, teacher: Array | None, measured: Any, rows: PyTree, columns: PyTree
    ) -> Any:
        """The derivatives, in the logits of a block, of what was measured of all blocks."""
        ...

    def nothing(self, rows: int, dtype: Any) -> Any:
        """The numbers of no columns."""
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """The numbers of two sets of columns together."""
        ...

    def close(self, measured: Any, numbers: PyTree) -> Array:
        """One loss per row."""
        ...


@dataclasses.dataclass(frozen=True)
class Complete:
    """The loss of rows whose columns are all in one tile."""

    head: Any

    def __call__(self, tile: Array, rows: PyTree, columns: PyTree, numbers: PyTree) -> Array:
        logits, teacher = self.head.look(tile, rows, columns, numbers)
        return self.head.close(_measured(self.head, logits, teacher, rows, columns), numbers)


class Surprise(NamedTuple):
    """Log of the sum of the other exponentials; the label's logit; the sum of all logits."""

    rivals: Array
    own: Array
    total: Array


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Cross entropy of class numbers, `rows["labels"]` among `columns["classes"]`."""

    copies = 2

    def look(self, tile: Array, rows: PyTree, columns: PyTree, numbers: PyTree) -> Seen:
        """Logits with bias and soft cap; no teacher."""
        del rows
        return _logits(tile, columns, numbers), None

    def measure(self, logits: Array, teacher: None, rows: PyTree, columns: PyTree) -> Surprise:
        """See `Surprise`."""
        del teacher
        own = _own(rows, columns)
        label = jnp.sum(jnp.where(own, logits, 0), axis=-1)
        first, last = columns["classes"][0], columns["classes"][-1]
        here = (rows["labels"] >= first) & (rows["labels"] <= last)
        rivals = _log_sum(logits, ~own, after=jnp.where(here, label, -jnp.inf))
        return Surprise(rivals, label, jnp.sum(logits, axis=-1))

    def slopes(
        self, logits: Array, teacher: None, measured: Surprise, rows: PyTree, columns: PyTree
    ) -> Surprise:
        """The shares among the rivals, 1 at the label, 1 everywhere."""
        del teacher
        own = _own(rows, columns)
        shares = jnp.where(own, 0, jnp.exp(logits - measured.rivals[:, None]))
        return Surprise(shares, own.astype(logits.dtype), jnp.ones_like(logits))

    def nothing(self, rows: int, dtype: Any) -> Surprise:
        """No rival, no label."""
        zeros = jnp.zeros(rows, dtype)
        return Surprise(_lowest(rows, dtype), zeros, zeros)

    def merge(self, one: Surprise, other: Surprise) -> Surprise:
        """Sums."""
        rivals = jnp.logaddexp(one.rivals, other.rivals)
        return Surprise(rivals, one.own + other.own, one.total + other.total)

    def close(self, measured: Surprise, numbers: PyTree) -> Array:
        """The lead of the rivals through softplus, exact near 0; smoothing; z-loss."""
        loss = softplus(measured.rivals - measured.own)
        log_sum = jnp.logaddexp(measured.rivals, measured.own)
        if "label_smoothing" in numbers:
            uniform = log_sum - measured.total / numbers["classes"]
            loss += numbers["label_smoothing"] * (uniform - loss)
        return loss + _z_loss(log_sum, numbers)


class Divergence(NamedTuple):
    """Logs of the sums of exponentials; divergence of the shares within these columns."""

    student: Array
    teacher: Array
    divergence: Array


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Divergence from the teacher's distribution, of `rows["teacher"]` and `columns["teacher"]`."""

    matrix: InnerProduct
    copies = 7

    def look(self, tile: Array, rows: PyTree, columns: PyTree, numbers: PyTree) -> Seen:
        """Logits with bias and soft cap; the teacher's."""
        teacher = self.matrix.tile(rows["teacher"], columns["teacher"])
        logits, dtype = _logits(tile, columns, numbers), wide(tile, teacher)
        return logits.astype(dtype), lax.stop_gradient(teacher.astype(dtype))

    def measure(self, logits: Array, teacher: Array, rows: PyTree, columns: PyTree) -> Divergence:
        """See `Divergence`."""
        del rows, columns
        own, others = _log_sum(logits), _log_sum(teacher)
        terms, _ = _compare(logits, teacher, own[:, None], others[:, None])
        return Divergence(own, others, jnp.sum(terms, axis=-1))

    def slopes(
        self, logits: Array, teacher: Array, measured: Divergence, rows: PyTree, columns: PyTree
    ) -> Divergence:
        """The student's shares; nothing; how far these are from the teacher's."""
        del rows, columns
        sums = measured.student[:, None], measured.teacher[:, None]
        _, excess = _compare(logits, teacher, *sums)
        return Divergence(jnp.exp(logits - sums[0]), jnp.zeros_like(excess), excess)

    def nothing(self, rows: int, dtype: Any) -> Divergence:
        """No column."""
        lowest = _lowest(rows, dtype)
        return Divergence(lowest, lowest, jnp.zeros(rows, dtype))

    def merge(self, one: Divergence, other: Divergence) -> Divergence:
        """The chain rule: divergence between the sets, and the average of those within."""
        student = jnp.logaddexp(one.student, other.student)
        teacher = jnp.logaddexp(one.teacher, other.teacher)

        def share(part):
            between, _ = _compare(part.student, part.teacher, student, teacher)
            size = jnp.exp(part.teacher - teacher)
            return between + size * jnp.where(size == 0, 0, part.divergence)

        return Divergence(student, teacher, share(one) + share(other))

    def close(self, measured: Divergence, numbers: PyTree) -> Array:
        """The divergence, and the z-loss of the student."""
        return measured.divergence + _z_loss(measured.student, numbers)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Cross entropy of yes or no, `columns["classes"]` of `rows["labels"]`, averaged."""

    copies = 4

    def look(self, tile: Array, rows: PyTree, columns: PyTree, numbers: PyTree) -> Seen:
        """Logits with bias and soft cap; no teacher."""
        del rows
        return _logits(tile, columns, numbers), None

    def measure(self, logits: Array, teacher: None, rows: PyTree, columns: PyTree) -> Array:
        """The sum over these columns."""
        del teacher
        labels, valid = self._labels(logits, rows, columns)
        # softplus(z) - y z cancels where the label is likely.
        loss = labels * softplus(-logits) + (1 - labels) * softplus(logits)
        return jnp.sum(jnp.where(valid, loss, jnp.nan), axis=-1)

    def slopes(
        self, logits: Array, teacher: None, measured: Array, rows: PyTree, columns: PyTree
    ) -> Array:
        """The probability less the label, without cancellation."""
        del teacher, measured
        labels, valid = self._labels(logits, rows, columns)
        return jnp.where(valid, (1 - labels) * sigmoid(logits) - labels * sigmoid(-logits), 0)

    def nothing(self, rows: int, dtype: Any) -> Array:
        """No column."""
        return jnp.zeros(rows, dtype)

    def merge(self, one: Array, other: Array) -> Array:
        """The sum."""
        return one + other

    def close(self, measured: Array, numbers: PyTree) -> Array:
        """The average."""
        return measured / numbers["classes"]

    def _labels(self, logits, rows, columns):
        classes = columns["classes"]
        block = lax.dynamic_slice_in_dim(rows["labels"], classes[0], len(classes), axis=1)
        valid = (block >= 0) & (block <= 1)
        return jnp.where(valid, block, 0).astype(logits.dtype), valid


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _measured(head, logits, teacher, rows, columns):
    return head.measure(logits, teacher, rows, columns)


@_measured.defjvp
def _measured_jvp(head, primals, tangents):
    """Recomputes the shares from what was measured, rather than to keep a tile of them."""
    logits, teacher, rows, columns = primals
    measured = _measured(head, logits, teacher, rows, columns)
    slopes = head.slopes(logits, teacher, measured, rows, columns)
    return measured, jax.tree.map(lambda s: jnp.sum(s * tangents[0], axis=-1), slopes)


def _logits(tile, columns, numbers):
    logits = tile + columns["bias"][None, :] if "bias" in columns else tile
    if "soft_cap" in numbers:
        logits = numbers["soft_cap"] * jnp.tanh(logits / numbers["soft_cap"])
    return logits


def _own(rows, columns):
    return rows["labels"][:, None] == columns["classes"][None, :]


def _log_sum(logits, where: ArrayLike = True, *, after: ArrayLike = -jnp.inf):
    """Of a sum that underflows beside a masked logit it returns a bound, still e^-87 below that.

    `after` is no more than the highest logit: it makes the compiler wait, and drop its tile, first.
    """
    top = lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1), after))
    top = jnp.maximum(top, _lowest((), logits.dtype))
    total = jnp.sum(jnp.where(where, jnp.exp(logits - top[:, None]), 0), axis=-1)
    return top + jnp.log(jnp.maximum(total, jnp.finfo(logits.dtype).tiny))


def _compare(student, teacher, student_sum, teacher_sum):
    r"""Terms $q (\delta + e^{-\delta} - 1)$ of the divergence, all positive, and $p - q$."""
    student, teacher = student - student_sum, teacher - teacher_sum
    shares, own = jnp.exp(teacher), jnp.exp(student)
    near = jnp.abs(teacher - student) < 1
    log_ratio = jnp.where(near, teacher - student, 0)
    far = jnp.where(shares == 0, 0, shares * (teacher - student)) - shares + own
    terms = jnp.where(near, shares * (log_ratio + jnp.expm1(-log_ratio)), far)
    return terms, jnp.where(near, shares * jnp.expm1(-log_ratio), own - shares)


def _z_loss(log_sum, numbers):
    return numbers["z_loss"] * log_sum**2 if "z_loss" in numbers else 0


def _lowest(shape, dtype):
    """As no logit at all, but finite, so that differences of two are 0."""
    return jnp.full(shape, jnp.finfo(dtype).min / 2)
