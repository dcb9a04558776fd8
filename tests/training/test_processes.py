"""Whole runs of several processes: the numbers of one, and what is left where one of them ends."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from lossopt import _guard
from lossopt.checkpoint import Checkpoints
from lossopt.training import Stopped
from tests.training import worker
from tests.training.resumed import same
from tests.xla import UNCACHED, one_device

GONE = r"Process \d of 2 ends, because another process of this run is gone \(.*\): start all of "
ABORTED = -signal.SIGABRT


class Left(NamedTuple):
    """What a process left: its exit code, when it ended, what it said and what it found."""

    code: int
    end: float
    text: str
    found: dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def left(folder):
    """Of each scene its processes, in their order."""
    run = subprocess.run(
        [sys.executable, str(Path(worker.__file__)), str(folder)],
        env=one_device(os.environ, compiling=True) | UNCACHED | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scenes = {}
    for name, rank, code, end in sorted(json.loads(run.stdout)):
        own = f"{name}_{rank}"
        found = {
            path.suffix[1:]: pickle.loads(path.read_bytes())
            for path in folder.glob(f"{own}.*")
            if path.suffix not in {".ended", ".half"}
        }
        text = (folder / own).read_text()
        scenes.setdefault(name, []).append(Left(code, end, text, found))
    return scenes


@pytest.fixture(scope="module")
def pair(left):
    """What two processes found, each of them all of it."""
    for process in left["pair"]:
        assert process.code == 0, process.text
    return [process.found for process in left["pair"]]


@pytest.fixture(scope="module")
def single(left):
    [process] = left["single"]
    assert process.code == 0, process.text
    return process.found


def _near(got, want, tolerance):
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, rtol=tolerance, atol=tolerance, err_msg=name)


class TestSameNumbers:
    @pytest.mark.parametrize("name", ["data", "odd"])
    def test_two_processes_take_the_run_of_one_to_the_bit(self, pair, single, name):
        for found in pair:
            same(found[name], single[name])
        assert pair[0]["data"][".status"] == Stopped.PATIENCE.code
        assert pair[0]["data"][".steps"] < worker.EPOCHS * 3

    def test_of_fsdp_each_holds_a_part(self, pair):
        assert [found["part"] for found in pair] == [(4, worker.WIDTH // 2)] * 2

    def test_of_rows_that_each_has_read_itself(self, pair):
        for found in pair:
            same(found["global"], pair[0]["data"])

    def test_four_devices_of_one_process_or_of_two(self, left, single):
        for process in left["square"]:
            _near(process.found["four"], single["four"], 1e-6)

    def test_a_run_of_two_processes_goes_on_with_four_devices(self, pair, single):
        _near(single["restarted"], pair[0]["data"], 1e-5)
        _near(single["four"], pair[0]["data"], 1e-5)

    def test_evaluation_of_rows_and_of_a_stream(self, pair):
        params = {name: np.float64(pair[0]["data"][f".params['{name}']"]) for name in ("in", "out")}
        batch = worker.VALIDATION
        errors = (np.tanh(batch["x"] @ params["in"]) @ params["out"] - batch["y"]) ** 2
        fit = np.average(errors, weights=batch["w"])
        penalty = 1e-3 * sum(np.sum(x**2) for x in params.values())
        want = {"fit": fit, "penalty": penalty, "value": fit + penalty}
        for found in pair:
            for name in ("evaluated_array", "evaluated_stream"):
                _near(found[name], want, 1e-6)


class TestStreams:
    def test_parts_are_one_batch(self, pair):
        """Also where processes have other numbers of rows, and one of them none."""
        step, params = jax.jit(_step), worker.PARAMS
        state, values = worker.OPTIMIZER.init(params), []
        for batch in worker.parts() * 2:
            params, state = step(params, state, batch)
            values.append(_value(params, worker.VALIDATION))
        for found in pair:
            run = found["stream"]
            _near({name: run[f".params['{name}']"] for name in params}, params, 1e-5)
            np.testing.assert_allclose(run[".history['validation/value']"], values, rtol=1e-5)

    @pytest.mark.parametrize("name", ["streamed", "again"])
    def test_go_on_to_the_bit(self, pair, name):
        for found in pair:
            same(found[name], pair[0]["stream"])

    def test_go_on_in_as_many_processes_alone(self, single):
        assert re.match("ValueError: .* holds another run", single["fewer"])
        assert "\nprocesses: was 2, is nothing\n" in single["fewer"]


def _value(params, batch):
    return sum(term.value for term in worker.quiet(params, batch).values())


def _step(params, state, batch):
    gradient = jax.grad(_value)(params, batch)
    updates, state = worker.OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


class TestEndsOfOne:
    """One process alone is asked to end; all do, and save."""

    def test_signals(self, pair, folder):
        assert [found["interrupted"] for found in pair] == [(Stopped.INTERRUPTED, 3)] * 2
        called = [signal.SIGTERM]
        assert [found["terminated"] for found in pair] == [(Stopped.INTERRUPTED, 6, called)] * 2
        assert 3 in Checkpoints(folder / "copy").verify().verified

    def test_on_epoch(self, pair):
        assert [found["asked"] for found in pair] == [(Stopped.ASKED, 6)] * 2

    def test_the_run_goes_on_to_the_bit(self, pair):
        for found in pair:
            same(found["goes_on"], pair[0]["data"])

    def test_an_error_of_on_epoch_is_raised_by_both(self, left, folder):
        first, second = (process.found["raised"] for process in left["square"])
        assert second == "KeyError: 'popitem(): dictionary is empty'"
        assert first == f"RuntimeError: Process 1 failed, and with it all: {second}"
        [step] = Checkpoints(folder / "raises").verify().verified
        assert 3 <= step < 6  # the end of the last call before the row at 6

    def test_an_error_of_the_loader_is_raised_by_both(self, pair, folder):
        first, second = (found["raised"] for found in pair)
        assert first == "ConnectionError: the disk is away"
        assert second == f"RuntimeError: Process 0 failed, and with it all: {first}"
        [*_, newest] = Checkpoints(folder / "loader").verify().verified
        assert 1 <= newest <= 3


def _within(seconds, *processes):
    begun = re.search(r"([\d.]+) is when it begins", "".join(x.text for x in processes))
    assert begun
    assert max(process.end for process in processes) - float(begun[1]) < seconds


REFUSED = {
    "data": r"Expected train/y alike on all processes, got .* on process 0 and .* on process 1\.",
    "rows": r"Expected train/\w alike .* got float32\[12.* on process 0 and float32\[13",
    "params": r"Expected params/out alike .* and float32\[256\], .* make parameters from one key",
    "key": r"Expected key alike .* \[0, 0\] on process 0 and .* \[0, 1\] on process 1",
    "batch_size": "Expected batch_size alike on all processes, got 8 on process 0 and 16 on",
    "stop": r"Expected stop/patience alike .* int64\[\] 1 on process 0 and int64\[\] 2 on",
    "check": "Expected check alike on all processes, got True on process 0 and False on process 1",
    "kind": "Expected train alike on all processes, got given on process 0 and an iterable on",
    "checkpoint": "Expected checkpoint alike on all processes, got given on process 0 and nothing",
    "left_out": r"a mesh with devices of all 2 processes, got none of process 1",
    "mesh": r"Expected mesh alike .* of devices \[0, \d+\] on process 0 and .* of devices \[\d+, 0",
    "shards": r"holds another run than this call asks for:\nsource.shards: was 2, is 1",
    "structure": r"params/in",
    "alike": "axes of rows each process has as many devices of its own, because each reads its",
    "measured": "axes of rows each process has as many devices of its own, because each reads its",
    "wide": r"Expected train, each row/x alike .* float32\[4\] on process 0 and float32\[5\] on",
}


class TestRefused:
    """By all processes, before one of them waits."""

    @pytest.mark.parametrize(("name", "text"), REFUSED.items())
    def test_what_differs_or_does_not_fit(self, pair, name, text):
        for found in pair:
            assert re.match("ValueError: ", found["refused"][name])
            assert re.search(text, found["refused"][name], re.DOTALL), found["refused"][name]

    def test_a_first_batch_that_fails_on_one(self, pair):
        first, second = (found["refused"]["first"] for found in pair)
        assert first == "ConnectionError: the disk is away"
        assert second == f"RuntimeError: Process 0 failed, and with it all: {first}"


class TestDeaths:
    """The rest leaves, and all, started again, end as if nothing had been."""

    def test_of_a_worker(self, left):
        first, second = left["killed"]
        assert (first.code, second.code) == (_guard.TEMPORARY, -signal.SIGKILL), first.text
        assert re.search(GONE, first.text)
        assert "Traceback" not in first.text
        _within(15, first, second)

    def test_of_the_first(self, left):
        first, second = left["first_killed"]
        assert first.code == -signal.SIGKILL
        self._left(second)
        _within(15, first, second)

    def test_of_one_that_is_stopped(self, left):
        self._left(left["stopped"][0])
        _within(worker.HEARTBEAT + 5, *left["stopped"][:1], left["stopped"][1])

    @pytest.mark.parametrize("name", worker.SIGNALS)
    def test_all_go_on(self, pair, name):
        for found in pair:
            row, run = found[name]
            assert row in (worker.DEATH - 1, worker.DEATH)
            same(run, pair[0]["odd"])

    def _left(self, process):
        by_sentence = process.code == _guard.TEMPORARY and re.search(GONE, process.text)
        assert by_sentence or process.code == ABORTED, process.text
