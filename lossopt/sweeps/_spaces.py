"""What a hyperparameter may be: a range, a choice among numbers, or what changes the program."""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Int
from lossopt.sweeps._columns import numbers, place


@dataclasses.dataclass(frozen=True)
class Log:
    """A range of positive numbers whose logarithms are uniform, as of a learning rate.

    Values are of float32 (under `jax.enable_x64` of float64), computed in float64. The ends are the
    nearest numbers of that dtype.

    Attributes:
      low: its lower end, above 0 and not subnormal.
      high: its upper end, above `low`.

    Raises:
      ValueError: unless `0 < low < high`, both finite and apart in their dtype.
      TypeError: if an end is no number.

    Examples:
      >>> print(lo.sweeps.Log(1e-4, 1e-2).points(3))
      [0.0001 0.001  0.01  ]
    """

    low: float
    high: float

    def __post_init__(self):
        _ends(self)
        tiny = float(jnp.finfo(_floating()).tiny)
        if self.low < tiny:
            raise ValueError(f"Expected low >= {tiny:.2g}, got {self.low}. Zero has no logarithm.")

    def at(self, fractions: ArrayLike) -> Float[np.ndarray, "*shape"]:
        """The values at fractions of the range, from 0 to 1."""
        return _within(self, np.exp(_mixed(math.log(self.low), math.log(self.high), fractions)))

    def points(self, count: int) -> Float[np.ndarray, " points"]:
        """So many values in equal ratios, from end to end; one is the middle."""
        return self.at(_even(count))


@dataclasses.dataclass(frozen=True)
class Linear:
    """A range of numbers, uniform, as of a dropout rate.

    Values are of float32 (under `jax.enable_x64` of float64), computed in float64. The ends are the
    nearest numbers of that dtype.

    Attributes:
      low: its lower end.
      high: its upper end, above `low`.

    Raises:
      ValueError: unless `low < high`, both finite and apart in their dtype.
      TypeError: if an end is no number.

    Examples:
      >>> print(lo.sweeps.Linear(0, 1).points(3))
      [0.  0.5 1. ]
    """

    low: float
    high: float

    def __post_init__(self):
        _ends(self)

    def at(self, fractions: ArrayLike) -> Float[np.ndarray, "*shape"]:
        """The values at fractions of the range, from 0 to 1."""
        return _within(self, _mixed(self.low, self.high, fractions))

    def points(self, count: int) -> Float[np.ndarray, " points"]:
        """So many values in equal distances, from end to end; one is the middle."""
        return self.at(_even(count))


