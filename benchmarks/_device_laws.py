"""The laws of a step on devices, over the whole matrix of ways to place it.

Truth is the plain formula in float64 on one device. The model has a hidden layer, a head and a
router that an auxiliary loss alone trains; rows weigh unequally, and some devices have none that
count. Programs are compiled quickly, without most of XLA's optimizations, but for some whose bits
are compared once more with them. XLA's newer emitters for CPUs are off in all.
"""

import contextlib
import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.progress import Progress
from rich.table import Table

import lossopt as lo
from benchmarks import _placed
from benchmarks._measure import Claim
from lossopt.parallel._hlo import products

STEPS = 20
PARTITIONS, LOWERINGS = ("data", "zero1", "fsdp"), ("auto", "shard_map")
MICROBATCHES, ROWS = (1, 2, 3, 5), (64, 61, 5)
WITHIN = {"float64": 1e-12, "float32": 1e-6}
SIZES = {"first": (32, 64), "head": (64, 24), "router": (32, 40)}
MEASURES = "value", "gradient", "router", "20 steps"
# The gradient is kept as it comes, so that one program shows it and takes the 20 steps.
OPTIMIZER = optax.chain(optax.trace(0.0), optax.adamw(1e-2, weight_decay=1e-2))


@dataclasses.dataclass
class Group:
    """What was found of a row of the table.

    Attributes:
      worst: the largest error by measure and dtype.
      leaves: compared bit by bit, and how many differ.
      cases: compiled, each with two masks.
      broken: what raised, in words.
    """

    worst: dict = dataclasses.field(default_factory=lambda: defaultdict(float))
    leaves: list = dataclasses.field(default_factory=lambda: [0, 0])
    cases: int = 0
    broken: list = dataclasses.field(default_factory=list)


def objective(params, batch, penalty=0.0):
    """Cross entropy of what counts, and beside it the router's own loss with other weights."""
    hidden = jnp.tanh(batch["x"] @ params["first"] + params["bias"])
    logits = hidden @ params["head"]
    terms = {
        "tokens": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]), batch["mask"]),
        "router": 0.01 * lo.mean(_routing(params, batch), batch["weight"]),
    }
    if penalty:
        squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
        terms["penalty"] = lo.constant(penalty * squares)
    return terms


def formula(penalty, params, batch):
    """The same without this library."""
    hidden = jnp.tanh(batch["x"] @ params["first"] + params["bias"])
    logits = hidden @ params["head"]
    losses = jax.nn.logsumexp(logits, 1) - logits[jnp.arange(len(logits)), batch["y"]]
    average = lambda x, weights: jnp.sum(x * weights) / jnp.sum(weights)
    squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    whole = average(losses, batch["mask"]) + penalty * squares
    return whole + 0.01 * average(_routing(params, batch), batch["weight"])


