"""Batches of an iterable: recognized, and what may be asked of them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lossopt._typing import Batch

NEVER = int(np.iinfo(np.int32).max)


def is_stream(data: Any) -> bool:
    """Whether it is an iterable of batches: it is no tree, no array, no mapping and no text."""
    alone = jax.tree_util.default_registry.flatten_one_level(data) is None
    array = any(hasattr(data, name) for name in ("dtype", "__array__", "__jax_array__"))
    other = array or isinstance(data, str | bytes | Mapping)
    return alone and isinstance(data, Iterable) and not other


def own_batches(**given: Any) -> None:
    """Raises where an iterable, the first, is to be cut otherwise than it is."""
    stream, *options = given
    if named := [name for name in options if not (given[name] is None or given[name] is False)]:
        raise ValueError(
            f"{stream} is an iterable, which brings its own batches, and {' and '.join(named)} "
            "says how rows of arrays are cut. Leave it out, and cut in the loader."
        )


def is_once(stream: Iterable) -> bool:
    """Whether it can be iterated only once, as a generator; it is not begun to find out."""
    return isinstance(stream, Iterator)


def length(stream: Any) -> int | None:
    """How many batches it says that it has."""
    try:
        return len(stream)
    except (TypeError, NotImplementedError, OverflowError):
        return None


def owned(batch: Batch) -> Batch:
    """A copy, where a loader might write its next batch into the same memory."""
    own = lambda x: x if isinstance(x, jax.Array) else np.asarray(x).copy()
    return jax.tree.map(own, batch)
