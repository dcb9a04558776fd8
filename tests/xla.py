"""Options of XLA that not every version of jaxlib knows: an unknown one ends the process."""

from importlib.metadata import version


def emitters(used: bool) -> dict[str, bool]:
    """Of XLA's two ways to compile fusions on CPUs, where there are two."""
    release = tuple(map(int, version("jaxlib").split(".")[:2]))
    return {"xla_cpu_use_fusion_emitters": used} if release < (0, 11) else {}
