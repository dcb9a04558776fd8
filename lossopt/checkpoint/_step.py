"""One step on disk: whether it is what was saved, and its state."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lossopt._jax import undisturbed
from lossopt._typing import PyTree
from lossopt.checkpoint import _digest, _leaves, _manifest
from lossopt.checkpoint._manifest import Damaged
from lossopt.checkpoint._processes import of_first, summed

STATE = "state"  # the folder of Orbax within a step: its arrays are named by their row


def read(store: Any, folder: Path, like: PyTree) -> PyTree:
    """The state of a step on the devices of `like`; raises `Damaged` where it does not verify."""
    items, structure = _leaves.flatten(like)
    found = of_first(lambda: _opened(folder, [leaf for leaf, _ in items]))
    if "damaged" in found:
        raise Damaged(found["damaged"])
    numbers = {row["path"]: number for number, row in enumerate(found["rows"])}
    numbers = [numbers[leaf.path] for leaf, _ in items]  # another order is the same state
    rows = [found["rows"][number] for number in numbers]
    places = [_leaves.place(like) for _, like in items]
    stored = [i for i, (leaf, _) in enumerate(items) if leaf.stored]
    with undisturbed():
        arrays = _read_arrays(store, folder, {str(numbers[i]): places[i] for i in stored})
        values = [
            _leaves.from_store(leaf, row, arrays.get(str(number)), like, place)
            for number, (leaf, like), row, place in zip(numbers, items, rows, places)
        ]
        data = [_leaves.data_of(items[i][0], values[i]) for i in stored]
    saved = np.asarray([[*rows[i]["digest"], 0] for i in stored], np.uint32).reshape(-1, 3)
    differ = _digest.table(data) != saved
    for i, processes in zip(stored, summed(differ.any(axis=1).astype(np.uint32))):
        if processes:
            raise Damaged(f"{rows[i]['path']} is not what was saved: its digest differs")
    return jax.tree.unflatten(structure, values)


def verify(store: Any, folder: Path) -> None:
    """Raises `Damaged` where a file or a leaf of a step is not what was saved."""
    _manifest.check(folder)
    compare_leaves(store, folder, _manifest.read(folder))


def compare_leaves(store: Any, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Reads every leaf without Orbax, one at a time; raises `Damaged` where one differs."""
    names = {str(i): row for i, row in enumerate(rows) if "digest" in row}
    arrays = store.read_again(folder / STATE, names)
    for row in names.values():
        try:
            same = _digest.of_host(next(arrays)) == row["digest"]
        except ValueError as error:
            raise Damaged(f"{row['path']} cannot be read: {error}") from error
        if not same:
            raise Damaged(f"{row['path']} is not what was saved: its digest differs")


def _opened(folder, wanted):
    """The rows of a step whose files verify, or why they do not."""
    try:
        rows = _manifest.read(folder)
        differences = _leaves.compare([_manifest.leaf(row) for row in rows], wanted)
        if differences:
            more = f"\nand {len(differences) - 10} more" if len(differences) > 10 else ""
            raise ValueError(
                f"{folder} holds another state than `like`:\n"
                + "\n".join(differences[:10])
                + more
                + "\nRestore into the state that was saved, then convert it."
            )
        _manifest.check(folder)
    except Damaged as damage:
        return {"damaged": str(damage)}
    return {"rows": rows}


def _read_arrays(store, folder, places):
    """Arrays by the number of their row: each process reads the shards that it will hold."""
    if not places:
        return {}
    whole = lambda place: place is None or place.is_fully_addressable
    wanted = {name: None if whole(place) else place for name, place in places.items()}
    try:
        return store.read(folder / STATE, wanted)
    except Exception as error:
        verify(store, folder)
        raise RuntimeError(
            f"{folder} verifies, but Orbax could not restore it: {error}\nLook at the shardings "
            "of `like`, and at the memory that is left."
        ) from error
