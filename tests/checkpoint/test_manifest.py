"""The manifest: no bit of it, and none of the files that it lists, changes unseen."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

import lossopt as lo
from lossopt.checkpoint import _manifest
from lossopt.checkpoint._leaves import Leaf
from lossopt.checkpoint._manifest import Damaged

RANDOM = np.random.default_rng(0)
FILES = {"state/d/data": RANDOM.bytes(300), "state/meta": b"{}\n", "state/empty": b""}
NOTE = {"validation/value": 0.1, "rows": [3, -0.0, None], "name": "ä"}
LEAVES = [
    Leaf("w", "array", "float32", (2, 3), "dict"),
    Leaf("nä", "number", "int", (), "dict/list"),
]
ENTRIES = [
    {**LEAVES[0]._asdict(), "shape": [2, 3], "digest": [1, 4294967295]},
    {**LEAVES[1]._asdict(), "shape": [], "value": "0x7"},
]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    step = tmp_path_factory.mktemp("run") / "00000001"
    for name, content in FILES.items():
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(content)
    _manifest.write(step, 1, NOTE, _manifest.hashes(step), ENTRIES)
    return step


@pytest.fixture
def step(sealed, tmp_path):
    return shutil.copytree(sealed, tmp_path / sealed.name)


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


CONTENT = {
    "format": 2,
    "step": 1,
    "note": NOTE,
    "files": {name: [len(data), _sha256(data)] for name, data in FILES.items()},
    "leaves": ENTRIES,
}


def _spelled(content):
    """As it is on disk, for good."""
    whole = {"content": content, "sha256": _sha256(json.dumps(content, sort_keys=True).encode())}
    return json.dumps(whole, indent=1, sort_keys=True)


def _refused(step, *reasons):
    for find_out in (_manifest.read, _manifest.check_files):
        with pytest.raises(Damaged) as error:
            find_out(step)
        assert all(reason in str(error.value) for reason in reasons), error.value


class TestWriting:
    def test_what_it_holds(self, sealed):
        assert (sealed / "manifest.json").read_text() == _spelled(CONTENT)

    def test_what_is_read(self, step):
        assert _manifest.read(step) == (NOTE, CONTENT["files"], ENTRIES)
        assert _manifest.check_files(step) is None
        assert [_manifest.leaf(entry) for entry in ENTRIES] == LEAVES

    def test_everything_is_flushed(self, step, monkeypatch):
        flushed = []
        monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
        (step / "manifest.json").unlink()
        files = _manifest.hashes(step)
        assert {(step / name).stat().st_ino for name in FILES} <= set(flushed)
        _manifest.write(step, 1, NOTE, files, ENTRIES)
        assert {path.stat().st_ino for path in [step, *step.rglob("*")]} == set(flushed)
        folders = {path.stat().st_ino for path in [step, *step.rglob("*")] if path.is_dir()}
        assert set(flushed[-3:]) == folders  # when all their files have their names

    def test_what_was_written_before_there_were_notes(self, step):
        content = {name: x for name, x in CONTENT.items() if name != "note"}
        (step / "manifest.json").write_text(_spelled({**content, "format": 1}))
        assert _manifest.read(step) == ({}, CONTENT["files"], ENTRIES)

    def test_extra_files_do_not_matter(self, step):
        for name in ("extra", "state/extra", "state/d/extra/extra"):
            (step / name).parent.mkdir(exist_ok=True)
            (step / name).write_bytes(b"extra")
        assert _manifest.read(step).leaves == ENTRIES
        _manifest.check_files(step)


class TestDamagedManifest:
    def test_bits_of_every_byte(self, step):
        path, whole = step / "manifest.json", (step / "manifest.json").read_bytes()
        with open(path, "r+b", buffering=0) as file:
            for place, some in np.ndindex(len(whole), 3):
                bit = (place % 5 + 3 * some) % 8
                os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                with pytest.raises(Damaged, match=r"manifest\.json is not what was written"):
                    _manifest.read(step)
                os.pwrite(file.fileno(), whole[place : place + 1], place)
        _manifest.check_files(step)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: b"",
            lambda text: text[:-1],
            lambda text: text[: len(text) // 2],
            lambda text: text + b"\n",
            lambda text: text + b"\0",
            lambda text: text + text,
            lambda text: b"\xef\xbb\xbf" + text,
            lambda text: text.decode().encode("utf-16"),
            lambda text: json.dumps(json.loads(text)).encode(),
            lambda text: bytes(len(text)),
            lambda text: b"[" * 100_000,
            lambda text: b"[]",
            lambda text: b"3",
            lambda text: b"null",
            lambda text: b"{}",
            lambda text: b'{"content": {}}',
            lambda text: b'{"content": NaN}',
            lambda text: text.replace(b"4294967295", b"4294967294"),
            lambda text: text.replace(b'"format": 2', b'"format": 1'),
        ],
    )
    def test_other_changes(self, step, change):
        path = step / "manifest.json"
        path.write_bytes(change(path.read_bytes()))
        _refused(step, "manifest.json is not what was written")

    def test_that_of_another_step(self, step):
        os.rename(step, step.with_name("00000010"))
        _refused(step.with_name("00000010"), "manifest.json is that of step 1")

    def test_missing(self, step):
        (step / "manifest.json").unlink()
        _refused(step, "manifest.json is missing")
        shutil.rmtree(step)
        _refused(step, "manifest.json is missing")

    def test_not_a_file(self, step):
        (step / "manifest.json").unlink()
        (step / "manifest.json").mkdir()
        _refused(step, "manifest.json cannot be read", "directory")

    def test_not_a_step(self, step):
        shutil.rmtree(step)
        step.write_bytes(b"")
        _refused(step, "manifest.json cannot be read")

    def test_unreadable(self, step):
        """Root may read anything but a link to itself."""
        (step / "manifest.json").unlink()
        (step / "manifest.json").symlink_to(step / "manifest.json")
        _refused(step, "manifest.json cannot be read")


def _flip(path, place=150, bit=3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def _replaced(path, by):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    by(path)


DATA = "state/d/data"
DAMAGES = {
    "a bit": (lambda s: _flip(s / DATA), f"{DATA} is not what was written: its SHA-256 differs"),
    "the last bit": (lambda s: _flip(s / DATA, -1, 7), f"{DATA} is not what was written"),
    "truncated": (lambda s: os.truncate(s / DATA, 299), f"{DATA} has 299 bytes of 300"),
    "emptied": (lambda s: os.truncate(s / DATA, 0), f"{DATA} has 0 bytes of 300"),
    "longer": (lambda s: os.truncate(s / DATA, 301), f"{DATA} has 301 bytes of 300"),
    "no longer empty": (lambda s: os.truncate(s / "state/empty", 1), "state/empty has 1 bytes"),
    "swapped": (lambda s: os.replace(s / "state/meta", s / DATA), f"{DATA} has 3 bytes of 300"),
    "missing": (lambda s: (s / "state/meta").unlink(), "state/meta is missing"),
    "empty, missing": (lambda s: (s / "state/empty").unlink(), "state/empty is missing"),
    "folder missing": (lambda s: shutil.rmtree(s / "state/d"), f"{DATA} is missing"),
    "a folder": (lambda s: _replaced(s / DATA, lambda p: p.mkdir()), f"{DATA} "),
    "no folder": (lambda s: _replaced(s / "state", lambda p: p.touch()), f"{DATA} cannot be read"),
    "a link to nothing": (
        lambda s: _replaced(s / DATA, lambda p: p.symlink_to(s / "nothing")),
        f"{DATA} is missing",
    ),
    "unreadable": (
        lambda s: _replaced(s / DATA, lambda p: p.symlink_to(p)),
        f"{DATA} cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(step, damage, reason):
    damage(step)
    with pytest.raises(Damaged) as error:
        _manifest.check_files(step)
    assert str(error.value).startswith(reason)
    assert _manifest.read(step).leaves == ENTRIES


def test_a_folder_of_the_size_of_the_file(step):
    """Its size says nothing then."""
    _replaced(step / DATA, lambda path: path.mkdir())
    content = json.loads((step / "manifest.json").read_text())["content"]
    content["files"][DATA][0] = (step / DATA).stat().st_size
    (step / "manifest.json").write_text(_spelled(content))
    with pytest.raises(Damaged, match=f"{DATA} cannot be read"):
        _manifest.check_files(step)


class TestSteps:
    """Through the public door."""

    @pytest.fixture
    def checkpoints(self, tmp_path):
        with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, {"w": np.arange(6.0) + step})
            yield checkpoints

    def test_extra_files_do_not_matter(self, checkpoints):
        checkpoints.wait()
        for folder in ("00000002", "00000002/state", "00000002/state/d"):
            (checkpoints.directory / folder / "extra").write_bytes(b"extra")
        assert checkpoints.verify()[:2] == ((1, 2), {})
        assert checkpoints.restore({"w": np.zeros(6)}).step == 2

    def test_a_newer_format_is_not_damage(self, checkpoints):
        checkpoints.wait()
        path = checkpoints.directory / "00000002" / "manifest.json"
        content = json.loads(path.read_text())["content"]
        path.write_text(_spelled({**content, "format": 3, "more": True}))
        for find_out in (checkpoints.verify, lambda: checkpoints.restore({"w": np.zeros(6)})):
            with pytest.raises(ValueError, match=r"00000002.*has format 3: update lossopt"):
                find_out()
        assert sorted(os.listdir(checkpoints.directory)) == ["00000001", "00000002"]
