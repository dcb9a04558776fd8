"""The quick form of each example keeps its claim. `make demo` runs `examples/digits.py` in full."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.xla import UNCACHED, one_device

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ["auxiliary", "batch_sizes", "ladder", "language_model", "low_memory", "lr_robustness"]
NAMES += ["mup", "optuna_bridge", "overfit", "parallel", "penalty_path", "pretrain", "processes"]
NAMES += ["resume", "schedules", "sparse", "streamed"]
# These take longer to compile than to run, if XLA does what it can.
COMPILING = {"auxiliary", "batch_sizes", "ladder", "low_memory", "lr_robustness", "overfit"}
COMPILING |= {"optuna_bridge", "parallel", "penalty_path", "pretrain", "processes", "schedules"}

SEVERAL = {"auxiliary", "parallel", "pretrain", "processes"}  # of devices, in programs of their own


@pytest.mark.parametrize("name", NAMES)
def test_quick_form(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick"]
    env = one_device(os.environ, name in COMPILING) | (UNCACHED if name in SEVERAL else {})
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
