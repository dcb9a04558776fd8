"""The state of a stream: how it is told, in words of JSON, and what it was."""

import base64
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TAG = "packed"
# Of this library's own protocol, of grain's iterators, of torchdata's loaders.
STATES = ("state", "restore"), ("get_state", "set_state"), ("state_dict", "load_state_dict")


class Told(NamedTuple):
    """How a stream tells where it is, and takes it back.

    Attributes:
      state: gives its state.
      restore: takes it back.
    """

    state: Callable[[], Any]
    restore: Callable[[Any], Any]


def stateful(x: Any) -> Told | None:
    """How a stream or its iterator tells where it is; None where it does not."""
    for names in STATES:
        if all(callable(getattr(x, name, None)) for name in names):
            return Told(*(getattr(x, name) for name in names))
    return None


def packed(state: Any, name: str = "state()") -> Any:
    """A state as JSON has it; raises where it holds what has no form there.

    Args:
      state: dicts, lists and tuples of numbers, texts, bytes, arrays of numpy and tensors of torch.
      name: how to call it in errors.
    """
    if type(state) is float and not math.isfinite(state):
        return packed(np.float64(state), name)
    if state is None or type(state) in (bool, int, float, str):
        return state
    if type(state) is list:
        return [packed(x, f"{name}[{i}]") for i, x in enumerate(state)]
    if isinstance(state, dict):
        if TAG not in state and all(type(key) is str for key in state):
            return {key: packed(x, f"{name}[{key!r}]") for key, x in state.items()}
        items = [[packed(key, name), packed(x, f"{name}[{key!r}]")] for key, x in state.items()]
        return {TAG: "dict", "items": items}
    if type(state) is tuple:
        return {TAG: "tuple", "items": packed(list(state), name)}
    if type(state) is bytes:
        return {TAG: "bytes", "bytes": base64.b64encode(state).decode()}
    kind = _kind(state)
    array = np.asarray(state) if kind else np.array(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} is {type(state).__name__}, and a checkpoint keeps numbers, texts, bytes, "
            "arrays, and dicts, lists and tuples of them. Give the stream a state() and restore() "
            "that make bytes of it, as pickle.dumps does."
        )
    words = {"dtype": array.dtype.str, "shape": list(array.shape)}
    return {TAG: kind, **words, "bytes": base64.b64encode(array.tobytes()).decode()}


def unpacked(words: Any) -> Any:
    """What was packed."""
    if isinstance(words, list):
        return [unpacked(x) for x in words]
    if not isinstance(words, dict):
        return words
    if TAG not in words:
        return {key: unpacked(x) for key, x in words.items()}
    return _FORMS[words[TAG]](words)


def _kind(x):
    if isinstance(x, np.generic):
        return "number"
    if isinstance(x, np.ndarray):
        return "array"
    return "tensor" if type(x).__module__.partition(".")[0] == "torch" else None


def _array(words):
    flat = np.frombuffer(base64.b64decode(words["bytes"]), words["dtype"])
    return flat.reshape(words["shape"]).copy()


_FORMS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda words: {unpacked(key): unpacked(x) for key, x in words["items"]},
    "tuple": lambda words: tuple(unpacked(words["items"])),
    "bytes": lambda words: base64.b64decode(words["bytes"]),
    "number": lambda words: _array(words)[()],
    "array": _array,
    "tensor": lambda words: importlib.import_module("torch").from_numpy(_array(words)),
}
