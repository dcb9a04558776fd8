"""Training runs: steps per second and first calls, against loops that do the same arithmetic.

All start from the same parameters, take as many steps of Adam on as many rows, shuffled anew in
each epoch, and fetch a loss at the end. That they do the same is tried by steps on all rows at
once, which no order changes; losses are apart by parts of the way that the loop's has come. A warm
call trains from the start, ours with all that `fit` does besides. A first call is that of a new
process that has imported everything and compiled nothing; what `fit` takes for the conditions on
values is told apart. Of many rows an epoch is the difference between two runs.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import _tasks
from benchmarks._left import left
from benchmarks._measure import Claim, clock, header, spread, table, take_turns
from benchmarks._rivals import ABSENT, FIT, KERAS, LOOP, NNX, PACKAGES, RIVALS, TORCH, gather
from benchmarks._saved import saved
from benchmarks._streamed import MEMORY, READ, STREAM, streamed
from lossopt.training import _fit

FASTER = {LOOP: 1.5, NNX: 10.0, TORCH: 4.0, KERAS: 2.5}
GATHER = "one program, order given"
PARTS = ("small", "wide", "convolutions", "first", "rows", "saved", "left", "streams")


def race(console, task, names, rounds):
    """Prints a task's table; claims of its losses, and how many times our time each rival takes."""
    loss, few = task.mean_loss(), task.on_all_rows(5)
    apart = lambda ends: np.ptp(ends) / (float(loss(task.params)) - ends[1])  # of the loop's way
    ends = [float(loss(RIVALS[name](few)(0)())) for name in names]
    claims = [Claim(f"{task.name}: 5 steps on all rows, losses apart", apart(ends), 1e-3)]
    turns = take_turns({name: RIVALS[name](task) for name in names}, rounds=rounds)
    last = [float(np.median([loss(x) for x in turn.results])) for turn in turns.values()]
    if rounds > 2:  # one order of rows is not like another
        claims.append(Claim(f"{task.name}: last losses apart", apart(last), 0.01))
    ours = turns[FIT]
    ratios = {name: turn.seconds / ours.seconds for name, turn in turns.items()}
    out = table(title(task), "steps/s", "time / fit", "wall clock / fit", "seconds", "last loss")
    for (name, turn), end in zip(turns.items(), last):
        seconds, wall = np.median(turn.seconds), spread(turn.wall / ours.wall)
        numbers = f"{task.steps / seconds:.0f}", spread(ratios[name]), wall
        out.add_row(name, *numbers, f"{seconds:.3f}", f"{end:.4f}")
    console.print(out)
    return claims, {name: float(np.median(x)) for name, x in ratios.items()}


def small(console, tasks, names, rounds, judged):
    """Small tasks, all rivals."""
    times = []
    for task in tasks:
        claims, ratios = race(console, task, names, rounds)
        times.append(ratios)
        yield from claims
    for name in names[1:]:
        each, target = [ratios[name] for ratios in times], FASTER[name]
        if name == LOOP:
            what = f"{name}: time / fit, median of the tasks"
            yield Claim(what, float(np.median(each)), least=target, judged=judged)
            target = 1.2
        what = f"{name}: time / fit, least of the tasks"
        yield Claim(what, min(each), least=target, judged=judged)


def single(console, task, names, rounds, least, judged):
    """A task on which the loop alone is judged."""
    claims, ratios = race(console, task, names, rounds)
    yield from claims
    yield Claim(f"{task.name}: the loop's time / fit", ratios[LOOP], least=least, judged=judged)


def first_call(task, name):
    """Seconds of the first call of a process, and those that the conditions on values took."""
    spent, inner = [], _fit.preflight
    float(jnp.arange(3.0)[1])  # the device is there

    def preflight(*args):
        begin = clock()
        inner(*args)
        spent.append(clock() - begin)

    with mock.patch.object(_fit, "preflight", preflight):
        begin = clock()
        RIVALS[name](task)(0)()
        return clock() - begin, sum(spent)


def first_calls(console, tasks, rounds):
    """Each call in a process of its own."""
    headings = "fit, seconds", "of these conditions", "loop, seconds", "fit without them / loop"
    out, claims = table("First calls", *headings), []
    context = multiprocessing.get_context("spawn")
    for task in tasks:
        times = np.empty((rounds, 2, 2))
        for turn, number in np.ndindex(rounds, 2):
            with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                call = pool.submit(first_call, task, (FIT, LOOP)[number])
                times[turn, number] = call.result()
        ours, loop = times[:, 0], times[:, 1, 0]
        ratios = (ours[:, 0] - ours[:, 1]) / loop
        out.add_row(task.name, *(f"{np.median(x):.2f}" for x in (*ours.T, loop)), spread(ratios))
        if task.name == "convolutions":
            claims = [Claim("convolutions: first call / the loop's", np.median(ratios), 2.0)]
    console.print(out)
    yield from claims


