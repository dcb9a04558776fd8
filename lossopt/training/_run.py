"""A whole training run as one pure function."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks, _jax
from lossopt._mean import terms
from lossopt._place import joined
from lossopt._typing import Array, Batch, Key, Number, PyTree
from lossopt.training import _report
from lossopt.training._arrays import on_device
from lossopt.training._best import Judge, goal_of
from lossopt.training._loop import advance_whole, start
from lossopt.training._plan import Data, Plan, Progress
from lossopt.training._pool import Pool
from lossopt.training._source import source
from lossopt.training._split import held_out
from lossopt.training._step import Optimizer, judge
from lossopt.training._stop import Stopped, StopRule, checked

BROKEN = Stopped.NONFINITE_LOSS, Stopped.NONFINITE_PARAMETERS


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "params",
        "model_state",
        "opt_state",
        "best_params",
        "best_model_state",
        "best_epoch",
        "history",
        "status",
        "position",
        "validation_rows",
        "steps",
        "unfinished",
    ],
    meta_fields=["terms", "judge"],
    drop_fields=["origin"],
)
@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Attributes:
      params: the last ones; where numbers became non-finite, the last that were finite.
      model_state: likewise.
      opt_state: likewise.
      best_params: after the best epoch, without a NaN or an infinite number; the first parameters
        if no epoch had a finite value; None where nothing judges, without validation.
      best_model_state: likewise.
      best_epoch: the row of `history` with the best finite value, the lowest but where `best` asks
        for the highest, the first of equals; -1 if none was finite; None where nothing judges.
      history: columns by name, one row for each epoch, or each `evaluate_every` steps: `"step"`,
        the steps taken until then; `"train/value"`, `"train/fit"`, `"validation/accuracy"`, ...
        Train columns pool the steps of the row as they were taken, validation columns are measured
        after it, and so are `"trained/..."`, those of `best="train"`. `"train/gradient_norm"` is
        the norm of the objective's gradient in the last step of the row, before the optimizer;
        `"train/update_ratio"` the norm of what the parameters moved by in that step, over their
        norm after it; neither has a derivative. `"train/learning_rate"` is there where one number
        of the optimizer's state, as `optax.inject_hyperparams` keeps it, or else of
        `hyperparameters`, has the name `"learning_rate"`. `fit` adds `"seconds"` since it began;
        rows of one call of the program share its time evenly.
      status: the code of `stopped`, int32; also inside of `jit` and `vmap`.
      position: where numbers became non-finite: epoch, step and index of the term, int32, shape
        `[3]`; -1 for what there is not.
      terms: the names of the terms.
      judge: the column of `history` that decided what is best.
      validation_rows: the rows of `train` that were split off by `validation=0.2`, int32; None
        where the validation set was given, or there was none.
      steps: how many were taken, int32.
      unfinished: sums of the steps since the last row of history, with which `fit(start=run)` goes
        on.
      origin: what `fit(start=run)` compares, where a stream had come, and the hyperparameters, as
        JSON has it; None outside of `fit`. `jax.tree.map` and `jax.jit` lose it.

    `print(run)` tells shapes, rows, steps and why it ended, not the arrays.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    best_params: PyTree
    best_model_state: PyTree
    best_epoch: Array | None
    history: dict[str, Array]
    status: Array
    position: Array
    terms: tuple[str, ...]
    steps: Array
    unfinished: PyTree
    judge: str | None = None
    validation_rows: Array | None = None
    origin: Mapping[str, Any] | None = None

    @property
    def stopped(self) -> Stopped:
        """Why the run ended; its `value` is a sentence."""
        return Stopped(int(self.status))

    @property
    def stopped_at(self) -> tuple[int, int, str | None] | None:
        """Where numbers became non-finite, counted from 0: epoch, step and term, or None.

        The step counts from the beginning of the run. The term is None where each was finite, and
        the parameters after the step, or the sum of the terms, were not.
        """
        epoch, step, term = map(int, self.position)
        if step < 0:
            return None
        return epoch, step, None if term < 0 else self.terms[term]

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes `history`, a line of names and one for each row.

        Args:
          path: of the file, which is replaced; `~` is your home.

        Raises:
          ValueError: for several runs at once.
        """
        _report.to_csv(self.history, path)

    def to_jsonl(self, path: str | os.PathLike) -> None:
        """Writes `history`, a JSON object for each row; NaN and infinity are null.

        Args:
          path: of the file, which is replaced; `~` is your home.

        Raises:
          ValueError: for several runs at once.
        """
        _report.to_jsonl(self.history, path)

    def to_pandas(self) -> Any:
        """The history as a `pandas.DataFrame`.

        Raises:
          ImportError: where pandas is not installed.
          ValueError: for several runs at once.
        """
        return _report.to_pandas(self.history)

    def __repr__(self) -> str:
        return _report.told(self)


