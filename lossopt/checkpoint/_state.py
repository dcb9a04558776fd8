"""The state of a step on disk, read back onto devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lossopt._jax import undisturbed
from lossopt._processes import summed
from lossopt._typing import PyTree
from lossopt.checkpoint import _digest, _leaves, _manifest, _part
from lossopt.checkpoint._damaged import Damaged
from lossopt.checkpoint._leaves import Leaf
from lossopt.checkpoint._processes import of_first
from lossopt.checkpoint._store import Store

Note = dict[str, Any]
Like = PyTree | Callable[[Note], PyTree]


def read(store: Store, folder: Path, like: Like, only: str | None) -> tuple[PyTree, Note]:
    """The state of a step, or a part of it, on the devices of `like`, and the note.

    Raises `Damaged` where it does not verify.
    """
    note, _, saved = of_first(lambda: _manifest.read(folder))
    items, structure = _leaves.flatten(like(note) if _is_function(like) else like)
    state = {leaf.path: value for leaf, value in items}  # in the order of `like`
    if only is not None:
        items = [(leaf, value) for leaf, value in items if leaf.kind != "empty"]
    of_first(lambda: _check(folder, saved, [leaf for leaf, _ in items], only))
    state |= _leaves_of(store, folder, _part.entries(folder, saved, only), items)
    return jax.tree.unflatten(structure, state.values()), note


def _is_function(like):
    """Not one that is a container of leaves as well, as modules of equinox are."""
    leaves = jax.tree.leaves(like)
    return callable(like) and len(leaves) == 1 and leaves[0] is like


def _check(folder, saved, wanted, only):
    part = _part.entries(folder, saved, only).values()
    _part.check(folder, map(_manifest.leaf, part), wanted, only)
    _manifest.check_files(folder)


def _leaves_of(store, folder, entries, items: list[tuple[Leaf, Any]]):
    """The leaves by path, in their places."""
    places = {leaf.path: _leaves.place(value) for leaf, value in items}
    names = {leaf.path: entries[leaf.path]["name"] for leaf, _ in items}
    stored = [leaf for leaf, _ in items if leaf.stored]
    with undisturbed():
        arrays = _arrays(store, folder, {names[leaf.path]: places[leaf.path] for leaf in stored})
        state = {
            path: _leaves.from_store(leaf, entries[path], arrays.get(names[path]), value, place)
            for (leaf, value), (path, place) in zip(items, places.items())
        }
        data = [_leaves.data_of(leaf, state[leaf.path]) for leaf in stored]
    saved = np.asarray([[*entries[leaf.path]["digest"], 0] for leaf in stored], np.uint32)
    differ = _digest.of_arrays(data) != saved.reshape(-1, 3)
    for leaf, processes in zip(stored, summed(differ.any(axis=1).astype(np.uint32))):
        if processes:
            raise Damaged(f"{leaf.path} is not what was saved: its digest differs")
    return state


def _arrays(store, folder, places):
    """Arrays by name: each process reads the shards that it will hold."""
    if not places:
        return {}
    here = lambda place: place is None or place.is_fully_addressable
    places = {name: None if here(place) else place for name, place in places.items()}
    try:
        return store.read(folder, places)
    except Exception as error:
        _manifest.verify(store, folder)
        raise RuntimeError(
            f"{folder} verifies, but Orbax could not restore it: {error}\nLook at the shardings "
            "of `like`, and at the memory that is left."
        ) from error
