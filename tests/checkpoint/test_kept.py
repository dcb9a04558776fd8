"""Which steps stay: the newest, multiples, and the best by a number in the notes."""

import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossopt as lo
from lossopt.checkpoint import _directory, _manifest
from lossopt.checkpoint._kept import Kept, others

STATE = {"n": 3}  # which needs no Orbax
LOWEST = ("validation/value", min)


def _run(path, values, best=LOWEST, keep=1, **options):
    """Steps that are saved in turn, each with its value, a whole note, or none."""
    checkpoints = lo.checkpoint.Checkpoints(path, keep=keep, keep_best=best, **options)
    for step, value in values.items():
        note = value if isinstance(value, dict) else {best[0]: value}
        checkpoints.save(step, STATE, note)
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize(
    ("direction", "kept"),
    [(min, [[1], [1, 2], [3], [3, 4], [3, 5]]), (max, [[1], [2], [2, 3], [4], [4, 5]])],
)
def test_the_best_stays_until_another_is_better(direction, kept, tmp_path):
    values = [2.0, 3, 1.5, 4.0, 1.5]
    for step, wanted in enumerate(kept, 1):
        best = ("a b/c", direction)
        checkpoints = _run(tmp_path / "run", {step: values[step - 1]}, best)
        assert checkpoints.steps() == wanted


@pytest.mark.parametrize(("direction", "first"), [(min, 2), (max, 1)])
def test_of_equals_the_first(direction, first, tmp_path):
    values = {1: 7, 2: 5.0, 3: 7.0, 4: 5, 5: 6}
    assert _run(tmp_path / "run", values, ("x", direction)).steps() == [first, 5]


def test_besides_the_newest_and_multiples(tmp_path):
    values = {step: abs(step - 3) for step in range(10)}
    assert _run(tmp_path / "run", values, keep=2, every=5).steps() == [0, 3, 5, 8, 9]


@pytest.mark.parametrize(
    "note", [{}, {"value": 0}, {LOWEST[0]: None}, {LOWEST[0]: "0"}, {LOWEST[0]: False}]
)
def test_a_note_without_the_number_is_not_the_best(note, tmp_path):
    assert _run(tmp_path / "run", {1: note, 2: 10**400, 3: note, 4: note}).steps() == [2, 4]
    assert _run(tmp_path / "none", {1: note, 2: note}).steps() == [2]


def test_only_finite_numbers(tmp_path):
    notes = {1: {"x": math.nan}, 2: {"x": -math.inf}, 3: {"x": 5.0}, 4: {"x": 6.0}, 5: {}}
    assert others(Kept(1, None, ("x", min)), list(notes), notes.__getitem__) == [1, 2, 4]
    notes[2]["x"] = math.inf
    assert others(Kept(1, None, ("x", max)), list(notes), notes.__getitem__) == [1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.none() | st.integers(-3, 3), min_size=1, max_size=12),
    keep=st.integers(1, 4),
    every=st.none() | st.integers(1, 5),
    direction=st.sampled_from([min, max]),
)
def test_what_was_the_best_of_all_is_never_lost(values, keep, every, direction):
    """Step after step, of what is left: as if all of them were looked at."""
    there = []
    for step, _ in enumerate(values):
        there.append(step)
        note_of = lambda step: {"x": values[step]}
        gone = others(Kept(keep, every, ("x", direction)), there, note_of)
        there = [step for step in there if step not in gone]
        seen = [(value, s) for s, value in enumerate(values[: step + 1]) if value is not None]
        first = {s for value, s in seen if value == direction(seen)[0]}
        multiples = {s for s in range(step + 1) if every and s % every == 0}
        newest = set(range(max(0, step + 1 - keep), step + 1))
        assert set(there) == newest | multiples | ({min(first)} if first else set())


def _damage(checkpoints, step, place=b'"validation/value": '):
    path = checkpoints.directory / f"{step:08d}" / "manifest.json"
    text = bytearray(path.read_bytes())
    text[text.index(place) + len(place)] ^= 1
    path.write_bytes(text)


def test_a_damaged_manifest_is_never_the_best(tmp_path):
    checkpoints = _run(tmp_path / "run", {1: 2.0, 2: 3.0, 3: 7.0, 4: 8.0}, keep=4)
    _damage(checkpoints, 1)
    _damage(checkpoints, 3)  # 7.0 becomes 6.0
    assert set(checkpoints.verify().damaged) == {1, 3}
    assert _run(tmp_path / "run", {5: 9.0}).steps() == [2, 5]


def test_what_was_set_aside_does_not_count(tmp_path):
    checkpoints = _run(tmp_path / "run", {1: 3.0, 2: 2.0}, keep=2)
    _damage(checkpoints, 2)
    with pytest.warns(UserWarning, match="set aside"):
        assert checkpoints.restore(STATE).step == 1
    assert _run(tmp_path / "run", {2: 4.0, 3: 5.0}).steps() == [1, 3]
    assert "00000002.damaged" in os.listdir(tmp_path / "run")


def test_what_a_killed_process_has_not_deleted_goes_next_time(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_directory, "collect", lambda *_: None)  # killed each time before it
        _run(tmp_path / "run", {1: 2.0, 2: 1.0, 3: 4.0, 4: 3.0})
    assert _run(tmp_path / "run", {5: 5.0}).steps() == [2, 5]


def test_nothing_is_deleted_where_a_newer_version_has_noted(tmp_path):
    checkpoints = _run(tmp_path / "run", {1: 2.0, 2: 3.0}, keep=2)
    path = tmp_path / "run" / "00000001" / "manifest.json"
    path.write_text(_manifest._spelled({**_manifest._content(path.parent), "format": 3}))
    checkpoints = _run(tmp_path / "run", {}, keep=1)
    checkpoints.save(3, STATE, {LOWEST[0]: 9.0})
    with pytest.raises(RuntimeError, match=r"Step 3 has landed .* has format 3: update lossopt"):
        checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


@pytest.mark.parametrize(
    "best",
    [
        *("validation/value", ("validation/value",), ("validation/value", "min"), min),
        *(("validation/value", sum), (0, min), ("x", min, max), {"x": min}, True),
    ],
)
def test_what_is_refused(best, tmp_path):
    with pytest.raises(ValueError, match="Expected keep_best as None, or a number of the notes"):
        lo.checkpoint.Checkpoints(tmp_path / "run", keep_best=best)


def test_it_says_what_it_keeps(tmp_path):
    checkpoints = lo.checkpoint.Checkpoints(tmp_path / "run", keep_best=("x", max))
    assert repr(checkpoints).endswith("keep=3, every=None, keep_best=('x', max))")
    assert checkpoints.steps() == []


def test_a_list_of_steps_waits_for_the_last(tmp_path):
    checkpoints = lo.checkpoint.Checkpoints(tmp_path / "run")
    for step in (7, 8, 9, 10):
        checkpoints.save(step, STATE)
        assert checkpoints.steps()[-1] == step
    assert checkpoints.steps() == [8, 9, 10]
