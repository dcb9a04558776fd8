"""A run from its beginning, or from where one that is given or saved had come."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lossopt._typing import PyTree
from lossopt.training._host import Host, Reached, hosted, run_of
from lossopt.training._plan import Progress
from lossopt.training._resume import padded, rows_of, same_form, same_run, taken_up
from lossopt.training._run import Run
from lossopt.training._step import maker
from lossopt.training._stop import Stopped


def gone_on(host: Host, begun: Progress, start: Run | None) -> Run:
    """The run, from its beginning, or from where one that is given or saved had come."""
    reached = Reached(begun, [], Stopped.FINISHED, begun.pool)

    def like(rows):
        run = run_of(host, reached)
        return dataclasses.replace(run, history=padded(rows_of(run), rows))

    def found():
        saved = host.saves.newest(like, host.identity)
        if saved is None and start is not None:
            same_run(start.origin and start.origin["identity"], host.identity, "start")
            return start, "start"
        return saved, str(host.saves)

    saved, where = host.peers.alike(found)
    if saved is None:
        return hosted(host, reached)
    progress = host.plan.laid(taken_up(host.plan, host.data, begun, saved, where))
    stopped = Stopped(int(progress.status))
    origin = saved.origin or {"place": None, "epochs": None}
    if stopped is not Stopped.FINISHED or host.feed.over(int(saved.steps), origin["epochs"]):
        ended = dataclasses.replace(saved, status=progress.status)
        told = {**origin, "identity": host.identity}
        host.saves.now(lambda: dataclasses.replace(ended, origin=told))
        return ended
    host.feed.go_to(int(saved.steps), origin["place"])
    columns = rows_of(saved)
    columns.setdefault("seconds", np.zeros(len(columns["step"])))
    history = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return hosted(host, Reached(progress, history, stopped, progress.pool))


def as_started(start: Run, trees: dict[str, PyTree]) -> dict[str, PyTree]:
    """The trees, with those of a run in their places; raises where they have another structure."""
    if not isinstance(start, Run):
        raise TypeError(
            f"Expected start as a Run, from fit or training.run, got {type(start).__name__}. "
            "Parameters to begin with are given as params."
        )
    had = {"params": start.params, "model_state": start.model_state}
    shaped = lambda tree: jax.eval_shape(make) if (make := maker(tree)) else tree
    same_form(had, {name: shaped(trees[name]) for name in had}, "start")
    return trees | had


def shards_of(start: Run | None) -> int | None:
    """Those of a run that is given, as far as it knows them."""
    origin = start.origin if isinstance(start, Run) else None
    return origin["identity"].get("source.shards") if origin else None


def given_back(mesh: Mesh | None, run: Run) -> Run:
    """A run on the mesh that the user gave, whose axes may be Explicit."""
    if mesh is None or not mesh.explicit_axes:
        return run

    def back(x):
        lies = getattr(x, "sharding", None)
        there = isinstance(lies, NamedSharding)
        return jax.device_put(x, NamedSharding(mesh, lies.spec)) if there else x

    return dataclasses.replace(jax.tree.map(back, run), origin=run.origin)
