"""The same run in other layouts of processes and devices, and how soon the rest leaves a dead one.

Runs of `fit` on the loopback, of 61 rows in batches of 16, with dropout and validation, by data
parallelism and FSDP. All draw rows as four devices do. A dash is the layout that others are
compared with. Then two processes train, and one of them is killed or stopped.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks._layouts import KINDS, QUICK, SAVED, SCENES
from benchmarks._measure import Claim, header, table
from tests.xla import UNCACHED, one_device

DEATHS = {"killed": "process 1 is killed", "first_killed": "process 0 is killed"}
DEATHS |= {"stopped": "process 1 is stopped"}


def main():
    """Prints both tables and the claims; returns 1 where one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two layouts and one kind; no deaths")
    parser.add_argument("--runs", type=int, default=5, help="of each death")
    parser.add_argument("--optimized", action="store_true", help="layouts with all of XLA's passes")
    options = parser.parse_args()
    print(header().replace("times: processor", "times: wall clock"))
    claims = [*_layouts(options)]
    if not options.quick:
        claims += _deaths(options.runs)
    for claim in claims:
        print(claim)
    return int(any(claim.missed for claim in claims))


def _layouts(options):
    kinds = [("fsdp", "float32")] if options.quick else KINDS
    scenes = QUICK if options.quick else SCENES
    columns = ["_".join(kind) for kind in kinds] + ([] if options.quick else ["restarted"])
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks._layouts", folder, *["quick"] * options.quick]
        subprocess.run(
            words, env=_environment(not options.optimized), check=True, stdout=sys.stderr
        )
        found = {
            name: {x: pickle.loads((Path(folder) / f"{name}_0.{x}").read_bytes()) for x in columns}
            for name in scenes
        }
    out = table("greatest difference, by layout (processes x devices of each)", *columns)
    far = {}
    for name in scenes:
        base = "1x2" if name in ("1x2", "2x1") else SAVED
        cells = []
        for column in columns:
            other = found[SAVED]["fsdp_float32"] if column == "restarted" else found[base][column]
            far[name, column] = _far(found[name][column], other)
            cells.append("-" if other is found[name][column] else _told(*far[name, column]))
        out.add_row(name, *cells)
    Console(width=150).print(out)
    pairs = [far["2x1", x][1] for x in columns if x.endswith("float32")]
    yield Claim("2x1 and 1x2 in float32, numbers of other bits", max(pairs), most=0)
    if options.quick:
        return
    for dtype, most in (("float32", 1e-6), ("float64", 1e-14)):
        apart = [_far(found[a][x], found[b][x])[0] for a, b, x in _fours(dtype)]
        yield Claim(
            f"any two layouts of four devices in {dtype}, difference", max(apart), most=most
        )
    again = far[SAVED, "restarted"][1]
    yield Claim("a restart of the same layout, numbers of other bits", again, most=0)
    most = max(far[name, "restarted"][0] for name in scenes)
    yield Claim("a restart of another layout, difference", most, most=1e-5)


def _fours(dtype):
    """Pairs of layouts of four devices, and what is compared."""
    names = [name for name in SCENES if np.prod([*map(int, name.split("x"))]) == 4]
    columns = [f"{partition}_{x}" for partition, x in KINDS if x == dtype]
    return [(a, b, x) for i, a in enumerate(names) for b in names[:i] for x in columns]


def _far(got, want):
    """The greatest difference, of arrays by their largest number, and how many numbers differ."""
    pairs = [(got[name].ravel(), x.ravel()) for name, x in want.items()]
    far = [np.max(abs(a - b)) / max(np.max(abs(b)), 1e-30) for a, b in pairs if len(b)]
    return float(max(far)), sum(int((a != b).sum()) for a, b in pairs)


def _told(far, numbers):
    return f"{far:.1e}, {numbers} numbers" if numbers else "to the bit"


def _deaths(runs):
    """Seconds from a death until the other process has left, and its exit codes."""
    seconds, codes = {name: [] for name in DEATHS}, {name: [] for name in DEATHS}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            for name in DEATHS:
                words = [sys.executable, "-m", "tests.training.worker", folder, name]
                env = _environment(True) | {"HEARTBEAT": "10"}
                run = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True)
                texts = [(Path(folder) / f"{name}_{i}").read_text() for i in range(2)]
                [begun] = re.findall(r"([\d.]+) is when it begins", "".join(texts))
                rest = 1 if name == "first_killed" else 0
                [(code, end)] = [x[2:4] for x in json.loads(run.stdout) if x[1] == rest]
                seconds[name].append(end - float(begun))
                codes[name].append(code)
    out = table(
        f"two processes in fit, {runs} runs of each", "the rest leaves after, s", "exit code"
    )
    for name, text in DEATHS.items():
        counts = [f"{codes[name].count(code)} x {code}" for code in sorted(set(codes[name]))]
        out.add_row(text, f"{min(seconds[name]):.1f}-{max(seconds[name]):.1f}", ", ".join(counts))
    Console(width=150).print(out)
    for name, text in DEATHS.items():
        yield Claim(f"{text}: seconds until the rest leaves", max(seconds[name]), most=15)
    known = all(code in (75, -6) for name in DEATHS for code in codes[name])
    yield Claim("exit codes that are neither 75 nor SIGABRT", float(not known), most=0)


def _environment(compiling):
    return one_device(os.environ, compiling) | UNCACHED | {"JAX_PLATFORMS": "cpu"}


if __name__ == "__main__":
    sys.exit(main())
