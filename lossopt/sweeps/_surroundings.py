"""What surrounds a call on a worker: the settings of jax, and who called."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax


@contextlib.contextmanager
def under(settings: tuple[tuple[str, Any], ...]) -> Iterator[None]:
    """With the settings of jax that the caller has."""
    with contextlib.ExitStack() as stack:
        here = jax.config.values
        for name, value in settings:
            if name in here and here[name] != value:
                context = getattr(jax, name.removeprefix("jax_"), None)
                if context is None:
                    jax.config.update(name, value)  # another process: threads have what all have
                else:
                    stack.enter_context(context(value))
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C on a terminal reaches children, too: it is for the process that called to end them.

    Where that is gone, nobody ends a process of a pool, which would wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _end_with(parent)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@cache
def _end_with(parent):
    """Lets this process end where its parent is gone."""

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
