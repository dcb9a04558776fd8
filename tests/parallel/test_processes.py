"""Two processes on the loopback: what they agree on, and what is left when one of them dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

import lossopt as lo
from lossopt import _guard, _jax, _processes
from lossopt.parallel import global_batch, guard, initialize
from tests.xla import UNCACHED, one_device

WORKER = Path(__file__).with_name("worker.py")
GONE = r"Process \d of 2 ends, because another process of this run is gone \(.*\): start all of "
ONE_IS_WRONG = r"Process \d of 2 ends at once, so that the others, .*, learn of it\.\n$"
ABORTED = -signal.SIGABRT


class Scene(NamedTuple):
    """How its two processes ended: exit codes, what they said, seconds after it began."""

    codes: list[int]
    texts: list[str]
    seconds: list[float]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env=one_device(os.environ, compiling=True) | UNCACHED,
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scenes = {}
    for name, rank, code, end in sorted(json.loads(run.stdout)):
        codes, texts, ends = scenes.setdefault(name, Scene([], [], []))
        codes.append(code)
        texts.append((folder / f"{name}_{rank}").read_text())
        ends.append(end)
    for _, texts, ends in scenes.values():
        begun = re.search(r"([\d.]+) is when it begins", "".join(texts))
        ends[:] = [end - float(begun[1]) if begun else np.nan for end in ends]
    return scenes


def _left(scene, survivor):
    """The survivor's text, after it left in time by the sentence, or by jax that was faster."""
    code, text = scene.codes[survivor], scene.texts[survivor]
    assert code in {_guard.TEMPORARY, ABORTED}, text
    assert scene.seconds[survivor] < 15
    return code, text


class TestTwoProcesses:
    def test_agree_and_refuse_alike(self, scenes):
        """The assertions are those of the worker; in the end the first leaves in a guard."""
        scene = scenes["agree"]
        assert scene.codes[0] == 3, scene.texts
        assert re.search(ONE_IS_WRONG, scene.texts[0])
        _left(scene, 1)

    def test_a_killed_one_makes_the_other_leave_with_a_sentence(self, scenes):
        scene = scenes["killed"]
        code, text = _left(scene, 0)
        assert (scene.codes[1], code) == (-signal.SIGKILL, _guard.TEMPORARY), text
        assert re.search(GONE, text)
        assert "Traceback" not in text

    def test_without_the_first_the_other_leaves_or_is_aborted(self, scenes):
        scene = scenes["first_killed"]
        assert scene.codes[0] == -signal.SIGKILL
        code, text = _left(scene, 1)
        assert code == ABORTED or re.search(GONE, text)

    def test_a_stopped_one_is_found_by_its_heartbeat(self, scenes):
        scene = scenes["stopped"]
        code, text = _left(scene, 0)
        assert code == ABORTED or re.search(GONE, text)

    def test_an_error_of_one_ends_both(self, scenes):
        scene = scenes["raises"]
        code, text = _left(scene, 0)
        assert (scene.codes[1], code) == (1, _guard.TEMPORARY), text
        assert re.search(GONE, text)
        assert "ValueError: an error of the user's\n" in scene.texts[1]
        assert re.search(ONE_IS_WRONG, scene.texts[1])
        assert max(scene.seconds) < 15


