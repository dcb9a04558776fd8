"""What a checkpoint an epoch costs, in runs that take turns."""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from rich import box
from rich.table import Table

import lossopt as lo
from benchmarks._measure import Claim, spread, take_turns
from benchmarks._tasks import LOSSES
from lossopt.checkpoint import Checkpoints

KEY = jax.random.key(0)


class Counted(Checkpoints):
    """Checkpoints that count what they save."""

    saves = 0

    def save(self, *args, **given):
        """Saves, and counts."""
        type(self).saves += 1
        super().save(*args, **given)


def saved(console, task, rounds, judged):
    """Processor and wall time of a run that is saved once an epoch, against one that is not."""
    rule, loss = optax.adam(task.rate), LOSSES[task.loss][0]
    objective = lambda params, batch: {"fit": lo.mean(loss(task.apply(params, batch[0]), batch[1]))}

    def run(**given):
        options = {"epochs": task.epochs, "batch_size": task.batch_size, "key": KEY}
        data = task.x, task.y
        return lo.fit(objective, task.params, data, rule, **options, progress=False, **given)

    run()
    epoch = run().history["seconds"][-1] / task.epochs

    def with_checkpoints():
        with tempfile.TemporaryDirectory() as folder, Counted(Path(folder)) as checkpoints:
            run(checkpoint=checkpoints, checkpoint_every=0.99 * epoch)

    with_checkpoints()
    Counted.saves = 0
    rivals = {"none": lambda turn: run, "an epoch": lambda turn: with_checkpoints}
    none, each = take_turns(rivals, rounds=rounds).values()
    size = sum(np.size(x) for x in jax.tree.leaves(task.params))
    title = f"Checkpoints: {size} parameters, {task.epochs} epochs of {task.steps // task.epochs}"
    out = Table(box=box.MARKDOWN, title=f"{title} steps")
    for column in ("saves a run", "none, s", "time / none", "wall clock / none"):
        out.add_column(column, justify="right")
    ratio, wall = each.seconds / none.seconds, each.wall / none.wall
    count, seconds = Counted.saves / (rounds + 1), np.median(none.seconds)
    out.add_row(f"{count:.1f}", f"{seconds:.2f}", spread(ratio), spread(wall))
    console.print(out)
    yield Claim("a checkpoint an epoch: time / none", float(np.median(ratio)), 1.05, judged=judged)
    what = "a checkpoint an epoch: wall clock / none"
    yield Claim(what, float(np.median(wall)), 1.05, judged=judged)
