"""What picks of a learning rate lose, against a fine grid of whole runs.

The share lost by a rate is how much higher the training loss ends than at the best rate of the
grid, in parts of the way from the first loss to that one; between rates of the grid it is
interpolated. Whole runs take some 580 to 870 steps, those of the short grid 200. A range test is a
run of 100 whose rate grows; the picks from it are those of others: where the smoothed loss falls
steepest, and two thirds into its longest valley. All picks are made with several keys.
"""

import argparse
import sys

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks._measure import Claim, header
from benchmarks._rate_tasks import Task, quick, twelve

FINE = 10.0 ** np.arange(-5, 1.6, 0.25)
OURS, STEEP, VALLEY = "find_learning_rate", "range test, steepest", "range test, valley"


def whole(task: Task, rates, keys):
    """A function from a rate to the share that it loses, and the best of the rates."""

    @jax.jit
    def end(rate, key):
        options = {"epochs": task.epochs, "batch_size": task.batch_size, "key": key}
        rule = task.optimizer_of(rate)
        run = lo.training.run(task.objective, task.params, task.train, rule, **options)
        return lo.training.evaluate(task.objective, run.params, task.train)["value"]

    first = lo.training.evaluate(task.objective, task.params, task.train)["value"]
    ends = np.array([[end(rate, key) for key in keys] for rate in rates.tolist()])
    ends = np.where(np.isfinite(ends).all(1), ends.mean(1), np.inf)
    shares = np.clip((ends - ends.min()) / (float(first) - ends.min()), 0, 1)
    lost = lambda rate: float(np.interp(np.log(rate), np.log(rates), shares))
    return lost, rates[np.argmin(ends)]


def picks(task: Task, key):
    """A rate by each method."""
    given = task.objective, task.params, task.train, task.optimizer_of
    options = {"batch_size": task.batch_size, "key": key}
    rates, losses = lo.training.range_test(*given, **options)
    return {
        OURS: lo.training.find_learning_rate(*given, **options).learning_rate,
        STEEP: steepest(rates, losses),
        VALLEY: valley(rates, losses),
    }


def steepest(rates, losses):
    """Where the smoothed loss falls steepest over the logarithm of the rate."""
    rates, smooth = smoothed(rates, losses)
    within = slice(5, -3)
    return rates[within][np.argmin(np.gradient(smooth, np.log(rates))[within])]


def valley(rates, losses):
    """Two thirds into the longest falling subsequence of the smoothed loss, as fastai has it."""
    rates, smooth = smoothed(rates, losses)
    length = np.ones(len(smooth), int)
    for place in range(1, len(smooth)):
        above = smooth[:place] > smooth[place]
        length[place] = 1 + np.max(length[:place][above], initial=0)
    last = np.argmax(length)
    third = length[last] // 3
    return rates[last - length[last] + third + third // 2]


def smoothed(rates, losses):
    """Finite losses, averaged with a decay of 0.98, and their rates."""
    finite = np.isfinite(losses)
    kept = losses[finite]
    decay = 0.98 ** np.arange(len(kept))
    sums = [np.sum(decay[: n + 1][::-1] * kept[: n + 1]) for n in range(len(kept))]
    return rates[finite], np.array(sums) / np.cumsum(decay)


def percent(shares):
    """The median and the worst."""
    return f"{100 * np.median(shares):.2f} ({100 * np.max(shares):.1f})"


def shown(shares, table):
    """Prints what each method loses, over tasks and keys."""
    for name, lost in shares.items():
        part = np.mean(np.array(lost) < 0.02)
        table.add_row(name, "", "", percent(lost), f"{100 * part:.0f}")
    return table


def main():
    """Prints the table; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a task and a coarse grid")
    few = parser.parse_args().quick
    tasks, rates, count = ([quick()], FINE[::2], 1) if few else (twelve(), FINE, 2)
    keys = [jax.random.key(number) for number in range(100, 100 + count)]
    console = Console(width=120)
    console.print(header(), highlight=False)
    table = Table(box=box.MARKDOWN, title="Share of the achievable improvement lost")
    for heading in ("", "best rate", "picked", "% lost: median (worst)", "% within 2 %"):
        table.add_column(heading, justify="right" if heading else "left")
    shares = {}
    for task in tasks:
        lost, best = whole(task, rates, keys)
        for key in jax.random.split(jax.random.key(0), count):
            for name, rate in picks(task, key).items():
                shares.setdefault(name, {}).setdefault(task.name, []).append((rate, lost(rate)))
        found, losses = zip(*shares[OURS][task.name])
        table.add_row(task.name, f"{best:.2g}", f"{np.median(found):.2g}", percent(losses), "")
    everything = {
        name: [loss for pairs in tasks.values() for _, loss in pairs]
        for name, tasks in shares.items()
    }
    console.print(shown(everything, table))
    ours = everything[OURS]
    claims = [
        Claim("share lost, median", float(np.median(ours)), 0.05 if few else 0.002, judged=few),
        Claim("share lost, worst", max(ours), 0.1),
    ]
    for claim in claims:
        console.print(str(claim), highlight=False)
    return sum(claim.judged and claim.missed for claim in claims)


if __name__ == "__main__":
    sys.exit(main())