class Exit(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def ended(monkeypatch, capsys):
    """Raises an exception inside a guard of several processes; the exit code, and what is said."""

    def leave(code):
        raise Exit(code)

    def run(error):
        waits.clear()
        with pytest.raises(Exit) as code, guard():
            raise error
        return code.value.args[0], capsys.readouterr().err, list(waits)

    waits = []
    monkeypatch.setattr(_processes, "several", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(time, "sleep", waits.append)
    return run


GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:5"
LOST = (  # from jax 0.10.2, where a peer was killed
    GLOO + "38] Read error [127.0.0.1]:35222: Connection reset by peer",
    GLOO + "47] Connection closed by peer [127.0.0.1]:44421",
    "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout."
    " This indicates that the remote task has failed\n\nRPC: /Barrier",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: b::0. This usually happens because a task triggered",
    "DEADLINE_EXCEEDED: GetKeyValue() timed out with key: b and duration: 500ms",
)


class TestGuard:
    @pytest.mark.parametrize("text", LOST)
    def test_what_jax_says_of_lost_processes(self, ended, text):
        code, said, waits = ended(jax.errors.JaxRuntimeError(text))
        assert (code, waits) == (75, [1.0])
        assert re.match(GONE.replace(r"\d of 2", "0 of 1"), said)
        assert text.splitlines()[0] in said
        assert said.count("\n") == 1

    def test_also_by_another_class(self, ended):
        """Gloo's errors are ValueError where jax runs the program at once."""
        assert ended(ValueError(LOST[1].replace("all-reduce", "AllGather")))[0] == 75

    def test_also_as_the_cause_of_another_error(self, ended):
        error = ValueError("no checkpoint was written")
        error.__cause__ = jax.errors.JaxRuntimeError(LOST[0])
        assert ended(error)[0] == 75
        error.__context__, error.__cause__ = error.__cause__, None
        assert ended(error)[0] == 75

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "Out of memory"),
            (ValueError("Gloo " + LOST[0]), 1, "ValueError: Gloo UNKNOWN: Gloo"),
            (KeyError("connection"), 1, "KeyError: 'connection'"),
            (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
            (SystemExit(7), 7, ""),
            (SystemExit(), 0, ""),
            (SystemExit("nothing to do"), 1, "nothing to do\n"),
        ],
        ids=repr,
    )
    def test_what_is_an_error_of_its_own(self, ended, error, code, said):
        found, text, waits = ended(error)
        assert (found, waits) == (code, [1.0])
        assert said in text
        assert ("Traceback" in text) == (not isinstance(error, SystemExit))
        assert text.endswith(
            "Process 0 of 1 ends at once, so that the others, which wait for it in a collective, "
            "learn of it.\n"
        )

    def test_others_than_the_first_do_not_wait(self, ended, monkeypatch):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        assert ended(ValueError("no"))[2] == []

    def test_it_ends_also_where_nothing_can_be_said(self, ended, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        assert ended(ValueError("no"))[0] == 1

    def test_who_wants_no_more_of_a_generator(self, ended):
        def loop():
            with guard():
                yield 1

        assert next(loop()) == 1

    def test_with_one_process_it_does_nothing(self):
        with pytest.raises(SystemExit), guard(), guard():
            raise SystemExit(3)
        with guard() as nothing:
            assert nothing is None


class TestInitialize:
    @pytest.fixture(autouse=True)
    def _nowhere(self, monkeypatch):
        """Without devices, cluster and variables of jax, and never really joined."""
        monkeypatch.setattr(_jax, "started", lambda: False)
        for name in [name for name in os.environ if re.match("JAX_COORD|SLURM_|OMPI_|KUBE", name)]:
            monkeypatch.delenv(name)
        self.given = []
        self.join = jax.distributed.initialize
        said = lambda *args, **options: self.given.append((args, options))
        monkeypatch.setattr(jax.distributed, "initialize", said)

    def test_what_jax_is_given(self, monkeypatch):
        initialize("10.0.0.1:8476", 4, 3, local_device_ids=[1])
        initialize("10.0.0.1:8476", 4, 3, heartbeat_timeout_seconds=30, initialization_timeout=9)
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "head:1")
        initialize()
        seconds = [
            {"initialization_timeout": i, "heartbeat_timeout_seconds": h}
            for i, h in [(300, 10), (9, 30), (300, 10)]
        ]
        address = "10.0.0.1:8476"
        args = [(address, 4, 3, [1]), (address, 4, 3, None), ("head:1", None, None, None)]
        assert self.given == list(zip(args, seconds))

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({}, "got no coordinator_address, num_processes, process_id and found no cluster"),
            (
                {"process_id": 0, "coordinator_address": "a:1"},
                "got no num_processes and found",
            ),
            ({"coordinator_address": "head"}, "'host:port', got 'head'. Add a port"),
            ({"coordinator_address": "head:"}, "'host:port', got 'head:'"),
            ({"num_processes": 2, "process_id": 2}, r"process_id below num_processes = 2, got 2\."),
            ({"num_processes": 0}, "num_processes >= 1, got 0"),
            ({"process_id": -1}, "process_id >= 0, got -1"),
            ({"heartbeat_timeout_seconds": 0}, "heartbeat_timeout_seconds >= 1, got 0"),
            ({"initialization_timeout": 0}, "initialization_timeout >= 1, got 0"),
        ],
    )
    def test_refuses(self, monkeypatch, given, text):
        monkeypatch.setattr(jax.distributed, "initialize", self.join)
        monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
        with pytest.raises(ValueError, match=text):
            initialize(**given)
        assert not jax.distributed.is_initialized()

    def test_refuses_numbers_that_are_not_whole(self):
        with pytest.raises(TypeError, match="num_processes as a whole number, got '2'"):
            initialize("a:1", cast("int", "2"), 0)

    def test_refuses_a_process_that_has_devices(self, monkeypatch):
        monkeypatch.undo()
        jax.devices()
        with pytest.raises(RuntimeError, match=r"before jax has devices.*Call it first"):
            initialize("a:1", 1, 0)

    def test_refuses_recoverability(self):
        jax.config.update("jax_enable_recoverability", True)
        try:
            with pytest.raises(RuntimeError, match="jax_enable_recoverability off, got on"):
                initialize("a:1", 1, 0)
        finally:
            jax.config.update("jax_enable_recoverability", False)
        assert self.given == []


