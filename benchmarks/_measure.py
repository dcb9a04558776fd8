"""Measures rivals in turns within one process, so that a busy machine slows all of them alike."""

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import THREADS


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one rival returned and what it cost.

    Attributes:
      result: what it returned.
      ratios: its time in the first rival's, a number per round.
      seconds: the median time of a warm call.
      compilation: seconds to trace and compile, cold.
      memory: temporary bytes of the compiled program.
    """

    result: Any
    ratios: np.ndarray
    seconds: float
    compilation: float
    memory: int


def compare(rivals: dict[str, Callable], *args: Any, rounds: int) -> dict[str, Measured]:
    """Compiles every rival, warms it up, then runs all in turns, every other round backwards."""
    compiled, compilations, results = {}, {}, {}
    for name, rival in rivals.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(rival).lower(*args).compile()
        compilations[name] = time.perf_counter() - start
        results[name] = jax.block_until_ready(compiled[name](*args))
    times = {name: np.empty(rounds) for name in rivals}
    for turn in range(rounds):
        for name in list(rivals)[:: 1 if turn % 2 else -1]:
            start = clock()
            jax.block_until_ready(compiled[name](*args))
            times[name][turn] = clock() - start
    first = next(iter(times.values()))
    return {
        name: Measured(
            result=results[name],
            ratios=times[name] / first,
            seconds=float(np.median(times[name])),
            compilation=compilations[name],
            memory=compiled[name].memory_analysis().temp_size_in_bytes,
        )
        for name in rivals
    }


def clock() -> float:
    """Seconds: on one thread of a CPU those it was given, which neighbors cannot lengthen."""
    return time.process_time() if _alone() else time.perf_counter()


def spread(ratios: np.ndarray) -> str:
    """The median and the quartiles, as in `0.75 (0.71-0.79)`."""
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def header() -> str:
    """When, where and with what."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "numpy")]
    device = jax.devices()[0]
    return "\n".join(
        [
            f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores",
            f"platform: {device.platform} ({device.device_kind}), threads: {THREADS}, "
            f"times: {'processor' if _alone() else 'wall clock'}",
            ", ".join([f"Python {platform.python_version()}", *versions]),
        ]
    )


def _alone():
    return THREADS == 1 and jax.default_backend() == "cpu"


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
