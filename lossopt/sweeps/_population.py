"""Population based training: who goes on from whose state, and with which hyperparameters."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._typing import Array, Key, Number, PyTree
from lossopt.sweeps._form import Form
from lossopt.sweeps._spaces import Linear, Log
from lossopt.sweeps._task import Task
from lossopt.sweeps._trial import Statics, given, strong

_OWN = 2**32 - 1  # ids, which make the keys of trials, are below 2**31


@dataclasses.dataclass(frozen=True)
class Population:
    """Trials that learn from each other, for `sweep(..., rungs=)`, as `population` makes it.

    Attributes:
      every: steps of a generation.
      space: ranges of the hyperparameters that change.
      quantile: the share of trials that is replaced after a generation.
      factors: of which one multiplies a hyperparameter that changes.
    """

    every: int
    space: Mapping[str, Log | Linear]
    quantile: float
    factors: tuple[float, ...]

    def levels(self, steps: int) -> tuple[int, ...]:
        """The steps at the ends of the generations of a trial of so many."""
        return (*range(self.every, steps, self.every), steps)

    def replaced(self, trials: int) -> int:
        """How many of so many trials are replaced: one at least and half at most, or none at 0."""
        if not self.quantile:
            return 0
        return min(max(1, math.floor(self.quantile * trials + 1e-9)), trials // 2)


def population(
    every: int,
    space: Mapping[str, Log | Linear],
    *,
    quantile: float = 0.2,
    factors: Sequence[float] = (0.8, 1.25),
) -> Population:
    """Population based training: after each generation the worst trials go on from better ones.

    All trials run side by side, in one program on one device. After every so many steps a trial
    among the worst draws one of the best, goes on from its state, and takes its hyperparameters
    over, each times a factor that is drawn for it. So a population finds a schedule, which no fixed
    hyperparameter is. Trials that differ in `Static` and repetitions are refused. (Jaderberg et
    al., "Population Based Training of Neural Networks", 2017)

    Args:
      every: steps of a generation, at least 1 and fewer than the task's. Nobody is replaced after
        the last one, which may be shorter.
      space: the hyperparameters that change, from names to `Log` or `Linear`, at whose ends they
        are clipped. All others stay those of the trial.
      quantile: the share of trials that is replaced, and of those that they draw from, from 0 to
        0.5; rounded down, but at least one trial of two or more. 0 replaces none.
      factors: numbers above 0, drawn evenly. The reciprocals of each other, as here, favor no
        direction of a `Log`.

    Returns:
      A plan for `sweep`.

    Raises:
      ValueError: if a number is out of its range, or a list is empty.
      TypeError: if `every` is no whole number, a range neither `Log` nor `Linear`, or `factors` no
        sequence.

    Examples:
      >>> plan = lo.sweeps.population(10, {"rate": lo.sweeps.Log(1e-4, 1)})
      >>> plan.levels(35), plan.replaced(20)
      ((10, 20, 30, 35), 4)
    """
    every = _checks.count("every", every, 1)
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"Expected space as a dict of at least one range, got {space!r}.")
    for name, range_ in space.items():
        if not isinstance(range_, Log | Linear):
            raise TypeError(
                f"Expected {name!r} of space as lossopt.sweeps.Log or Linear, got {range_!r}. What "
                "is no such range cannot be multiplied: leave it out, and it stays the trial's."
            )
    _checks.at_least(0, quantile=quantile)
    _checks.at_most(0.5, quantile=quantile)
    if not isinstance(factors, Sequence | np.ndarray):
        raise TypeError(f"Expected factors as a sequence of numbers, got {factors!r}.")
    factors = tuple(map(float, factors))
    if not factors or not all(0 < x < math.inf for x in factors):
        raise ValueError(f"Expected factors as numbers above 0, at least one, got {factors}.")
    return Population(every, dict(sorted(space.items())), float(quantile), factors)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the program of a generation's end is made for.

    Attributes:
      count: how many trials are replaced.
      ranges: names, lowest and highest values of the hyperparameters that change, by name.
      factors: of which one multiplies them.
      maximize: whether the highest score is the best.
    """

    count: int
    ranges: tuple[tuple[str, float, float], ...]
    factors: tuple[float, ...]
    maximize: bool


