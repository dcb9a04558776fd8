"""What `restore` is asked for: a step, a part, a state whose shapes the note tells."""

import dataclasses
import os
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.checkpoint import _store


class Train(NamedTuple):
    params: Any
    opt: Any
    step: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    kernel: Any
    bias: Any


def _state(step, rows=4):
    kernel = np.arange(3.0 * rows, dtype=np.float32).reshape(rows, 3) + step
    params = Model(kernel, {"b": np.float32([step, 2])})
    opt = (optax.EmptyState(), [jax.random.key(step), params, None])
    return Train(params, opt, step)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Steps of several sizes, none of them damaged, for tests that change nothing."""
    with lo.checkpoint.Checkpoints(tmp_path_factory.mktemp("parts") / "run") as checkpoints:
        for step, rows in ((10, 4), (20, 5), (30, 6)):
            checkpoints.save(step, _state(step, rows), {"rows": rows})
        checkpoints.wait()
        yield checkpoints


@pytest.fixture
def run(tmp_path):
    """Three steps to be damaged, which need no Orbax."""
    with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"n": [step] * step}, {"count": step})
        checkpoints.wait()
        yield checkpoints


def _damage(checkpoints, step):
    with open(checkpoints.directory / f"{step:08d}" / "manifest.json", "ab") as file:
        file.write(b" ")


def _names(checkpoints):
    return sorted(os.listdir(checkpoints.directory))


def _collected(checkpoints, step, monkeypatch):
    """By another program, while it is read."""
    read, folder = lo.checkpoint._state.read, checkpoints.directory / f"{step:08d}"

    def late(*given):
        if folder.exists():
            folder.rename(folder.with_suffix(".collected"))
        return read(*given)

    monkeypatch.setattr(lo.checkpoint._state, "read", late)


class TestStep:
    @pytest.mark.parametrize("step", [20, np.int64(20), jnp.asarray(20)])
    def test_exactly_this_one(self, checkpoints, step):
        restored = checkpoints.restore(_state(0, 5), step=step)
        assert (restored.step, restored.skipped, restored.note) == (20, {}, {"rows": 5})
        assert type(restored.step) is int
        np.testing.assert_array_equal(restored.state.params.kernel, _state(20, 5).params.kernel)
        assert _names(checkpoints) == ["00000010", "00000020", "00000030"]

    def test_a_damaged_one_is_said_and_nothing_moves(self, run):
        _damage(run, 2)
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"Step 2 in .* manifest\.json is .* Nothing was moved"
            ):
                run.restore({"n": [0] * 2}, step=2)
        _damage(run, 3)
        assert run.restore({"n": [0]}, step=1).skipped == {}
        assert _names(run) == ["00000001", "00000002", "00000003"]

    def test_one_that_is_not_there(self, run, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"No step 5 in .*, which has \[1, 2, 3\]"):
            run.restore({"n": [0]}, step=5)
        with pytest.raises(FileNotFoundError, match="No step to restore"):
            lo.checkpoint.Checkpoints(tmp_path / "none").restore({}, step=5)

    def test_one_that_is_collected_meanwhile(self, run, monkeypatch):
        _collected(run, 2, monkeypatch)
        with pytest.raises(FileNotFoundError, match=r"No step 2 in .*, which has \[1, 3\]"):
            run.restore({"n": [0] * 2}, step=2)

    @pytest.mark.parametrize("verb", ["restore", "verify"])
    def test_what_is_no_step(self, run, verb):
        ask = {"restore": lambda step: run.restore({"n": [0]}, step=step), "verify": run.verify}
        with pytest.raises(TypeError, match=r"Expected step as a whole number, got 1\.0"):
            ask[verb](1.0)
        with pytest.raises(ValueError, match="Expected step >= 0, got -1"):
            ask[verb](-1)


class TestFunctions:
    def test_the_note_tells_the_shapes(self, run):
        like = lambda note: {"n": [0] * note["count"]}
        assert run.restore(like).state == {"n": [3, 3, 3]}
        assert run.restore(like, step=1).state == {"n": [1]}

    def test_each_step_that_is_tried(self, run, monkeypatch):
        _damage(run, 3)
        asked, check = [], lo.checkpoint._manifest.check_files

        def harmed(folder):
            if folder.name == "00000002":
                raise lo.checkpoint._manifest.Damaged("a file is missing")
            check(folder)

        monkeypatch.setattr(lo.checkpoint._manifest, "check_files", harmed)
        like = lambda note: asked.append(note) or {"n": [0] * note["count"]}
        with pytest.warns(UserWarning, match="set aside"):
            assert run.restore(like).step == 1
        assert asked == [{"count": 2}, {"count": 1}]  # the note of a damaged manifest is nobody's

    def test_a_container_that_can_be_called_is_a_state(self, tmp_path):
        state = jax.tree_util.Partial(print, np.arange(3.0), 4)
        with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(1, state)
            restored = checkpoints.restore(jax.tree_util.Partial(print, np.zeros(3), 0)).state
        np.testing.assert_array_equal(restored.args[0], np.arange(3.0))


def _plain(state):
    """Without what numpy does not know."""
    return state._replace(opt=(jax.random.key_data(state.opt[1][0]), state.opt[1][1]))


class TestOnly:
    def test_out_of_one_kind_of_container_into_another(self, checkpoints):
        want = _state(30, 6)
        like = {"params": {"kernel": np.zeros((6, 3), np.float32)}}
        like["params"]["bias"] = {"b": np.zeros(2, np.float32)}
        restored = checkpoints.restore(like, only="^params/")
        assert (restored.step, restored.note) == (30, {"rows": 6})
        got = restored.state["params"]
        np.testing.assert_array_equal(got["kernel"], want.params.kernel, strict=True)
        np.testing.assert_array_equal(got["bias"]["b"], want.params.bias["b"], strict=True)

    def test_what_has_no_leaves_stays_as_it_is_in_like(self, checkpoints):
        like = Train(None, optax.EmptyState(), 0)
        assert checkpoints.restore(like, only="^step$").state == Train(None, optax.EmptyState(), 30)
        like = Train({}, ((), [jax.random.key(0), None, None]), None)
        got = checkpoints.restore(like, only="^opt/1/0$").state
        assert jax.random.key_data(got.opt[1][0]).tolist() == [0, 30]
        assert (got.params, got.opt[0], got.step) == ({}, (), None)

    @pytest.mark.parametrize("only", ["", "params|opt|step"])
    def test_everything(self, checkpoints, only):
        like = _state(0, 6)
        got, want = checkpoints.restore(like, only=only).state, checkpoints.restore(like).state
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, _plain(got), _plain(want))

    def test_a_state_that_is_one_leaf(self, tmp_path):
        with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(1, 7)
            assert checkpoints.restore(0, only="^$").state == 7

    def test_no_other_array_is_read(self, checkpoints, monkeypatch):
        read, asked = _store.Store.read, []

        def spy(self, folder, places):
            arrays = read(self, folder, places)
            asked.append((sorted(places), sorted(arrays)))
            return arrays

        monkeypatch.setattr(_store.Store, "read", spy)
        checkpoints.restore({"params": {"kernel": np.zeros((6, 3), np.float32)}}, only="s/kernel$")
        assert asked == [(["0"], ["0"])]

    def test_of_the_step_before_where_the_newest_is_collected_meanwhile(self, run, monkeypatch):
        _collected(run, 3, monkeypatch)
        restored = run.restore({"n": {"0": 0}}, only="^n/0$")
        assert (restored.step, restored.state, restored.skipped) == (2, {"n": {"0": 2}}, {})

    def test_the_files_verify_nevertheless(self, checkpoints, tmp_path):
        shutil.copytree(checkpoints.directory, tmp_path / "run")
        (data,) = (tmp_path / "run" / "00000030" / "state").glob("manifest.ocdbt")
        data.write_bytes(data.read_bytes()[:-1])
        with lo.checkpoint.Checkpoints(tmp_path / "run") as copy:
            with pytest.raises(RuntimeError, match=r"Step 30 .*: state/manifest\.ocdbt has"):
                copy.restore(Train((), (), 0), only="^step$", step=30)
            with pytest.warns(UserWarning, match="Step 30 .* set aside"):
                assert copy.restore(Train((), (), 0), only="^step$").state.step == 20

    def test_a_wrong_value_is_found_by_its_digest(self, checkpoints, monkeypatch):
        read = _store.Store.read

        def misread(self, folder, places):
            return {name: x + 1 for name, x in read(self, folder, places).items()}

        monkeypatch.setattr(_store.Store, "read", misread)
        like = {"params": {"kernel": np.zeros((6, 3), np.float32)}}
        with pytest.raises(RuntimeError, match=r"Step 30 .*: params/kernel is not what was saved"):
            checkpoints.restore(like, step=30, only="s/kernel$")


KERNEL = {"params": {"kernel": np.zeros((6, 3), np.float32)}}
REFUSED = {
    "takes nothing": (
        (KERNEL, "^weights/"),
        r"only='\^weights/' takes no leaf of .*00000030, which has params/kernel, params/bias/b, ",
    ),
    "takes what has no leaves": (({}, "^opt/0"), "takes no leaf"),
    "leaves of like": (
        ({**KERNEL, "step": 0, "more": [1]}, "kernel"),
        r"only='kernel' does not take 'more/0', 'step' of `like`",
    ),
    "leaves of the state": (
        (KERNEL, "^params/"),
        r"(?s)params/bias/b: saved float32\[2\], wanted nothing.*`like` must have the leaves that",
    ),
    "what was not saved": (
        ({"params": {"kernel": KERNEL["params"]["kernel"], "kernel2": 1}}, "^params/kernel"),
        "params/kernel2: saved nothing, wanted int",
    ),
    "shapes": (
        ({"params": {"kernel": np.zeros((4, 3), np.float32)}}, "kernel"),
        r"params/kernel: saved float32\[6,3\], wanted float32\[4,3\]",
    ),
    "dtypes": (
        ({"params": {"kernel": np.zeros((6, 3), np.float16)}}, "kernel"),
        r"params/kernel: saved float32\[6,3\], wanted float16\[6,3\]",
    ),
    "kinds": (({"step": 0.0}, "^step"), "step: saved int, wanted float"),
    "no expression": ((KERNEL, "params["), r"got 'params\[': unterminated character set"),
}


@pytest.mark.parametrize(("asked", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(asked, words, checkpoints):
    like, only = asked
    with pytest.raises(ValueError, match=words):
        checkpoints.restore(like, only=only)
    assert _names(checkpoints) == ["00000010", "00000020", "00000030"]


@pytest.mark.parametrize("only", [["params"], 3, b"params"])
def test_a_pattern_is_a_text(checkpoints, only):
    with pytest.raises(TypeError, match="Expected only as a regular expression of paths"):
        checkpoints.restore(KERNEL, only=only)


def test_many_paths_are_told_by_a_few(tmp_path):
    with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, list(range(200)))
        with pytest.raises(ValueError, match="which has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 190 mor"):
            checkpoints.restore([0], only="lost")
        with pytest.raises(ValueError, match=r"\n46: saved int, wanted nothing\nand 27 more\n"):
            checkpoints.restore({"4": 0}, only="4")
