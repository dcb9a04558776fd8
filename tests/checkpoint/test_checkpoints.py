"""How steps land, come back, go, and are set aside."""

import errno
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.checkpoint import _digest, _directory, _manifest, _store

PARAMS = {"w": np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32), "b": np.ones(3)}


def _state(step):
    return {"params": {**PARAMS, "w": PARAMS["w"] + step}, "step": step}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def checkpoints(directory):
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        yield checkpoints


def _save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, _state(step))
    checkpoints.wait()


def _damage(directory, step, name="manifest.json"):
    with open(directory / f"{step:08d}" / name, "ab") as file:
        file.write(b" ")


def _names(directory):
    return sorted(os.listdir(directory))


def _assert_state(state, step):
    assert state["step"] == step
    np.testing.assert_array_equal(state["params"]["w"], PARAMS["w"] + step, strict=True)


def test_the_state_comes_back(checkpoints):
    _save(checkpoints, 7)
    restored = checkpoints.restore(_state(0))
    assert (restored.step, restored.skipped) == (7, {})
    _assert_state(restored.state, 7)


def test_saves_in_a_row_all_land(checkpoints, directory):
    _save(checkpoints, 1, 2, 3)
    assert checkpoints.verify()[:2] == ((1, 2, 3), {})
    assert checkpoints.latest() == (3, {})
    assert _names(directory) == ["00000001", "00000002", "00000003"]


def test_what_the_caller_does_next_does_not_reach_the_disk(checkpoints, monkeypatch):
    digests, go_on = _digest.of_arrays, threading.Event()
    monkeypatch.setattr(_digest, "of_arrays", lambda arrays: go_on.wait() and digests(arrays))
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = {"jax": jnp.arange(1000.0), "numpy": np.arange(1000.0)}
    checkpoints.save(1, state)
    given, state["jax"] = state["jax"], overwrite(state["jax"])
    assert given.is_deleted()  # it was donated: nobody holds its buffer
    state["numpy"][:] = -1
    go_on.set()
    for array in checkpoints.restore(state).state.values():
        np.testing.assert_array_equal(array, np.arange(1000.0))


class TestCollection:
    def test_the_newest_are_kept(self, directory):
        with lo.checkpoint.Checkpoints(directory, keep=2) as checkpoints:
            _save(checkpoints, 5, 6, 7, 100_000_000)
        assert _names(directory) == ["00000007", "100000000"]

    def test_multiples_are_kept_for_good(self, directory):
        with lo.checkpoint.Checkpoints(directory, keep=1, every=4) as checkpoints:
            _save(checkpoints, 0, 2, 4, 6, 7)
        assert [int(name) for name in _names(directory)] == [0, 4, 7]

    def test_damaged_steps_do_not_count(self, directory):
        with lo.checkpoint.Checkpoints(directory, keep=2) as checkpoints:
            _save(checkpoints, 1, 2)
            _damage(directory, 2)
            with pytest.warns(UserWarning, match=r"Step 2 .* is damaged"):
                checkpoints.restore(_state(0))
            _save(checkpoints, 3)
            assert _names(directory) == ["00000001", "00000002.damaged", "00000003"]

    def test_what_is_not_a_step_is_not_deleted(self, directory):
        kept = ["00000002.txt", "3", "000000004", "notes.saving", "money.collected", "00000001"]
        for name in kept:
            (directory / name).mkdir(parents=True)
        with lo.checkpoint.Checkpoints(directory, keep=np.uint32(1)) as checkpoints:
            _save(checkpoints, 6, 7)
            assert checkpoints.latest() == (7, {})
        assert _names(directory) == sorted([*kept, "00000007"])

    def test_an_old_step_that_cannot_be_deleted_is_told(self, directory, monkeypatch):
        rename = os.rename

        def refuse(there, to):
            if str(to).endswith("collected"):
                raise PermissionError("not yours")
            rename(there, to)

        monkeypatch.setattr(os, "rename", refuse)
        with lo.checkpoint.Checkpoints(directory, keep=1) as checkpoints:
            _save(checkpoints, 1)
            with pytest.raises(RuntimeError, match=r"Step 2 has landed .* not yours"):
                _save(checkpoints, 2)
            assert checkpoints.verify().verified == (1, 2)


