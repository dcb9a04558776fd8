"""A look into a step without a state like it: by the paths of its leaves."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._processes import summed
from lossopt.checkpoint import _leaves, _manifest, _part
from lossopt.checkpoint._damaged import Damaged
from lossopt.checkpoint._processes import of_first
from lossopt.checkpoint._store import Store


def outline(folder: Path, only: str | None) -> dict[str, Any]:
    """What the manifest says of each leaf, by path; raises `Damaged`."""
    return {path: _struct(entry) for path, entry in _entries(folder, only).items()}


def arrays(store: Store, folder: Path, only: str | None) -> dict[str, Any]:
    """Each leaf on the host, by path; raises `Damaged`, on all processes."""
    entries = _entries(folder, only)
    of_first(lambda: _manifest.check_files(folder))
    stored = {entry["name"]: entry for entry in entries.values() if "digest" in entry}
    found, damage = {}, None
    try:
        found = dict(_manifest.leaves(store, folder, stored))
    except Damaged as error:
        damage = error
    if summed(np.array([damage is not None], np.uint32)).any():
        raise damage or Damaged("another process has read something else than was saved")
    return {path: _array(entry, found.get(entry["name"])) for path, entry in entries.items()}


def _entries(folder, only):
    saved = of_first(lambda: _manifest.read(folder).leaves)
    entries = _part.entries(folder, saved, only)
    return {path: entry for path, entry in entries.items() if entry["kind"] != "empty"}


def _struct(entry):
    leaf = _manifest.leaf(entry)
    if leaf.kind == "number":
        return _leaves.from_store(leaf, entry, None, None, None)
    if leaf.kind == "key":
        key = jax.eval_shape(partial(jax.random.key, impl=entry["impl"]), 0)
        return jax.ShapeDtypeStruct(leaf.shape, key.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.type), weak_type=entry["weak"])


def _array(entry, data):
    leaf = _manifest.leaf(entry)
    if leaf.kind == "key":
        return _leaves.of_no_size(leaf, _struct(entry)) if data is None else data
    return _leaves.from_store(leaf, entry, data, np.empty(0), None)