@dataclasses.dataclass(frozen=True)
class Integer:
    """A range of whole numbers, both ends among them, as of the steps of a warmup.

    They are traced, as int32. What sets the shape of an array belongs into `Static`.

    Attributes:
      low: the smallest.
      high: the largest, above `low`.
      log: whether their logarithms are uniform: of each `k` there is a share of log((k + 1) / k).

    Raises:
      ValueError: unless `low < high`, both within int32, and `low` at least 1 with `log`.
      TypeError: if an end is no whole number.

    Examples:
      >>> print(lo.sweeps.Integer(0, 9).points(4), lo.sweeps.Integer(1, 100, log=True).points(3))
      [0 3 6 9] [  1  10 100]
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self):
        low = _checks.count("low", self.low, 1 if self.log else -(2**31))
        high = _checks.count("high", self.high, low + 1)
        if high >= 2**31:
            raise ValueError(f"Expected high < 2**31, got {high}. Take Log or Linear, and round.")
        _set(self, low=low, high=high)

    def at(self, fractions: ArrayLike) -> Int[np.ndarray, "*shape"]:
        """The values at fractions of the range, from 0 to 1."""
        numbers = np.floor(self._real(self.low, self.high + 1, fractions))
        return np.clip(numbers, self.low, self.high).astype(np.int32)

    def points(self, count: int) -> Int[np.ndarray, " points"]:
        """At most so many values in steps as equal as may be, from end to end, none twice."""
        fractions = _even(min(count, self.high - self.low + 1))
        return np.unique(np.rint(self._real(self.low, self.high, fractions))).astype(np.int32)

    def _real(self, low, high, fractions):
        if self.log:
            return np.exp(_mixed(math.log(low), math.log(high), fractions))
        return _mixed(low, high, fractions)


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """One of several numbers, or of arrays of one shape, such as masks; they are traced.

    Attributes:
      options: a sequence of them, or an array `[options, ...]` whose rows they are.

    Raises:
      ValueError: if there are none, their shapes differ, or one is NaN, which stands for what a
        trial lacks.
      TypeError: if they are no numbers, or no sequence.

    Examples:
      >>> print(lo.sweeps.Choice([16, 32, 64]).at(np.array([0.0, 0.5, 0.9])))
      [16 32 64]
    """

    options: Any

    def __post_init__(self):
        options = numbers("options", self.options)
        if not options.ndim:
            raise TypeError(f"Expected options as a sequence, got {self.options!r}. Write a list.")
        if jnp.issubdtype(options.dtype, jnp.inexact) and np.isnan(options).any():
            raise ValueError("Expected options without NaN, which stands for what a trial lacks.")
        _some(options)
        _set(self, options=options)

    def at(self, fractions: ArrayLike) -> Array | np.ndarray:
        """The options at fractions of their number, from 0 to 1."""
        return self.options[_codes(self.options, fractions)]

    def points(self, count: int | None = None) -> Array | np.ndarray:
        """All options; `count` is their number, or None."""
        _all(self.options, count)
        return self.options


@dataclasses.dataclass(frozen=True)
class Static:
    """One of several objects that change the program: a width, a batch size, an optimizer.

    Trials of one option share a program; each option is one more to compile.

    Attributes:
      options: a sequence of anything hashable, none twice.

    Raises:
      ValueError: if there are none, or two are equal.
      TypeError: if they are no sequence, or one cannot be hashed.

    Examples:
      >>> lo.sweeps.Static(["adam", "sgd"]).options
      ('adam', 'sgd')
    """

    options: Any

    def __post_init__(self):
        if isinstance(self.options, str | bytes) or not isinstance(self.options, Iterable):
            raise TypeError(f"Expected options as a sequence, got {self.options!r}. Write a list.")
        options = tuple(self.options)
        _some(options)
        for number, option in enumerate(options):
            hashed(option)
            if place(options, option) < number:
                raise ValueError(f"Expected different options, got {option!r} twice. Drop one.")
        _set(self, options=options)

    def at(self, fractions: ArrayLike) -> Int[np.ndarray, "*shape"]:
        """The places of the options at fractions of their number, from 0 to 1."""
        return _codes(self.options, fractions)

    def points(self, count: int | None = None) -> Int[np.ndarray, " options"]:
        """The places of all options; `count` is their number, or None."""
        _all(self.options, count)
        return np.arange(len(self.options), dtype=np.int32)


Dimension: TypeAlias = Log | Linear | Integer | Choice | Static
Space: TypeAlias = Mapping[str, Dimension]


def hashed(option: Any) -> Hashable:
    """An option that can be hashed."""
    try:
        hash(option)
    except TypeError:
        raise TypeError(
            f"Expected hashable options, got {option!r}. Write a list as a tuple; numbers and "
            "arrays that leave the program as it is belong into lossopt.sweeps.Choice."
        ) from None
    return option


def _set(space, **fields):
    for name, value in fields.items():
        object.__setattr__(space, name, value)


def _floating():
    return jnp.result_type(float)


def _ends(space):
    """Checks the ends of a range and makes Python numbers of them."""
    for name, end in (("low", space.low), ("high", space.high)):
        _checks.exact_shape((), **{name: end})
        if not abs(float(end)) <= float(jnp.finfo(_floating()).max):
            raise ValueError(f"Expected a finite {name}, got {end}. Give the range two ends.")
    _set(space, low=float(space.low), high=float(space.high))
    _checks.above(space.low, high=space.high)
    low, high = np.array([space.low, space.high], _floating())
    if not low < high:
        raise ValueError(
            f"Expected ends that differ in {low.dtype}, got {space.low!r} and {space.high!r}. "
            "Widen the range, or sweep its distance from a number near by, such as 1 - b2."
        )


def _mixed(low, high, fractions):
    """What lies between two numbers, in float64, exact at both, and at 0 in a grid around it."""
    fractions = np.asarray(fractions, np.float64)
    return np.where(fractions == 1, high, low + (high - low) * fractions)


def _even(count):
    count = _checks.count("points", count, 1)
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def _within(space, values):
    """Rounds, and keeps what rounding or a logarithm took beyond an end."""
    low, high = np.array([space.low, space.high], _floating())
    return np.clip(values.astype(_floating()), low, high)


def _codes(options, fractions):
    codes = np.floor(np.asarray(fractions, np.float64) * len(options))
    return np.minimum(codes, len(options) - 1).astype(np.int32)


def _some(options):
    if not len(options):
        raise ValueError("Expected at least one option, got none. Name them.")


def _all(options, count):
    if count is not None and count != len(options):
        raise ValueError(
            f"Expected all {len(options)} options, got points={count}. Leave the name out "
            "of points."
        )
