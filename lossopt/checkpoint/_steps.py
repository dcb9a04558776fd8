"""The directory: which steps it holds, and how they come, go, and are set aside.

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
from pathlib import Path

from lossopt.checkpoint._manifest import flush


def root(directory: str | os.PathLike[str]) -> Path:
    """The folder that is meant, from the root; refuses what Orbax cannot write to."""
    name = os.fsdecode(directory)
    folder = Path(os.path.realpath(name))
    if (
        not name
        or re.match(r"\w+:/", name)
        or not re.fullmatch(r"[^*\[\]\\\udc80-\udcff]+", str(folder))
    ):
        raise ValueError(
            f"Expected a folder of a local or mounted file system, in UTF-8 and without any of "
            f"*[]\\ in its path, got {name!r}. Mount a bucket, or copy the steps that have landed."
        )
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise NotADirectoryError(f"{part} is a file. Name a directory for the steps.")
    return folder


def path(directory: Path, step: int) -> Path:
    """Where a step lies."""
    return directory / f"{step:08d}"


def steps(directory: Path) -> list[int]:
    """The steps that have landed, damaged or not, oldest first."""
    if not directory.exists():
        return []
    names = (name for name in os.listdir(directory) if re.fullmatch(r"[0-9]+", name))
    return sorted(int(name) for name in names if name == path(directory, int(name)).name)


def identity(directory: Path, step: int) -> list[int] | None:
    """Which folder it is that has this number now: another one if it was replaced."""
    try:
        status = path(directory, step).lstat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_mtime_ns]


def begin(directory: Path, step: int) -> Path:
    """An empty folder to write a step in; what killed processes left half written is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(directory):
        if re.fullmatch(r"[0-9]{8,}\.([0-9a-f]{8}\.saving|collected)", name):
            with contextlib.suppress(OSError):  # in nobody's way: the next save will try again
                _remove(directory / name)
    folder = path(directory, step).with_suffix(f".{secrets.token_hex(4)}.saving")
    folder.mkdir()
    return folder


def land(folder: Path, directory: Path, step: int) -> None:
    """Makes a step that was written whole visible."""
    _rename(folder, path(directory, step))


def set_aside(directory: Path, step: int) -> Path:
    """Gives a damaged step another name, and its number free."""
    there = path(directory, step)
    names = ("damaged" if k == 1 else f"damaged-{k}" for k in range(1, 10**6))
    aside = next(p for p in (there.with_suffix(f".{n}") for n in names) if not p.exists())
    _rename(there, aside)
    return aside


def collect(directory: Path, step: int) -> None:
    """Deletes a step; it is gone for readers before its files are."""
    folder = path(directory, step).with_suffix(".collected")
    _rename(path(directory, step), folder)
    _remove(folder)


def give_up(folder: Path) -> None:
    """Removes what was written of a step that will not land, and what late threads still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _rename(there, to):
    os.rename(there, to)
    flush(there.parent)


def _remove(folder):
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
