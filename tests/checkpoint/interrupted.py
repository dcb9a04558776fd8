"""Saves that are killed, and saves on a disk that is full or not to be written, in subprocesses."""

import ctypes
import itertools
import logging
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np

import lossopt as lo
from tests.checkpoint import damage, judge

CHILDREN = multiprocessing.get_context("forkserver")  # imports once, for all of them
CHILDREN.set_forkserver_preload([__name__])
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of Linux
KEEP = 3
TOLD = (2, 3, 3, 3, 4)  # after how many steps the time of a child runs: the first compiles
SECONDS = 0.5  # that it has then, at most: a save takes about as long


class UnavailableError(Exception):
    """Such a disk cannot be had here."""


def model(step: int):
    """What is saved under this number: large enough to be killed in every phase of a save."""
    random = np.random.default_rng(step)
    return {
        "layers": [jax.device_put(random.random((128, 128), np.float32)) for _ in range(40)],
        "moments": random.random((256, 256)),
        "step": step,
    }


def value(step: int) -> float:
    """What is noted beside it; the best is step 10, then step 20, for good."""
    return step * 7 % 50


def train(directory: Path, pipe):
    """Tells the number of each step, then saves it, until it is killed."""
    with lo.checkpoint.Checkpoints(directory, keep=KEEP, keep_best=("value", max)) as checkpoints:
        latest = checkpoints.latest()
        for step in itertools.count(latest.step + 10 if latest else 10, 10):
            values = model(step)
            pipe.send(step)
            checkpoints.save(step, values, {"value": value(step)})


def kill(random: np.random.Generator, directory: Path) -> str:
    """Kills a child while it saves, holds what is owed after that, and says where it fell."""
    before = _by_step(directory)
    receiver, sender = CHILDREN.Pipe(duplex=False)
    child = CHILDREN.Process(target=train, args=(directory, sender), daemon=True)
    child.start()
    sender.close()
    told = [receiver.recv() for _ in range(random.choice(TOLD)) if receiver.poll(60)]
    time.sleep(random.uniform(0, SECONDS))
    child.kill()
    child.join()
    assert child.exitcode == -9
    while receiver.poll():
        try:
            told.append(receiver.recv())
        except EOFError:
            break
    where, now = phase(directory), _by_step(directory)
    landed = [*before, *told[:-2]]  # the last was told before its save, which awaits the one before
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        assert checkpoints.verify()[:2] == (tuple(now), {})
        assert len(now) >= min(KEEP, len(landed))
        if landed or now:
            assert max(range(10, max(now) + 1, 10), key=value) in now
            restored, warned, _ = judge.restore(checkpoints, model(0))
            assert max(landed, default=0) <= restored.step == max(now) <= told[-1]
            assert (dict(restored.skipped), warned) == ({}, [])
            judge.assert_same(restored.state, model(restored.step))
    assert all(before[step] == now[step] for step in before if step in now)
    return where


def go_on(directory: Path):
    """Saves once more where children were killed: nothing of theirs is left."""
    step = max(_by_step(directory), default=0) + 10
    with lo.checkpoint.Checkpoints(directory, keep=KEEP, keep_best=("value", max)) as checkpoints:
        checkpoints.save(step, model(step), {"value": value(step)})
        restored, warned, _ = judge.restore(checkpoints, model(0))
    assert (restored.step, warned) == (step, [])
    judge.assert_same(restored.state, model(step))
    assert not _rests(directory)
    assert damage.steps_of(directory) == sorted({20, *range(step - 10 * (KEEP - 1), step + 1, 10)})


def in_child(function, *args):
    """What it returns or raises in a process of its own, whose disk it may spoil."""
    with ProcessPoolExecutor(1, mp_context=CHILDREN) as pool:
        return pool.submit(_quietly, function, *args).result()


def full(directory: Path, seed: int, rounds: int) -> list[str]:
    """A disk of 1 MiB that is full; returns what became of each save."""
    _mount(directory)
    filler = directory / "filler"

    def leave(room):
        disk = os.statvfs(directory)
        filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))

    return _refused(directory / "run", seed, rounds, leave, filler.unlink, share=0.9)


