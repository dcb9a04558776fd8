"""What a checkpoint an epoch costs, in runs of one epoch that take turns."""

import tempfile

import jax
import numpy as np
import optax
from rich import box
from rich.table import Table

import lossopt as lo
from benchmarks._measure import Claim, spread, take_turns
from benchmarks._tasks import LOSSES

KEY = jax.random.key(0)


def saved(console, task, rounds, judged):
    """Times of an epoch that ends with a save, which has landed then, against one without."""
    rule, loss = optax.adam(task.rate), LOSSES[task.loss][0]
    objective = lambda params, batch: {"fit": lo.mean(loss(task.apply(params, batch[0]), batch[1]))}

    def run(**given):
        options = {"epochs": 1, "batch_size": task.batch_size, "key": KEY, "progress": False}
        return lo.fit(objective, task.params, (task.x, task.y), rule, **options, **given)

    def with_checkpoint():
        with tempfile.TemporaryDirectory() as folder:
            run(checkpoint=folder, checkpoint_every=float("inf"))  # at the end, that is

    rivals = {"none": lambda turn: run, "an epoch": lambda turn: with_checkpoint}
    none, each = take_turns(rivals, rounds=rounds).values()
    size = sum(np.size(x) for x in jax.tree.leaves(task.params))
    steps = -(-len(task.x) // task.batch_size)
    title = f"A checkpoint an epoch: {size} parameters, {steps} steps of {task.batch_size} rows"
    out = Table(box=box.MARKDOWN, title=title)
    for column in ("none, s", "a save, s", "time / none", "wall clock / none"):
        out.add_column(column, justify="right")
    ratio, wall = each.seconds / none.seconds, each.wall / none.wall
    seconds = np.median(none.seconds), np.median(each.seconds - none.seconds)
    out.add_row(*(f"{x:.2f}" for x in seconds), spread(ratio), spread(wall))
    console.print(out)
    for what, got in (("time", ratio), ("wall clock", wall)):
        what = f"a checkpoint an epoch: {what} / none"
        yield Claim(what, float(np.median(got)), 1.05, judged=judged)
