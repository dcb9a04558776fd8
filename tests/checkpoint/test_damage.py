"""After every damage: never a wrong value, never an older good step lost, and a reason that helps.

A few seeded rounds of each fault; `benchmarks/faults.py` runs hundreds.
"""

import os
import shutil

import jax
import numpy as np
import pytest

import lossopt as lo
from tests.checkpoint import damage, interrupted, judge

NEWEST = damage.STEPS[-1]
OF_FILES = [damage.truncated, damage.flipped, damage.flipped, *damage.FILES, *damage.WHOLE]
FITTING = [damage.fitting(fault) for fault in damage.DATA]
name = lambda fault: fault.__name__


def seeded(faults):
    """Each fault with a seed of its own."""
    ids = [f"{fault.__name__}-{seed}" for seed, fault in enumerate(faults)]
    return pytest.mark.parametrize(("seed", "fault"), list(enumerate(faults)), ids=ids)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return damage.save(tmp_path_factory.mktemp("checkpoints") / "saved")


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def _folder(directory, step=NEWEST):
    return directory / f"{step:08d}"


def _damaged(directory, fault, random, steps=(NEWEST,)):
    return {step: damage.harm(fault, random, _folder(directory, step)) for step in steps}


@seeded(OF_FILES)
def test_damaged_files(seed, fault, directory):
    harms = _damaged(directory, fault, np.random.default_rng(seed))
    reasons = judge.judge(directory, harms, on=seed % 3 == 0)
    assert judge.way(reasons[NEWEST]) in ("manifest", "missing", "size", "hash")


@seeded(damage.DATA)
def test_damaged_data(seed, fault, directory):
    harms = _damaged(directory, fault, np.random.default_rng(seed))
    assert judge.way(judge.judge(directory, harms, on=False)[NEWEST]) == "hash"


@seeded([*FITTING, *FITTING])
def test_digests_find_what_hashes_would_not(seed, fault, directory):
    harms = _damaged(directory, fault, np.random.default_rng(seed))
    assert judge.way(judge.judge(directory, harms, on=False)[NEWEST]) == "digest"


@pytest.mark.parametrize("seed", range(2))
def test_any_bit_where_hashes_fit(seed, directory):
    _damaged(directory, damage.fitting(damage.flipped_inside), np.random.default_rng(seed))
    print(interrupted.in_child(judge.judge_fitting, directory))  # Orbax prints what it cannot read


@pytest.mark.parametrize("fault", [damage.truncated, damage.flipped, damage.deleted], ids=name)
def test_each_file_in_turn(fault, saved, tmp_path):
    names = damage.files(_folder(saved))
    assert {"manifest.json", "state/_METADATA", "state/manifest.ocdbt"} < set(names)
    for seed, file in enumerate(names):
        directory = shutil.copytree(saved, tmp_path / str(seed))
        in_it = lambda random, step, file=file: fault(random, step, file)
        harms = _damaged(directory, in_it, np.random.default_rng(seed))
        judge.judge(directory, harms, on=False)


@pytest.mark.parametrize("steps", [(10,), (20,), (10, 30), (20, 30), (10, 20, 30)])
def test_several_steps(steps, directory):
    harms = _damaged(directory, damage.flipped, np.random.default_rng(0), steps)
    judge.judge(directory, harms, on=steps == (20, 30))


def test_damaged_again_and_again(directory):
    random = np.random.default_rng(0)
    for fault, step in [(damage.flipped, 30), (damage.two_signs, 40)]:
        judge.judge(directory, _damaged(directory, fault, random, [step]))
        judge.judge(directory, _damaged(directory, fault, random, [step, step + 10]))
        shutil.rmtree(_folder(directory, step + 20))
    names = [name for name in os.listdir(directory) if ".damaged" in name]
    assert sorted(names) == [
        *("00000030.damaged", "00000030.damaged-2", "00000040.damaged", "00000040.damaged-2"),
        *("00000040.damaged-3", "00000050.damaged"),
    ]


