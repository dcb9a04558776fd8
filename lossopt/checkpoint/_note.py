"""The note of a step: what JSON holds, and what comes back from it as it was."""

import json
import math
from collections.abc import Mapping
from typing import Any

BYTES = 65536  # a note is small: arrays belong in the state
DEPTH = 100  # of containers within containers; one that holds itself never ends
BITS = 10_000  # of a whole number: Python reads no more than 4300 digits


def checked(note: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the note, out of the caller's reach; None is an empty one."""
    if not isinstance(note, Mapping | None):
        raise TypeError(
            f"Expected note as a dict from names to what JSON holds, got {type(note).__name__}. "
            "Give it a name: note={'value': ...}."
        )
    plain: Any = _plain("note", note or {}, 0)
    size = len(json.dumps(plain).encode())
    if size > BYTES:
        raise ValueError(
            f"Expected a note of at most {BYTES} bytes of JSON, got {size}. Keep what is long in "
            "the state, as an array."
        )
    return plain


def _plain(path, value, depth):
    if depth > DEPTH:
        raise ValueError(
            f"{path[:80]}... lies within more than {DEPTH} containers. Flatten the note; a "
            "container cannot hold itself."
        )
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise _refusal(path, f"a dict with the name {name!r}", "Names are strings: str(x).")
            _text(path, name)
        return {name: _plain(f"{path}[{name!r}]", x, depth + 1) for name, x in value.items()}
    if type(value) is list:
        return [_plain(f"{path}[{i}]", x, depth + 1) for i, x in enumerate(value)]
    if type(value) is str:
        _text(path, value)
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(
            f"{path} is {value}, which JSON does not have. Leave it out, or take None."
        )
    elif type(value) is int and value.bit_length() > BITS:
        raise ValueError(f"{path} has {value.bit_length()} bits, of {BITS} at most. Round it.")
    elif type(value) not in (str, float, int, bool, type(None)):
        raise _refusal(path, f"a {type(value).__name__}")
    return value


def _text(path, text):
    """Half of a surrogate pair would come back as something else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} has {text!r}, which is no Unicode text. Repair it.") from None


def _refusal(path, what, remedy="Take float(x), int(x), list(x) or str(x) of it."):
    return TypeError(
        f"{path} is {what}. A note holds what JSON does: numbers of Python, strings, booleans, "
        f"None, lists, and dicts of strings. {remedy}"
    )
