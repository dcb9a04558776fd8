"""Arrays by name: Orbax writes and reads them, TensorStore reads them again without Orbax.

Both are imported where they are needed: importing Orbax takes a second.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lossopt._jax import host_device

Arrays = dict[str, Any]
FOLDER = "state"  # of Orbax, within the folder of a step
AHEAD = 2  # arrays that are read while another is digested
ALIGNMENT = 64  # bytes: jax takes such memory for its own on a CPU, without another copy
_turn = threading.Lock()


class Store:
    """Copies of arrays on the host, and one checkpointer of Orbax, opened at its first use.

    The memory of copies is kept from one save to the next: to be given new memory by the system
    takes longer than to fill it.
    """

    def __init__(self):
        self._copies: dict[str, np.ndarray] = {}
        self._orbax: Any = None

    def copy(self, name: str, value: Any) -> np.ndarray:
        """The numbers of an array as they are now. They hold until the next call with this name."""
        copy = self._copies.get(name)
        if copy is None or (copy.shape, copy.dtype) != (value.shape, value.dtype):
            raw = np.empty(value.nbytes + ALIGNMENT, np.uint8)
            start = -raw.ctypes.data % ALIGNMENT
            copy = raw[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
            self._copies[name] = copy
        if isinstance(value, np.ndarray):
            np.copyto(copy, value)
            return copy
        for shard in value.addressable_shards:  # jax would keep a copy of the whole
            if shard.replica_id == 0:
                np.copyto(copy[(*shard.index, ...)], shard.data)
        return copy

    def alone(self) -> contextlib.AbstractContextManager[object]:
        """While one thread writes or reads: all of Orbax has one number for what it is doing.

        Several processes must not take turns of their own: they do it in the order of their calls.
        """
        return _turn if jax.process_count() == 1 else contextlib.nullcontext()

    def write(self, folder: Path, arrays: Arrays) -> Callable[[], None]:
        """Starts to write into the folder of a step; what it returns waits for the end."""
        import orbax.checkpoint as ocp

        orbax = self._opened()
        with _quiet():
            state = ocp.args.PyTreeSave(jax.tree.map(_shared, arrays))
            orbax.save(folder / FOLDER, args=state)

        def wait():
            with _quiet():
                orbax.wait_until_finished()

        return wait

    def read(self, folder: Path, places: dict[str, jax.sharding.Sharding | None]) -> Arrays:
        """The arrays of these names, laid out like this; None is an array of numpy."""
        import orbax.checkpoint as ocp

        how = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            if place is None
            else ocp.ArrayRestoreArgs(sharding=place)
            for name, place in places.items()
        }
        item = dict.fromkeys(how, 0)
        state = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        with self.alone(), _quiet():
            return self._opened().restore(folder / FOLDER, args=state)

    def read_again(self, folder: Path, names: Iterable[str]) -> Iterator[np.ndarray]:
        """The arrays of these names by TensorStore alone, which asks no other process to join."""
        import tensorstore

        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 10_000_000}})
        files = {"driver": "file", "path": f"{folder / FOLDER}/"}
        reading: deque[Any] = deque()
        for name in names:
            spec = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
            opened = tensorstore.open(
                {"driver": "zarr", "kvstore": spec}, open=True, read=True, context=context
            )
            reading.append(opened.result().read())
            if len(reading) > AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()

    def close(self) -> None:
        """Gives memory back and ends the threads of Orbax; the next use opens it again."""
        orbax, self._orbax, self._copies = self._orbax, None, {}
        with (
            contextlib.suppress(Exception),
            _quiet(),
        ):  # Orbax raises here what it has raised before
            if orbax is not None:
                orbax.close()

    def _opened(self):
        """The checkpointer, which counts no operations where no other process waits for signals.

        Orbax has one count for all of a program: a manager of the user's own would wait for ever
        for signals under a number that a thread of ours has raised.
        """
        if self._orbax is not None:
            return self._orbax
        import orbax.checkpoint as ocp

        class Checkpointer(ocp.AsyncCheckpointer):
            def synchronize_next_awaitable_signal_operation_id(self):
                if jax.process_count() > 1:
                    super().synchronize_next_awaitable_signal_operation_id()

        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        # Not in another thread than ours, which needs no signals then.
        beside = ocp.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = Checkpointer(handler, async_options=beside)
        return self._orbax


def _shared(array):
    """An array of numpy in the same memory as one of jax, where it can be: Orbax copies numpy's."""
    cpu = host_device()
    known = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    if not isinstance(array, np.ndarray) or cpu is None or jax.process_count() > 1 or not known:
        return array
    return jax.device_put(array, cpu, may_alias=True)


@contextlib.contextmanager
def _quiet():
    """Without the tracebacks that each thread of Orbax logs: what went wrong is raised."""
    logger = logging.getLogger("absl")
    other = lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
