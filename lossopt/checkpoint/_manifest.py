"""The manifest of a step: what every file must be, and what every leaf must be.

It holds its own hash, and only its one canonical spelling is accepted, so that no bit of it can
change unseen. Each leaf has an entry; the arrays on disk are named by its number.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lossopt.checkpoint import _digest
from lossopt.checkpoint._damaged import Damaged, unreadable
from lossopt.checkpoint._leaves import Leaf
from lossopt.checkpoint._store import Store

NAME = "manifest.json"
FORMAT = 2


class Manifest(NamedTuple):
    """What is kept of a step.

    Attributes:
      note: of the user, `{}` where none was given.
      files: of each its size and its hash.
      leaves: the entries, in the order of the state.
    """

    note: dict[str, Any]
    files: dict[str, list[Any]]
    leaves: list[dict[str, Any]]


def hashes(folder: Path) -> dict[str, list[Any]]:
    """Size and hash of every file of a folder, as it stands on disk, to which it is flushed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _hash(path, flush=True) for path in files}


def write(
    folder: Path,
    step: int,
    note: dict[str, Any],
    files: dict[str, list[Any]],
    entries: list[dict[str, Any]],
) -> None:
    """Seals a step, whose files are hashed and whose leaves have their entries."""
    content = {"format": FORMAT, "step": step, "note": note, "files": files, "leaves": entries}
    with open(folder / NAME, "w", encoding="utf-8") as file:
        file.write(_spelled(content))
        file.flush()
        os.fsync(file.fileno())
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        flush(inner)


def read(folder: Path) -> Manifest:
    """What was written of a step, if its manifest is whole."""
    content = _content(folder)
    return Manifest(content.get("note", {}), content["files"], content["leaves"])


def leaf(entry: dict[str, Any]) -> Leaf:
    """The leaf that an entry speaks of."""
    return Leaf(entry["path"], entry["kind"], entry["type"], tuple(entry["shape"]), entry["within"])


def verify(store: Store, folder: Path) -> dict[str, Any]:
    """The note of a step; raises `Damaged` where a file or a leaf is not what was saved."""
    check_files(folder)
    manifest = read(folder)
    check_leaves(store, folder, manifest.leaves)
    return manifest.note


def check_files(folder: Path) -> None:
    """Raises `Damaged` where a file of a step is not what the manifest says."""
    for name, (size, digest) in read(folder).files.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                raise Damaged(f"{name} has {path.stat().st_size} bytes of {size}")
            if _hash(path)[1] != digest:
                raise Damaged(f"{name} is not what was written: its SHA-256 differs")
        except FileNotFoundError as error:
            raise Damaged(f"{name} is missing") from error
        except OSError as error:
            raise unreadable(name, error) from error


def check_leaves(store: Store, folder: Path, entries: list[dict[str, Any]]) -> None:
    """Reads every leaf without Orbax, one at a time; raises `Damaged` where one differs."""
    stored = {str(i): entry for i, entry in enumerate(entries) if "digest" in entry}
    for _ in leaves(store, folder, stored):
        pass


def leaves(
    store: Store, folder: Path, entries: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of these names as they lie on disk; raises `Damaged` where one differs."""
    arrays = store.read_again(folder, entries)
    for name, entry in entries.items():
        try:
            array = next(arrays)
            same = _digest.of_host(array) == entry["digest"]
        except ValueError as error:
            raise Damaged(f"{entry['path']} cannot be read: {error}") from error
        if not same:
            raise Damaged(f"{entry['path']} is not what was saved: its digest differs")
        yield name, array


def flush(path: Path) -> None:
    """To the disk, so that a loss of power does not undo it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _content(folder):
    try:
        text = (folder / NAME).read_bytes().decode()
        content = json.loads(text)["content"]
        whole = _spelled(content) == text
    except FileNotFoundError as error:
        raise Damaged(f"{NAME} is missing") from error
    except OSError as error:
        raise unreadable(NAME, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{NAME} is not what was written") from error
    if not whole:
        raise Damaged(f"{NAME} is not what was written: its bytes differ")
    if content["format"] not in (1, FORMAT):  # the first had no notes
        raise ValueError(f"{folder / NAME} has format {content['format']}: update lossopt.")
    if content["step"] != int(folder.name):
        raise Damaged(f"{NAME} is that of step {content['step']}")
    return content


def _spelled(content):
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, "content": content}, indent=1, sort_keys=True)


def _hash(path, flush=False):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size, digest]
