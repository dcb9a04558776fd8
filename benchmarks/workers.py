"""Sweeps on workers: two warm processes of a spawned pool against one, and what they cost to start.

Each process has one thread for XLA, and sends and reads programs, chunks and results as it would
on a cluster. Both pools stay open, and run the same sweep in turns; times are of the wall clock, so
that the machine must be idle and have two cores. Tables are compared with those of no worker.
"""

import argparse
import functools
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np
from rich.console import Console

import lossopt as lo
from benchmarks import _sweep_tasks
from benchmarks._measure import Claim, header, spread, table, take_turns

WIDTHS = {32: (640, 1.6), 512: (64, 1.5)}  # trials, and how much faster two are to be
HERE, ONE, TWO = "no worker", "one worker", "two workers"


def swept(run, count, pool):
    """A table of the first trials of one search."""
    trials = lo.sweeps.random(_sweep_tasks.SPACE, count, jax.random.key(0))
    options = {"mode": "sequential", "executor": pool, "progress": False}
    return lo.sweep(run, trials, jax.random.key(1), **options)


def light(numbers, key):
    """A trial that compiles at once."""
    return numbers["rate"] * jax.random.normal(key)


def started(workers):
    """A pool, and the seconds until all of its processes have given a first result."""
    begun = time.perf_counter()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    swept(light, 4 * workers, pool)
    return pool, time.perf_counter() - begun


def raced(run, count, rounds, pools):
    """Seconds by the wall clock, round by round, and how many tables differ from the first."""
    calls = {name: functools.partial(swept, run, count, pool) for name, pool in pools.items()}
    for call in calls.values():  # a worker that got no chunk would compile in a timed call
        call()
    turns = take_turns({n: lambda _, call=x: call for n, x in calls.items()}, rounds=rounds)
    losses = [turn.results[-1]["loss"] for turn in turns.values()]
    same = [np.array_equal(loss, losses[0], equal_nan=True) for loss in losses]
    return {name: turn.wall for name, turn in turns.items()}, same.count(False)


def whole(console, rounds):
    """The claims of two sizes of a network."""
    (one, of_one), (two, of_two) = started(1), started(2)
    console.print(f"first results: {of_one:.1f} s of one worker, {of_two:.1f} s of two")
    out = table("Sweeps on workers", "trials/s", "s", "one worker / it")
    with one, two:
        for width, (count, least) in WIDTHS.items():
            model = _sweep_tasks.perceptron(width)
            pools = {HERE: None, ONE: one, TWO: two}
            wall, other = raced(model.task(), count, rounds, pools)
            for name, seconds in wall.items():
                told = spread(seconds), spread(wall[ONE] / seconds)
                out.add_row(f"{model.name}, {name}", f"{count / np.median(seconds):.2f}", *told)
            what, faster = f"{model.name}, {count} trials", np.median(wall[ONE] / wall[TWO])
            yield Claim(f"{what}: tables of other bits than without workers", other, 0)
            yield Claim(f"{what}: warm, one worker / two", float(faster), least=least)
    console.print(out)


def quick():
    """The claim of a light trial on two workers."""
    pool, _ = started(2)
    with pool:
        _, other = raced(light, 16, 1, {HERE: None, TWO: pool})
    yield Claim("16 light trials: tables of other bits than without workers", other, 0)


def main():
    """Prints the table and the claims; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a light trial; no times")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of every rival")
    options = parser.parse_args()
    console, missed = Console(width=140), 0
    console.print(header().replace("times: processor", "times: wall clock"), highlight=False)
    for claim in quick() if options.quick else whole(console, options.rounds):
        console.print(str(claim), highlight=False)
        missed += claim.missed
    return missed


if __name__ == "__main__":
    sys.exit(main())
