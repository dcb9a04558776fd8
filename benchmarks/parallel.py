"""One training step on 8 simulated devices, against the same work on one.

Two shared cores say nothing of how a step scales: what is compared is how much a step computes in
all, by processor time, and what each device holds and sends. Every way to place it takes turns with
one device, from the same parameters, on the same batch.
"""

import argparse
import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks import _device_laws, _placed, _run_laws
from benchmarks._accelerator import accelerated
from benchmarks._measure import Claim, header, spread, take_turns
from benchmarks._placed import DEVICES, here
from tests.xla import quick as in_one_piece

OPTIMIZER = optax.adamw(1e-3)
ALONE, KINDS = "one device", ("all-reduce", "all-gather", "reduce-scatter")
HONEST = "no scaling claim from two shared cores: simulated devices share them"


def perceptron(params, batch):
    """A multilayer perceptron and its cross entropy."""
    x = batch["x"]
    for layer in params[:-1]:
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]), batch["mask"])}


def stacked(params, batch):
    """Residual layers in a scan, which gathers each where it is used."""

    @jax.checkpoint
    def block(x, layer):
        layer = lo.parallel.gathered(layer)
        return x + jnp.tanh(x @ layer["kernel"]), None

    x, _ = jax.lax.scan(block, batch["x"], params["layers"])
    logits = x @ params["head"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]), batch["mask"])}


def batch_of(rows, width, classes):
    """Rows that weigh 0 or 1, from a fixed seed."""
    random = np.random.default_rng(0)
    return {
        "x": random.standard_normal((rows, width), np.float32),
        "y": random.integers(0, classes, rows).astype(np.int32),
        "mask": (random.random(rows) < 0.8).astype(np.float32),
    }


def perceptrons(rows, width, depth, classes=64):
    """Parameters and a batch of the first model."""
    random = np.random.default_rng(1)
    layer = lambda a, b: {
        "kernel": random.standard_normal((a, b), np.float32) / a**0.5,
        "bias": np.zeros(b, np.float32),
    }
    sizes = [*[width] * (depth + 1), classes]
    return [layer(a, b) for a, b in itertools.pairwise(sizes)], batch_of(rows, width, classes)


def stacks(rows, width, layers, classes=64):
    """Parameters and a batch of the second."""
    draw = lambda *shape: np.random.default_rng(1).standard_normal(shape, np.float32) / width
    params = {"layers": {"kernel": draw(layers, width, width)}, "head": draw(width, classes)}
    return params, batch_of(rows, width, classes)


def ways(objective, quick):
    """The same step in all places, or in a few."""
    where = _placed.meshes()[0]
    made = {ALONE: _placed.alone(objective, OPTIMIZER)}
    for partition, lowering in itertools.product(_device_laws.PARTITIONS, ("auto", "shard_map")):
        step = _placed.on_mesh(objective, OPTIMIZER, where, partition, lowering)
        made[f"{partition}, {lowering}"] = step
    few = [ALONE, "fsdp, auto", "fsdp, shard_map"]
    made["pmap"] = _placed.mapped(objective, OPTIMIZER, "pmap")
    return {way: made[way] for way in (few if quick else made)}


def race(console, name, objective, params, batch, rounds, calls, quick):
    """Prints what a step takes in each place; claims of its parts and of its loss."""
    rivals, facts, losses = {}, {}, {}
    for way, made in ways(objective, quick).items():
        rivals[way] = stepping(made, params, batch, calls)
        facts[way] = held(made, params, batch)
        _, measured = made.step(made.init(params), made.place(batch))
        losses[way] = float(made.one(measured).value)
    turns = take_turns(rivals, rounds=rounds)
    size = sum(x.size for x in jax.tree.leaves(params))
    title = f"{name}: {size / 1e6:.2f} M parameters, {len(batch['y'])} rows, {DEVICES} devices"
    columns = "processor time / one device", "wall clock", "parameters, of 1/8", "state, of 1/8"
    out = table(title, *columns, "temporaries, MiB", "peak, MiB", *KINDS)
    whole = facts[ALONE]
    for way, turn in turns.items():
        times = turn.seconds / turns[ALONE].seconds, turn.wall / turns[ALONE].wall
        now = facts[way]
        share = [f"{DEVICES * now[x] / whole[x]:.2f}" for x in ("parameters", "state")]
        bytes_ = [f"{now[x] / 2**20:.2f}" for x in ("temporaries", "peak")]
        out.add_row(way, *map(spread, times), *share, *bytes_, *map(moved(now["moves"]), KINDS))
    console.print(out)
    console.print(HONEST, highlight=False)
    for way in facts:
        parts = {"zero1": ["state"], "fsdp": ["parameters", "state"]}.get(way.split(",")[0], [])
        for part in parts:
            got = DEVICES * facts[way][part] / whole[part]
            yield Claim(f"{name}, {way}: {part} on a device, of 1/8", got, 1.05)
    apart = max(abs(x / losses[ALONE] - 1) for x in losses.values())
    yield Claim(f"{name}: first losses apart, relative", apart, 1e-6)