class TestOneProcess:
    def test_nothing_runs_on_a_device(self, monkeypatch):
        monkeypatch.setattr(jax, "device_put", None)
        assert not _processes.several()
        assert _processes.gathered([3, -1]).tolist() == [[3, -1]]
        assert _processes.gathered([3]).dtype == np.int32
        assert _processes.told({"a": [1]}) == [{"a": [1]}]
        assert _processes.of_first(lambda: 3) == 3
        assert _processes.summed(np.array([1, 2], np.uint32)).tolist() == [1, 2]
        _processes.same({"a": "b"}, "")
        with pytest.raises(KeyError):
            _processes.of_first(lambda: {}["a"])

    def test_a_global_batch_is_the_batch(self):
        batch = {"x": np.arange(16, dtype=np.float32).reshape(8, 2), "here": jax.numpy.arange(8)}
        placed = global_batch(lo.parallel.mesh(fsdp=2), batch)
        for name, x in batch.items():
            np.testing.assert_array_equal(placed[name], x)
            assert {part.data.shape[0] for part in placed[name].addressable_shards} == {1}

    def test_memory_that_the_loader_writes_again(self):
        """What begins at a multiple of 64 bytes XLA:CPU would not copy."""
        memory = np.ones(4096 + 64, np.uint8)
        begin = -memory.ctypes.data % 64
        local = memory[begin : begin + 4096]
        placed = global_batch(Mesh(jax.devices()[:1], ("data",)), local)
        local[:] = 7
        assert (placed == 1).all()

    def test_rows_lie_over_the_axes_that_are_named(self):
        mesh = jax.make_mesh((4, 2), ("rows", "model"))
        placed = global_batch(mesh, np.arange(8.0), axes={"data": "rows"})
        assert placed.sharding.spec == jax.P("rows")

    @pytest.mark.parametrize(
        ("rows", "error", "text"),
        [
            (np.ones((6, 2)), ValueError, r"the 8 devices .* got 6 rows\. Pad .*, 8\).* iterable"),
            ({"x": np.ones(8), "y": np.ones(4)}, ValueError, r"got local_rows\['x'\] \(8,\), loc"),
            (np.array(["word"] * 8), TypeError, "string|array"),
        ],
    )
    def test_refuses_rows(self, rows, error, text):
        with pytest.raises(error, match=text):
            global_batch(lo.parallel.mesh(), rows)

    def test_refuses_a_mesh_without_devices(self):
        with pytest.raises(TypeError, match="Expected mesh of devices, got AbstractMesh"):
            global_batch(cast("Mesh", AbstractMesh((8,), ("data",))), np.ones(8))
