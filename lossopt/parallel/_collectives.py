"""What devices send each other in a compiled program."""

import dataclasses
import math
import re
from typing import Any

from lossopt.parallel import _hlo

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_FORMS = {  # of groups of devices
    "named": re.compile(r"replica_groups=mesh\[([^]]*)\][^{]*\{([^}]*)\}"),
    "counted": re.compile(r"replica_groups=\[\d+,(\d+)\]"),
    "listed": re.compile(r"replica_groups=\{\{([\d,]+)\}"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """An array that devices reduce, gather or exchange.

    Attributes:
      kind: `"all-reduce"`, `"all-gather"`, `"reduce-scatter"`, `"all-to-all"` or
        `"collective-permute"`.
      shape: of what is reduced, or of what is gathered.
      dtype: its name.
      bytes: of it, on one device.
      devices: how many take part.
      times: how often it happens in a call: in a loop as often as that turns. A loop whose length
        is not in the program counts once.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    devices: int
    times: int

    def __str__(self) -> str:
        times = f", {self.times} times" if self.times > 1 else ""
        return f"{self.kind} of {self.dtype}{list(self.shape)} over {self.devices} devices{times}"

    @property
    def moved(self) -> int:
        """Bytes that one device sends, all times together, on a ring.

        An all-reduce of n devices sends 2 (n - 1) / n of its bytes, a permutation all of them, the
        others (n - 1) / n.
        """
        others = self.devices - 1
        share = {"all-reduce": 2 * others, "collective-permute": self.devices}
        return self.times * self.bytes * share.get(self.kind, others) // self.devices


def collectives(program: Any) -> tuple[Collective, ...]:
    """What the devices send each other in a compiled program.

    One for each array: an operation that reduces five gradients at once is five.

    Args:
      program: from `jax.jit(fn).lower(...).compile()`, or its text.

    Returns:
      The collectives, in the order of the text.

    Examples:
      >>> mesh = lo.parallel.mesh()
      >>> lies = jax.NamedSharding(mesh, jax.P("data"))
      >>> program = jax.jit(jnp.sum, in_shardings=lies).lower(jnp.zeros(64)).compile()
      >>> print(*lo.parallel.collectives(program))
      all-reduce of float32[] over 8 devices
    """
    text = program if isinstance(program, str) else program.as_text()
    everyone = math.prod(map(int, re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text)))
    return tuple(
        Collective(x.kind, *array, array.bytes, _devices(x.attributes, everyone), x.times)
        for x in _hlo.operations(text, _KINDS)
        for array in (x.results[-len(x.operands) :] if x.kind == "all-gather" else x.operands)
    )


def _devices(attributes, everyone):
    found = {name: form.search(attributes) for name, form in _FORMS.items()}
    if found["named"]:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found["named"][1]))
        names = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found["named"][2])
        return math.prod(int(part or sizes[name]) for name, part in names)
    if found["counted"]:
        return int(found["counted"][1])
    return found["listed"][1].count(",") + 1 if found["listed"] else everyone
