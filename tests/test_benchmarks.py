"""The quick form of a benchmark runs and meets what it judges; times are not judged here."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.xla import UNCACHED, one_device

ROOT = pathlib.Path(__file__).parents[1]


VERDICTS = {
    "checkpoint": 2,
    "exactness": 1,
    "faults": 5,
    "fit": 2,
    "fused": 4,
    "learning_rate": 2,
    "optax_rules": 1,
    "parallel": 12,
    "processes": 1,
    "rungs": 4,
    "scaling": 3,
    "sparsity": 2,
    "sweeps": 5,
}
# For longer than they run, if XLA does what it can.
COMPILING = {"fit", "optax_rules", "rungs", "scaling", "sweeps"}

SEVERAL = {"parallel", "processes"}  # of devices, in programs of their own


@pytest.mark.parametrize(("name", "verdicts"), VERDICTS.items())
def test_quick_form(name, verdicts):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    env = one_device(os.environ, name in COMPILING) | (UNCACHED if name in SEVERAL else {})
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\nmet: ") >= verdicts
