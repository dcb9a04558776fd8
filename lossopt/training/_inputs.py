"""Trees that users give: what is no number is named before anything long."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import SequenceKey, keystr, tree_leaves_with_path

from lossopt._typing import PyTree

_DATES = "Count from one of them: (x - x.min()) / np.timedelta64(1, 'D')."
_DATA = {
    "U": "Number what is one of few, by np.unique(x, return_inverse=True); leave out the rest.",
    "O": "Stack rows of one length and kind with np.stack; leave out what is no number; put a "
    "loader, which gives batches, around a dataset.",
    "M": _DATES,
    "m": _DATES,
}
_OTHERS = (
    "Only numbers belong there: bind all else, a choice or a function, to the objective, as in "
    "functools.partial(objective, activation=jax.nn.relu)."
)


def numbers(name: str, tree: PyTree) -> None:
    """Raises where a leaf is text, a date or another object, or data are numbers of Python."""
    data = name in ("train", "validation", "data")
    for path, leaf in tree_leaves_with_path(tree):
        kind, got = _held(leaf)
        if kind in _DATA:
            todo = _DATA[kind] if data else _OTHERS
            raise TypeError(f"Expected numbers in {name}{keystr(path)}, got {got}. {todo}")
        if data and isinstance(leaf, (bool, int, float, complex)):
            while path and isinstance(path[-1], SequenceKey):
                path = path[:-1]
            raise TypeError(
                f"Expected arrays in {name}, got numbers of Python in {name}{keystr(path)}: a list "
                "is a tree of its entries. Make one array of it, with np.asarray."
            )


def trainable(params: PyTree) -> None:
    """Raises where a leaf of the parameters has no gradient."""
    for path, leaf in tree_leaves_with_path(params):
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.inexact):
            raise TypeError(
                f"Expected floating params, got {kind} at params{keystr(path)}. Write 1.0 for a "
                "number. Indices, counters and other buffers go to model_state, which the "
                "objective names. A floating leaf stays as it is with optax.partition("
                "{'train': rule, 'freeze': optax.set_to_zero()}, labels)."
            )


def start_is_finite(params: PyTree) -> None:
    """Raises where a leaf of the parameters holds NaN or infinity."""
    for path, leaf in tree_leaves_with_path(params):
        near = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        broken = np.sum(~np.isfinite(np.asarray(leaf))) if near else int(_not_finite(leaf))
        if broken:
            raise ValueError(
                f"Expected finite params, got {broken} of {np.size(leaf)} numbers NaN or infinite "
                f"at params{keystr(path)}. Initialize it anew; a mask of -inf belongs to "
                "model_state or the objective."
            )


@jax.jit
def _not_finite(x):
    return jnp.sum(~jnp.isfinite(x))


def _held(leaf: Any) -> tuple[str, str]:
    """The kind of what a leaf holds, as numpy has it, and how to call it."""
    if isinstance(leaf, (jax.Array, bool, int, float, complex)) or hasattr(leaf, "__jax_array__"):
        return "", ""
    numbered = hasattr(leaf, "__getitem__") and not isinstance(leaf, Iterable)
    if numbered and not hasattr(leaf, "__array__"):  # numpy would read it all
        return "O", f"objects, a {type(leaf).__name__}, which gives items by number"
    try:
        array = np.asarray(leaf)
    except ValueError:  # rows of unequal lengths
        return "O", type(leaf).__name__
    kind = "U" if array.dtype.kind == "S" else array.dtype.kind
    if array.dtype.fields:
        return "O", f"records of {', '.join(array.dtype.fields)}"
    if kind != "O":
        return kind, f"text, {array.dtype}" if kind == "U" else str(array.dtype)
    first = next(iter(array.flat), None)
    return ("U" if isinstance(first, str) else "O"), f"objects, such as {_short(first)}"


def _short(x):
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:57]}..."
