"""The processes of a run, which take each step and each decision together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lossopt import _processes


class Peers(NamedTuple):
    """Those that must agree.

    Attributes:
      joint: whether there are several.
    """

    joint: bool

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return not self.joint or jax.process_index() == 0

    def agreed(self, count: int, *others: int) -> tuple[int, ...]:
        """The count of the first process, and of other numbers the largest."""
        if not self.joint:
            return count, *others
        numbers = _processes.gathered([count, *others])
        return tuple(map(int, (numbers[0, 0], *numbers[:, 1:].max(axis=0))))

    def heard(self, signal: int | None) -> int | None:
        """The signal that any process got."""
        return self.agreed(0, signal or 0)[1] or None

    def alike(self, do: Callable[[], Any]) -> Any:
        """What `do` returns; where it raises on one process, all raise."""
        return _processes.alike(do) if self.joint else do()

    def alone(self, error: Exception) -> bool:
        """Whether this process raises, and others may wait for it."""
        return self.joint and not _processes.agreed(error)
