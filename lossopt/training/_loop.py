"""The one loop: steps, and after some of them a row of history, the best parameters, a verdict."""

from functools import partial

import jax
import jax.numpy as jnp

from lossopt import _jax
from lossopt._typing import ArrayLike, PyTree
from lossopt.training._best import finite, first
from lossopt.training._history import close, outline
from lossopt.training._norms import norms
from lossopt.training._plan import Data, Plan, Progress
from lossopt.training._pool import Pool, empty, pooled
from lossopt.training._step import State, begin
from lossopt.training._stop import Stopped


def start(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> Progress:
    """What there is before the first step; refuses what does not fit together."""
    state = begin(plan.recipe, params, model_state, data.hyperparameters)
    sums, sizes, row = jax.eval_shape(partial(outline, plan), data, state)
    gap = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    window = {name: jnp.full(plan.window, gap(x), x.dtype) for name, x in row.items()}
    best = plan.best and first(plan.best, plan.judged(state), state.model_state, row)
    waiting = None if data.stop is None else data.stop.init()
    sizes = {name: jnp.full((), jnp.nan, x.dtype) for name, x in sizes.items()}
    zero = jnp.zeros((), jnp.int32)
    return plan.laid(Progress(state, best, waiting, zero, empty(sums), sizes, zero, window))


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

    def stretch(carry):
        at, progress = carry
        epoch, number, left = plan.source.place(data.train, at)
        row = jnp.minimum((at // every + 1) * every, last)
        upto = jnp.minimum(jnp.minimum(end, row), at + left)
        progress = _stretch(plan, data, epoch, number, number + upto - at, progress)
        due = (upto == row) & _runs(progress)
        return upto, jax.lax.cond(due, partial(close, plan, data), lambda p: p, progress)

    goes_on = lambda carry: (carry[0] < end) & _runs(carry[1])
    begun = jnp.asarray(first, jnp.int32), progress
    return plan.laid(_judged(jax.lax.while_loop(goes_on, stretch, begun)[1]))


def advance_whole(plan: Plan, data: Data, progress: Progress, epochs: int) -> Progress:
    """All epochs, a row after each; without a guard it has a reverse mode."""
    per_epoch = plan.source.steps

    def epoch(number, progress):
        progress = _stretch(plan, data, number, 0, per_epoch, progress)
        if plan.guard is None:
            return close(plan, data, progress)
        closes = partial(close, plan, data)
        return jax.lax.cond(_runs(progress), closes, lambda p: p, progress)

    return _repeat(plan, epoch, 0, epochs, progress)


def take_steps(
    plan: Plan, data: Data, state: State, pool: Pool, steps: ArrayLike
) -> tuple[State, Pool]:
    """So many further steps without rows of history, the same however they are cut.

    Under `vmap` all members stand at the same step: loops and branches are one for all of them. No
    guard looks at the numbers.

    Args:
      plan: of the run.
      data: what it reads.
      state: what the steps go on from.
      pool: sums over the steps of the epoch that the last of them belongs to.
      steps: how many, perhaps traced.
    """
    plan = plan._replace(guard=None)
    zero = jnp.zeros((), jnp.int32)
    begun = Progress(state, None, None, zero, pool, {}, zero, {})
    first = _jax.common(state.count)

    def stretch(carry):
        at, progress = carry
        epoch, number, left = plan.source.place(data.train, at)
        upto = jnp.minimum(end, at + left)
        anew = partial(jnp.where, number == 0, 0)
        progress = progress._replace(pool=jax.tree.map(anew, progress.pool))
        return upto, _steps(plan, data, epoch, number, number + upto - at, progress)

    end = first + jnp.asarray(steps, jnp.int32)
    progress = jax.lax.while_loop(lambda carry: carry[0] < end, stretch, (first, begun))[1]
    return progress.state, progress.pool


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
        batch = source.last(data.train, shuffle)
        folded = jax.random.fold_in(noise, source.full)
        return _step(plan.of_rows(source.rest), data, batch, folded, progress)

    whole = low == 0 and high == source.steps if isinstance(high, int) else False
    upto = source.full if whole else jnp.minimum(high, source.full)
    progress = _repeat(plan, full, low, upto, progress)
    if not source.rest:
        return progress
    if whole and plan.guard is None:
        return rest(progress)
    due = high > source.full
    if plan.guard is not None:
        due &= _runs(progress)
    return jax.lax.cond(due, rest, lambda p: p, progress)


def _step(plan, data, batch, key, progress):
    """One step, pooled, and judged where there is a guard."""
    before = progress.state
    state, measured, slopes = plan.step(data, before, batch, key)
    pool = pooled(progress.pool, (measured.terms, measured.metrics))
    progress = progress._replace(pool=pool)
    if progress.trail is not None:
        progress = progress._replace(trail=jax.lax.stop_gradient((slopes, before.params)))
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
