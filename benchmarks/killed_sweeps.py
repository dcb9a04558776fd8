"""Killed sweeps: `sweep` by kill -9 at random moments, and whether it ends in the same table.

24 trials of a descent with dropout and masks, three of which diverge: one after the other, eight
beside each other, eight beside each other as a `Task` that is cut within its steps, and the same
with rungs of successive halving. Each child
saves as often as it can and is killed within 0.3 s of a save, and the next one goes on. What is
compared are all columns but the seconds, and the best state.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks._measure import header
from tests.sweeps import killed


def main():
    """Prints each kill and the verdict; returns 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one kill of each kind")
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args()
    print(header())
    random, kills = np.random.default_rng(options.seed), 1 if options.quick else options.kills
    missed = []
    for way in killed.WAYS:
        want, rounds, left = killed.table(way), 0, kills
        with tempfile.TemporaryDirectory() as folder:
            for _ in track(range(kills), way, disable=options.quick, transient=True):
                directory = Path(folder) / str(rounds)
                told, phase = killed.kill(random, directory, way)
                print(f"{way}: told {len(told)} rows, killed: {phase}")
                left -= 1
                if len(told) == killed.told(way) or not left:
                    rows, got = killed.end(directory, way)
                    missed += [f"{way}/{name}" for name in killed.other(got, want)]
                    print(f"{way}: {len(rows)} rows were left")
                    rounds += 1
    verdict = f"missed by {len(missed)}: {missed}" if missed else "met"
    print(f"{verdict}: killed {kills} times each, the tables of untouched sweeps, bit by bit")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
