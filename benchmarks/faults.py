"""Damaged checkpoints: what gives each damage away, and whether the older good step comes back.

A round damages the newest of three steps, restores, and mostly goes on past the damage. It is held
when no value is wrong, no older good step is lost, the reason names step and file and says what to
do, and the damaged number can be saved again. Where hashes fit, the manifest was made to agree with
the damaged files, and only the digests of the leaves are left. "Orbax alone" counts the rounds in
which Orbax returns other numbers from the same files without an error. Processes are killed while
they save step after step; full is a tmpfs of 1 MiB, or a limit on the size of a file.
"""

import argparse
import collections
import dataclasses
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks._measure import header
from tests.checkpoint import damage, interrupted, judge

NEWEST = damage.STEPS[-1]
ALONE, SKIPPED = "Orbax alone", "not tried here: "
FULL = {
    "a full disk of 1 MiB": interrupted.full,
    "a limit on the size of a file": interrupted.limited,
}
Round = Callable[[np.random.Generator, Path], Iterable[str]]  # in a folder; says what it saw


@dataclasses.dataclass
class Tally:
    """What became of the rounds of a fault.

    Attributes:
      rounds: how many were run.
      seen: how often each thing was seen.
      misses: what was not held, in words.
    """

    rounds: int = 0
    seen: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    misses: list[str] = dataclasses.field(default_factory=list)


def of_files(saved: Path, quick: bool) -> dict[str, list[Round]]:
    """Faults that a step may suffer on its disk."""
    one = rounds_at_newest(saved)
    names = damage.files(saved / f"{NEWEST:08d}")[:: 3 if quick else 1]
    in_turn = lambda fault, **given: [
        one(partial(fault, name=x, **given), not quick) for x in names
    ]
    few, flips, lengths = (1, 2, [0]) if quick else (20, 500, [0, 1, 64, None, None])
    others = (damage.lengthened, damage.made_a_folder, damage.files_swapped, *damage.WHOLE)
    several = lambda *steps: partial(at_several, saved, steps)
    return {
        "each file truncated": [x for n in lengths for x in in_turn(damage.truncated, length=n)],
        "each file deleted": in_turn(damage.deleted),
        "one bit flipped anywhere": [one(damage.flipped, k % 10 == 0) for k in range(flips)],
        **{words(fault): [one(fault, True)] * few for fault in (*others, *damage.DATA)},
        "two steps damaged": [several(10, 30), several(20, 30)] * -(-few // 2),
        "all steps damaged": [several(*damage.STEPS)] * few,
    }


def of_digests(saved: Path, quick: bool) -> dict[str, list[Round]]:
    """Faults that the hashes of files do not show."""
    one, count = rounds_at_newest(saved), 1 if quick else 50
    return {words(x): [one(x, False)] * count for x in map(damage.fitting, damage.DATA)}


def rounds_at_newest(saved: Path) -> Callable[[damage.Fault, bool], Round]:
    """From a fault, and whether training goes on, to a round."""
    truth = orbax_alone(saved / f"{NEWEST:08d}")

    def one(fault, on, random, folder):
        directory = shutil.copytree(saved, folder / "run")
        done = damage.harm(fault, random, directory / f"{NEWEST:08d}")
        wrong = orbax_alone(directory / f"{NEWEST:08d}") not in (None, truth)
        reasons = judge.judge(directory, {NEWEST: done}, on)
        shutil.rmtree(directory)
        return [judge.way(reasons[NEWEST]), *[ALONE] * wrong]

    return lambda fault, on: partial(one, fault, on)


def of_any_bit(saved: Path, quick: bool) -> dict[str, list[Round]]:
    """Bits of all that Orbax wrote, its own metadata too, where the hashes fit."""

    def one(random, folder):
        directory = shutil.copytree(saved, folder / "run")
        fault = damage.fitting(damage.flipped_inside)
        damage.harm(fault, random, directory / f"{NEWEST:08d}")
        found = judge.judge_fitting(directory)
        shutil.rmtree(directory)
        return [found]

    return {"one bit flipped inside, hashes fit": [one] * (2 if quick else 200)}


def at_several(saved, steps, random, folder):
    """A round of some faults of files at these steps."""
    directory = shutil.copytree(saved, folder / "run")
    chosen = [damage.FILES[k] for k in random.integers(len(damage.FILES), size=len(steps))]
    harms = {
        step: damage.harm(fault, random, directory / f"{step:08d}")
        for step, fault in zip(steps, chosen)
    }
    reasons = judge.judge(directory, harms)
    shutil.rmtree(directory)
    return [judge.way(reason) for reason in reasons.values()]


def orbax_alone(step: Path) -> dict[str, bytes] | None:
    """What Orbax returns of a step, None where it raises."""
    try:
        arrays = ocp.PyTreeCheckpointer().restore(step / "state")
    except Exception:
        return None
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def of_kills(quick: bool) -> dict[str, list[Round]]:
    """Children that are killed one after the other in one directory, then a save of our own."""
    kill = lambda random, folder: [interrupted.kill(random, folder / "killed")]
    go_on = lambda random, folder: interrupted.go_on(folder / "killed") or []
    return {"kill -9": [*[kill] * (1 if quick else 100), go_on]}


def of_disks(quick: bool) -> dict[str, list[Round]]:
    """Disks that cannot take a step: each round refuses some saves, and lands as many."""
    times = 1 if quick else 10
    rounds: dict[str, list[Round]]
    rounds = {name: [partial(in_child, way, (4,))] * times for name, way in FULL.items()}
    return {**rounds, "a disk that is read only": [partial(in_child, interrupted.read_only, ())]}


def in_child(way, more, random, folder):
    """A round in a process of its own, or why such a disk cannot be had."""
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        return interrupted.in_child(way, directory, int(random.integers(2**31)), *more)
    except interrupted.UnavailableError as error:
        return [f"{SKIPPED}{error}"]


def run(faults: dict[str, list[Round]], seed: int) -> dict[str, Tally]:
    """All rounds, those of each fault in a folder of their own."""
    tallies = {name: Tally() for name in faults}
    with Progress(transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, faults.values())))
        for i, (name, rounds) in enumerate(faults.items()):
            random, tally = np.random.default_rng([seed, i]), tallies[name]
            with tempfile.TemporaryDirectory() as folder:
                for one in progressing(rounds, progress, bar, name):
                    try:
                        tally.seen.update(one(random, Path(folder)))
                    except Exception as error:
                        tally.misses.append(f"{type(error).__name__}: {error}\n{error.__cause__}")
                        shutil.rmtree(Path(folder) / "run", ignore_errors=True)
                    tally.rounds += 1
    return tallies


