"""What the first process finds out, all processes know: only it touches the directory."""

from collections.abc import Callable
from typing import Any

from lossopt import _processes
from lossopt.checkpoint._damaged import Damaged

KINDS = ValueError, FileNotFoundError, Damaged, RuntimeError


def of_first(find_out: Callable[[], Any]) -> Any:
    """What `find_out` returns on process 0, on every process; what it raises there, too."""
    return _processes.of_first(find_out, KINDS)