def limited(directory: Path, seed: int, rounds: int) -> list[str]:
    """No file may grow beyond a limit; returns what became of each save."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    leave = lambda room: resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    return _refused(directory, seed, rounds, leave, lambda: leave(most), share=0.25)


def read_only(directory: Path, seed: int) -> list[str]:
    """A disk that cannot be written, with a damaged step on it."""
    _mount(directory)
    random = np.random.default_rng(seed)
    damage.save(directory, damage.STEPS[:2])
    older, newer = damage.STEPS[:2]
    done = damage.harm(damage.flipped, random, directory / f"{newer:08d}")
    before = damage.contents(directory)
    _command("mount", "-o", "remount,ro", str(directory))
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        restored, (message,), _ = judge.restore(checkpoints)
        judge.assert_same(restored.state, damage.state(older))
        assert done.names[0] in message
        assert f"Step {newer} in {directory} is damaged" in message
        _failure(checkpoints, newer + 10)
        assert damage.contents(directory) == before
        _command("mount", "-o", "remount,rw", str(directory))
        assert judge.restore(checkpoints)[0].step == older
        checkpoints.save(newer, damage.state(newer))
        judge.assert_same(judge.restore(checkpoints)[0].state, damage.state(newer))
    return ["refused"]


def _quietly(function, *args):
    """Without what Orbax prints of reads and writes that fail after its loop was closed."""
    sys.unraisablehook = lambda _: None
    logging.disable(logging.ERROR)
    return function(*args)


def _refused(directory, seed, rounds, leave, free, share):
    """Saves without room, at first with none, then with too little; then with room."""
    random, seen = np.random.default_rng(seed), []
    damage.save(directory, [10])
    size = sum(map(len, damage.contents(directory).values()))
    with lo.checkpoint.Checkpoints(directory, keep=2) as checkpoints:
        for turn in range(rounds):
            before, step = _by_step(directory), 10 * turn + 20
            leave([0, 100][turn] if turn < 2 else int(share * size * random.random() ** 2))
            try:
                said = _failure(checkpoints, step)
                restored, warned, _ = judge.restore(checkpoints)
            finally:
                free()
            assert (restored.step, warned) == (step - 10, []), said
            judge.assert_same(restored.state, damage.state(step - 10))
            assert _by_step(directory) == before
            rests = _rests(directory)  # threads of Orbax that write on may leave some
            seen += ["refused", *["with rests until the next save"] * bool(rests)]
            checkpoints.save(step, damage.state(step))
            restored, warned, _ = judge.restore(checkpoints)
            assert (restored.step, warned) == (step, [])
            judge.assert_same(restored.state, damage.state(step))
            assert not set(rests) & set(_rests(directory))
    return seen


def _failure(checkpoints, step):
    """What is said of a save that cannot land: the step, a file, and what to do."""
    try:
        checkpoints.save(step, damage.state(step))
        checkpoints.wait()
    except RuntimeError as error:
        said = str(error)
    else:
        raise AssertionError(f"step {step} landed")
    assert f"Step {step} was not saved" in said
    assert re.search(rf"{checkpoints.directory}/{step:08d}", said), said
    assert "Remove the cause that is named here, then save again" in said
    return said


def _mount(directory):
    """A tmpfs of 1 MiB that only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise UnavailableError("no mounts of its own: this is not Linux")
    if libc.unshare(NEW_MOUNTS):
        raise UnavailableError(f"no mounts of its own: {os.strerror(ctypes.get_errno())}")
    _command("mount", "--make-rprivate", "/")
    _command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory))


def _command(*words):
    run = subprocess.run(words, capture_output=True, text=True)
    if run.returncode:
        raise UnavailableError(f"{' '.join(words)}: {run.stderr.strip()}")


def _rests(directory):
    """What lies there beside steps."""
    return sorted({*os.listdir(directory)} - {f"{s:08d}" for s in damage.steps_of(directory)})


def _by_step(directory):
    return {
        step: damage.contents(directory / f"{step:08d}")
        for step in (damage.steps_of(directory) if directory.exists() else [])
    }


def phase(directory):
    """Where in a save the child was killed."""
    if list(directory.glob("*.collected")):
        return "an old step being deleted"
    folders = list(directory.glob("*.saving"))
    if not folders:
        return "between two saves"
    names = os.listdir(folders[0])
    if "manifest.json" in names:
        return "sealed, not yet renamed"
    return "read again" if "state" in names else "Orbax writing" if names else "begun"
