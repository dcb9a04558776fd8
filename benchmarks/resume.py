"""Killed runs: `fit` by kill -9 at random moments, and whether it ends in the bits of a whole one.

The run has a ragged last batch, dropout, moments with a schedule, an averaged point that is judged,
batch statistics, and a stop rule that waits for most of its length; it saves after each call of the
program. Each child is killed after some rows of history, and the next one goes on. What is compared
are all numbers of the `Run`, history and best included, and all but the seconds.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks._measure import header
from tests.checkpoint import interrupted
from tests.training import resumed

ROWS, PATIENCE = 8, 100  # of history until a kill, at most; the run ends so many behind its best


def killed(random, directory):
    """The first and the last row that a child told, and where in a save it was killed."""
    rows, seconds = int(random.integers(1, ROWS)), random.uniform(0, 0.3)
    told = resumed.child(directory, PATIENCE, rows, seconds)
    return told[0], told[-1], interrupted.phase(directory)


def main():
    """Prints each kill and the verdict; returns 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two kills")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args()
    print(header())
    random, kills = np.random.default_rng(options.seed), 2 if options.quick else 10
    with tempfile.TemporaryDirectory() as folder:
        whole, directory = Path(folder) / "whole", Path(folder) / "killed"
        *_, want = resumed.child(whole, PATIENCE, None, 0)
        for _ in track(range(kills), "killed", disable=options.quick, transient=True):
            first, last, phase = killed(random, directory)
            print(f"from step {first} to step {last}, killed: {phase}")
        begin = time.perf_counter()
        first, *_, got = resumed.child(directory, PATIENCE, None, 0)
        print(f"from step {first} to its end, {time.perf_counter() - begin:.0f} s")
    other = [name for name, x in want.items() if x.tobytes() != got[name].tobytes()]
    verdict = f"missed by {len(other)}: {other}" if other else "met"
    print(
        f"{verdict}: killed {kills} times, the {len(want)} arrays of an untouched run, bit by bit"
    )
    return int(bool(other))


if __name__ == "__main__":
    sys.exit(main())
