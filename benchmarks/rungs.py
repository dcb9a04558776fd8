"""Rungs: what halving computes, how long it takes, and how good the trial is that it finds.

Networks of one hidden layer on digits, trained with AdamW for 300 steps, as in `benchmarks.sweeps`.
For each of several draws of the trials a whole sweep says how every trial ends. The rank of the one
that halving or Hyperband finds is that among all of its draw, 1 is the best; beside it stands the
best of as many whole trials, the first of the draw, as take the same executed steps. What goes to
the end is compared with the whole sweep bit by bit. Times are of warm calls in turns.
"""

import argparse
import sys
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import lossopt as lo
from benchmarks import _sweep_tasks
from benchmarks._measure import Claim, clock, header, spread, table

COLUMNS = "steps, nominal", "executed", "time", "its rank", "random's", "loss / best", "random's"


class Found(NamedTuple):
    """Of one draw: shares of the whole sweep, ranks, and losses as shares of the best one."""

    nominal: float
    executed: float
    seconds: float
    rank: int
    rank_of_random: int
    loss: float
    loss_of_random: float
    other: int


def plans(count: int, steps: int) -> dict[str, lo.sweeps.Rungs]:
    """Halving from two lowest rungs on, and Hyperband."""
    early, late = (lo.sweeps.halving(count, steps, 4, least=max(1, steps // x)) for x in (64, 16))
    found = {f"halving from {plan.levels[0]} steps on": plan for plan in (early, late)}
    plan = lo.sweeps.hyperband(steps, 4, least=late.levels[0])
    return found | {f"Hyperband, {plan.settings} trials": plan}


def found(task, rungs, seed, **options) -> Found:
    """What the rungs find in a draw, beside the whole sweep of it."""
    trials = lo.sweeps.random(_sweep_tasks.SPACE, rungs.settings, jax.random.key(seed))
    calls = {"whole": {}, "rungs": {"rungs": rungs}}
    tables, seconds = {}, {}
    for name in list(calls)[:: 1 if seed % 2 else -1]:
        begun = clock()
        given = task, trials, jax.random.key(1000 + seed)
        tables[name] = lo.sweep(*given, progress=False, **options, **calls[name])
        seconds[name] = clock() - begun
    whole, halved = tables["whole"], tables["rungs"]
    order = whole.rank()
    place = {int(whole["id"][row]): rank for rank, row in enumerate(order, 1)}
    tried = min(len(trials), max(1, halved.work.executed // task.steps))
    random = min(range(tried), key=lambda row: place[row])
    ends, best = halved["status"] == "finished", whole["loss"][order[0]]
    return Found(
        halved.work.nominal / halved.work.full,
        halved.work.executed / halved.work.full,
        seconds["rungs"] / seconds["whole"],
        place[halved.best["id"]],
        place[random],
        halved.best["loss"] / best,
        whole["loss"][random] / best,
        int(np.sum(halved["loss"][ends] != whole["loss"][ends])),
    )


def searched(console, title, task, count, seeds, **options):
    """A table of all plans, and the claims that are judged."""
    out, claims = table(title, *COLUMNS), []
    for name, rungs in plans(count, task.steps).items():
        found(task, rungs, seeds, **options)  # compiles
        bar = track(range(seeds), name, transient=True)
        draws = [found(task, rungs, seed, **options) for seed in bar]
        one = Found(*map(np.array, zip(*draws)))
        shown = *map(spread, one[:3]), *map(_ranks, one[3:5]), *map(spread, one[5:7])
        out.add_row(name, *shown)
        claims += [
            Claim(f"{title}, {name}: other bits than the whole sweep", int(one.other.sum()), 0),
            Claim(f"{title}, {name}: nominal steps", float(one.nominal.max()), 0.6),
        ]
    console.print(out)
    return claims


def _ranks(ranks):
    """The median and all of them."""
    return f"{np.median(ranks):g} ({' '.join(map(str, sorted(ranks)))})"


def main():
    """Prints the tables; returns how many claims are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two draws of 16 short trials")
    parser.add_argument("--seeds", type=int, default=12, help="draws of the trials")
    parser.add_argument("--widths", nargs="+", type=int, default=[32, 512], help="of networks")
    options = parser.parse_args()
    console, missed = Console(width=180), 0
    console.print(header(), highlight=False)
    console.print("shares of the whole sweep; medians and quartiles, ranks one by one")
    count, seeds = (16, 2) if options.quick else (64, options.seeds)
    forms = {"one after the other": {"mode": "sequential"}}
    forms["16 side by side"] = {"mode": "vmap", "chunk": 16}
    if options.quick:
        forms = {"4 side by side": {"mode": "vmap", "chunk": 4}}
    claims = []
    for width in (8,) if options.quick else options.widths:
        model = _sweep_tasks.perceptron(width, short=1)
        task = (model.shorter() if options.quick else model).task()
        for name, form in forms.items() if width < 512 else [*forms.items()][:1]:
            title = f"width {width}, {count} trials of {task.steps} steps, {name}"
            claims += searched(console, title, task, count, seeds, **form)
    for claim in claims:
        console.print(str(claim), highlight=False)
        missed += claim.judged and claim.missed
    return missed


if __name__ == "__main__":
    sys.exit(main())