def stepping(made, params, batch, calls):
    """Some donated steps, from turn to turn."""
    placed = made.place(batch)
    state = made.init(params)

    def ready(_):
        def call():
            nonlocal state
            for _ in range(calls):
                state, _ = made.step(state, placed)
            jax.block_until_ready(state)

        return call

    return ready


def held(made, params, batch):
    """Bytes of the first device, and what it sends and receives."""
    state = made.init(params)
    compiled = made.lowered(state, made.place(batch)).compile()
    return {
        "parameters": here(state.params),
        "state": here(state.opt_state),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "peak": _placed.peak(compiled),
        "moves": lo.parallel.collectives(compiled),
    }


def moved(moves):
    """How many arrays, and how many MiB of them, are moved in this way."""

    def cell(kind):
        found = [x for x in moves if x.kind == kind and x.shape]
        times = sum(x.times for x in found)
        return f"{times}: {sum(x.times * x.bytes for x in found) / 2**20:.2f}" if times else ""

    return cell


def layers(console, rows, width, count, lowerings):
    """Layers that are gathered one by one, against all at the start."""
    params, batch = stacks(rows, width, count)
    where = _placed.meshes()[0]
    title = f"{count} stacked layers of {width} x {width}, {rows} rows, fsdp on {DEVICES} devices"
    out = table(title, "temporaries, MiB", "peak, MiB", "all-gather", "of the other's")
    for lowering in lowerings:
        ends, facts = [], []
        for gather in (True, "layers"):
            made = _placed.on_mesh(stacked, OPTIMIZER, where, "fsdp", lowering, gather=gather)
            facts.append(held(made, params, batch))
            state, _ = made.step(made.init(params), batch)
            ends.append(jax.device_get(state.params))
        ratio = facts[1]["temporaries"] / facts[0]["temporaries"]
        for way, now, share in zip(("at the start", "layer by layer"), facts, (1.0, ratio)):
            sizes = [f"{now[x] / 2**20:.1f}" for x in ("temporaries", "peak")]
            cell = moved(now["moves"])("all-gather")
            out.add_row(f"{lowering}, gathered {way}", *sizes, cell, f"{share:.3f}")
        yield Claim(f"{lowering}, layer by layer: temporaries / at the start", ratio, 0.25)
        same = jax.tree.leaves(jax.tree.map(np.array_equal, *ends))
        yield Claim(
            f"{lowering}, layer by layer: share of equal leaves", float(np.mean(same)), least=1
        )
        stacks_ = [x for x in facts[1]["moves"] if x.kind == "all-gather" and len(x.shape) > 1]
        kernels = [x for x in stacks_ if x.shape[-2:] == (width, width)]
        yield Claim(f"{lowering}, layer by layer: all-gathers in the program", len(kernels), 2)
    console.print(out)


def table(title, *columns):
    """An empty one, a row's name in front."""
    out = Table(box=box.MARKDOWN, title=title)
    for column in ("", *columns):
        out.add_column(column, justify="right" if column else "left")
    return out


def whole(console, quick, rounds):
    """The claims of all models."""
    rows, width, depth, count, calls = (64, 256, 1, 8, 1) if quick else (1024, 512, 3, 16, 2)
    given = perceptrons(rows, width, depth)
    yield from race(console, "perceptron", perceptron, *given, rounds, calls, quick)
    if not quick:
        given = stacks(rows, 256, count)
        yield from race(console, "stacked layers", stacked, *given, rounds, calls, quick)
    lowerings = ("auto", "shard_map")[quick:]
    yield from layers(console, 64, 128 if quick else 512, count, lowerings)


def claims(console, options, rounds):
    """All that are asked for; with an accelerator those of it."""
    if not options.laws:
        yield from accelerated(console, options.quick, rounds)
    if jax.default_backend() != "cpu":
        console.print("for simulated devices run it with JAX_PLATFORMS=cpu", highlight=False)
        return
    if not options.laws:
        yield from whole(console, options.quick, rounds)
    if options.laws or options.quick:
        yield from _run_laws.run(console, options.quick, options.every)
        if not options.runs:
            yield from _device_laws.run(console, options.quick, options.dtypes, options.every)


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models, a few laws")
    parser.add_argument("--rounds", type=int, default=None, help="timed turns of every way")
    parser.add_argument("--laws", action="store_true", help="the laws on devices, all of them")
    parser.add_argument("--every", type=int, default=1, help="of the laws one in so many cases")
    dtypes = tuple(_device_laws.WITHIN)
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes, help="of the laws")
    parser.add_argument("--runs", action="store_true", help="of the laws those of whole runs")
    options = parser.parse_args()
    options.laws = options.laws or options.runs
    if options.laws or options.quick:  # many programs that run once
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {in_one_piece()}"
        jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    console, missed = Console(width=240), 0
    console.print(header(), highlight=False)
    rounds = options.rounds or (1 if options.quick else 7)
    for claim in claims(console, options, rounds):
        console.print(str(claim), highlight=False)
        missed += claim.judged and claim.missed
    return missed


if __name__ == "__main__":
    sys.exit(main())
