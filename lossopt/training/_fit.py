"""A compiled run and its host: what is checked before, where data lie, and where it goes on."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from lossopt import _checks, _jax, _mesh
from lossopt._guard import guard, outlived
from lossopt._shardings import Rules
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.checkpoint import Checkpoints
from lossopt.training._best import Judge
from lossopt.training._evaluation import measuring, pooled
from lossopt.training._facts import same, seen
from lossopt.training._feed import feed_of, horizon
from lossopt.training._given import given
from lossopt.training._going_on import as_started, given_back, gone_on, shards_of
from lossopt.training._host import Host, Row
from lossopt.training._inputs import trainable
from lossopt.training._laid import laid_all, laid_params
from lossopt.training._layout import Partition, joint, layout_of, outside
from lossopt.training._loop import start as begin
from lossopt.training._pile import Stack
from lossopt.training._plan import Data, Plan, Pooled
from lossopt.training._preflight import preflight
from lossopt.training._reader import reading
from lossopt.training._resume import identity
from lossopt.training._rules import average_reader
from lossopt.training._run import Run, plan_of, start_judged
from lossopt.training._saves import Saves
from lossopt.training._step import Optimizer, State
from lossopt.training._stop import StopRule
from lossopt.training._stream import is_stream

WINDOW = 256


def fit(
    objective: Callable,
    params: PyTree,
    train: Batch | Iterable[Batch],
    optimizer: Optimizer,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    batch_size: int | None = None,
    key: Key[Array, ""],
    validation: Batch | Iterable[Batch] = None,
    stop: StopRule | None = None,
    best: Judge | None = None,
    mesh: Mesh | None = None,
    partition: Partition = "data",
    axes: Mapping[str, str | Sequence[str]] | None = None,
    rules: Rules = (),
    gather: bool | str = True,
    shards: int | None = None,
    microbatches: int = 1,
    has_aux: bool = False,
    model_state: PyTree = None,
    hyperparameters: PyTree = None,
    drop_last: bool = False,
    check: bool | Sequence[str] = True,
    watch: str | None = None,
    evaluate_at: Callable[[PyTree, PyTree], PyTree] | None = None,
    on_epoch: Callable[[Row, State], Any] | None = None,
    start: Run | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_every: float = 60.0,
    seconds: float | None = None,
    progress: bool | Literal["auto"] = "auto",
) -> Run:
    """Trains as `training.run` does, compiled, with early stopping and a progress bar.

    Before it compiles, it evaluates the conditions that losses state on values (labels in range,
    weights at least 0) over `train` and `validation`. Rows of weight 0 count, too: pad with copies
    of real rows, or name the label of padding as `ignore_index`. Rows that hold NaN are measured,
    and refused where the value or its gradient is NaN, too; so are terms of `train` without weight
    and, with microbatches, terms that have another value when some rows are cut into pieces. A loss
    or parameters that are not finite end the run, with the last finite parameters. Compiled
    programs outlive the call: a second `fit` with the same objective and optimizer and the same
    shapes compiles nothing, for any numbers, epochs and stop.

    Args:
      objective: as in `training.run`.
      params: any tree of floating arrays; not changed. Or a function that makes one, which with a
        mesh is then never in one place.
      train: tree of arrays that share a leading axis of rows; or an iterable of such batches, for
        data larger than the device: a loader, a dataset, a generator. It brings its own batches in
        its own order, and one pass over it is an epoch. (A list is a tree; a deque of batches is
        an iterable.)
      optimizer: any `optax.GradientTransformation`, or a function from the hyperparameters to one.
      epochs: passes over `train`, at least 1, from the very beginning of the run. Give either these
        or `steps`.
      steps: batches, likewise; the last epoch may be cut.
      evaluate_every: steps between two rows of history, beside the one after the last step; None is
        an epoch.
      batch_size: rows a step; the ragged last batch is a smaller step of its own. None takes all.
      key: typed PRNG key.
      validation: like `train`; measured with each row of history. A share such as 0.2 is split
        off, by the key and without looking: see `training.split`. An iterable is read anew at each
        row.
      stop: a rule such as `Patience(10) | Target(0.1)`, which watches the validation value.
      best: `"validation"`, the default where there is validation; `"train"` measures the training
        set with each row of history and judges by that. Or any column and its direction, as in
        `("validation/accuracy", max)`.
      mesh: the devices, as in `train_step`. Each draws its rows from its own part of `train`, and
        reads its own of `validation`. Several processes all call `fit` alike, with all rows where
        `train` is of numpy; of an iterable each reads its own part of every batch.
      partition: what devices share beside the rows: `"data"`, `"zero1"` or `"fsdp"`, see
        `train_step`.
      axes: which axes of the mesh are `"data"` and `"fsdp"`, where they have other names.
      rules: for parameters that are to lie in a way of their own, see `parallel.shardings`.
      gather: which parameters the objective does not gather by itself, see `train_step`.
      shards: equal parts of consecutive rows, of which each draws its own share of each batch, so
        that devices keep the rows they hold; those that they do not divide are in the last batch.
        A number of the run, not of the machine: 8 draw the same rows on any devices, and the
        same noise and statistics on any that divide 8. None is that of the run in `checkpoint` or
        `start`, else the devices along the rows of `mesh`, or how `train` lies.
      microbatches: pieces a batch is cut into.
      has_aux: whether the objective returns `(means, aux)`.
      model_state: the first one, such as batch statistics, or a function that makes it.
      hyperparameters: numbers for the objective and the optimizer.
      drop_last: whether the ragged last batch is left out, with the rows that `shards` leave over.
      check: whether data and objective are checked before: conditions on values, rows that are not
        finite, whole against pieces, and a penalty that the optimizer alone holds; or the names of
        the terms that are meant for each microbatch on its own.
      watch: as in `training.run`, leaves that have columns of their own.
      evaluate_at: as in `training.run`, gives the parameters that are judged.
      on_epoch: `on_epoch(row, state)`, called between programs after each row of history, a dict of
        numbers of Python, with the `training.State` then, whose arrays are on the device. To return
        `training.STOP` ends the run. After an interruption it may see a row again.
      start: a run to go on from: `params` and `model_state` then give the structure alone. One that
        had stopped by its rule, at numbers that are not finite or by `on_epoch`, comes back.
      checkpoint: a directory, or `checkpoint.Checkpoints`, where the run is saved as it goes. If it
        holds the run already, the call goes on there, to the bits of a run that nobody interrupted;
        it is refused if data, key, batches, terms or structure are others.
      checkpoint_every: seconds between two saves, at least; there is one at the end, too, and when
        SIGINT (Ctrl-C) or SIGTERM asks to end. A save that fails is a warning.
      seconds: after which the call ends, above 0, whatever is left to do. It ends before, if the
        next steps and their save would not fit.
      progress: whether to show how it goes, a bar on a terminal, elsewhere lines now and then;
        `"auto"` shows it on a terminal.

    Returns:
      A `Run` whose `history` holds numpy arrays; `run.stopped.value` says why it ended. So it does
      after Ctrl-C; a second Ctrl-C raises `KeyboardInterrupt` at once. After SIGTERM the process
      gets SIGTERM again, as it would have without `fit`.

    Raises:
      ValueError: if data, names or numbers do not fit together, a check of values fails, or `start`
        or `checkpoint` holds another run.
      TypeError: if a leaf of the parameters is not floating, or another leaf holds no numbers; if
        `key` is not typed, a count is no whole number, or the objective returns another thing than
        `Mean`s or names what is not given; and inside of `jit`, `vmap` and `grad`: take
        `training.run` there.
      RuntimeError: if there are steps in `checkpoint` and none verifies.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> data, key = jnp.array([1.0, 2.0, 6.0]), jax.random.key(0)
      >>> run = lo.fit(objective, 0.0, data, optax.sgd(0.1), epochs=50, key=key)
      >>> first, *_, last = run.history["train/fit"]
      >>> print(f"{run.params:.3f} {first:.3f} {last:.3f}")
      3.000 13.667 4.667
    """
    limit = _limit(seconds)
    _checks.functions(on_epoch=on_epoch)
    trees = {"params": params, "key": key, "model_state": model_state}
    trees |= {"hyperparameters": hyperparameters}
    _refuse_tracers(trees | {"train": train, "validation": validation, "stop": stop})
    until = horizon(epochs, steps, evaluate_every)
    layout = layout_of(mesh, partition, axes, rules, gather)
    together = joint(layout)
    cut = {"batch_size": batch_size, "shards": shards, "drop_last": drop_last}
    if together:
        told = cut | {"microbatches": microbatches, "has_aux": has_aux, "watch": watch}
        told |= {"partition": partition, "rules": rules, "gather": gather, "check": check}
        own = {"train": train, "validation": validation, "best": best, "start": start}
        own |= {"checkpoint": checkpoint, "seconds": seconds, "evaluate_at": evaluate_at}
        same(trees | {"stop": stop}, own, **told, until=until, mesh=_mesh.in_words(mesh))
        on_epoch = seen(on_epoch)
    saves = Saves(checkpoint, checkpoint_every, together=together)
    read = given(train, validation, key, until, layout, saves.shards() or shards_of(start), **cut)
    if start is not None:
        trees = as_started(start, trees)
    params = laid_params(layout, trees.pop("params"))
    key, model_state, hyperparameters = laid_all(layout, **trees)
    trainable(params)
    data = Data(read.train, read.validation, key, hyperparameters, stop)
    options = best, microbatches, has_aux, watch, evaluate_at
    plan = plan_of(objective, optimizer, read.source, data, *options)
    plan = plan._replace(window=WINDOW, layout=layout)
    saves.check(read.reader and read.reader.mark and read.reader.mark[2])
    gone = outlived() if together else nullcontext()
    with gone, outside(layout), saves, read.lent(), _jax.on_mesh(read.train, params):
        preflight(plan, data, params, model_state, check)
        facts = read.joined(identity(plan, key, **read.facts()))
        data, validate = _called_with(plan, data, read, params, model_state)
        first = start_judged if check else begin
        begun = plan.laid(plan.call(first, data, params, model_state))
        _judged_elsewhere(plan, begun)
        feed = feed_of(plan, data, read.reader, until)
        host = Host(plan, data, feed, saves, facts, read.held, validate, on_epoch, progress, limit)
        with guard() if together else nullcontext():
            return given_back(mesh, gone_on(host, begun, start))


def _called_with(plan, data, read, params, model_state):
    """Data as a program is called with, and what measures a validation stream."""
    if read.reader is not None:
        stacked = jax.tree.map(lambda x: x[None], read.train)
        data = data._replace(train=Stack(stacked, *map(np.int32, (0, 0, 0))))
        if plan.measures_training:
            raise ValueError(
                "best measures the training set, and train is an iterable, which is not read twice "
                "in an epoch: give validation."
            )
    if read.validating is None:
        return data, None
    measure = measuring(plan.objective, plan.has_aux, plan.layout)

    def validate(state):
        point = plan.call(Plan.judged, state) if plan.evaluate_at else state.params
        given = state.model_state, data.hyperparameters
        reader = reading(plan.layout, read.validating, "validation")
        return Pooled(*pooled(measure, reader, plan.layout, point, *given))

    like = measure(params, read.validation, model_state, data.hyperparameters)
    return data._replace(validation=Pooled(*like)), validate


def _judged_elsewhere(plan, begun):
    """Says that there is an average, and that it is not what is judged."""
    reader = average_reader(begun.state.opt_state)
    if plan.best and plan.evaluate_at is None and reader:
        warnings.warn(
            "The optimizer averages the parameters, and those of the last step are judged: pass "
            f"evaluate_at={reader} to judge the average, or a function of yours that hands it its "
            "part of the state.",
            stacklevel=3,
        )


def _limit(seconds):
    """When a run has to end, on the clock."""
    if seconds is None:
        return math.inf
    _checks.above(0, seconds=seconds)
    return time.perf_counter() + seconds


def _refuse_tracers(given):
    holds = lambda tree: any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
    names = [name for name, tree in given.items() if not is_stream(tree) and holds(tree)]
    if names or _jax.traced():
        raise TypeError(
            f"fit is the host's loop, and {' and '.join(names) or 'the call'} is traced by jit, "
            "vmap or grad: take lossopt.training.run there."
        )
