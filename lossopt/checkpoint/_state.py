"""The state of a step on disk, read back onto devices."""

from pathlib import Path

import jax
import numpy as np

from lossopt._jax import undisturbed
from lossopt._typing import PyTree
from lossopt.checkpoint import _digest, _leaves, _manifest
from lossopt.checkpoint._manifest import Damaged
from lossopt.checkpoint._processes import of_first, summed
from lossopt.checkpoint._store import Store


def read(store: Store, folder: Path, like: PyTree) -> PyTree:
    """The state of a step on the devices of `like`; raises `Damaged` where it does not verify."""
    items, structure = _leaves.flatten(like)
    found = of_first(lambda: _opened(folder, [leaf for leaf, _ in items]))
    if "damaged" in found:
        raise Damaged(found["damaged"])
    entries = {str(i): entry for i, entry in enumerate(found["entries"])}
    names = {entry["path"]: name for name, entry in entries.items()}
    wanted = {names[leaf.path]: (leaf, value) for leaf, value in items}  # in the order of `like`
    places = {name: _leaves.place(value) for name, (_, value) in wanted.items()}
    stored = [name for name, (leaf, _) in wanted.items() if leaf.stored]
    with undisturbed():
        arrays = _arrays(store, folder, {name: places[name] for name in stored})
        state = {
            name: _leaves.from_store(leaf, entries[name], arrays.get(name), value, places[name])
            for name, (leaf, value) in wanted.items()
        }
        data = [_leaves.data_of(wanted[name][0], state[name]) for name in stored]
    saved = np.asarray([[*entries[name]["digest"], 0] for name in stored], np.uint32)
    differ = _digest.of_arrays(data) != saved.reshape(-1, 3)
    for name, processes in zip(stored, summed(differ.any(axis=1).astype(np.uint32))):
        if processes:
            raise Damaged(f"{entries[name]['path']} is not what was saved: its digest differs")
    return jax.tree.unflatten(structure, state.values())


def _opened(folder, wanted):
    """The entries of a step whose files verify, or why they do not."""
    try:
        entries = _manifest.read(folder)
        differences = _leaves.compare([_manifest.leaf(entry) for entry in entries], wanted)
        if differences:
            more = f"\nand {len(differences) - 10} more" if len(differences) > 10 else ""
            raise ValueError(
                f"{folder} holds another state than `like`:\n"
                + "\n".join(differences[:10])
                + more
                + "\nRestore into the state that was saved, then convert it."
            )
        _manifest.check_files(folder)
    except Damaged as damage:
        return {"damaged": str(damage)}
    return {"entries": entries}


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
