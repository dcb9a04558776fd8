"""Arrays on disk: Orbax writes and reads them, TensorStore reads them again without Orbax.

Imported where it is needed: importing Orbax takes a second.
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
import orbax.checkpoint as ocp
import tensorstore

from lossopt._jax import host_device

Arrays = dict[str, Any]
_turn = threading.Lock()
AHEAD = 2  # arrays that are read while another is digested


class _Checkpointer(ocp.AsyncCheckpointer):
    """One that does not count its operations on one process, where no other waits for signals.

    Orbax has one count for all of a program: a manager of the user's own would wait for ever for
    signals under a number that a thread of ours has raised.
    """

    def synchronize_next_awaitable_signal_operation_id(self):
        if jax.process_count() > 1:
            super().synchronize_next_awaitable_signal_operation_id()


class Store:
    """One checkpointer of Orbax, for arrays by name."""

    def __init__(self):
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        # Not in another thread than ours, which needs no signals then.
        beside = ocp.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = _Checkpointer(handler, async_options=beside)

    def alone(self) -> contextlib.AbstractContextManager[object]:
        """While one thread writes or reads: all of Orbax has one number for what it is doing.

        Several processes must not take turns of their own: they do it in the order of their calls.
        """
        return _turn if jax.process_count() == 1 else contextlib.nullcontext()

    def write(self, directory: Path, arrays: Arrays) -> Callable[[], None]:
        """Starts to write; what it returns waits for the end."""
        with _quiet():
            self._orbax.save(directory, args=ocp.args.PyTreeSave(jax.tree.map(_shared, arrays)))

        def wait():
            with _quiet():
                self._orbax.wait_until_finished()

        return wait

    def read(self, directory: Path, places: dict[str, jax.sharding.Sharding | None]) -> Arrays:
        """The arrays of these names, laid out like this; None is an array of numpy."""
        how = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            if place is None
            else ocp.ArrayRestoreArgs(sharding=place)
            for name, place in places.items()
        }
        with self.alone(), _quiet():
            return self._orbax.restore(
                directory, args=ocp.args.PyTreeRestore(item=dict.fromkeys(how, 0), restore_args=how)
            )

    def read_again(self, directory: Path, names: Iterable[str]) -> Iterator[np.ndarray]:
        """The arrays of these names by TensorStore alone, which asks no other process to join."""
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 10_000_000}})
        files = {"driver": "file", "path": f"{directory}/"}
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
        """Ends the threads of Orbax, which raises here what it has raised before."""
        with contextlib.suppress(Exception), _quiet():
            self._orbax.close()


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