def rule_of(plan: Population, trials: int, maximize: bool) -> Rule:
    """The rule of a plan for so many trials."""
    ranges = tuple((name, x.low, x.high) for name, x in plan.space.items())
    return Rule(plan.replaced(trials), ranges, plan.factors, maximize)


def evolved(
    task: Task,
    statics: Statics,
    form: Form,
    rule: Rule,
    state: PyTree,
    values: Mapping[str, Array],
    ids: Array,
    scores: Array,
    key: Key[Array, ""],
    generation: Number,
) -> tuple[PyTree, dict[str, Array], Array]:
    """States and hyperparameters with which trials go on, and the rows whose states these were.

    Args:
      task: with its `inherit`.
      statics: options of all trials.
      form: of the call.
      rule: of the population.
      state: of all trials.
      values: hyperparameters of all trials.
      ids: of the trials.
      scores: that which ranks.
      key: of the sweep.
      generation: how many have ended.
    """
    keys = draws(key, generation, ids)
    donors, picks = drawn(rule, keys, best_first(scores, ids, rule.maximize), finite(scores))
    new = explored(rule, values, donors, picks)
    mine = donors != np.arange(len(ids), dtype=np.int32)

    def one(own, donor, values, mine):
        went_on = inherited(task, statics, own, donor, values)
        return jax.tree.map(partial(jnp.where, mine), went_on, own)

    state = form.over(one)(state, jax.tree.map(lambda x: x[donors], state), new, mine)
    return state, new, donors


def inherited(task: Task, statics: Statics, own: PyTree, donor: PyTree, values: Any) -> PyTree:
    """The state of a trial that goes on from that of another."""
    inherit: Any = task.inherit
    return strong(inherit(own, donor, given(statics, values)))


def best_first(scores: Array, ids: Array, maximize: bool) -> Array:
    """The rows in the order of their scores, of equal ones the lower id first, int32 `[trials]`."""
    real = jnp.issubdtype(scores.dtype, jnp.floating)
    known = finite(scores)
    order = jnp.where(known, scores, jnp.zeros((), scores.dtype))
    if maximize:
        order = -order if real else ~order  # of whole numbers the lowest has no negative
    return jnp.lexsort((ids, order, ~known)).astype(np.int32)


def finite(scores: Array) -> Array:
    """Which scores are finite; whole numbers are."""
    return jnp.isfinite(scores)


def draws(key: Key[Array, ""], generation: Number, ids: Array) -> Array:
    """A key of each trial, which no trial draws from itself."""
    folded = jax.random.fold_in(jax.random.fold_in(key, np.uint32(_OWN)), generation)
    return jax.vmap(partial(jax.random.fold_in, folded))(ids)


def drawn(rule: Rule, keys: Array, order: Array, known: Array) -> tuple[Array, Array]:
    """The row that each goes on from, its own if it is not replaced, and factors, by number.

    Args:
      rule: of the population.
      keys: one of each trial.
      order: rows, the best first.
      known: which have a finite score. Nobody goes on from another.
    """
    trials = len(order)
    most = jnp.minimum(rule.count, jnp.sum(known)).astype(np.int32)

    def one(key):
        which, how = jax.random.split(key)
        place = jax.random.randint(which, (), 0, most)  # of none unused
        return place, jax.random.randint(how, (len(rule.ranges),), 0, len(rule.factors))

    places, picks = jax.vmap(one)(keys)
    rows = jnp.arange(trials, dtype=np.int32)
    rank = jnp.zeros(trials, np.int32).at[order].set(rows)
    replaced = (rank >= trials - rule.count) & (most > 0)
    return jnp.where(replaced, order[places], rows), picks


def explored(
    rule: Rule, values: Mapping[str, Array], donors: Array, picks: Array
) -> dict[str, Array]:
    """The hyperparameters with which trials go on."""
    replaced, found = donors != np.arange(len(donors), dtype=np.int32), dict(values)
    for number, (name, low, high) in enumerate(rule.ranges):
        x = values[name]
        factors = jnp.asarray(rule.factors, x.dtype)[picks[:, number]]
        ends = np.array([low, high], x.dtype)
        found[name] = jnp.where(replaced, jnp.clip(x[donors] * factors, *ends), x)
    return found
