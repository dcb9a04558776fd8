"""The one loop: steps, and after some of them a row of history, the best parameters, a verdict."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lossopt._typing import Array, ArrayLike, Batch, Key, Means, PyTree
from lossopt.training._evaluation import columns, evaluated
from lossopt.training._source import Rows
from lossopt.training._step import Optimizer, Recipe, State, begin, take_step
from lossopt.training._stop import Stopped, StopRule


class Plan(NamedTuple):
    """What a program is made for; all else is data.

    Attributes:
      best: the part whose value after each row decides what is best; None keeps nothing.
      guard: what a number that is not finite does: `"stop"` ends the loop, `"keep"` also keeps what
        there was before it; None does nothing.
      window: rows of history that are held at a time.
    """

    objective: Callable
    optimizer: Optimizer
    source: Rows
    microbatches: int
    has_aux: bool
    best: Literal["validation", "trained"] | None
    guard: Literal["stop", "keep"] | None
    window: int


class Data(NamedTuple):
    """What a run reads and never changes."""

    train: Batch
    validation: Batch
    key: Key[Array, ""]
    hyperparameters: PyTree
    stop: StopRule | None


class Best(NamedTuple):
    """The best so far."""

    params: PyTree
    model_state: PyTree
    value: Array
    row: Array


class Pool(NamedTuple):
    """Sums over the steps of a row, and what rounding took from them."""

    sums: tuple[Means, Means]
    lost: tuple[Means, Means]


class Progress(NamedTuple):
    """What the loop changes."""

    state: State
    best: Best | None
    waiting: PyTree
    status: Array
    pool: Pool
    rows: Array
    window: dict[str, Array]


def start(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> Progress:
    """What there is before the first step; refuses what does not fit together."""
    state = begin(_recipe(plan), params, model_state, data.hyperparameters)
    sums, row = jax.eval_shape(partial(_outline, plan), data, state)
    like = lambda fill: lambda x: jnp.full(x.shape, fill, x.dtype)
    pool = Pool(jax.tree.map(like(0), sums), jax.tree.map(like(0), sums))
    gap = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    window = {name: jnp.full(plan.window, gap(x), x.dtype) for name, x in row.items()}
    none, best = jnp.full((), -1, jnp.int32), None
    if plan.best:
        high = jnp.full((), jnp.inf, row[f"{plan.best}/value"].dtype)
        best = Best(state.params, state.model_state, high, none)
    waiting = None if data.stop is None else data.stop.init()
    return Progress(state, best, waiting, none + 1, pool, none + 1, window)


def advance(
    plan: Plan,
    data: Data,
    progress: Progress,
    first: ArrayLike,
    end: ArrayLike,
    every: ArrayLike,
    last: ArrayLike,
) -> Progress:
    """The steps from `first` to before `end`, the same however they are cut.

    There is a row after each `every` steps, and after the `last` one.
    """
    per_epoch = plan.source.steps

    def stretch(carry):
        at, progress = carry
        epoch, number = jnp.divmod(at, per_epoch)
        row = jnp.minimum((at // every + 1) * every, last)
        upto = jnp.minimum(jnp.minimum(end, row), (epoch + 1) * per_epoch)
        progress = _stretch(plan, data, epoch, number, number + upto - at, progress)
        due = (upto == row) & _runs(progress)
        return upto, jax.lax.cond(due, partial(_close, plan, data, upto), lambda p: p, progress)

    goes_on = lambda carry: (carry[0] < end) & _runs(carry[1])
    begun = jnp.asarray(first, jnp.int32), progress
    return _judged(jax.lax.while_loop(goes_on, stretch, begun)[1])


def advance_whole(plan: Plan, data: Data, progress: Progress, epochs: int) -> Progress:
    """All epochs, a row after each; without a guard it has a reverse mode."""
    per_epoch = plan.source.steps

    def epoch(number, progress):
        progress = _stretch(plan, data, number, 0, per_epoch, progress)
        close = partial(_close, plan, data, (number + 1) * per_epoch)
        if plan.guard is None:
            return close(progress)
        return jax.lax.cond(_runs(progress), close, lambda p: p, progress)

    return _repeat(plan, epoch, 0, epochs, progress)


def finite(tree: PyTree) -> Array:
    """Whether all numbers are."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)], bool))


def _recipe(plan):
    return Recipe(plan.objective, plan.optimizer, plan.microbatches, (), plan.has_aux)


def _runs(progress):
    return progress.status == Stopped.FINISHED.code


def _repeat(plan, body, low, high, progress):
    """`body(number, progress)` for the numbers from low to before high, as long as it runs."""
    if plan.guard is None:
        return jax.lax.fori_loop(low, high, body, progress)
    goes_on = lambda carry: (carry[0] < high) & _runs(carry[1])
    turn = lambda carry: (carry[0] + 1, body(*carry))
    return jax.lax.while_loop(goes_on, turn, (jnp.asarray(low, jnp.int32), progress))[1]


