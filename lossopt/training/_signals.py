"""Ctrl-C, and the end that a system asks for: noted and acted on between two calls."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

TOLD = "\nlossopt.{} ends after this call of the program; once more ends it at once.\n"


class Asked:
    """Which signal came, if one did."""

    def __init__(self):
        self.signal: int | None = None


@contextlib.contextmanager
def noted(verb: str = "fit") -> Iterator[Asked]:
    """Notes SIGINT and SIGTERM instead of acting on them; a second one acts at once.

    It does so in the main thread alone, and not where a signal is ignored or another than Python
    handles it. Handlers are put back at the end.

    Args:
      verb: what ends, for whoever asked.
    """
    asked = Asked()
    before: dict[int, Any] = {}

    def note(number, frame):
        if asked.signal is not None:
            put_back()
            signal.raise_signal(number)
            return
        asked.signal = number
        with contextlib.suppress(OSError):  # nobody listens
            os.write(2, TOLD.format(verb).encode())

    def put_back():
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    before[number] = handler
                    signal.signal(number, note)
        yield asked
    finally:
        put_back()