def progressing(rounds, progress, bar, name):
    """The rounds, with the bar moving."""
    progress.update(bar, description=name)
    for one in rounds:
        yield one
        progress.advance(bar)


def table_of(tallies: dict[str, Tally]) -> Table:
    """A row for each fault at rest."""
    table = Table(box=box.MARKDOWN, title="Damage on the disk, and what gave away each step")
    columns = [*judge.WAYS, ALONE]
    for column in ("", "rounds", "held", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, tally in tallies.items():
        seen = [tally.seen[column] or "" for column in columns]
        table.add_row(name, *map(str, (tally.rounds, tally.rounds - len(tally.misses), *seen)))
    return table


def verdict(console, tallies, claim, ran=True):
    """Says whether all rounds were held; returns how many were not."""
    misses = [f"{name}: {miss}" for name, tally in tallies.items() for miss in tally.misses]
    for miss in misses[:10]:
        console.print(miss, highlight=False, markup=False, style="red")
    rounds = sum(tally.rounds for tally in tallies.values())
    met = "met" if ran and not misses else f"missed by {len(misses)}"
    console.print(f"{met}: {claim}, {rounds} rounds", highlight=False, markup=False)
    return len(misses) + (not ran)


def words(fault):
    """The name of a fault."""
    return fault.__name__.replace("_", " ")


def main():
    """Prints the table and the verdicts; returns how many rounds were not held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds of each fault")
    parser.add_argument("--seed", type=int, default=0, help="of all damage and all kills")
    options = parser.parse_args()
    sys.unraisablehook = lambda _: None  # reads of Orbax that fail after its loop was closed
    logging.disable(logging.ERROR)  # and what is logged of them
    console = Console(width=140)
    console.print(header(), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        saved = damage.save(Path(folder) / "saved")
        files = run(of_files(saved, options.quick), options.seed)
        digests = run(of_digests(saved, options.quick), options.seed)
        bits = run(of_any_bit(saved, options.quick), options.seed)
    kills = run(of_kills(options.quick), options.seed)
    disks = run(of_disks(options.quick), options.seed)
    console.print(table_of({**files, **digests}))
    for name, tally in {**bits, **kills, **disks}.items():
        seen = ", ".join(f"{count} {what}" for what, count in tally.seen.items())
        console.print(f"{name}: {seen}", highlight=False, markup=False)
    alone = all(tally.seen["digest"] == tally.rounds for tally in digests.values())
    tried = any(disks[name].seen["refused"] for name in FULL)
    restored = "found, the older step restored bit for bit, saved again"
    return sum(
        [
            verdict(console, files, f"damaged files {restored}"),
            verdict(console, digests, "digests alone find it, the older step restored", alone),
            verdict(console, bits, "found, refused or harmless"),
            verdict(console, kills, "killed while saving, the newest landed step restored"),
            verdict(console, disks, "no room: refused, older steps whole, then it lands", tried),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
