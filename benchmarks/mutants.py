"""Mutants: small faults put into the code of a room, one by one, and whether its tests see them.

A fault is drawn by its place, evenly over the modules of the room: a comparison, an operator, a
constant, the branches of a `where` or a keyword changed, a check or a statement left out, an
operand instead of an expression. The tests are the room's own: its examples, its folder in `tests`,
and in the contract the rows of the members that come to the fault. They run in a copy of the tree.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks._measure import header
from benchmarks._mutations import Mutant, draw, members

ROOT = Path(__file__).parents[1]
CAPTURED: dict = {"capture_output": True, "text": True}
EQUIVALENT = {  # the module and its line with a fault that changes nothing, and why
    "lossopt/losses/_ranking.py: ranked = jnp.take_along_axis(sunk(scores, present), order)": (
        "the axis left out, -1, is the one that jax takes by itself"
    ),
    "lossopt/fused/_layer.py: "
    "return Mean((total - jnp.where(wrong, jnp.nan, 0)), jnp.sum(weights))": (
        "a total less 0 is itself, and less NaN is NaN, as with a plus"
    ),
}


def judge(root: Path, mutant: Mutant, timeout: float) -> str | None:
    """The test that sees the fault in this copy of the tree, None where none does."""
    path = root / mutant.path
    sound = path.read_text("utf-8")
    path.write_text(mutant.source, "utf-8")
    try:
        return next(filter(None, (failed(root, x, timeout) for x in stages(root, mutant))), None)
    finally:
        path.write_text(sound, "utf-8")


def stages(root: Path, mutant: Mutant) -> Iterator[list[str]]:
    """What pytest is given: the tests that are near, then all of the room."""
    room, module = Path(mutant.path).parts[-2:]
    mirror = [x for x in [f"tests/{room}/test{module}"] if (root / x).exists()]
    yield near(root, room, mirror, members(root, room, mutant.unit))
    yield [*mirror, f"tests/{room}"]


def near(root: Path, room: str, files: list[str], chosen: set[str]) -> list[str]:
    """The examples of some members, their rows in the contract, and what names them in files."""
    contract = sorted(x.relative_to(root).as_posix() for x in root.glob("tests/*contract*"))
    return [f"lossopt/{room}", *contract, *files, "-k", " or ".join(sorted(chosen))]


def failed(root: Path, selected: list[str], timeout: float) -> str | None:
    """The first of these tests that fails, None where none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"} | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault as long as the last one, made at once, is read
        "JAX_ENABLE_COMPILATION_CACHE": "true",  # what no fault has changed is compiled once
        "JAX_COMPILATION_CACHE_DIR": str(root / ".compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command += selected
    try:
        run = subprocess.run(command, cwd=root, env=env, timeout=timeout, **CAPTURED)
    except subprocess.TimeoutExpired:
        return f"no end within {timeout:g} s"
    if run.returncode in (0, 5):  # 5: nothing was selected
        return None
    named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", run.stdout, re.MULTILINE)
    return named[1] if named else f"{run.stdout}\n{run.stderr}".strip().splitlines()[-1]


def main():
    """Prints what became of each mutant; returns how many survived without a reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("room", help="as in lossopt/ROOM and tests/ROOM")
    parser.add_argument("--count", type=int, default=20, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", type=int, nargs="+", help="try those with these numbers")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a run of tests")
    options = parser.parse_args()
    console = Console(width=140, highlight=False, markup=False, soft_wrap=True)
    console.print(header())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__", "site"))
        sound = [near(root, options.room, [], members(root, options.room))]
        for selected in [*sound, [f"tests/{options.room}"]]:
            found = failed(root, selected, 4 * options.timeout)
            assert found is None, f"{found} fails without a fault"
        tallies: dict[str, Counter] = {}
        for i, mutant in enumerate(draw(root, options.room, options.count, options.seed)):
            if options.only is None or i in options.only:
                start = time.monotonic()
                seen = judge(root, mutant, options.timeout)
                reason = EQUIVALENT.get(f"{mutant.path}: {mutant.after}")
                verdict = "killed" if seen else "equivalent" if reason else "survived"
                tallies.setdefault(mutant.path, Counter())[verdict] += 1
                why = seen or reason or f"all tests of {options.room} pass"
                took = f"{time.monotonic() - start:.0f} s"
                console.print(f"{i:2} {verdict}: {mutant.path}:{mutant.line}, {why} ({took})")
                console.print(f"   - {mutant.before}\n   + {mutant.after}")
    return verdict_of(console, tallies)


def verdict_of(console, tallies):
    """Prints the table; returns how many survived."""
    table = Table("", *(kinds := ("killed", "equivalent", "survived")), box=box.MARKDOWN)
    for path, tally in sorted(tallies.items()):
        table.add_row(path, *(str(tally[kind]) for kind in kinds))
    total = sum(tallies.values(), Counter())
    table.add_row("all", *(str(total[kind]) for kind in kinds))
    console.print(table)
    met = f"missed by {total['survived']}" if total["survived"] else "met"
    console.print(f"{met}: every fault that can be seen is seen, {sum(total.values())} mutants")
    return total["survived"]


if __name__ == "__main__":
    sys.exit(main())
