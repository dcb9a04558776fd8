"""A process that cannot go on ends at once, so that none waits for it."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax

from lossopt import _processes

LOST = re.compile(  # a status of XLA, and what Gloo, NCCL or jax's coordination service say
    r"UNAVAILABLE: |[A-Z_]+: .*("
    r"Gloo .*(Read error|Write error|[Cc]onnect|Broken pipe|[Tt]imed? ?out)"
    r"|NCCL .*remote process exited"
    r"|heartbeat|coordination service|Barrier (failed|timed out)|GetKeyValue\(\) timed out)"
)
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: try again
GRACE = 1.0  # seconds; with process 0 jax's coordination service goes, which aborts all others


@contextmanager
def guard() -> Iterator[None]:
    """A context for a training loop over several processes: none waits for one that is gone.

    In every step all processes wait for each other. Where one of them is gone, the others are given
    an exception, say so in a sentence on stderr and end with exit code 75, which asks to be started
    again. Where one has an exception of its own, it prints its traceback and ends with exit code 1,
    so that the others learn of it. Both end without waiting for others as jax does at the end of a
    process: `atexit` is skipped, and what other files buffer is lost. Process 0 stays a second
    longer, because without it jax aborts the others before they can speak. Errors that all
    processes raise alike, as `fit` sees to where a loader fails in one, are raised.

    `fit` enters it by itself. With one process it does nothing; inside of itself it is harmless.

    Returns:
      A context manager.

    Examples:
      >>> with lo.parallel.guard():
      ...     print(sum(range(3)))
      3
    """
    if not _processes.several():
        yield
        return
    try:
        yield
    except GeneratorExit:  # who asked for the values of a loop wants no more
        raise
    except BaseException as error:
        if _processes.agreed(error):
            raise
        _end(error)


@contextmanager
def outlived() -> Iterator[None]:
    """The same where a process is gone; any other error is raised, for all processes have it."""
    try:
        yield
    except Exception as error:
        if _processes.several() and lost(error):
            _end(error)
        raise


def lost(error: BaseException) -> str | None:
    """What jax says of a process that is gone, in one line; None where it is another error."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        text = str(cause)
        if isinstance(cause, Exception) and LOST.match(text):  # JaxRuntimeError, or ValueError
            return text.splitlines()[0]
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _end(error):
    code = 1
    try:
        code = _said(error)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        if jax.process_index() == 0:
            time.sleep(GRACE)
    finally:
        os._exit(code)


def _said(error):
    """The exit code, after what there is to say is on stderr."""
    who = f"Process {jax.process_index()} of {jax.process_count()}"
    if gone := lost(error):
        _say(
            f"{who} ends, because another process of this run is gone ({gone}): start all of them "
            "again, and the run goes on from its newest checkpoint."
        )
        return TEMPORARY
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
        if not isinstance(code, int):
            _say(str(code))
            code = 1
    else:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        with suppress(Exception):
            sys.excepthook(type(error), error, error.__traceback__)
    _say(f"{who} ends at once, so that the others, which wait for it in a collective, learn of it.")
    return code


def _say(sentence):
    with suppress(Exception):
        print(sentence, file=sys.stderr)
