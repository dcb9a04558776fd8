"""What the first process finds out, all processes know: only it touches the directory."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lossopt.checkpoint._damaged import Damaged

KINDS = {error.__name__: error for error in (ValueError, FileNotFoundError, Damaged, RuntimeError)}


def of_first(find_out: Callable[[], Any]) -> Any:
    """What `find_out` returns on process 0, on every process; what it raises there, too.

    The result must be JSON. Every process must call it, in the same order.
    """
    if jax.process_count() == 1:
        return find_out()
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"result": find_out()}
        except Exception as error:
            kind = next((name for name in KINDS if isinstance(error, KINDS[name])), "RuntimeError")
            outcome = {"kind": kind, "message": str(error)}
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if "kind" in outcome:
        raise KINDS[outcome["kind"]](outcome["message"])
    return outcome["result"]


def summed(array: np.ndarray) -> np.ndarray:
    """The sum over processes of an array of uint32, modulo 2³²."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0, dtype=np.uint32)


def _broadcast(text):
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(size)[:size], np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded).astype(np.uint8))
