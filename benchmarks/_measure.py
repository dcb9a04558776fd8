"""Measures rivals in turns within one process, so that a busy machine slows all of them alike."""

import dataclasses
import datetime
import gc
import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

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
        compiled[name], compilations[name] = _compile(jax.jit(rival), *args)
        results[name] = jax.block_until_ready(compiled[name](*args))
    times = {name: np.empty(rounds) for name in rivals}
    for turn, name in _turns(rivals, rounds):
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


@dataclasses.dataclass(frozen=True)
class Stepper:
    """A rival that changes a carry in place, call after call.

    Attributes:
      ready: makes the carry and returns the function that takes one step.
      compilation: seconds to trace and compile, cold.
      memory: temporary bytes of the compiled program.
    """

    ready: Callable[[], Callable[[], None]]
    compilation: float = 0.0
    memory: int = 0


def donated(start: Callable, step: Callable, *args: Any) -> Stepper:
    """The compiled `carry = step(carry, *args)`, from `carry = start()` on, which it overwrites."""
    begin = jax.jit(start)
    compiled, seconds = _compile(jax.jit(step, donate_argnums=0), jax.eval_shape(begin), *args)

    def ready():
        carry = jax.block_until_ready(begin())

        def call():
            nonlocal carry
            carry = jax.block_until_ready(compiled(carry, *args))

        return call

    return Stepper(ready, seconds, compiled.memory_analysis().temp_size_in_bytes)


def compare_steps(
    rivals: dict[str, Stepper], *, rounds: int, calls: int = 2
) -> dict[str, Measured]:
    """As `compare`, for rivals too large to live together: each turn makes its carry anew."""
    times = {name: np.empty(rounds) for name in rivals}
    for turn, name in _turns(rivals, rounds):
        call = rivals[name].ready()
        call()
        start = clock()
        for _ in range(calls):
            call()
        times[name][turn] = (clock() - start) / calls
        del call  # and the carry, before the next one is made
    first = next(iter(times.values()))
    return {
        name: Measured(
            result=None,
            ratios=times[name] / first,
            seconds=float(np.median(times[name])),
            compilation=rival.compilation,
            memory=rival.memory,
        )
        for name, rival in rivals.items()
    }


@dataclasses.dataclass(frozen=True)
class Turns:
    """What one rival returned and what it cost, a number per turn.

    Attributes:
      results: what it returned.
      seconds: by `clock`.
      wall: by the wall clock.
    """

    results: list
    seconds: np.ndarray
    wall: np.ndarray


def take_turns(rivals: dict[str, Callable[[int], Callable]], *, rounds: int) -> dict[str, Turns]:
    """Warm calls in turns; each rival gets ready by the turn's number, and returns the call."""
    for ready in rivals.values():
        ready(rounds)()
    taken = {name: Turns([], np.empty(rounds), np.empty(rounds)) for name in rivals}
    for turn, name in _turns(rivals, rounds):
        call, turns = rivals[name](turn), taken[name]
        gc.collect()
        start, wall = clock(), time.perf_counter()
        turns.results.append(call())
        turns.seconds[turn], turns.wall[turn] = clock() - start, time.perf_counter() - wall
    return taken


@dataclasses.dataclass(frozen=True)
class Claim:
    """A number, and what it should be: at most, or at least."""

    what: str
    got: float
    most: float = np.inf
    least: float = -np.inf
    judged: bool = True

    @property
    def missed(self) -> bool:
        """Whether it is not so; a NaN never is."""
        return not self.least <= self.got <= self.most

    def __str__(self) -> str:
        verdict = ("MISSED" if self.missed else "met") + ("" if self.judged else ", not judged")
        target = f"most {self.most:g}" if np.isinf(self.least) else f"least {self.least:g}"
        return f"{verdict}: {self.what} {self.got:.3g}, target at {target}"


def clock() -> float:
    """Seconds: on one thread of a CPU those it was given, which neighbors cannot lengthen."""
    return time.process_time() if _alone() else time.perf_counter()


def spread(ratios: np.ndarray) -> str:
    """The median and the quartiles, as in `0.75 (0.71-0.79)`."""
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def header(*packages: str) -> str:
    """When, where and with what."""
    names = ("jax", "optax", "numpy", *packages)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    device = jax.devices()[0]
    return "\n".join(
        [
            f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores",
            f"platform: {device.platform} ({device.device_kind}), threads: {THREADS}, "
            f"times: {'processor' if _alone() else 'wall clock'}",
            ", ".join([f"Python {platform.python_version()}", *versions]),
        ]
    )


def _compile(jitted, *args):
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    return compiled, time.perf_counter() - start


def _turns(rivals, rounds):
    """Every rival in every round, each other round backwards."""
    for turn in range(rounds):
        for name in list(rivals)[:: 1 if turn % 2 else -1]:
            yield turn, name


def _alone():
    return THREADS == 1 and jax.default_backend() == "cpu"


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def compilations(call: Callable[[], Any]) -> int:
    """How many programs a call compiles."""
    names = []

    def listen(event: str, duration_secs: float, **about: str | int):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    call()
    jax.monitoring.unregister_event_duration_listener(listen)
    return len(names)


def table(title: str, *columns: str) -> Table:
    """An empty one, a row's name in front."""
    out = Table(box=box.MARKDOWN, title=title)
    for column in ("", *columns):
        out.add_column(column, justify="right" if column else "left")
    return out
