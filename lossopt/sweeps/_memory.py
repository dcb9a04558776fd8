"""How much memory there is."""

import contextlib
import os
from pathlib import Path
from typing import Any

_GROUPS = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"
_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def free(device: Any) -> int | None:
    """Bytes that a sweep may take there: half of what the CPU has left, or all of a device's.

    None where nobody says.
    """
    if device.platform == "cpu":
        left = _left()
        return left and left // 2
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def shown(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _left():
    """Bytes that this process may still take: of its control group, or of the machine."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([machine, *_left_of_groups()])
    return None


def _left_of_groups():
    for folder in map(Path, _GROUPS):
        for most, used in _FILES:
            with contextlib.suppress(ValueError, OSError):  # "max" is no number
                yield int((folder / most).read_text()) - int((folder / used).read_text())
