"""Two processes write one state, each its own shards, and agree on what they read."""

import os
import pathlib
import socket
import subprocess
import sys

WORKER = pathlib.Path(__file__).with_name("worker.py")


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), port, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=pathlib.Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    outputs = [run.communicate(timeout=180)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "00000002",
        "00000003",
        "00000003.damaged",
    ]
