"""The quick form of each benchmark runs and finds its errors small; times are not judged here."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_exactness():
    command = [sys.executable, "-m", "benchmarks.exactness", "--quick"]
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}  # one device
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("met: error") == 1
