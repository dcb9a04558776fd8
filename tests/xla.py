"""Options of XLA that not every version of jaxlib knows: an unknown one ends the process."""

from collections.abc import Mapping
from importlib.metadata import version

# XLA:CPU forgets the order of collectives in programs of the cache, which then may wait for ever.
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def emitters(used: bool) -> dict[str, bool]:
    """Of XLA's two ways to compile fusions on CPUs, where there are two."""
    release = tuple(map(int, version("jaxlib").split(".")[:2]))
    return {"xla_cpu_use_fusion_emitters": used} if release < (0, 11) else {}


def quick() -> str:
    """Small programs compile almost twice as fast in one piece, and without the emitters."""
    options = {"xla_cpu_parallel_codegen_split_count": 1} | emitters(False)
    return " ".join(f"--{name}={value}".lower() for name, value in options.items())


def one_device(environment: Mapping[str, str], compiling: bool) -> dict[str, str]:
    """Of a process with one device; of one that compiles longer than it runs, with the options."""
    options = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": quick()} if compiling else {}
    return {name: x for name, x in environment.items() if name != "XLA_FLAGS"} | options
