"""Damage to steps that lie on a disk, and the judge of what `Checkpoints` makes of it.

A fault is a function of a numpy generator and the folder of a step: it does damage there and says
what it did. States are random and a function of their step, so that a wrong byte has no excuse.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lossopt as lo
from lossopt.checkpoint import _manifest

STEPS = (10, 20, 30)
PAGE = 4096
NOTE = {"value": 0.1, "rows": [1, None, "zwölf"]}
LEAVES = ("counts", "half", "moments", "weights")  # whose bytes lie in a file as they are
FLOATS = ("half", "moments", "weights")
WIDE = ("counts", "moments")  # of 8 bytes an element


class Harm(NamedTuple):
    """What a fault did.

    Attributes:
      names: the files, or the leaves where the hashes fit; a reason has to name one of them.
      what: in words.
      fits: whether the manifest has the hashes of the damaged files.
    """

    names: tuple[str, ...]
    what: str
    fits: bool = False


Fault = Callable[[np.random.Generator, Path], Harm]


def state(step: int):
    """What is saved under this number."""
    random = np.random.default_rng(step)
    return {
        "weights": jnp.asarray(random.standard_normal((48, 256), np.float32)),
        "half": jnp.asarray(random.standard_normal((8, 1024), np.float32), jnp.bfloat16),
        "moments": random.standard_normal((16, 256)),
        "counts": random.integers(-(2**62), 2**62, 4096),
        "rng": jax.random.key(step),
        "step": step,
        "rest": None,
    }


def save(directory: Path, steps=STEPS):
    """A directory of steps, to be copied and damaged."""
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), NOTE)
    return directory


def harm(fault: Fault, random: np.random.Generator, step: Path) -> Harm:
    """Does the damage, and makes sure that it is one."""
    before = contents(step)
    done = fault(random, step)
    assert contents(step) != before, done
    return done


def truncated(random, step, name=None, length=None):
    name = name or _any_file(random, step)
    size = (step / name).stat().st_size
    length = int(random.integers(size)) if length is None else length
    os.truncate(step / name, length)
    return Harm((name,), f"{name} was cut from {size} to {length} bytes")


def lengthened(random, step):
    name = _any_file(random, step)
    with open(step / name, "ab") as file:
        file.write(random.bytes(int(random.integers(1, PAGE))))
    return Harm((name,), f"{name} grew")


def flipped(random, step, name=None):
    name = name or _any_file(random, step)
    data = _bytes(step / name)
    place, bit = int(random.integers(data.size)), int(random.integers(8))
    data[place] ^= 1 << bit
    (step / name).write_bytes(data.tobytes())
    return Harm((name,), f"bit {bit} of byte {place} of {name} was flipped")


def flipped_inside(random, step):
    """A bit of what Orbax wrote."""
    names = [name for name in files(step) if name.startswith("state/")]
    return flipped(random, step, str(random.choice(names)))


def deleted(random, step, name=None):
    name = name or _any_file(random, step)
    (step / name).unlink()
    return Harm((name,), f"{name} was deleted")


def emptied(random, step):
    """All files are gone, the folders are not."""
    for name in files(step):
        (step / name).unlink()
    return Harm(("manifest.json",), "all files were deleted")


def made_a_folder(random, step):
    name = _any_file(random, step)
    (step / name).unlink()
    (step / name).mkdir()
    (step / name / "lost").write_bytes(random.bytes(9))
    return Harm((name,), f"{name} became a folder")


def files_swapped(random, step):
    names = [str(name) for name in random.choice(files(step), 2, replace=False)]
    one, other = (_bytes(step / name).tobytes() for name in names)
    (step / names[0]).write_bytes(other)
    (step / names[1]).write_bytes(one)
    return Harm(tuple(names), f"{names[0]} and {names[1]} changed places")


def manifest_of_another(random, step):
    shutil.copy(_another(random, step) / "manifest.json", step)
    return Harm(("manifest.json",), "the manifest is that of another step")


def another_step(random, step):
    """It is whole, but it is not the step that its number says."""
    other = _another(random, step)
    shutil.rmtree(step)
    shutil.copytree(other, step)
    return Harm(("manifest.json",), f"its files are those of step {other.name}")


def two_signs(random, step):
    leaf = str(random.choice(FLOATS))
    path, data, start, end, size = _place(step, leaf)
    for word in random.choice((end - start) // size, 2, replace=False):
        data[start + size * word + size - 1] ^= 0x80
    return _written(step, path, data, f"two signs of {leaf} were flipped")


def negated_row(random, step):
    leaf = str(random.choice(FLOATS))
    path, data, start, end, size = _place(step, leaf)
    rows = len(state(int(step.name))[leaf])
    row, stride = int(random.integers(rows)), (end - start) // rows
    data[start + stride * row + size - 1 : start + stride * (row + 1) : size] ^= 0x80
    return _written(step, path, data, f"row {row} of {leaf} was negated")


def upper_halves(random, step):
    leaf = str(random.choice(WIDE))
    path, data, start, end, size = _place(step, leaf)
    count = int(random.integers(1, 5))
    for word in random.choice((end - start) // size, count, replace=False):
        data[start + size * word + random.integers(4, 8)] ^= 1 << int(random.integers(8))
    return _written(step, path, data, f"{count} upper halves of {leaf} lost a bit")


def zeroed_page(random, step):
    leaf = str(random.choice(LEAVES))
    path, data, start, end, _ = _place(step, leaf)
    page = int(random.integers(start // PAGE, -(-end // PAGE)))
    data[page * PAGE : (page + 1) * PAGE] = 0
    return _written(step, path, data, f"page {page} of {path.name}, of {leaf}, became zero")


def swapped_pages(random, step):
    leaf = str(random.choice(LEAVES))
    path, data, start, end, _ = _place(step, leaf)
    one, other = random.choice(np.arange(-(-start // PAGE), end // PAGE), 2, replace=False)
    pages = data[: data.size // PAGE * PAGE].reshape(-1, PAGE)
    pages[[one, other]] = pages[[other, one]]
    return _written(step, path, data, f"pages {one} and {other} of {leaf} changed places")


FILES = (truncated, lengthened, flipped, deleted, made_a_folder, files_swapped)
WHOLE = (emptied, manifest_of_another, another_step)
DATA = (two_signs, negated_row, upper_halves, zeroed_page, swapped_pages)


def fitting(fault: Fault) -> Fault:
    """The same damage with hashes made to fit: only the digests of the leaves are left."""

    def consistent(random, step):
        note, _, entries = _manifest.read(step)
        what = fault(random, step).what
        (step / "manifest.json").unlink()
        _manifest.write(step, int(step.name), note, _manifest.hashes(step), entries)
        lost = tuple(leaf for leaf in LEAVES if _find(step, leaf) is None)
        return Harm(lost, f"{what}, and hashes were made to fit", fits=True)

    consistent.__name__ = f"{fault.__name__}, hashes fit"
    return consistent


def steps_of(directory: Path) -> list[int]:
    """The numbers that there are, oldest first."""
    return sorted(int(name) for name in os.listdir(directory) if re.fullmatch("[0-9]{8}", name))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file beneath, byte for byte."""
    return {name: (folder / name).read_bytes() for name in files(folder)}


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _another(random, step):
    others = [number for number in steps_of(step.parent) if number != int(step.name)]
    return step.parent / f"{random.choice(others):08d}"


def _any_file(random, step):
    return str(random.choice(files(step)))


def _bytes(path):
    return np.fromfile(path, np.uint8)


def _find(step, leaf):
    data = np.asarray(state(int(step.name))[leaf]).tobytes()
    for path in (path for path in step.rglob("d/*") if path.is_file()):
        start = path.read_bytes().find(data)
        if start >= 0:
            return path, start, start + len(data)
    return None


def _place(step, leaf):
    """The file with the bytes of a leaf, what it holds, where they begin and end, their width."""
    found = _find(step, leaf)
    assert found is not None, f"{leaf} of {step}"
    path, start, end = found
    return path, _bytes(path), start, end, state(int(step.name))[leaf].dtype.itemsize


def _written(step, path, data, what):
    path.write_bytes(data.tobytes())
    return Harm((path.relative_to(step).as_posix(),), what)
