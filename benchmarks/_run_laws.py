"""The laws of whole runs on devices: `fit` on a mesh against `fit` on one device.

Runs in memory have dropout, a running mean and a validation set; those of streams have none of the
first two, because each mesh cuts batches that come from outside into pieces of its own.
"""

import contextlib
import itertools
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import lossopt as lo
from benchmarks import _device_laws, _placed
from benchmarks._device_laws import PARTITIONS, Group
from benchmarks._measure import Claim

EPOCHS, BATCH = 2, 16
SOURCES, MICROBATCHES, ROWS = ("memory", "stream"), (1, 3), (64, 61, 5)
WITHIN = {"float64": 1e-12, "float32": 1e-5}
OPTIMIZER = optax.adamw(1e-2, weight_decay=1e-2)
ONE = "one device"


def noisy(params, batch, key, model_state):
    """The objective of the laws of a step, with dropout and a running mean."""
    x = batch["x"]
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.9, x.shape)
    means = _device_laws.objective(params, batch | {"x": x})
    return means, {"model_state": 0.9 * model_state + 0.1 * jnp.mean(x, axis=0)}


def trained(source, rows, pieces, dtype, **options):
    """One run, and what it says of itself."""
    params, (batch, _) = _device_laws.inputs(rows, dtype)
    held = _device_laws.inputs(13, dtype)[1][0]
    options = {"key": jax.random.key(0), "epochs": EPOCHS, "validation": held} | options
    options |= {"microbatches": pieces, "progress": False, "check": False}
    if source == "memory":
        first = np.zeros(len(params["first"]), dtype)
        options |= {"batch_size": BATCH, "has_aux": True, "model_state": first}
        return lo.fit(noisy, params, batch, OPTIMIZER, **options)
    cuts = itertools.pairwise([*range(0, rows, BATCH), rows])
    batches = deque(jax.tree.map(lambda x, at=slice(*c): x[at], batch) for c in cuts)
    return lo.fit(_device_laws.objective, params, batches, OPTIMIZER, **options)


def numbers(run):
    """Of a run all that is not time; whole numbers apart."""
    history = {name: x for name, x in run.history.items() if name not in ("seconds", "step")}
    found = run.params, run.best_params, run.opt_state, run.model_state, history
    return jax.device_get(found)


def apart(run, other):
    """The largest difference of a leaf, relative to the largest number of it."""
    leaves = zip(*map(jax.tree.leaves, map(numbers, (run, other))), strict=True)
    return max(_device_laws.apart(*pair) if np.any(pair[1]) else np.max(pair[0]) for pair in leaves)


def run(console, quick, every):
    """The claims of whole runs; prints their table."""
    cases = [
        *itertools.product(["float64"], SOURCES, MICROBATCHES, ROWS),
        *itertools.product(["float32"], SOURCES, MICROBATCHES, ROWS[1:2]),
    ][::every]
    meshes, partitions = _placed.meshes(), PARTITIONS
    meshes = [meshes[0], meshes[3]]
    if quick:
        cases, meshes, partitions = [("float32", "memory", 1, 5)], meshes[:1], ["fsdp"]
    groups = {}
    with Progress(transient=True, console=console) as progress:
        for case in progress.track(cases, description="whole runs"):
            with _wide(case[0]):
                _compared(groups, case, meshes, partitions)
    restarts = Group()
    if not quick:
        for dtype in WITHIN:
            with _wide(dtype):
                _restarted(restarts, dtype)
    dtypes = list(dict.fromkeys(case[0] for case in cases))
    console.print(_device_laws.table(groups, dtypes, SOURCES, "Whole runs, worst differences"))
    yield from _claims(console, groups, dtypes)
    if not quick:
        yield from _claims_of_restarts(console, restarts)


def _compared(groups, case, meshes, partitions):
    """All ways to place a run against the same number of shards on one device."""
    dtype, source, pieces, rows = case
    make = partial(trained, source, rows, pieces, dtype)
    alone = make(shards=_placed.DEVICES if source == "memory" else None)
    for where, partition in itertools.product(meshes, partitions):
        group = groups.setdefault((partition, where.name), Group())
        group.cases += 1
        try:
            run = make(mesh=where.mesh, partition=partition)
        except Exception as error:
            group.broken.append(f"{case}: {type(error).__name__}: {error}"[:400])
            continue
        _device_laws.note(group, source, dtype, apart(run, alone))


def _restarted(group, dtype):
    """Half a run on 8 devices, the other half on others."""
    make = partial(trained, "memory", 61, 3, dtype)
    eight = {"mesh": lo.parallel.mesh(data=1, fsdp=8), "partition": "fsdp"}
    whole, half = make(**eight), make(epochs=1, **eight)
    ways = {8: eight, 0: {}}
    for count in (4, 1):
        some = jax.make_mesh((count,), ("fsdp",), devices=jax.devices()[:count])
        ways[count] = {"mesh": some, "partition": "fsdp"}
    for count, way in ways.items():
        group.cases += 1
        try:
            run = make(start=half, **way)
        except Exception as error:
            group.broken.append(f"{dtype}, on {count or ONE}: {error}"[:400])
            continue
        _device_laws.note(group, count, dtype, apart(run, whole))


def _claims(console, groups, dtypes):
    for dtype, source in itertools.product(dtypes, SOURCES):
        found = [group.worst[source, dtype] for group in groups.values()]
        if any((source, dtype) in group.worst for group in groups.values()):
            yield Claim(f"{dtype}, whole runs of {source}: apart", max(found), WITHIN[dtype])
    yield from _device_laws.unbroken("whole runs", console, groups.values())


def _claims_of_restarts(console, group):
    for (count, dtype), worst in group.worst.items():
        where = f"{count} devices" if count else ONE
        within = 0 if count == _placed.DEVICES else WITHIN[dtype]
        yield Claim(f"{dtype}, begun on 8 devices, ended on {where}: apart", worst, within)
    yield from _device_laws.unbroken("restarts", console, [group])


def _wide(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
