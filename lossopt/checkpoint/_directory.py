"""The directory: which steps it holds, which of them are damaged, and how they come and go.

A step is a folder named by its number, which appears whole by one rename. `N.*.saving` is being
written, under a name of its own that nothing late of a failed save knows; `N.damaged` was set
aside; `N.collected` is being deleted.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lossopt.checkpoint import _kept, _manifest
from lossopt.checkpoint._damaged import Damaged
from lossopt.checkpoint._kept import Kept
from lossopt.checkpoint._store import Store

Note = dict[str, Any]
Damage = tuple[int, str, list[int]]  # a step, what is damaged, and which folder it is


def root(directory: str | os.PathLike[str]) -> Path:
    """The folder that is meant, from the root; refuses what Orbax cannot write to."""
    name = os.path.expanduser(os.fsdecode(directory))
    folder = Path(os.path.realpath(name))
    if (
        not name
        or name.startswith("~")  # the home of nobody
        or re.match(r"\w+:/", name)
        or not re.fullmatch(r"[^*\[\]\\\udc80-\udcff]+", str(folder))
    ):
        raise ValueError(
            f"Expected a folder of a local or mounted file system, in UTF-8 and without any of "
            f"*[]\\ in its path, got {name!r}. Mount a bucket, or copy the steps that have landed. "
            "(~ is a home: for a folder of that name write ./~.)"
        )
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise NotADirectoryError(f"{part} is a file. Name a directory for the steps.")
    return folder


def folder(directory: Path, step: int) -> Path:
    """Where a step lies."""
    return directory / f"{step:08d}"


def steps(directory: Path) -> list[int]:
    """The steps that have landed, damaged or not, oldest first."""
    if not directory.exists():
        return []
    names = (name for name in os.listdir(directory) if re.fullmatch(r"[0-9]+", name))
    return sorted(int(name) for name in names if name == folder(directory, int(name)).name)


def identity(directory: Path, step: int) -> list[int] | None:
    """Which folder it is that has this number now: another one if it was replaced."""
    try:
        status = folder(directory, step).lstat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_mtime_ns]


def newest(directory: Path) -> tuple[int, Note | None] | None:
    """The newest step, if there is one, and its note, if its manifest is whole."""
    step = max(steps(directory), default=None)
    if step is None:
        return None
    before, note = identity(directory, step), _note(folder(directory, step))
    if before is None or before != identity(directory, step):
        return newest(directory)  # another program has replaced or collected it
    return step, note


def findings(
    store: Store, directory: Path, steps: Iterable[int]
) -> tuple[list[tuple[int, Note]], list[Damage]]:
    """Of the steps that are still there those that verify, with their notes, and the damaged."""
    verified, damaged = [], []
    for step in steps:
        before, reason, note = identity(directory, step), None, {}
        try:
            note = _manifest.verify(store, folder(directory, step))
        except Damaged as damage:
            reason = str(damage)
        if before is None or before != identity(directory, step):
            continue
        if reason is None:
            verified.append((step, note))
        else:
            damaged.append((step, reason, before))
    return verified, damaged


def make_room(store: Store, directory: Path, step: int) -> list[str]:
    """Refuses a step that is not the newest, unless those in its way are damaged: set aside."""
    in_the_way = [other for other in steps(directory) if other >= step]
    verified, damaged = findings(store, directory, in_the_way)
    if verified:
        raise ValueError(
            f"Step {step} cannot be saved in {directory}, which holds step {verified[0][0]}. "
            "Restore it and go on from there, or take another directory."
        )
    return set_aside(directory, damaged)


def set_aside(directory: Path, damaged: Iterable[Damage]) -> list[str]:
    """Renames damaged steps, whose numbers are free then, and says what became of each."""
    tales = []
    for step, reason, before in damaged:
        there = folder(directory, step)
        try:
            if before != identity(directory, step):
                where = "Another program has replaced it meanwhile"
            else:
                names = ("damaged" if k == 1 else f"damaged-{k}" for k in range(1, 10**6))
                aside = (there.with_suffix(f".{name}") for name in names)
                aside = next(path for path in aside if not path.exists())
                _rename(there, aside)
                where = f"It was set aside as {aside}"
        except OSError as error:
            where = f"It could not be set aside: {error}"
        tales.append(
            f"Step {step} in {directory} is damaged: {reason}. {where}. Look after the disk, and "
            "delete what was set aside when nobody needs it."
        )
    return tales


def begin(directory: Path, step: int) -> Path:
    """An empty folder to write a step in; what killed processes left half written is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(directory):
        if re.fullmatch(r"[0-9]{8,}\.([0-9a-f]{8}\.saving|collected)", name):
            with contextlib.suppress(OSError):  # in nobody's way: the next save will try again
                _remove(directory / name)
    path = folder(directory, step).with_suffix(f".{secrets.token_hex(4)}.saving")
    path.mkdir()
    return path


def land(path: Path, directory: Path, step: int) -> None:
    """Makes a step that was written whole visible."""
    _rename(path, folder(directory, step))


def give_up(path: Path) -> None:
    """Removes what was written of a step that will not land, and what late threads still write."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if not path.exists():
            return


def collect(directory: Path, kept: Kept) -> None:
    """Deletes the steps that do not stay. The newest has just been verified, and stays.

    A step is gone for readers before its files are.
    """
    whole = lambda step: (folder(directory, step) / _manifest.NAME).is_file()
    there = list(filter(whole, steps(directory)))
    for step in _kept.others(kept, there, lambda step: _note(folder(directory, step)) or {}):
        path = folder(directory, step)
        _rename(path, path.with_suffix(".collected"))
        _remove(path.with_suffix(".collected"))


def _note(path):
    """None where the manifest is damaged."""
    try:
        return _manifest.read(path).note
    except Damaged:
        return None


def _rename(there, to):
    os.rename(there, to)
    _manifest.flush(there.parent)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
