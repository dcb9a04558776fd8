"""A look into a step without a state like it."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt.checkpoint import _store
from tests.checkpoint.test_digest import DTYPES, random_bits


class Train(NamedTuple):
    params: Any
    rest: Any


KEY = jax.random.wrap_key_data(random_bits("uint32", (2, 4)), impl="rbg")
ARRAYS = {name: random_bits(name, (2, 3)) for name in DTYPES}
NUMBERS = {"int": -(10**30), "float": -0.0, "complex": 1j, "bool": True}


def _state():
    split = NamedSharding(jax.make_mesh((4,), ("d",)), P("d"))
    params = {
        "split": jax.device_put(np.arange(8.0, dtype=np.float32), split),
        "weak": jnp.asarray(2.5),
        "half": jax.device_put(np.ones(3, jnp.bfloat16)),
    }
    zero = {"keys": jax.random.split(jax.random.key(0), 0), "floats": np.zeros((0, 3), "float64")}
    rest = [ARRAYS, NUMBERS, {"key": KEY, **zero}, None, optax.EmptyState(), {}]
    return Train(params, rest)


@pytest.fixture(scope="module")
def state():
    return _state()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, state):
    with lo.checkpoint.Checkpoints(tmp_path_factory.mktemp("look") / "run") as checkpoints:
        checkpoints.save(1, {"n": 3, "x": np.arange(3.0)}, {"best": True})
        checkpoints.save(2, state)
        checkpoints.wait()
        yield checkpoints


PATHS = {
    *("params/split", "params/weak", "params/half", "rest/2/key", "rest/2/keys", "rest/2/floats"),
    *(f"rest/0/{name}" for name in ARRAYS),
    *(f"rest/1/{name}" for name in NUMBERS),
}


def test_an_outline(checkpoints, state, monkeypatch):
    monkeypatch.setattr(lo.checkpoint._manifest, "check_files", None)  # by the manifest alone
    monkeypatch.setattr(_store.Store, "read_again", None)
    found = checkpoints.outline()
    assert set(found) == PATHS
    assert {name: found[f"rest/1/{name}"] for name in NUMBERS} == NUMBERS
    for name, array in ARRAYS.items():
        struct = found[f"rest/0/{name}"]
        assert (struct.shape, struct.dtype) == (array.shape, array.dtype)
    split = found["params/split"]
    assert (split.shape, split.dtype, split.weak_type) == ((8,), np.float32, False)
    assert found["params/weak"].weak_type
    for name, keys in (("key", KEY), ("keys", state.rest[2]["keys"])):
        assert found[f"rest/2/{name}"] == jax.ShapeDtypeStruct(keys.shape, keys.dtype)


def test_arrays(checkpoints, state, monkeypatch):
    monkeypatch.setattr(_store.Store, "read", None)  # without Orbax
    found = checkpoints.arrays()
    assert set(found) == PATHS
    numbers = [found[f"rest/1/{name}"] for name in NUMBERS]
    assert [(type(x), repr(x)) for x in numbers] == [(type(x), repr(x)) for x in NUMBERS.values()]
    want = {f"rest/0/{name}": array for name, array in ARRAYS.items()}
    want |= {f"params/{name}": np.asarray(x) for name, x in state.params.items()}
    want |= {f"rest/2/{name}": x for name, x in state.rest[2].items()}
    want |= {
        f"rest/2/{x}": np.asarray(jax.random.key_data(want[f"rest/2/{x}"])) for x in ("key", "keys")
    }
    for path, array in want.items():
        got = found[path]
        assert type(got) is np.ndarray
        assert (got.shape, got.dtype, got.tobytes()) == (array.shape, array.dtype, array.tobytes())


def test_a_step_and_a_part(checkpoints, monkeypatch):
    assert checkpoints.outline(1) == {"n": 3, "x": jax.ShapeDtypeStruct((3,), np.float64)}
    assert checkpoints.arrays(1, "n") == {"n": 3}
    assert set(checkpoints.outline(only="^params/.*t$")) == {"params/split"}
    asked, read = [], _store.Store.read_again

    def spy(self, folder, names):
        asked.extend(names)
        return read(self, folder, asked)

    monkeypatch.setattr(_store.Store, "read_again", spy)
    (name,) = checkpoints.arrays(step=1, only="x$")
    assert (name, asked) == ("x", ["1"])


def test_an_outline_is_like(checkpoints, state):
    """All leaves by path, as arrays of jax where jax has such."""
    like = checkpoints.outline(only="^params|key|rest/1|float16")
    got = checkpoints.restore(like, only="^params|key|rest/1|float16").state
    assert got.keys() == like.keys()
    for name, x in state.params.items():
        np.testing.assert_array_equal(got[f"params/{name}"], x)
        assert got[f"params/{name}"].weak_type == x.weak_type
    assert jnp.array_equal(jax.random.key_data(got["rest/2/key"]), jax.random.key_data(KEY))


@pytest.mark.parametrize("verb", ["outline", "arrays"])
def test_what_is_refused(verb, checkpoints, tmp_path):
    look = getattr(checkpoints, verb)
    with pytest.raises(FileNotFoundError, match=r"No step 3 in .*, which has \[1, 2\]"):
        look(3)
    with pytest.raises(ValueError, match=r"only='lost' takes no leaf of .*, which has n, x\."):
        look(1, "lost")
    with pytest.raises(ValueError, match=r"only='rest/\[345\]' takes no leaf"):
        look(only="rest/[345]")  # those have no leaves
    with pytest.raises(TypeError, match="Expected only as a regular expression"):
        look(only=["x"])
    with pytest.raises(FileNotFoundError, match="No step to look at"):
        getattr(lo.checkpoint.Checkpoints(tmp_path / "none"), verb)()


@pytest.mark.parametrize("verb", ["outline", "arrays"])
def test_a_damaged_step_is_said_and_nothing_moves(verb, tmp_path):
    with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"n": step})
        checkpoints.wait()
        with open(checkpoints.directory / "00000002" / "manifest.json", "ab") as file:
            file.write(b" ")
        for ask in ({}, {"step": 2}):
            with pytest.raises(RuntimeError, match=r"Step 2 in .* is damaged: manifest\.json is"):
                getattr(checkpoints, verb)(**ask)
        assert getattr(checkpoints, verb)(1) == {"n": 1}
        assert sorted(os.listdir(checkpoints.directory)) == ["00000001", "00000002"]


def test_arrays_verify(checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        read = _store.Store.read_again
        patch.setattr(_store.Store, "read_again", lambda *given: (x + 1 for x in read(*given)))
        with pytest.raises(RuntimeError, match=r"Step 1 .*: x is not what was saved: its digest"):
            checkpoints.arrays(1)
    file = checkpoints.directory / "00000001" / "state" / "_METADATA"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(RuntimeError, match=r"Step 1 .*: state/_METADATA has"):
        checkpoints.arrays(1, "n")
    file.write_bytes(whole)


def test_a_step_that_is_collected_meanwhile(tmp_path, monkeypatch):
    with lo.checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"n": step})
        checkpoints.wait()
        newer, read = checkpoints.directory / "00000002", lo.checkpoint._manifest.read

        def late(folder):
            if newer.exists():
                newer.rename(newer.with_suffix(".collected"))
            return read(folder)

        monkeypatch.setattr(lo.checkpoint._manifest, "read", late)
        assert checkpoints.outline() == {"n": 1}
