"""What processes tell one another: all must ask alike, in the same order.

With one process nothing runs on a device.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt._jax import undisturbed
from lossopt._typing import ArrayLike

ON_ALL = "All processes raise, each for itself."


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def gathered(numbers: ArrayLike | Sequence[int]) -> np.ndarray:
    """The numbers of every process, int32 `[processes, numbers]`."""
    return _gathered(np.asarray(numbers, np.int32))


def told(words: Any) -> list[Any]:
    """What each process says, in JSON, in the order of processes."""
    if not several():
        return [words]
    text = json.dumps(words).encode()
    sizes = gathered([len(text)])[:, 0]
    padded = np.frombuffer(text.ljust(sizes.max()), np.uint8)
    return [json.loads(bytes(row[:size])) for row, size in zip(_gathered(padded), sizes)]


def alike(do: Callable[[], Any]) -> Any:
    """What `do` returns here; where it raises on one process, all of them raise."""
    if not several():
        return do()
    result, error = None, None
    try:
        result = do()
    except Exception as raised:
        error = raised
    if not gathered([error is not None]).any():
        return result
    words = told(error and f"{type(error).__name__}: {error}")
    if error is None:
        failed = [f"Process {i} failed, and with it all: {x}" for i, x in enumerate(words) if x]
        error = RuntimeError("\n".join(failed))
    raise _common(error)


def agreed(error: BaseException) -> bool:
    """Whether all processes raise, so that none waits for another."""
    return ON_ALL in getattr(error, "__notes__", ())


def whole(x: ArrayLike) -> np.ndarray:
    """All numbers of an array on the host, also where other processes hold some of them."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)


def of_first(find_out: Callable[[], Any], kinds: Sequence[type[Exception]] = ()) -> Any:
    """What `find_out` returns on process 0, in JSON, on every process; what it raises there, too.

    Args:
      find_out: called on process 0 alone.
      kinds: of errors that are raised as what they are; the first of which it is one. Others are a
        `RuntimeError`.
    """
    if not several():
        return find_out()
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"result": find_out()}
        except Exception as error:
            kind = next((i for i, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))
            outcome = {"kind": kind, "message": str(error)}
    outcome, *_ = told(outcome)
    if "kind" in outcome:
        raise _common((*kinds, RuntimeError)[outcome["kind"]](outcome["message"]))
    return outcome["result"]


def summed(array: np.ndarray) -> np.ndarray:
    """The sum over processes of an array of uint32, modulo 2³²."""
    return _gathered(array).sum(axis=0, dtype=np.uint32)


def same(facts: Mapping[str, str], remedy: str) -> None:
    """Raises on every process where one of them has another fact than process 0.

    Args:
      facts: what each fact is here, by its name.
      remedy: a sentence, what to do.
    """
    words = json.dumps(dict(facts))
    digests = gathered(np.frombuffer(hashlib.sha256(words.encode()).digest()[:8], np.int32))
    if (digests == digests[0]).all():
        return
    first, *others = told(dict(facts))
    for name in [*first, *(name for other in others for name in other if name not in first)]:
        values = [other.get(name, "nothing") for other in (first, *others)]
        strays = [i for i, value in enumerate(values) if value != values[0]]
        if strays:
            stray = values[strays[0]]
            which = [i for i in strays if values[i] == stray]
            word = "process" if len(which) == 1 else "processes"
            message = (
                f"Expected {name} alike on all processes, got {values[0]} on process 0 and {stray} "
                f"on {word} {', '.join(map(str, which))}. {remedy}"
            )
            raise _common(ValueError(message))


def _common(error):
    error.add_note(ON_ALL)
    return error


def _gathered(row):
    """What each process holds, stacked, on every process: one device of each takes part."""
    if not several():
        return row[None]
    with undisturbed(), jax.disable_jit(False):
        devices = {device.process_index: device for device in reversed(jax.devices())}
        mesh = Mesh([devices[i] for i in range(jax.process_count())], ("processes",))
        here = jax.device_put(row[None], devices[jax.process_index()])
        whole = jax.make_array_from_single_device_arrays(
            (jax.process_count(), *row.shape), NamedSharding(mesh, P("processes")), [here]
        )
        return np.asarray(_copy(mesh)(whole).addressable_data(0))


@cache
def _copy(mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
