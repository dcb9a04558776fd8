"""Copies of leaves on the host, in memory that is kept from one save to the next.

To be given new memory by the system takes longer than to fill it.
"""

from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes: jax takes such memory for its own on a CPU, without another copy


class Copies:
    """One buffer for each leaf, by name."""

    def __init__(self):
        self._buffers: dict[str, np.ndarray] = {}

    def of(self, name: str, value: Any) -> np.ndarray:
        """The numbers of an array as they are now. They hold until the next call with this name."""
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[name] = _aligned(value.shape, value.dtype)
        if isinstance(value, np.ndarray):
            np.copyto(buffer, value)
            return buffer
        for shard in value.addressable_shards:  # jax would keep a copy of the whole
            if shard.replica_id == 0:
                np.copyto(buffer[(*shard.index, ...)], shard.data)
        return buffer


def _aligned(shape, dtype):
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
