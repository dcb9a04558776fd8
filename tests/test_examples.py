"""The quick form of each example keeps its claim. `make demo` runs `examples/digits.py` in full."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ["batch_sizes", "ladder", "language_model", "low_memory", "overfit", "resume", "sparse"]
NAMES += ["streamed"]
COMPILING = {"batch_sizes", "ladder", "overfit"}  # longer than they run, if XLA does what it can


@pytest.mark.parametrize("name", NAMES)
def test_quick_form(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick"]
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}  # one device
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if name in COMPILING else {}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
