"""A learning rate from a short grid of real runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt import _checks, _jax, _pieces, _programs
from lossopt._typing import Array, ArrayLike, Batch, Float, Key, Number, PyTree
from lossopt.training._arrays import on_device
from lossopt.training._inputs import trainable
from lossopt.training._loop import advance, start
from lossopt.training._plan import Data, Plan
from lossopt.training._preflight import preflight
from lossopt.training._run import plan_of, start_judged
from lossopt.training._source import source
from lossopt.training._split import held_out
from lossopt.training._stop import Stopped

LOWEST, RATES = -9, 11  # of the default grid: the first in half decades, and how many
SIDE_BY_SIDE = 100_000  # parameters times rows of a batch, up to which runs at once are faster


class RateGrid(NamedTuple):
    """What short runs at several learning rates came to.

    Attributes:
      rates: the rates, rising, shape `[rates]`.
      values: the objective at the end of each run, shape `[seeds, rates]`; NaN where numbers became
        non-finite.
      learning_rate: the best of the rates, a number of Python.
    """

    rates: Float[np.ndarray, " rates"]
    values: Float[np.ndarray, "seeds rates"]
    learning_rate: float

    @property
    def at_end(self) -> bool:
        """Whether the best rate is the first or the last, so that a better one may lie beyond."""
        return self.learning_rate in (self.rates[0], self.rates[-1])


class Short(NamedTuple):
    """What short runs have in common.

    Attributes:
      plan: its `optimizer` is a function of the learning rate.
      begin: the first progress from plan, data, parameters and model state.
      data: what a run reads.
      params: the first ones.
      model_state: the first one.
    """

    plan: Plan
    begin: Callable
    data: Data
    params: PyTree
    model_state: PyTree


def find_learning_rate(
    objective: Callable,
    params: PyTree,
    train: Batch,
    optimizer_of: Callable[[Any], optax.GradientTransformation],
    *,
    batch_size: int | None = None,
    key: Key[Array, ""],
    validation: Batch = None,
    rates: Sequence[float] | Float[ArrayLike, " rates"] | None = None,
    steps: int = 200,
    seeds: int = 2,
    microbatches: int = 1,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    check: bool | Sequence[str] = True,
) -> RateGrid:
    """Trains for some steps at each of a few learning rates, and picks the best.

    Each run starts from `params` and takes steps as those of `fit`. What counts is the objective
    over its last quarter, or of `validation` after it: the lowest mean over seeds is picked, the
    smaller rate of equals, and never one at which a seed met a number that is not finite. Small
    models train side by side, others one after the other; both give the same numbers up to
    rounding. Nothing that is given is changed.

    The pick is the best at the beginning, at a constant rate. Of a schedule in the optimizer only
    the beginning is seen.

    Args:
      objective: as in `training.run`.
      params: the first ones.
      train: as in `fit`.
      optimizer_of: maps a learning rate, a traced number, to an optimizer, as `optax.adam` does, or
        `lambda rate: optax.sgd(rate, momentum=0.9)`.
      batch_size: rows a step, as in `fit`. The best rate depends on it.
      key: typed PRNG key. At all rates a seed sees the same batches and noise.
      validation: as in `fit`.
      rates: above 0, rising, two or more. None takes 11 from 3e-5 to 3, and as many beyond where
        the best is at an end of them.
      steps: of each run, at least 2.
      seeds: runs at each rate, at least 1.
      microbatches: as in `fit`.
      has_aux: as in `fit`.
      model_state: as in `fit`.
      hyperparameters: numbers for the objective; the optimizer has those that `optimizer_of` knows.
      check: as in `fit`.

    Returns:
      A `RateGrid`; give its `learning_rate` to the optimizer of `fit`.

    Raises:
      ValueError: as `fit` does; and if rates do not rise from above 0, if at no rate all numbers
        are finite, or if all rates come to the same.
      TypeError: as `fit` does; and if `optimizer_of` does not map a number to an optimizer.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> grid = lo.training.find_learning_rate(
      ...     objective, 0.0, jnp.linspace(3, 5, 40), optax.sgd, batch_size=8, steps=20,
      ...     rates=[0.01, 0.1, 1.0], key=jax.random.key(0))
      >>> print(grid.learning_rate, *grid.values.mean(axis=0).round(1))
      0.1 8.4 0.4 35.0
    """
    steps, seeds = _checks.count("steps", steps, 2), _checks.count("seeds", seeds, 1)
    grid = _half_decades(LOWEST) if rates is None else _rising(rates)
    given = {"params": params, "train": train, "key": key, "validation": validation}
    given |= {"model_state": model_state, "hyperparameters": hyperparameters}
    short = prepared(objective, optimizer_of, batch_size, microbatches, has_aux, check, **given)
    values = _values(short, grid, steps, seeds)
    _refuse_same(values)
    if rates is None and (beyond := _side(values)):
        more = _half_decades(LOWEST + beyond * (RATES - 1))
        both = np.concatenate([values, _values(short, more, steps, seeds)], axis=1)
        grid, order = np.unique(np.concatenate([grid, more]), return_index=True)
        values = both[:, order]
    return RateGrid(grid, values, float(grid[_best(grid, values)]))


def prepared(
    objective: Callable,
    optimizer_of: Callable,
    batch_size: int | None,
    microbatches: int,
    has_aux: bool,
    check: bool | Sequence[str],
    **given: PyTree,
) -> Short:
    """What short runs have in common; refuses, as `fit` does, what cannot be trained."""
    if _jax.traced():
        raise TypeError(
            "A learning rate is found by the host, which waits for numbers, and the call is traced "
            "by jit, vmap or grad. Call it outside of them."
        )
    if hasattr(optimizer_of, "init") or not callable(optimizer_of):
        raise TypeError(_OPTIMIZER_OF.format(got=f"{optimizer_of!r} itself"))
    train, validation, key = given["train"], given["validation"], given["key"]
    given["train"], given["validation"], _ = held_out(train, validation, key, None)
    params, train, key, validation, model_state, hyperparameters = on_device(**given)
    trainable(params)
    if validation is not None:
        _pieces.rows(validation, "validation")
    data = Data(train, validation, key, hyperparameters, None)
    rows = source(train, batch_size, False)
    plan = plan_of(objective, optimizer_of, rows, data, None, microbatches, has_aux)
    with _jax.on_mesh(train, params):
        preflight(plan, data, params, model_state, check)
    begin = start_judged if check else start
    return Short(plan._replace(best=None), begin, data, params, model_state)


def rule_of(optimizer_of: Callable, rate: Number) -> optax.GradientTransformation:
    """The optimizer of a rate; an error says what to write."""
    try:
        rule = optimizer_of(rate)
    except Exception as error:
        error.add_note(_OPTIMIZER_OF.format(got="this, when it was called with a traced number"))
        raise
    if not hasattr(rule, "init"):
        raise TypeError(_OPTIMIZER_OF.format(got=f"one to {rule!r}"))
    return rule


_OPTIMIZER_OF = (
    "Expected optimizer_of as a function from a learning rate, which is traced, to an "
    "optax.GradientTransformation, got {got}. Write optax.adam, or lambda rate: optax.sgd(rate, "
    "momentum=0.9)."
)


def _half_decades(first):
    return 10.0 ** (np.arange(first, first + RATES) / 2)


def _rising(rates):
    """The rates of a user, as numpy."""
    grid = np.asarray(rates, float)
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid, prepend=0) > 0):
        raise ValueError(
            f"Expected rates above 0, rising, two or more, got {rates}. Write "
            "np.geomspace(1e-4, 1, 9)."
        )
    _checks.below(np.inf, rates=grid)
    return grid


def _values(short, grid, steps, seeds):
    """What the runs came to, a row for each seed."""
    plan, begin, data, params, model_state = short
    keys = jax.random.split(data.key, seeds)
    size = sum(x.size for x in jax.tree.leaves(params)) * plan.source.batch_size
    with _jax.on_mesh(data.train, params):
        if size <= SIDE_BY_SIDE:
            args = data, params, model_state, tuple(grid.tolist()), keys, np.int32(steps)
            return np.asarray(_programs.call(_table, (plan, begin), *args), float)
        run = lambda rate, key: _programs.call(
            _run, (plan, begin), data, params, model_state, rate, key, np.int32(steps)
        )
        table = [[run(rate, key) for rate in grid.tolist()] for key in keys]
        return np.asarray(jax.device_get(table), float)


def _table(plan, begin, data, params, model_state, rates, keys, steps):
    """All runs side by side; none ends before the others."""
    plan = plan._replace(guard=None)
    run = lambda key, rate: _run(plan, begin, data, params, model_state, rate, key, steps)
    return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(keys, jnp.stack(rates))


def _run(plan, begin, data, params, model_state, rate, key, steps):
    """What one run comes to; NaN where numbers became non-finite."""
    column, late = "validation/value", steps
    if data.validation is None:
        column, late = "train/value", steps - jnp.maximum(1, steps // 4)
    rule = rule_of(plan.optimizer, rate)
    plan = plan._replace(optimizer=rule, window=2 if data.validation is None else 1)
    data = data._replace(key=key)
    progress = begin(plan, data, params, model_state)
    progress = advance(plan, data, progress, 0, steps, late, steps)
    finite = jnp.all(jnp.isfinite(progress.window["train/value"]))
    finite &= progress.status == Stopped.FINISHED.code
    return jnp.where(finite, progress.window[column][-1], jnp.nan)


def _scores(values):
    """The mean over seeds; infinite where a run was not finite."""
    return np.where(np.all(np.isfinite(values), axis=0), np.mean(values, axis=0), np.inf)


def _side(values):
    """Where better rates may lie: 1 above, -1 below, as where none was finite; 0 within."""
    scores = _scores(values)
    at = np.argmin(scores)
    return -1 if at == 0 else int(at == len(scores) - 1)


def _best(grid, values):
    """The place of the lowest score; refuses where there is none."""
    scores = _scores(values)
    if np.all(np.isinf(scores)):
        raise ValueError(
            "Expected a rate at which all numbers stay finite, and there is none among "
            f"{len(grid)} from {grid[0]:.2g} to {grid[-1]:.2g}. Give smaller rates; or look at "
            "objective and params: fit says where numbers break."
        )
    return np.argmin(scores)


def _refuse_same(values):
    """Raises where a rate makes no difference."""
    if np.all(values == values[:, :1]):
        raise ValueError(
            f"Expected values that depend on the rate, and at all rates it is {values[0, 0]:.3g}. "
            "Either optimizer_of does not use the rate it is given, or no gradient reaches params."
        )
