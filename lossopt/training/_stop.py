"""When a run ends, and why."""

import dataclasses
import enum
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lossopt import _checks
from lossopt._typing import Array, Int, Number, PyTree, Scalar


class Stopped(enum.Enum):
    """Why a run ended; the value of a member is the message.

    Inside of `jit` and `vmap` a status is an int32, `member.code`, and `Stopped(int(status))` is
    the member again. `FINISHED`, 0, means there: go on.

    Examples:
      >>> stopped = lo.training.Stopped(1)
      >>> print(stopped.name, stopped.code, stopped.value)
      PATIENCE 1 the value stopped falling
    """

    FINISHED = "all steps were taken"
    PATIENCE = "the value stopped falling"
    TARGET = "the value reached its target"
    NONFINITE_LOSS = "the loss became non-finite"
    NONFINITE_PARAMETERS = "the parameters became non-finite"
    EXHAUSTED = "the batches ran out"
    ASKED = "on_epoch asked for it"
    TIME = "the time was up"
    INTERRUPTED = "it was interrupted"

    @property
    def code(self) -> int:
        """The status inside of a program."""
        return list(type(self)).index(self)

    @classmethod
    def _missing_(cls, value):
        codes = (member for member in cls if member.code == value)
        return next(codes, None)


@runtime_checkable
class StopRule(Protocol):
    """A pytree of its numbers that watches a value.

    `rule | other` stops where the first of the two does. A rule of your own needs no `|` of its
    own beside one of ours.
    """

    def init(self) -> PyTree:
        """The state before the first value, a tree of arrays."""
        ...

    def update(self, state: PyTree, value: Scalar) -> tuple[PyTree, Int[Array, ""]]:
        """Looks at one more value, which may be NaN.

        Args:
          state: from `init`, or from the last `update`.
          value: a floating number, shape `()`.

        Returns:
          The state, of the same shapes and dtypes, and the status, an int32: the code of
          `Stopped.FINISHED` to go on, of `PATIENCE` or `TARGET` to stop. The others are the
          loop's own. The run ends at the first status that says stop; nobody asks for a later one.
        """
        ...


def checked(rule: object) -> StopRule:
    """The rule; raises for what is none, such as a number, a class or an optimizer."""
    number = lambda x: hasattr(x, "dtype") or isinstance(x, int | float)
    if isinstance(rule, StopRule) and all(map(number, jax.tree.leaves(rule))):
        return rule
    raise TypeError(
        f"Expected a stop rule, got {rule!r}. Take Patience(10), Target(0.1), two of them by |, or "
        "a class of your own with init() and update(state, value), registered as a pytree of "
        "numbers by jax.tree_util.register_dataclass."
    )


def either(self: StopRule, other: StopRule) -> "Either":
    """`self | other`."""
    return Either(checked(self), checked(other))


def either_of(self: StopRule, other: StopRule) -> "Either":
    """`other | self`."""
    return either(other, self)


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Either:
    """Two rules, of which the first to stop gives the status; of two at once, the left."""

    left: StopRule
    right: StopRule

    def init(self) -> tuple[PyTree, PyTree]:
        """The states of both."""
        return self.left.init(), self.right.init()

    def update(self, state: PyTree, value: Scalar) -> tuple[PyTree, Int[Array, ""]]:
        """Looks at one more value with both."""
        left, status = self.left.update(state[0], value)
        right, other = self.right.update(state[1], value)
        return (left, right), jnp.where(status == Stopped.FINISHED.code, other, status)

    __or__ = either
    __ror__ = either_of


@partial(jax.tree_util.register_dataclass, data_fields=["patience", "min_delta"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Patience:
    r"""Stops after the $k$-th value in a row that is not lower than the last accepted one.

    The first value below infinity is accepted, and then each $v$ that is lower by more than
    $\delta$, an absolute number, so that it is right for negative values, too:

    $$v_{\text{accepted}} - v > \delta$$

    NaN is never lower. Rules are combined by `|`: the first to stop gives the status, and of two at
    once the left. They are pytrees, so `jax.vmap(run)` over `Patience(numbers)` is a sweep.

    Attributes:
      patience: $k$, values in a row, a whole number, at least 1.
      min_delta: $\delta \ge 0$, in units of the value.

    Examples:
      >>> rule, statuses = lo.training.Patience(2) | lo.training.Target(-5.0), []
      >>> state = rule.init()
      >>> for value in (-1.0, -2.0, -2.0, -1.5):
      ...     state, status = rule.update(state, value)
      >>> print(lo.training.Stopped(int(status)))
      Stopped.PATIENCE

    References:
      Prechelt, "Early Stopping - But When?", 1998.
    """

    patience: Number
    min_delta: Number = dataclasses.field(default=0.0, kw_only=True)

    def init(self) -> tuple[Scalar, Int[Array, ""]]:
        """The last accepted value and how many were not accepted since, before the first.

        Raises:
          ValueError: if a number is out of its range.
          TypeError: if `patience` is no whole number.
        """
        _whole(self.patience)
        _checks.at_least(0, min_delta=self.min_delta)
        return jnp.full((), jnp.inf, float), jnp.zeros((), jnp.int32)

    def update(self, state: PyTree, value: Scalar) -> tuple[PyTree, Int[Array, ""]]:
        """Looks at one more value, shape `()`; the status is that of `PATIENCE` to stop."""
        accepted, waited = state
        lower = accepted - _number(value) > _number(self.min_delta)
        accepted = jnp.where(lower, _number(value), accepted)
        waited = jnp.where(lower, 0, waited + 1)
        return (accepted, waited), _status(waited >= self.patience, Stopped.PATIENCE)

    __or__ = either
    __ror__ = either_of


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Target:
    r"""Stops at the first value at or below a target.

    Attributes:
      value: the target, in units of what is watched.

    Examples:
      >>> rule = lo.training.Target(0.5)
      >>> state, status = rule.update(rule.init(), 0.4)
      >>> lo.training.Stopped(int(status)).value
      'the value reached its target'
    """

    value: Number

    def init(self) -> tuple[()]:
        """Nothing is to be remembered.

        Raises:
          ValueError: if the target is NaN.
        """
        _checks.at_most(jnp.inf, value=self.value)
        return ()

    def update(self, state: PyTree, value: Scalar) -> tuple[PyTree, Int[Array, ""]]:
        """Looks at one more value, shape `()`; the status is that of `TARGET` to stop."""
        return state, _status(_number(value) <= _number(self.value), Stopped.TARGET)

    __or__ = either
    __ror__ = either_of


def _number(x):
    """In the widest floating dtype, so that the state keeps its own."""
    _checks.exact_shape((), value=x)
    return jnp.asarray(x, float)


def _whole(patience: Any):
    _checks.fits(patience=patience)
    if not isinstance(patience, Tracer):
        _checks.count("patience", patience, 1)


def _status(stops, why):
    return jnp.where(stops, why.code, Stopped.FINISHED.code).astype(jnp.int32)