def test_kept_beside_what_was_set_aside(directory):
    _damaged(directory, damage.flipped, np.random.default_rng(0))
    with lo.checkpoint.Checkpoints(directory, keep=2) as checkpoints:
        assert judge.restore(checkpoints)[0].step == 20
        assert sorted(os.listdir(directory)) == ["00000010", "00000020", "00000030.damaged"]
        for step, kept in [(30, [20, 30]), (40, [30, 40])]:
            checkpoints.save(step, damage.state(step))
            checkpoints.wait()
            assert damage.steps_of(directory) == kept
        assert (directory / "00000030.damaged").is_dir()
        judge.assert_same(judge.restore(checkpoints)[0].state, damage.state(40))


def test_killed(tmp_path):
    random = np.random.default_rng(0)
    print([interrupted.kill(random, tmp_path / "run") for _ in range(3)])
    interrupted.go_on(tmp_path / "run")


def _spoiled(function, *args):
    """None, or why it could not be tried."""
    try:
        assert interrupted.in_child(function, *args)
    except interrupted.UnavailableError as error:
        return str(error)


@pytest.fixture(scope="module")
def without_room(tmp_path_factory):
    """Why a way to fill the disk did not run, None if it did."""
    ways = (interrupted.full, interrupted.limited)
    return {way: _spoiled(way, tmp_path_factory.mktemp("full"), 0, 3) for way in ways}


@pytest.mark.parametrize("way", [interrupted.full, interrupted.limited], ids=name)
def test_no_room(way, without_room):
    if without_room[way]:
        pytest.skip(without_room[way])


def test_one_of_the_ways_to_fill_a_disk_ran(without_room):
    assert None in without_room.values(), without_room


def test_read_only(tmp_path):
    reason = _spoiled(interrupted.read_only, tmp_path, 0)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("beneath", [".", "runs/first"])
def test_a_file_where_the_directory_is_wanted(beneath, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError, match=r"file is a file. Name a directory"):
        lo.checkpoint.Checkpoints(tmp_path / "file" / beneath)


@pytest.mark.parametrize("beneath", [".", "runs/first"])
def test_a_file_that_came_later(beneath, tmp_path):
    checkpoints = lo.checkpoint.Checkpoints(tmp_path / "file" / beneath)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((RuntimeError, OSError), match=f"Not a directory.*{tmp_path}/file"):
        checkpoints.save(1, {"w": np.ones(3)})
    (tmp_path / "file").unlink()
    checkpoints.save(1, {"w": np.ones(3)})
    checkpoints.close()
    assert checkpoints.latest() == (1, {})


@pytest.mark.parametrize("step", [5, NEWEST + 10])
def test_a_file_that_is_named_like_a_step(step, directory):
    _folder(directory, step).write_text("not a step")
    harm = damage.Harm(("manifest.json",), "a file is named like a step")
    judge.judge(directory, {step: harm})


def test_files_that_are_named_like_unfinished_steps(directory):
    for left in ("00000040.0123abcd.saving", "00000010.collected", "notes.saving"):
        (directory / left).write_text("in the way")
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        checkpoints.save(40, damage.state(40))
        judge.assert_same(judge.restore(checkpoints)[0].state, damage.state(40))
    names = ["00000020", "00000030", "00000040", "notes.saving"]
    assert sorted(os.listdir(directory)) == names


def test_the_judge_sees_a_wrong_bit():
    for leaf in (*damage.LEAVES, "rng", "step"):
        other = damage.state(1)
        if leaf == "rng":
            other[leaf] = jax.random.fold_in(other[leaf], 1)
        elif leaf == "step":
            other[leaf] += 1
        else:
            bits = np.array(other[leaf]).view(np.uint8)
            bits.flat[0] ^= 1
            changed = bits.view(other[leaf].dtype)
            other[leaf] = changed if leaf in damage.WIDE else jax.device_put(changed)
        with pytest.raises(AssertionError):
            judge.assert_same(other, damage.state(1))
    judge.assert_same(damage.state(1), damage.state(1))
