"""Notes come back as they were, from every verb, and no bit of one changes unseen."""

import json
import math
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossopt as lo
from lossopt.checkpoint import _manifest, _note

STATE = {"n": 3}  # which needs no Orbax
NOTE = {"validation/value": 0.1, "epoch": 7, "done": False, "rows": [None, {"ä": "\0"}, []]}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)
NOTES = st.dictionaries(TEXTS, TREES, max_size=4)


@pytest.fixture
def checkpoints(tmp_path):
    with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        yield checkpoints


def _spelled(value):
    """Each bit of it, and each type."""
    if isinstance(value, dict):
        return {name: _spelled(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_spelled(x) for x in value]
    return type(value), value.hex() if type(value) is float else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "00000001"
    folder.mkdir()
    return folder


@settings(max_examples=60, deadline=None)
@given(note=NOTES)
def test_a_note_comes_back_as_it_was(note, folder):
    _manifest.write(folder, 1, _note.checked(note), {}, [])
    assert _spelled(_manifest.read(folder).note) == _spelled(note)


@pytest.mark.parametrize("note", [{"x": -0.0}, {"x": 5e-324}, {"x": 2**2000, "y": -(2**64)}])
def test_numbers_at_the_edge(note, folder):
    _manifest.write(folder, 1, _note.checked(note), {}, [])
    assert _spelled(_manifest.read(folder).note) == _spelled(note)


def test_every_verb_gives_it(checkpoints):
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE, MappingProxyType(NOTE))
    assert checkpoints.latest() == (2, NOTE)
    assert checkpoints.latest().note == NOTE
    assert checkpoints.restore(STATE).note == NOTE
    assert checkpoints.restore(STATE, step=1).note == {}
    assert checkpoints.verify().notes == {1: {}, 2: NOTE}


def test_what_the_caller_does_next_does_not_reach_it(checkpoints, monkeypatch):
    write, note = _manifest.write, {"rows": [1, {"x": 2}]}

    def change(*given):
        note["rows"][1]["x"] = note["more"] = 3
        note["rows"].append(4)
        write(*given)

    monkeypatch.setattr(_manifest, "write", change)
    checkpoints.save(1, STATE, note)
    assert checkpoints.latest().note == {"rows": [1, {"x": 2}]}


def _nested(depth):
    note = {}
    for _ in range(depth):
        note = {"x": note}
    return note


CYCLE = {"rows": []}
CYCLE["rows"].append(CYCLE)
REFUSED = {
    "a list": ([1], TypeError, "Expected note as a dict .* got list"),
    "a text": ("best", TypeError, "Expected note as a dict .* got str"),
    "nan": ({"a": [0.0, math.nan]}, ValueError, r"note\['a'\]\[1\] is nan"),
    "infinity": ({"a": {"b/c": -math.inf}}, ValueError, r"note\['a'\]\['b/c'\] is -inf"),
    "a tuple": ({"a": (1, 2)}, TypeError, r"note\['a'\] is a tuple"),
    "a set": ({"a": {1}}, TypeError, r"note\['a'\] is a set"),
    "bytes": ({"a": [b"x"]}, TypeError, r"note\['a'\]\[0\] is a bytes"),
    "complex": ({"a": 1j}, TypeError, r"note\['a'\] is a complex"),
    "numpy": ({"a": np.float64(1)}, TypeError, r"note\['a'\] is a float64.*float\(x\)"),
    "an array": ({"a": jnp.float32(1)}, TypeError, r"note\['a'\] is a ArrayImpl"),
    "a name": ({"a": {1: 2}}, TypeError, r"note\['a'\] is a dict with the name 1"),
    "half a pair": ({"a": "\ud83d\ude00"}, ValueError, r"note\['a'\] .* no Unicode"),
    "half a name": ({"\ud83d": 1}, ValueError, "note .* no Unicode"),
    "a long integer": ({"a": 10**4000}, ValueError, r"note\['a'\] has 13288 bits"),
    "deep": (_nested(101), ValueError, "more than 100 containers"),
    "itself": (CYCLE, ValueError, "more than 100 containers"),
    "large": ({"a": "x" * 65528}, ValueError, "at most 65536 bytes of JSON, got 65537"),
    "large when spelled": ({"a": "ä" * 20000}, ValueError, "of JSON, got 120009"),
}


@pytest.mark.parametrize(("note", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(note, kind, words, checkpoints):
    with pytest.raises(kind, match=words):
        checkpoints.save(1, STATE, note)
    assert checkpoints.latest() is None
    assert not checkpoints.directory.exists()


def test_the_largest_notes_come_back(checkpoints):
    for step, note in enumerate([{"a": "x" * 65527}, _nested(100), {"a": 10**3000}]):
        checkpoints.save(step, STATE, note)
        assert checkpoints.latest() == (step, note)


@pytest.mark.parametrize("place", [b"0.1", b"7", b"false", b"epoch", b"null"])
def test_a_flipped_bit_of_a_note_is_found(place, checkpoints):
    checkpoints.save(1, STATE, {"older": True})
    checkpoints.save(2, STATE, NOTE)
    checkpoints.wait()
    path = checkpoints.directory / "00000002" / "manifest.json"
    text = bytearray(path.read_bytes())
    text[text.index(place, text.index(b'"note"'))] ^= 1
    path.write_bytes(text)
    assert checkpoints.latest() == (2, None)
    report = checkpoints.verify()
    assert (report.verified, report.notes) == ((1,), {1: {"older": True}})
    assert "manifest.json is not what was written" in report.damaged[2]
    with pytest.warns(UserWarning, match="Step 2 .* set aside"):
        assert checkpoints.restore(STATE).note == {"older": True}
    assert checkpoints.latest() == (1, {"older": True})


def test_the_newest_is_replaced_while_it_is_read(checkpoints, monkeypatch):
    checkpoints.save(1, STATE, {"one": 1})
    checkpoints.save(2, STATE, {"two": 2})
    checkpoints.wait()
    read, newer = _manifest.read, checkpoints.directory / "00000002"

    def collected(folder):
        if newer.exists():
            newer.rename(newer.with_suffix(".collected"))
        return read(folder)

    monkeypatch.setattr(_manifest, "read", collected)
    assert checkpoints.latest() == (1, {"one": 1})


def test_manifests_of_before_there_were_notes(checkpoints):
    checkpoints.save(1, STATE)
    checkpoints.wait()
    path = checkpoints.directory / "00000001" / "manifest.json"
    content = json.loads(path.read_text())["content"]
    del content["note"]
    path.write_text(_manifest._spelled({**content, "format": 1}))
    assert checkpoints.latest() == (1, {})
    assert checkpoints.restore(STATE)[1:] == (STATE, {}, {})
    assert checkpoints.verify() == ((1,), {}, {1: {}})