class TestWalkingBack:
    def test_to_the_newest_step_that_verifies(self, checkpoints, directory):
        _save(checkpoints, 10, 20, 30)
        _damage(directory, 20)
        (directory / "00000030" / "state" / "manifest.ocdbt").unlink()
        with pytest.warns(UserWarning, match="is damaged") as told:
            restored = checkpoints.restore(_state(0))
        assert restored.step == 10
        _assert_state(restored.state, 10)
        assert list(restored.skipped) == [30, 20]
        assert restored.skipped[30] == "state/manifest.ocdbt is missing"
        assert "manifest.json" in restored.skipped[20]
        for step, warning in zip((30, 20), told):
            assert warning.filename == __file__
            for part in (f"Step {step} ", restored.skipped[step], f"{step:08d}.damaged"):
                assert part in str(warning.message)
        assert _names(directory) == ["00000010", "00000020.damaged", "00000030.damaged"]

    def test_the_number_can_be_saved_again_and_again(self, checkpoints, directory):
        for _ in range(3):
            _save(checkpoints, *([1, 2] if checkpoints.latest() is None else [2]))
            _damage(directory, 2)
            with pytest.warns(UserWarning, match="set aside"):
                assert checkpoints.restore(_state(0)).step == 1
        _save(checkpoints, 2)
        aside = ["00000002.damaged", "00000002.damaged-2", "00000002.damaged-3"]
        assert _names(directory) == ["00000001", "00000002", *aside]
        _assert_state(checkpoints.restore(_state(0)).state, 2)

    def test_nothing_moves_where_no_step_verifies(self, checkpoints, directory):
        _save(checkpoints, 1, 2)
        _damage(directory, 1)
        _damage(directory, 2)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"(?s)step 2: manifest.*step 1: manifest"):
                checkpoints.restore(_state(0))
        assert _names(directory) == ["00000001", "00000002"]
        assert list(checkpoints.verify().damaged) == [1, 2]

    def test_a_step_that_cannot_be_renamed_is_still_walked_past(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1, 2)
        _damage(directory, 2)

        def refuse(*_):
            raise PermissionError("not yours")

        monkeypatch.setattr(os, "rename", refuse)
        with pytest.warns(UserWarning, match="could not be set aside: not yours"):
            assert checkpoints.restore(_state(0)).step == 1

    def test_another_state_is_refused_and_nothing_moves(self, checkpoints, directory):
        _save(checkpoints, 1, 2)
        like = _state(0)
        like["params"]["w"] = like["params"]["w"].T
        with pytest.raises(ValueError, match=r"params/w: saved float32\[40,30\], wanted .*30,40"):
            checkpoints.restore(like)
        assert _names(directory) == ["00000001", "00000002"]

    def test_a_good_step_is_not_blamed_for_what_orbax_cannot_do(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1, 2)

        def fail(*_):
            raise ValueError("no memory")

        monkeypatch.setattr(_store.Store, "read", fail)
        with pytest.raises(RuntimeError, match=r"00000002 verifies, but Orbax .* no memory"):
            checkpoints.restore(_state(0))
        assert _names(directory) == ["00000001", "00000002"]

    def test_a_step_that_is_damaged_while_it_is_read(self, checkpoints, directory, monkeypatch):
        _save(checkpoints, 1, 2)
        read = _store.Store.read

        def harmed(self, folder, places):
            if "00000002" in str(folder):
                _damage(directory, 2)
                raise ValueError("no array")
            return read(self, folder, places)

        monkeypatch.setattr(_store.Store, "read", harmed)
        with pytest.warns(UserWarning, match=r"Step 2 .* manifest\.json is not what was written"):
            assert checkpoints.restore(_state(0)).step == 1

    def test_a_wrong_value_behind_good_files_is_found_by_its_digest(self, checkpoints, monkeypatch):
        _save(checkpoints, 1, 2)
        read = _store.Store.read

        def misread(self, folder, places):
            arrays = read(self, folder, places)
            if "00000002" in str(folder):
                arrays["1"] = arrays["1"].copy()
                arrays["1"].view(np.uint32)[3, 4] ^= 1
            return arrays

        monkeypatch.setattr(_store.Store, "read", misread)
        with pytest.warns(UserWarning, match="params/w is not what was saved: its digest differs"):
            restored = checkpoints.restore(_state(0))
        _assert_state(restored.state, 1)

    def test_no_step_is_blamed_for_what_its_disk_did_not_do(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1, 2)

        def refuse(*_, **__):
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(_manifest, "_hash", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                checkpoints.restore(_state(0))
        assert _names(directory) == ["00000001", "00000002"]
        assert checkpoints.restore(_state(0)).step == 2

    def test_a_step_that_is_collected_before_its_turn(self, checkpoints, directory, monkeypatch):
        _save(checkpoints, 1, 2)
        listed = [[2, 3], [1, 2], [1, 2, 3], [1, 2, 3]]
        monkeypatch.setattr(_directory, "steps", lambda _: listed.pop(0))
        assert checkpoints.restore(_state(0)).step == 2
        assert checkpoints.verify()[:2] == ((1, 2), {})
        assert listed == [[1, 2, 3]]

    def test_a_step_that_is_collected_meanwhile_is_not_damaged(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1, 2)
        newer, away = directory / "00000002", directory / "away"
        shutil.move(newer, away)
        read = lo.checkpoint._state.read

        def overtaken(store, folder, *rest):
            if folder.name == "00000001":
                shutil.rmtree(folder)
                shutil.move(away, newer)
            return read(store, folder, *rest)

        monkeypatch.setattr(lo.checkpoint._state, "read", overtaken)
        restored = checkpoints.restore(_state(0))
        assert (restored.step, restored.skipped) == (2, {})

    def test_a_step_that_is_replaced_while_it_is_read(self, checkpoints, directory, monkeypatch):
        _save(checkpoints, 1, 2)
        newer, good = directory / "00000002", directory / "good"
        shutil.copytree(newer, good)
        read = lo.checkpoint._state.read

        def replaced(store, folder, *rest):
            if good.exists():
                shutil.rmtree(newer)
                shutil.move(good, newer)
                raise _manifest.Damaged("half of it is gone")
            return read(store, folder, *rest)

        monkeypatch.setattr(lo.checkpoint._state, "read", replaced)
        restored = checkpoints.restore(_state(0))
        assert (restored.step, restored.skipped) == (2, {})

    def test_a_step_that_is_replaced_meanwhile_is_not_moved(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1, 2)
        newer, good = directory / "00000002", directory / "good"
        shutil.copytree(newer, good)
        _damage(directory, 2)
        read = lo.checkpoint._state.read

        def replaced(store, folder, *rest):
            if folder.name == "00000001":
                shutil.rmtree(newer)
                shutil.move(good, newer)
            return read(store, folder, *rest)

        monkeypatch.setattr(lo.checkpoint._state, "read", replaced)
        with pytest.warns(UserWarning, match="Another program has replaced it meanwhile"):
            assert checkpoints.restore(_state(0)).step == 1
        assert checkpoints.verify()[:2] == ((1, 2), {})


class TestEverySaveLandsOrRaises:
    def test_a_good_step_is_not_replaced(self, checkpoints):
        _save(checkpoints, 5)
        for step in (5, 4):
            with pytest.raises(ValueError, match=f"Step {step} cannot .* which holds step 5"):
                checkpoints.save(step, _state(9))
        _assert_state(checkpoints.restore(_state(0)).state, 5)

    def test_a_damaged_step_makes_room(self, checkpoints, directory):
        _save(checkpoints, 4, 5, 6)
        _damage(directory, 5)
        _damage(directory, 6)
        with pytest.warns(UserWarning, match="set aside"):
            _save(checkpoints, 5)
        assert checkpoints.verify()[:2] == ((4, 5), {})
        assert _names(directory)[2:] == ["00000005.damaged", "00000006.damaged"]

    def test_an_error_of_the_background_is_raised_once(self, checkpoints, directory, monkeypatch):
        _save(checkpoints, 1)
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(_manifest, "write", full)
            checkpoints.save(2, _state(2))
            with pytest.raises(RuntimeError, match=r"(?s)Step 2 was not saved.*No space left") as e:
                checkpoints.save(3, _state(3))
        assert isinstance(e.value.__cause__, OSError)
        assert _names(directory) == ["00000001"]
        _save(checkpoints, 2)
        assert checkpoints.verify().verified == (1, 2)

    def test_what_is_not_what_was_in_memory_does_not_land(
        self, checkpoints, directory, monkeypatch
    ):
        _save(checkpoints, 1)
        write = _store.Store.write

        def miswrite(self, folder, arrays):
            arrays = {name: array.copy() for name, array in arrays.items()}
            arrays["1"].view(np.uint32)[0, 0] ^= 1
            return write(self, folder, arrays)

        monkeypatch.setattr(_store.Store, "write", miswrite)
        with pytest.raises(RuntimeError, match=r"Step 2 was not saved .*params/w is not what was"):
            _save(checkpoints, 2)
        assert _names(directory) == ["00000001"]

    def test_the_end_of_a_block_raises(self, directory, monkeypatch):
        monkeypatch.setattr(_directory, "land", lambda *_: 1 / 0)
        checkpoints = lo.checkpoint.Checkpoints(directory)
        with pytest.raises(RuntimeError, match="Step 1 was not saved"), checkpoints:
            checkpoints.save(1, _state(1))

    def test_the_end_of_a_program_waits(self, directory):
        program = (
            "import sys, numpy, lossopt as lo\n"
            "write = lo.checkpoint._manifest.write\n"
            "def fail(folder, *rest):\n"
            "    assert '1/0' not in str(folder), 'no room'\n"
            "    write(folder, *rest)\n"
            "lo.checkpoint._manifest.write = fail\n"
            "for run in '123':\n"
            "    checkpoints = lo.checkpoint.Checkpoints(sys.argv[1] + run)\n"
            "    checkpoints.save(1, {'w': numpy.ones(1000)})\n"
        )
        run = [sys.executable, "-c", program, str(directory)]
        done = subprocess.run(run, capture_output=True, text=True)
        assert "Step 1 was not saved as" in done.stderr
        assert "no room" in done.stderr
        assert _names(f"{directory}1") == []
        for run in "23":
            with lo.checkpoint.Checkpoints(f"{directory}{run}") as checkpoints:
                assert checkpoints.verify()[:2] == ((1,), {})

    def test_what_a_killed_process_left_is_removed(self, checkpoints, directory):
        for name in ("00000001.0123abcd.saving", "00000009.12345678.saving", "00000003.collected"):
            (directory / name / "state").mkdir(parents=True)
        assert checkpoints.latest() is None
        _save(checkpoints, 1)
        assert _names(directory) == ["00000001"]

    def test_an_interrupted_wait_waits_again(self, checkpoints, directory, monkeypatch):
        digests, go_on = _digest.of_arrays, threading.Event()
        monkeypatch.setattr(_digest, "of_arrays", lambda arrays: go_on.wait(60) and digests(arrays))
        checkpoints.save(1, _state(1))
        here = threading.get_ident()  # a signal to another thread does not interrupt this one
        threading.Timer(0.3, signal.pthread_kill, [here, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
        go_on.set()
        checkpoints.wait()
        assert _names(directory) == ["00000001"]

    def test_a_save_without_a_thread_is_told(self, checkpoints, directory, monkeypatch):
        def refuse(_):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match=r"Step 1 was not saved .*can't start"):
                checkpoints.save(1, _state(1))
        assert _names(directory) == []
        _save(checkpoints, 1)
        assert _names(directory) == ["00000001"]

    def test_a_forked_child_waits_for_nothing(self, checkpoints, directory, monkeypatch):
        digests, go_on = _digest.of_arrays, threading.Event()
        monkeypatch.setattr(_digest, "of_arrays", lambda arrays: go_on.wait() and digests(arrays))
        checkpoints.save(1, _state(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jax and Python advise against forks
            child = multiprocessing.get_context("fork").Process(target=int, daemon=True)
            child.start()
        child.join(20)
        go_on.set()
        checkpoints.wait()
        assert child.exitcode == 0
        assert _names(directory) == ["00000001"]

    def test_threads_take_turns(self, checkpoints):
        def save(step):
            try:
                checkpoints.save(step, _state(step))
            except ValueError as refusal:
                return str(refusal)

        with ThreadPoolExecutor(4) as pool:
            refusals = dict(zip(range(1, 5), pool.map(save, range(1, 5))))
        landed = [step for step, refusal in refusals.items() if refusal is None]
        assert checkpoints.verify().verified == tuple(landed[-3:])
        assert all(
            refusal is None or "which holds step" in refusal for refusal in refusals.values()
        )

    def test_two_objects_take_turns(self, checkpoints, directory, monkeypatch):
        check, written = _manifest.check_leaves, threading.Event()

        def slowly(*given):
            written.set()
            time.sleep(0.3)
            return check(*given)

        monkeypatch.setattr(_manifest, "check_leaves", slowly)
        with lo.checkpoint.Checkpoints(directory) as other:
            checkpoints.save(1, _state(1))
            assert written.wait(60)
            other.save(2, _state(2))
        assert checkpoints.verify().verified == (1, 2)

    def test_many_runs_save_side_by_side(self, tmp_path):
        runs = [lo.checkpoint.Checkpoints(tmp_path / str(i)) for i in range(3)]
        for step in range(1, 5):
            for run in runs:
                run.save(step, _state(step))
        assert [run.verify().verified for run in runs] == [(2, 3, 4)] * 3

    def test_usable_after_closing(self, checkpoints):
        _save(checkpoints, 1)
        checkpoints.close()
        checkpoints.close()
        _save(checkpoints, 2)
        assert checkpoints.verify().verified == (1, 2)


class TestRefusals:
    @pytest.mark.parametrize("numbers", [{"keep": 0}, {"every": 0}, {"keep": -1}])
    def test_numbers(self, directory, numbers):
        with pytest.raises(ValueError, match=f"Expected {next(iter(numbers))} >= 1"):
            lo.checkpoint.Checkpoints(directory, **numbers)

    @pytest.mark.parametrize("numbers", [{"keep": 1.5}, {"every": "3"}])
    def test_kinds_of_numbers(self, directory, numbers):
        with pytest.raises(TypeError, match=f"Expected {next(iter(numbers))} as a whole number"):
            lo.checkpoint.Checkpoints(directory, **numbers)

    def test_numbers_may_be_large(self, directory):
        with lo.checkpoint.Checkpoints(directory, keep=10**12, every=10**12) as checkpoints:
            for step in (5, 2**31, 10**12):
                _save(checkpoints, step)
            assert checkpoints.verify()[:2] == ((5, 2**31, 10**12), {})

    def test_steps(self, checkpoints):
        with pytest.raises(ValueError, match="Expected step >= 0, got -1"):
            checkpoints.save(-1, _state(0))
        with pytest.raises(TypeError, match=r"Expected step as a whole number, got 1\.0"):
            checkpoints.save(1.0, _state(0))
        checkpoints.save(np.int64(3), _state(3))
        checkpoints.save(jnp.asarray(4), _state(4))
        assert checkpoints.latest() == (4, {})

    def test_files_for_directories(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(NotADirectoryError, match="file is a file"):
                lo.checkpoint.Checkpoints(path)

    @pytest.mark.parametrize(
        "name",
        [
            *("gs://bucket/run", pathlib.Path("gs://bucket/run")),
            *("", "a*b", "a[1]", "a\\b", b"\xff", "~nobody here/run"),
        ],
    )
    def test_what_orbax_cannot_write_to(self, name):
        with pytest.raises(ValueError, match="local or mounted"):
            lo.checkpoint.Checkpoints(name)

    @pytest.mark.parametrize("name", ["a b%20c#d?e|f", "späße/../läuft", b"bytes"])
    def test_odd_names_of_folders(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with lo.checkpoint.Checkpoints(name) as checkpoints:
            _save(checkpoints, 1)
            assert checkpoints.verify()[:2] == ((1,), {})
            _assert_state(checkpoints.restore(_state(0)).state, 1)

    def test_an_empty_directory(self, checkpoints, directory):
        assert checkpoints.latest() is None
        for method in (lambda: checkpoints.restore(_state(0)), checkpoints.verify):
            with pytest.raises(FileNotFoundError, match=r"No step to .*`latest"):
                method()
        assert not directory.exists()

    def test_a_step_that_is_not_there(self, checkpoints):
        _save(checkpoints, 1)
        with pytest.raises(FileNotFoundError, match=r"No step 2 in .*, which has \[1\]"):
            checkpoints.verify(2)

    def test_a_state_that_cannot_be_saved_leaves_nothing(self, checkpoints, directory):
        with pytest.raises(TypeError, match="name is a str"):
            checkpoints.save(1, {"name": "adam", "w": np.ones(2)})
        assert not directory.exists()


@pytest.mark.parametrize("name", ["~/run", b"~/run", pathlib.Path("~/run")])
def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert lo.checkpoint.Checkpoints(name).directory == tmp_path / "home" / "run"
    assert lo.checkpoint.Checkpoints("./~/run").directory == tmp_path / "~" / "run"


def test_a_relative_directory_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lo.checkpoint.Checkpoints("run") as checkpoints:
        monkeypatch.chdir("/")
        _save(checkpoints, 1)
    assert _names(tmp_path / "run") == ["00000001"]
    assert (
        repr(checkpoints)
        == f"Checkpoints('{tmp_path / 'run'}', keep=3, every=None, keep_best=None)"
    )


def test_a_good_restore_says_nothing(checkpoints):
    _save(checkpoints, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoints.restore(_state(0))
