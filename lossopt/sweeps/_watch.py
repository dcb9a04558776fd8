"""When a sweep saves, when it ends, and what is shown meanwhile."""

import math
from collections.abc import Callable
from typing import Any

from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._saves import Saves

EVERY = 2.0  # seconds between two saves, at least: one takes a part of it
BLINK = 0.1  # seconds in which nobody sees the bar move
UNDER_WAY = 60.0  # seconds between two saves of the same trials


class Watch:
    """When to save, when to end, and what is shown meanwhile.

    Args:
      ledger: what comes of the trials.
      saves: the checkpoint.
      limit: when the sweep has to end, on the clock.
      asked: the signals that came.
      show: of the bar.
      clock: gives seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        saves: Saves,
        limit: float,
        asked: Any,
        show: Callable,
        clock: Callable[[], float],
    ):
        self._ledger, self._saves, self._limit = ledger, saves, limit
        self._asked, self._show, self._clock = asked, show, clock
        self._begun, self._shown = clock(), -math.inf
        self._saved: float | None = None
        self._new = False

    @property
    def asked(self) -> bool:
        """Whether somebody asks to end."""
        return self._asked.signal is not None

    @property
    def over(self) -> bool:
        """Whether no further trial begins."""
        return self.asked or self._clock() >= self._limit

    @property
    def due(self) -> bool:
        """Whether it is time to save at the end of a chunk."""
        return self._saved is None or self._clock() - self._saved > EVERY

    @property
    def long(self) -> bool:
        """Whether it is time to save within a chunk."""
        since = self._begun if self._saved is None else self._saved
        return self._clock() - since > UNDER_WAY

    def save(self, under: Any = None) -> None:
        """Saves now."""
        self._saves.now(under)
        self._saved, self._new = self._clock(), False

    def came(self) -> None:
        """Takes note of new results."""
        self._new = True
        if self._clock() - self._shown > BLINK:
            self._tell()

    def leave(self, under: Any) -> None:
        """Saves what was not, with trials under way."""
        if self._new:
            self.save(under)

    def end(self) -> None:
        """Saves what was not, and tells how far the sweep came."""
        self.leave(None)
        self._tell()

    def _tell(self):
        self._shown = self._clock()
        row = {"best/value": self._ledger.best}
        self._show(self._ledger.done, row, self._shown - self._begun)
