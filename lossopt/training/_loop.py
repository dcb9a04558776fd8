"""The one loop: steps, and after some of them a row of history, the best parameters, a verdict."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lossopt._typing import Array, ArrayLike, Batch, Key, PyTree
from lossopt.training._best import Best, Goal, finite, first, judged
from lossopt.training._evaluation import columns, evaluated
from lossopt.training._norms import learning_rate, norms
from lossopt.training._pool import Pool, emptied, empty, pooled
from lossopt.training._source import Rows
from lossopt.training._step import Optimizer, Recipe, State, begin, take_step
from lossopt.training._stop import Stopped, StopRule


class Plan(NamedTuple):
    """What a program is made for; all else is data.

    Attributes:
      best: what decides after each row what is best; None keeps nothing.
      guard: what a number that is not finite does: `"stop"` ends the loop, `"keep"` also keeps what
        there was before it; None does nothing.
      window: rows of history that are held at a time.
      watch: regular expression on the paths of leaves that have columns of their own.
    """

    objective: Callable
    optimizer: Optimizer
    source: Rows
    microbatches: int
    has_aux: bool
    best: Goal | None
    guard: Literal["stop", "keep"] | None
    window: int
    watch: str | None = None

    @property
    def measures_training(self) -> bool:
        """Whether the training set is measured with each row of history."""
        return self.best is not None and self.best.column.startswith("trained/")


class Data(NamedTuple):
    """What a run reads and never changes."""

    train: Batch
    validation: Batch
    key: Key[Array, ""]
    hyperparameters: PyTree
    stop: StopRule | None


class Progress(NamedTuple):
    """What the loop changes.

    Attributes:
      trail: gradient and parameters of the last step, between the steps of a stretch alone.
    """

    state: State
    best: Best | None
    waiting: PyTree
    status: Array
    pool: Pool
    norms: dict[str, Array]
    rows: Array
    window: dict[str, Array]
    trail: PyTree = None


def start(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> Progress:
    """What there is before the first step; refuses what does not fit together."""
    state = begin(_recipe(plan), params, model_state, data.hyperparameters)
    sums, sizes, row = jax.eval_shape(partial(_outline, plan), data, state)
    gap = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    window = {name: jnp.full(plan.window, gap(x), x.dtype) for name, x in row.items()}
    best = plan.best and first(plan.best, state.params, state.model_state, row)
    waiting = None if data.stop is None else data.stop.init()
    sizes = {name: jnp.full((), jnp.nan, x.dtype) for name, x in sizes.items()}
    zero = jnp.zeros((), jnp.int32)
    return Progress(state, best, waiting, zero, empty(sums), sizes, zero, window)


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
    """The steps from low to before high of one epoch, and how long the last of them was."""
    params = progress.state.params
    progress = progress._replace(trail=jax.lax.stop_gradient((params, params)))
    progress = _steps(plan, data, epoch, low, high, progress)
    sizes = norms(plan.watch, progress.trail, progress.state.params)
    return progress._replace(norms=sizes, trail=None)


def _steps(plan, data, epoch, low, high, progress):
    shuffle, noise = jax.random.split(jax.random.fold_in(data.key, epoch))
    source = plan.source

    def full(number, progress):
        batch = source.batch(data.train, shuffle, number)
        folded = jax.random.fold_in(noise, number)
        return _step(plan, data, batch, folded, progress)

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
    state, measured, slopes = take_step(_recipe(plan), before, batch, key, data.hyperparameters)
    pool = pooled(progress.pool, (measured.terms, measured.metrics))
    progress = progress._replace(pool=pool, trail=jax.lax.stop_gradient((slopes, before.params)))
    if plan.guard is None:
        return progress._replace(state=state)
    loss = jnp.isfinite(measured.value)
    status = jnp.where(loss, progress.status, Stopped.NONFINITE_LOSS.code)
    if plan.guard == "keep":
        whole = finite(state.params)
        status = jnp.where(loss & ~whole, Stopped.NONFINITE_PARAMETERS.code, status)
        state = jax.tree.map(partial(jnp.where, loss & whole), state, before)
    return progress._replace(state=state, status=status)


def _judged(progress):
    """Parameters that are not finite end the run."""
    broken = _runs(progress) & ~finite(progress.state.params)
    status = jnp.where(broken, Stopped.NONFINITE_PARAMETERS.code, progress.status)
    return progress._replace(status=status)


def _close(plan, data, step, progress):
    """A row of history, and what it decides."""
    state, best = progress.state, progress.best
    row = _row(plan, data, state, progress.pool.sums, progress.norms) | {"step": jnp.int32(step)}
    place = progress.rows % plan.window
    window = {name: column.at[place].set(row[name]) for name, column in progress.window.items()}
    if plan.best:
        now = Best(state.params, state.model_state, row[plan.best.column], progress.rows)
        best = judged(plan.best, best, now)
    waiting, status = progress.waiting, progress.status
    if data.stop is not None:
        waiting, status = data.stop.update(waiting, row[f"{_watched(data)}/value"])
    if plan.guard:
        status = jnp.where(finite(state.params), status, Stopped.NONFINITE_PARAMETERS.code)
    decided = {"best": best, "waiting": waiting, "status": status, "window": window}
    return progress._replace(pool=emptied(progress.pool), rows=progress.rows + 1, **decided)


def _row(plan, data, state, sums, sizes):
    """One number for each column."""
    given = state.model_state, data.hyperparameters
    fixed = plan.objective, plan.has_aux, plan.source.batch_size, plan.source.shards, state.params
    others = sizes | learning_rate(state.opt_state, data.hyperparameters)
    parts = {"train": columns(sums[0], sums[1], others)}
    if data.validation is not None:
        parts["validation"] = evaluated(*fixed, data.validation, *given)
    if plan.measures_training:
        parts["trained"] = evaluated(*fixed, data.train, *given)
    return {f"{part}/{name}": x for part, row in parts.items() for name, x in row.items()}


def _outline(plan, data, state):
    batch = plan.source.batch(data.train, data.key, 0)
    taken = take_step(_recipe(plan), state, batch, data.key, data.hyperparameters)
    _, measured, slopes = taken
    sums = measured.terms, measured.metrics
    sizes = norms(plan.watch, (slopes, state.params), state.params)
    return sums, sizes, _row(plan, data, state, sums, sizes) | {"step": state.count}


def _watched(data):
    """The part whose value a stop rule watches."""
    return "trained" if data.validation is None else "validation"