def inputs(rows, dtype):
    """Parameters, and batches of two masks: few devices count, and only one row does."""
    random = np.random.default_rng(rows)
    params = {k: random.normal(size=s) / s[0] ** 0.5 for k, s in SIZES.items()}
    params["bias"] = 0.1 * random.normal(size=SIZES["first"][1])
    batch = {
        "x": random.normal(size=(rows, SIZES["first"][0])),
        "y": random.integers(0, SIZES["head"][1], rows),
        "weight": random.uniform(0.1, 2.0, rows) * (random.random(rows) < 0.7),
    }
    batch["weight"][-1] = 0.5
    few = random.uniform(0.1, 1.0, rows) * (np.arange(rows) >= 3 * rows // 8)
    few[rows // 2] = 0.0
    masks = few, (np.arange(rows) == rows - 1) * 0.25
    cast = lambda tree: jax.tree.map(
        lambda x: x.astype(dtype if x.dtype.kind == "f" else "int32"), tree
    )
    return cast(params), [cast(batch | {"mask": mask}) for mask in masks]


@cache
def truth(rows, dtype, penalty):
    """Value and gradient of each mask, in float64."""
    params, batches = inputs(rows, dtype)
    wide = lambda tree: jax.tree.map(
        lambda x: x.astype("float64") if x.dtype.kind == "f" else x, tree
    )
    with jax.enable_x64(True):
        fn = jax.jit(jax.value_and_grad(partial(formula, penalty)))
        return [jax.device_get(fn(wide(params), wide(batch))) for batch in batches]


def run(console, quick, dtypes, every):
    """The claims of all laws, of one in `every` cases; prints their tables."""
    meshes = _placed.meshes()
    meshes = meshes[1:2] if quick else meshes
    cases: list[Any] = [*itertools.product(dtypes, MICROBATCHES, ROWS, meshes)][::every]
    if quick:
        cases = [*itertools.product(dtypes[-1:], (3,), (61,), meshes)]
    maps = [*itertools.product(dtypes, MICROBATCHES, ("pmap", "vmap"))]
    ways = [*itertools.product(PARTITIONS, LOWERINGS)]
    if quick:
        maps, ways = [], [ways[0], ways[2], ways[-1]]
    groups = {}
    with Progress(transient=True, console=console) as progress:
        bar = progress.add_task("", total=len(cases) * len(ways) + len(maps))
        for dtype, count, rows, where in cases:
            progress.update(bar, description=f"{dtype}, {count} x {rows}, {where.name}")
            for _ in _on_a_mesh(groups, ways, where, dtype, count, rows):
                progress.advance(bar)
        for dtype, count, transform in maps:
            progress.update(bar, description=f"{dtype}, {count} x {ROWS[0]}, {transform}")
            _in_a_map(groups, transform, dtype, count)
            progress.advance(bar)
    if every > 1:
        console.print(f"one in {every} cases of the whole matrix was run", highlight=False)
    dtypes = dtypes[-1:] if quick else dtypes
    title = "Worst errors, relative; leaves that differ from data, auto"
    console.print(table(groups, dtypes, MEASURES, title))
    yield from _claims(console, groups, dtypes)
    if not quick:
        yield from _bits(console, meshes[:2], ways, every)
        yield from _penalties(console, meshes, ways, dtypes, every)
    yield from structure(console, meshes, ways[-1:] if quick else ways, (3,) if quick else (1, 3))


def _bits(console, meshes, ways, every):
    """The bits of steps that XLA optimizes."""
    with _optimized(), Progress(transient=True, console=console) as progress:
        groups, auto = {}, [way for way in ways if way[1] == "auto"]
        cases = [*itertools.product((1, 3), (64, 61), meshes)]
        for count, rows, where in progress.track(cases[::every], description="bits"):
            for _ in _on_a_mesh(groups, auto, where, "float32", count, rows):
                pass
    leaves, different = (sum(group.leaves[i] for group in groups.values()) for i in (0, 1))
    what = f"as XLA optimizes them: leaves of {leaves} with other bits than data"
    yield Claim(what, different, 0)
    yield from unbroken("bits", console, groups.values())


@contextlib.contextmanager
def _optimized():
    """With XLA's optimizations."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


def _on_a_mesh(groups, ways, where, dtype, count, rows):
    """All ways to place a step, the first the one whose bits the others have."""
    base = None
    for partition, lowering in ways:
        group = groups.setdefault((f"{partition}, {lowering}", where.name), Group())
        make = partial(_placed.on_mesh, objective, OPTIMIZER, where, partition, lowering, count)
        end = _case(group, make, dtype, rows)
        yield
        if base is None or end is None:
            base = end if base is None else base
            continue
        if lowering == "auto":
            pairs = zip(jax.tree.leaves(base), jax.tree.leaves(end), strict=True)
            same = [np.array_equal(a, b) for a, b in pairs]
            group.leaves[0] += len(same)
            group.leaves[1] += len(same) - sum(same)
        note(group, "20 steps", dtype, apart(end, base))


def _in_a_map(groups, transform, dtype, count):
    """Against the same on one device, at once."""
    group = groups.setdefault((transform, "axis_name, 8"), Group())
    make = partial(_placed.mapped, objective, OPTIMIZER, transform, count)
    end = _case(group, make, dtype, ROWS[0])
    if end is not None:
        note(group, "20 steps", dtype, apart(end, _alone(dtype)))


@cache
def _alone(dtype):
    """The steps on one device, at once."""
    return _case(Group(), partial(_placed.alone, objective, OPTIMIZER), dtype, ROWS[0])


def _case(group, make, dtype, rows, penalty=0.0, steps=STEPS):
    """One program, two masks: errors of value and gradient; the parameters after the steps."""
    group.cases += 1
    params, batches = inputs(rows, dtype)
    wide = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    try:
        with wide:
            stepping = make()
            state: Any = None
            placed = None
            for batch, (value, gradient) in reversed([*zip(batches, truth(rows, dtype, penalty))]):
                placed = stepping.place(batch)
                state, measured = stepping.step(stepping.init(params), placed)
                got = jax.device_get(stepping.one((measured.value, state.opt_state[0].trace)))
                note(group, "value", dtype, abs(got[0] - value) / abs(value))
                note(group, "gradient", dtype, apart(got[1], gradient))
                router = got[1]["router"], gradient["router"]
                note(group, "router", dtype, apart(*router))
            for _ in range(steps - 1):
                state, _ = stepping.step(state, placed)
            return jax.device_get(stepping.one(state.params))
    except Exception as error:
        group.broken.append(f"{dtype}, {rows} rows: {type(error).__name__}: {error}"[:400])
        return None


def _penalties(console, meshes, ways, dtypes, every):
    """A penalty beside the losses, whatever the pieces."""
    group, fn = Group(), partial(objective, penalty=1e-2)
    cases = [*itertools.product(meshes, ways, (1, 3), dtypes)][::every]
    with Progress(transient=True, console=console) as progress:
        for where, way, count, dtype in progress.track(cases, description="with a penalty"):
            make = partial(_placed.on_mesh, fn, OPTIMIZER, where, *way, count)
            _case(group, make, dtype, 61, 1e-2, 1)
    for dtype, measure in itertools.product(dtypes, MEASURES[:3]):
        what = f"{dtype}, with a penalty: error of the {measure}"
        yield Claim(what, group.worst[measure, dtype], WITHIN[dtype])
    yield from unbroken("with a penalty", console, [group])


def table(groups, dtypes, measures, title):
    """The worst error of each measure, and how many programs or runs there were."""
    headings = [f"{m}, {d}" for d in dtypes for m in measures]
    table = Table(box=box.MARKDOWN, title=title)
    for column in ("", "mesh", *headings, "other bits", "programs"):
        left = column in ("", "mesh")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for (way, mesh), group in sorted(groups.items()):
        errors = [
            f"{group.worst[m, d]:.1e}" if (m, d) in group.worst else ""
            for d in dtypes
            for m in measures
        ]
        bits = f"{group.leaves[1]} of {group.leaves[0]}" if group.leaves[0] else ""
        table.add_row(way, mesh, *errors, bits, str(group.cases))
    return table


def _claims(console, groups, dtypes):
    every = groups.values()
    for dtype in dtypes:
        for measure in MEASURES[:3]:
            worst = max(group.worst[measure, dtype] for group in every)
            yield Claim(f"{dtype}: error of the {measure}", worst, WITHIN[dtype])
        maps = [g for (way, _), g in groups.items() if not way.endswith("auto")]
        worst = max(group.worst["20 steps", dtype] for group in maps)
        yield Claim(f"{dtype}: shard_map and maps, {STEPS} steps of AdamW apart", worst, 1e-5)
    different, leaves = (sum(group.leaves[i] for group in every) for i in (1, 0))
    what = f"{STEPS} steps, zero1 and fsdp, auto: leaves of {leaves} with other bits than data"
    yield Claim(what, different, 0)
    yield from unbroken("the matrix", console, every)


def unbroken(name, console, groups):
    """The claim that nothing raised; says what did."""
    broken = [x for group in groups for x in group.broken]
    for x in dict.fromkeys(broken):
        console.print(x, highlight=False, markup=False, style="red")
    cases = sum(group.cases for group in groups)
    yield Claim(f"{name}: of {cases} programs raised", len(broken), 0)


def structure(console, meshes, ways, pieces):
    """The laws of what is moved and computed, told by compiled programs."""
    params, (batch, _) = inputs(64, "float32")
    one = _placed.alone(objective, OPTIMIZER)
    work = products(one.lowered(one.init(params), batch).compile().as_text())
    title = f"Arrays moved in a step of {len(params)} leaves, 64 rows, float32; scalars apart"
    table = Table(box=box.MARKDOWN, title=title)
    columns = "all-reduced", "gathered", "scattered", "scalars", "products, of 1/8"
    for column in ("", "mesh", "pieces", *columns):
        left = column in ("", "mesh")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    cases: list[Any] = [*itertools.product(meshes, ways, pieces)]
    broken = []
    with Progress(transient=True, console=console) as progress:
        for where, way, count in progress.track(cases, description="HLO"):
            partition, lowering = way
            made = _placed.on_mesh(objective, OPTIMIZER, where, partition, lowering, count)
            text = made.lowered(made.init(params), batch).compile().as_text()
            found = lo.parallel.collectives(text)
            share = _placed.DEVICES * products(text) / work
            name = f"{', '.join(way)}, {where.name}, {count} pieces"
            broken += [f"{name}: {x}" for x in _missed(found, params, way, count, where, share)]
            counts = [
                _times(found, kind) for kind in ("all-reduce", "all-gather", "reduce-scatter")
            ]
            scalars = sum(x.times for x in found if not math.prod(x.shape) > 1)
            cells = [sum(x.values()) for x in counts]
            table.add_row(
                ", ".join(way), where.name, *map(str, (count, *cells, scalars)), f"{share:.3f}"
            )
    console.print(table)
    for x in broken:
        console.print(x, highlight=False, markup=False, style="red")
    yield Claim(f"HLO: laws broken by {len(cases)} programs", len(broken), 0)


def _missed(found, params, way, count, where, share):
    """Which laws of what is moved a program breaks."""
    partition, lowering = way
    sizes = {name: x.size for name, x in params.items()}
    parted = {name: x for name, x in sizes.items() if x >= 1024 and partition != "data"}
    over = 4 if where.name.endswith("2x4") and partition == "fsdp" else _placed.DEVICES
    sums, gathers, scatters = (
        _times(found, x) for x in ("all-reduce", "all-gather", "reduce-scatter")
    )
    turns = count if lowering == "auto" else 1  # auto sums each piece
    if share > 1.001:
        yield f"each device computes {share / _placed.DEVICES:.3f} of the products"
    kinds = {x.kind for x in found if math.prod(x.shape) > 1}
    for kind in kinds & {"all-to-all", "collective-permute"}:
        yield kind
    for name, size in sizes.items():
        shard = size // over if name in parted else size
        if lowering == "auto" or name not in parted:
            if sums.pop(size, 0) + scatters.pop(size, 0) != turns:
                yield f"{name} is not summed {turns} times"
        elif scatters.pop(size, 0) != 1 or sums.pop(shard, 0) != (over < _placed.DEVICES):
            yield f"{name} is not scattered once"
        if not (1 <= gathers.pop(size, 0) <= 2 if name in parted else not gathers.pop(size, 0)):
            yield f"{name} is not gathered as it lies"
    for kind, left in {
        "all-reduce": sums,
        "all-gather": gathers,
        "reduce-scatter": scatters,
    }.items():
        if left:
            yield f"{kind} of what is no leaf: {dict(left)}"


def _times(found, kind):
    """How often an array of so many numbers is moved in this way."""
    times = Counter()
    for x in found:
        if x.kind == kind and math.prod(x.shape) > 1:
            times[math.prod(x.shape)] += x.times
    return times


def _routing(params, batch):
    scores = batch["x"] @ params["router"]
    even = jnp.sum(jax.nn.softmax(scores) ** 2, axis=1)
    return even + jax.nn.logsumexp(scores, axis=1) ** 2


def apart(got, wanted):
    """The largest difference, relative to the largest number."""
    got, wanted = (jax.tree.map(np.float64, x) for x in (got, wanted))
    apart = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), got, wanted)
    large = jax.tree.map(lambda x: np.max(np.abs(x)), wanted)
    return max(jax.tree.leaves(apart)) / max(jax.tree.leaves(large))


def note(group, measure, dtype, error):
    """The largest error; a NaN is larger than all."""
    error = np.inf if np.isnan(error) else float(error)
    group.worst[measure, dtype] = max(group.worst[measure, dtype], error)
