"""What is known of executors: which are usable, how many calls they make, what Dask is told."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

Given = Executor | Callable[[], Executor]


def usable(executor: Any) -> Executor:
    """Refuses what is no executor, and a pool that forks."""
    if not isinstance(executor, Executor):
        raise TypeError(
            "Expected the function given as executor to make an Executor of concurrent.futures, "
            f"got {executor!r}."
        )
    if isinstance(executor, ProcessPoolExecutor):
        context = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise ValueError(
                "Expected a ProcessPoolExecutor that starts Python anew, got one that forks, which "
                'waits for ever once jax has started. Give it mp_context=get_context("spawn"), of '
                "multiprocessing."
            )
    return executor


def size(executor: Any) -> int | None:
    """How many calls an executor makes at a time; None where it does not say."""
    with contextlib.suppress(Exception):
        client = getattr(executor, "_client", None)  # of Dask
        if client is not None:
            return sum(client.nthreads().values())
        return int(getattr(executor, "_max_workers", None) or executor.num_workers)
    return None


def anew(executor: Executor) -> dict[str, Any]:
    """Options with which Dask makes a call that it lost or took back, and still knows."""
    return {"pure": False} if type(executor).__name__ == "ClientExecutor" else {}