def epochs(console, rows, batch_size, lengths, rounds, judged):
    """An epoch of many rows, less what a run costs that has no more epochs."""
    few, many = tasks = [_tasks.many_rows(rows, batch_size, epochs) for epochs in lengths]
    makes = {FIT: RIVALS[FIT], GATHER: gather}
    rivals = {(name, task.epochs): make(task) for name, make in makes.items() for task in tasks}
    turns = take_turns(rivals, rounds=rounds)
    seconds = {name: turn.seconds for name, turn in turns.items()}
    more = lambda name: seconds[name, many.epochs] - seconds[name, few.epochs]
    out = table(title(many), "epoch, ms", "time / order given", "whole run / order given")
    for name in makes:
        whole = seconds[name, many.epochs] / seconds[GATHER, many.epochs]
        epoch = 1e3 * np.median(more(name)) / (many.epochs - few.epochs)
        out.add_row(name, f"{epoch:.1f}", spread(more(name) / more(GATHER)), spread(whole))
    console.print(out)
    loss, what = many.mean_loss(), f"{rows} rows, batches of {batch_size}"
    last = [np.median([loss(x) for x in turns[name, many.epochs].results]) for name in makes]
    apart = np.ptp(last) / (float(loss(many.params)) - last[1])
    yield Claim(f"{what}: last losses apart", apart, 0.01)
    ratio = np.median(more(FIT) / more(GATHER))
    yield Claim(f"{what}: epoch / order given", float(ratio), 1.25, judged=judged)


def streams(console, tasks, rounds, judged):
    """Batches of a generator of numpy, in the order that the rows in memory are drawn."""
    headings = "speed / in memory", "wall clock", "steps/s", "generator / in memory"
    out, claims = table("Streamed against in memory", *headings), []
    for task in tasks:
        turns = take_turns(streamed(task), rounds=rounds)
        kept, stream, read = (turns[name] for name in (MEMORY, STREAM, READ))
        same = jax.tree.leaves(jax.tree.map(np.array_equal, kept.results, stream.results))
        claims.append(Claim(f"{task.name}: share of leaves that are equal", np.mean(same), least=1))
        speeds, walls = kept.seconds / stream.seconds, kept.wall / stream.wall
        rate, share = task.steps / np.median(stream.seconds), np.median(read.seconds / kept.seconds)
        out.add_row(title(task), spread(speeds), spread(walls), f"{rate:.0f}", f"{share:.2f}")
        what = f"{task.name}, batches of {task.batch_size}: streamed, speed / in memory"
        claims.append(Claim(what, float(np.median(speeds)), least=0.9, judged=judged(task)))
    console.print(out)
    yield from claims


def title(task):
    """Its name and sizes."""
    size = sum(x.size for x in jax.tree.leaves(task.params))
    shape = " x ".join(map(str, np.shape(task.x)))
    name = f"{task.name}: {shape}, {size} parameters"
    return f"{name}, batches of {task.batch_size}, {task.steps} steps in {task.epochs} epochs"


def whole(console, names, rounds, only):
    """The claims of the parts that are asked for."""
    tasks, wide, convolutional = _tasks.small(20), _tasks.wide(3), _tasks.convolutional(6)
    if "small" in only:
        yield from small(console, tasks, names, rounds, judged=True)
    if "wide" in only:
        yield from single(console, wide, names, rounds, least=0.95, judged=False)
    if "convolutions" in only:
        yield from single(console, convolutional, names[:2], rounds, least=1.0, judged=True)
    if "first" in only:
        yield from first_calls(console, [tasks[-1], convolutional], 3)
    for batch_size in (256, 4096) if "rows" in only else ():
        yield from epochs(console, 10**6, batch_size, (2, 10), rounds, judged=True)
    if "saved" in only:
        yield from saved(console, _tasks.large(1), min(rounds, 3), judged=True)
    if "left" in only:
        yield from left()
    if "streams" in only:
        many = [_tasks.many_rows(10**6, batch_size, 2) for batch_size in (256, 4096)]
        large = wide, convolutional  # elsewhere the generator alone takes a part of the time
        yield from streams(console, [*tasks, *large, *many], rounds, lambda task: task in large)


def quick(console, rounds):
    """The claims of a small task and of few rows."""
    yield from small(console, _tasks.small(1)[1:2], (FIT, LOOP, NNX), rounds, judged=False)
    yield from epochs(console, 5000, 256, (1, 5), rounds, judged=False)
    yield from streams(console, _tasks.small(1)[1:2], rounds, lambda task: False)
    yield from saved(console, _tasks.small(1)[2], rounds, judged=False)


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps; no times are judged")
    parser.add_argument("--rounds", type=int, default=None, help="timed turns of every rival")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    options = parser.parse_args()
    console, missed = Console(width=140), 0
    names = [name for name in RIVALS if name not in ABSENT]
    present = [package for name, package in PACKAGES.items() if name not in ABSENT]
    console.print(header("flax", *present), highlight=False)
    for name in ABSENT:
        console.print(f"{PACKAGES[name]} is not installed: {name} is left out", highlight=False)
    few, many = options.rounds or 1, options.rounds or 7
    claims = quick(console, few) if options.quick else whole(console, names, many, options.only)
    for claim in claims:
        console.print(str(claim), highlight=False)
        missed += claim.judged and claim.missed
    return missed


if __name__ == "__main__":
    sys.exit(main())