def run(
    objective: Callable,
    params: PyTree,
    train: Batch,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    key: Key[Array, ""],
    validation: Batch = None,
    stop: StopRule | None = None,
    best: Judge | None = None,
    shards: int | None = None,
    microbatches: int = 1,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    drop_last: bool = False,
    check: bool = True,
    watch: str | None = None,
    evaluate_at: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Run:
    """Trains for whole epochs over shuffled minibatches: one pure function for `jit` and `vmap`.

    Without `stop` it has a reverse mode, and runs to its end whatever the numbers are.

    Args:
      objective: maps `(params, batch)` to a tree of `Mean`. It also receives those of the keywords
        `key` (None in evaluation), `model_state` and `hyperparameters` that its signature names.
      params: any tree of floating arrays.
      train: tree of arrays that share a leading axis of rows.
      optimizer: any `optax.GradientTransformation`, which is offered `value`, `grad` and
        `value_fn`; or a function from the hyperparameters to one.
      epochs: passes over `train`, at least 1.
      batch_size: rows a step; the ragged last batch is a smaller step of its own. None takes all.
      key: typed PRNG key; it decides the order of rows and the keys of the objective.
      validation: like `train`; measured after each epoch. A share such as 0.2 is split off, see
        `training.split`.
      stop: a rule such as `Patience(10) | Target(0.1)`, which watches the validation value. With
        one, numbers that are not finite stop the run, too. Rows after a stop are NaN,
        and their step is 0.
      best: `"validation"`, the default where there is validation; `"train"` measures the training
        set after each epoch and judges by that; so does `stop`, where there is no validation. Or
        any column and its direction, `("validation/accuracy", max)`; `"trained/..."` measures the
        training set.
      shards: equal parts of consecutive rows, of which each draws its own share of each batch, so
        that devices keep the rows they hold. A number of the run, not of the machine: 8 draw the
        same rows on any devices. None is how `train` lies on devices, where that is visible (also
        inside of `jit`, on Explicit axes); else 1.
      microbatches: pieces a batch is cut into, see `value_and_grad`. Each step counts a constant
        term once, however many there are.
      has_aux: whether the objective returns `(means, aux)`, where the dict `aux` may hold
        `"metrics"`, a tree of `Mean`, and `"model_state"`.
      model_state: the first one, such as batch statistics.
      hyperparameters: numbers for the objective and the optimizer, perhaps traced.
      drop_last: whether the ragged last batch is left out, with the rows that `shards` leave over.
      check: whether an optimizer with a regularizer is refused beside an objective that does not
        hold its value, `constant(R(params), gradient=False)`.
      watch: regular expression on the paths of leaves of `params`, as in `"kernel$"`; each that it
        takes has columns `"train/gradient_norm/..."` and `"train/update_ratio/..."` of its own.
      evaluate_at: gives the parameters that are judged, `fn(opt_state, params)`, such as
        `transforms.averaged` or `optax.contrib.schedule_free_eval_params`: validation, `best` and
        `stop` are then measured there, and `best_params` are those. None judges `params`.

    Returns:
      A `Run` of arrays.

    Raises:
      ValueError: if data, names or numbers do not fit together; the message says which.
      TypeError: if `key` is not typed, a count is no whole number, or the objective returns another
        thing than `Mean`s.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> trial = lambda rate: lo.training.run(
      ...     objective, 0.0, jnp.arange(9.0), optax.sgd(rate), batch_size=4, epochs=30,
      ...     key=jax.random.key(0)).history["train/value"][-1]
      >>> print(*(f"{value:.1f}" for value in jax.vmap(trial)(jnp.array([0.001, 0.05]))))
      17.9 6.8
    """
    train, validation, held = held_out(train, validation, key, shards)
    train, validation, hyperparameters = on_device(
        train=train, validation=validation, hyperparameters=hyperparameters
    )
    epochs = _checks.count("epochs", epochs, 1)
    rows = source(train, batch_size, drop_last, shards)
    data = Data(rows.ready(train), validation, key, hyperparameters, stop)
    options = best, microbatches, has_aux, watch, evaluate_at
    plan = plan_of(objective, optimizer, rows, data, *options)
    plan = plan._replace(window=epochs, guard=None if stop is None else "keep")
    with _jax.on_mesh(train, params):
        begun = (start_judged if check else start)(plan, data, params, model_state)
        _, begun = _jax.alike((data, begun))  # within a shard_map each device has a run of its own
        progress = advance_whole(plan, data, begun, epochs)
        result = finish(
            plan, progress, progress.status, progress.pool, progress.state.count // rows.steps
        )
        return dataclasses.replace(result, validation_rows=held)


def plan_of(
    objective, optimizer, rows, data, best, microbatches, has_aux, watch=None, evaluate_at=None
) -> Plan:
    """What the programs of a run are made for; refuses what does not fit together."""
    _checks.given_key(data.key)
    _checks.functions(objective=objective, evaluate_at=evaluate_at)
    if data.stop is not None:
        checked(data.stop).init()
    pieces = _checks.count("microbatches", microbatches, 1)
    _checks.at_most(rows.batch_size, microbatches=pieces)
    goal = goal_of(best, validated := data.validation is not None)
    plan = Plan(objective, optimizer, rows, pieces, has_aux, goal, "stop", 1, watch, evaluate_at)
    for name, wanted in (
        ("best", goal is not None and goal.column.startswith("validation/")),
        ("stop", data.stop is not None and not plan.measures_training),
    ):
        if wanted and not validated:
            raise ValueError(
                f"{name} was given, and there is nothing to judge by: give validation, or "
                "best='train', which measures the training set after each epoch."
            )
    return plan


def start_judged(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> Progress:
    """`start`, which refuses a regularizer whose value the objective does not hold."""
    progress = start(plan, data, params, model_state)

    def look(data, state):
        batch = plan.source.batch(data.train, data.key, 0)
        judge(plan.recipe, state, joined(batch), data.key, data.hyperparameters)

    jax.eval_shape(look, data, progress.state)
    return progress


def finish(plan: Plan, progress: Progress, status: Array, pool: Pool, epoch: Number) -> Run:
    """What the user keeps; `pool` holds what was measured when the run ended, in this epoch."""
    params, model_state, opt_state, step = progress.state
    names = tuple(name or "value" for name in terms(pool.sums[0]))
    means = jnp.stack([jnp.isfinite(term.value) for term in terms(pool.sums[0]).values()])
    term = jnp.where(jnp.all(means), -1, jnp.argmin(means))
    broken = jnp.isin(status, jnp.array([reason.code for reason in BROKEN]))
    position = jnp.where(broken, jnp.stack([jnp.int32(epoch), step, term]), -1)
    best = progress.best
    return Run(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        best_params=best and best.params,
        best_model_state=best and best.model_state,
        best_epoch=best and best.row,
        history=progress.window,
        status=status,
        position=position.astype(jnp.int32),
        terms=names,
        judge=plan.best and plan.best.column,
        steps=step,
        unfinished=progress.pool,
    )