def _stretch(plan, data, epoch, low, high, progress):
    """The steps from low to before high of one epoch."""
    shuffle, noise = jax.random.split(jax.random.fold_in(data.key, epoch))
    source = plan.source

    def full(number, progress):
        batch = source.batch(data.train, shuffle, number)
        return _step(plan, data, batch, jax.random.fold_in(noise, number), progress)

    def rest(progress):
        piece = -(-source.batch_size // plan.microbatches)
        smaller = plan._replace(microbatches=-(-source.rest // piece))
        batch = source.last(data.train, shuffle)
        return _step(smaller, data, batch, jax.random.fold_in(noise, source.full), progress)

    whole = low == 0 and high == source.steps if isinstance(high, int) else False
    upto = source.full if whole else jnp.minimum(high, source.full)
    progress = _repeat(plan, full, low, upto, progress)
    if not source.rest:
        return progress
    if whole and plan.guard is None:
        return rest(progress)
    return jax.lax.cond((high > source.full) & _runs(progress), rest, lambda p: p, progress)


def _step(plan, data, batch, key, progress):
    """One step, pooled, and judged where there is a guard."""
    before = progress.state
    state, measured = take_step(_recipe(plan), before, batch, key, data.hyperparameters)
    pool = _pooled(progress.pool, (measured.terms, measured.metrics))
    if plan.guard is None:
        return progress._replace(state=state, pool=pool)
    loss = jnp.isfinite(measured.value)
    status = jnp.where(loss, progress.status, Stopped.NONFINITE_LOSS.code)
    if plan.guard == "keep":
        whole = finite(state.params)
        status = jnp.where(loss & ~whole, Stopped.NONFINITE_PARAMETERS.code, status)
        state = jax.tree.map(partial(jnp.where, loss & whole), state, before)
    return progress._replace(state=state, pool=pool, status=status)


def _pooled(pool, summand):
    """The sums with one summand more, as if they had twice the digits.

    References:
      Kahan, "Further Remarks on Reducing Truncation Errors", 1965.
    """
    small = jax.tree.map(jnp.subtract, summand, pool.lost)
    sums = jax.tree.map(jnp.add, pool.sums, small)
    lost = lambda new, old, x: jnp.where(jnp.isfinite(new), (new - old) - x, 0)
    return Pool(sums, jax.tree.map(lost, sums, pool.sums, small))


def _judged(progress):
    """Parameters that are not finite end the run."""
    broken = _runs(progress) & ~finite(progress.state.params)
    status = jnp.where(broken, Stopped.NONFINITE_PARAMETERS.code, progress.status)
    return progress._replace(status=status)


def _close(plan, data, step, progress):
    """A row of history, and what it decides."""
    row = _row(plan, data, progress.state, progress.pool.sums) | {"step": jnp.int32(step)}
    place = progress.rows % plan.window
    window = {name: column.at[place].set(row[name]) for name, column in progress.window.items()}
    whole, best = finite(progress.state.params), progress.best
    if best is not None:
        value = row[f"{plan.best}/value"]
        better = whole & jnp.isfinite(value) & (value < best.value)
        now = Best(progress.state.params, progress.state.model_state, value, progress.rows)
        best = jax.tree.map(partial(jnp.where, better), now, best)
    waiting, status = progress.waiting, progress.status
    if data.stop is not None:
        waiting, status = data.stop.update(waiting, row[f"{_watched(data)}/value"])
    if plan.guard:
        status = jnp.where(whole, status, Stopped.NONFINITE_PARAMETERS.code)
    empty = jax.tree.map(jnp.zeros_like, progress.pool)
    return Progress(progress.state, best, waiting, status, empty, progress.rows + 1, window)


def _row(plan, data, state, sums):
    """One number for each column."""
    given = state.model_state, data.hyperparameters
    fixed = plan.objective, plan.has_aux, plan.source.batch_size, plan.source.shards, state.params
    parts = {"train": columns(*sums)}
    if data.validation is not None:
        parts["validation"] = evaluated(*fixed, data.validation, *given)
    if plan.best == "trained":
        parts["trained"] = evaluated(*fixed, data.train, *given)
    return {f"{part}/{name}": x for part, row in parts.items() for name, x in row.items()}


def _outline(plan, data, state):
    batch = plan.source.batch(data.train, data.key, 0)
    _, measured = take_step(_recipe(plan), state, batch, data.key, data.hyperparameters)
    sums = measured.terms, measured.metrics
    return sums, _row(plan, data, state, sums) | {"step": state.count}


def _watched(data):
    """The part whose value a stop rule watches."""
    return "trained" if data.validation is None else "validation"
