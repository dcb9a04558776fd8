"""Every kind of leaf comes back as it was, onto any devices; another is refused with its path."""

import ast
import dataclasses
import enum
import pathlib
import pickle
import struct
from collections import OrderedDict
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt.checkpoint import _leaves
from lossopt.checkpoint._store import Store
from tests.checkpoint.test_digest import DTYPES, random_bits
from tests.transform_cases import TRANSFORMS

PARAMS = {"w": np.zeros(4096, np.float32), "b": np.zeros(4, jnp.bfloat16)}
KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
put = jax.device_put  # compiles nothing, as jnp.zeros would
WIDE = ("complex128", "float64", "int64", "uint64")
NARROW = [name for name in DTYPES if name not in WIDE]


def _key(*shape, impl="threefry2x32"):
    words = put(random_bits("uint32", (*shape, KEY_WORDS[impl])))
    return jax.random.wrap_key_data(words, impl=impl)


def _zeros(shape, dtype="float32"):
    return put(np.zeros(shape, dtype))


def _filled(tree):
    """Random bits for what an optimizer starts with."""
    return jax.tree.map(lambda x: put(random_bits(x.dtype, x.shape)), tree)


def _optimizer(rule, params=PARAMS):
    return _filled(jax.eval_shape(rule.init, params))


def _mesh(shape, kind=AxisType.Auto, names=("a", "b")):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, (kind,) * len(shape), devices=devices)


def _placed(x, spec, shape=(4, 2), kind=AxisType.Auto):
    return put(x, NamedSharding(_mesh(shape, kind), spec))


class Empty(NamedTuple):
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    kernel: Any
    name: str = dataclasses.field(metadata={"static": True})


def _optimizers():
    adam, transforms = optax.adam(0.1), lo.transforms
    return {
        "adam": _optimizer(adam),
        "chain": _optimizer(optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-1.0))),
        "masked": _optimizer(optax.masked(adam, {"w": True, "b": False})),
        "injected": _optimizer(optax.inject_hyperparams(optax.adam)(0.1)),
        "lossopt": _optimizer(transforms.momentum(0.1)),
        "int8": _optimizer(transforms.adam(0.1, moments="int8")),
        "bfloat16": _optimizer(transforms.adam(0.1, moments="bfloat16")),
        "quantized": _optimizer(transforms.quantized(adam)),
        "kahan": _optimizer(transforms.kahan(adam)),
        "rounding": _optimizer(transforms.stochastic_rounding(adam, _key())),
        "nested": _optimizer(transforms.accumulate(transforms.skip_spikes(adam), 4)),
        "every one": {
            name: _optimizer(row.make(**row.numbers)) for name, row in TRANSFORMS.items()
        },
    }


def _keys():
    key, many = _key(), _key(8)
    return {
        "threefry": key,
        "rbg": _key(2, 3, impl="rbg"),
        "unsafe_rbg": _key(impl="unsafe_rbg"),
        "none": _key(0),
        "there": put(key, jax.devices()[5]),
        "sharded": _placed(many, P("a")),
        "explicit": _placed(many, P(("a", "b")), kind=AxisType.Explicit),
        "raw": jax.random.key_data(key),
    }


def _numbers():
    nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000001))[0]
    return {
        "bools": [True, False],
        "ints": [0, -1, 2**31, -(2**63), 10**5000, -(10**5000)],
        "floats": [0.0, -0.0, 0.1, 5e-324, -2.2e-308, 1.8e308, float("-inf"), float("nan"), nan],
        "complex": [
            0j,
            complex(-0.0, 0.0),
            complex(0.0, -0.0),
            complex(nan, float("inf")),
            1e-320j,
        ],
    }


def _dtypes():
    return {name: put(random_bits(name, (2, 3))) for name in NARROW}


def _places():
    """Where nobody placed them, on one device, on meshes of both kinds."""
    x = random_bits("float32", (8, 8))
    explicit = AxisType.Explicit
    return {
        "here": put(x),
        "there": put(x, jax.devices()[3]),
        "on one": put(x, jax.devices()[0]),
        "sharded": _placed(x, P("a", "b")),
        "half": _placed(x, P(None, "b")),
        "copied": _placed(x, P()),
        "explicit": _placed(x, P("a", "b"), kind=explicit),
        "scalar": _placed(np.float32(1.5), P()),
    }


def _weak():
    x = jnp.full((8, 8), 2.5)
    return {
        "here": [put(-0.0), put(3), put(1j), x],
        "there": put(2.5, jax.devices()[3]),
        "sharded": _placed(x, P("a", "b")),
        "explicit": _placed(x, P("a", "b"), kind=AxisType.Explicit),
    }


def _sizes_of_zero():
    return {
        "jax": [_zeros((0, 3)), _zeros((2, 0), "int8"), _placed(np.zeros((0, 8)), P())],
        "float8": _zeros(0, "float8_e5m2"),
        "numpy": [np.zeros((0, 3)), np.zeros((2, 0, 2), np.int64), np.zeros(0, np.float16)],
    }


def _numpys():
    x = random_bits("float64", (6, 4))
    return {
        **{name: random_bits(name, (2, 3)) for name in DTYPES},
        "scalars": [random_bits(name, (1,))[0] for name in DTYPES],
        "no axes": [np.array(2.5), np.array(True), np.array(7, np.int8)],
        "layouts": [x.T, x[::-1], x[:, ::2], np.asfortranarray(x), np.broadcast_to(x[:1], (5, 4))],
        "float8, of columns": np.asfortranarray(random_bits("float8_e5m2", (4, 3))),
        "read only": np.frombuffer(b"12345678", np.int16),
    }


def _trees():
    train = TrainState.create(apply_fn=abs, params=PARAMS, tx=optax.sgd(0.1, momentum=0.9))
    return {
        "none": [None, (None,), {"a": None}],
        "empty": [{}, [], (), Empty(), FrozenDict(), optax.EmptyState(), optax.MaskedNode()],
        "frozen": FrozenDict({"a": {"b": _zeros(2)}}),
        "train": dataclasses.replace(train, params=_filled(PARAMS), step=3),
        "model": Model(_zeros(2), "static"),
        "pair": Pair([1, {"x": 2.0}], Model(3, "static")),
        "names": {"a b": 1, "ä/\n": 2, "": {"": 3}, ".": {5: 4}},
    }


STATE = {
    "optimizers": _optimizers,
    "keys": _keys,
    "numbers": _numbers,
    "dtypes": _dtypes,
    "places": _places,
    "weak": _weak,
    "zero": _sizes_of_zero,
    "numpys": _numpys,
    "trees": _trees,
}


def _facts(x):
    """All that must survive of a leaf."""
    if isinstance(x, jax.Array):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(x) if key else x)
        kind = str(jax.random.key_impl(x)) if key else x.weak_type
        return x.dtype, x.shape, kind, x.sharding, x.committed, data.tobytes()
    if isinstance(x, np.ndarray | np.generic):
        return type(x), x.dtype, x.shape, x.tobytes()
    if isinstance(x, float | complex):
        return type(x), struct.pack("<dd", x.real, x.imag)
    return type(x), x


def _assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got)):
        assert _facts(y) == _facts(x), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def state():
    return {name: make() for name, make in STATE.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """All kinds in one step."""
    with lo.checkpoint.Checkpoints(tmp_path_factory.mktemp("leaves") / "run") as checkpoints:
        checkpoints.save(1, state)
        yield checkpoints


@pytest.fixture(scope="module")
def restored(saved, state):
    return saved.restore(state).state


@pytest.mark.parametrize("kind", STATE)
def test_every_kind_of_leaf(kind, state, restored):
    _assert_same(restored[kind], state[kind])


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """Saves a state and restores it."""
    with lo.checkpoint.Checkpoints(tmp_path_factory.mktemp("through") / "run") as checkpoints:

        def go(state, like=None):
            latest = checkpoints.latest()
            checkpoints.save(0 if latest is None else latest.step + 1, state)
            return checkpoints.restore(state if like is None else like).state

        yield go


def _struct(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


class TestLike:
    def test_structs_with_shardings(self, through):
        state = {"places": _places(), "weak": _weak(), "keys": _keys()}
        want = jax.tree.map(lambda x: put(x, x.sharding), state)
        _assert_same(through(state, jax.tree.map(_struct, state)), want)

    def test_what_eval_shape_says(self, through):
        """Without a mesh of the context it knows no devices."""
        x, mesh = random_bits("float32", (8, 8)), _mesh((4, 2), AxisType.Explicit)
        places = {"mesh": NamedSharding(mesh, P("a", "b")), "device": jax.devices()[3]}
        state = {name: put(x, place) for name, place in places.items()}
        state |= {"weak": put(2.5), "key": _key(), "zero": _zeros((0, 2))}
        like = jax.eval_shape(lambda: state)
        with pytest.raises(ValueError, match=r"shardings without devices.*jax\.set_mesh"):
            through(state, like)
        with jax.set_mesh(mesh):
            got = through(state, like)
        _assert_same(got, {**state, "device": put(x)})

    def test_numpy_for_jax_and_jax_for_numpy(self, saved, state):
        kinds = ("optimizers", "dtypes", "places", "weak")
        arrays = {k: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state[k]) for k in kinds}
        numpys = {name: jax.ShapeDtypeStruct((2, 3), name) for name in NARROW}
        got = saved.restore({**state, **arrays, "numpys": {**state["numpys"], **numpys}}).state
        _assert_same([got[k] for k in kinds], [jax.tree.map(np.asarray, state[k]) for k in kinds])
        want = {name: put(state["numpys"][name]) for name in NARROW}
        _assert_same({name: got["numpys"][name] for name in NARROW}, want)

    def test_values_are_those_that_were_saved(self, through):
        numbers = _numbers()
        other = jax.tree.map(lambda x: type(x)(1), numbers)
        _assert_same(through(numbers, other), numbers)

    def test_weak_types_are_those_that_were_saved(self, through):
        weak, strong = _weak()["here"], [put(np.asarray(x)) for x in _weak()["here"]]
        assert not any(x.weak_type for x in strong)
        _assert_same(through(weak, strong), weak)
        _assert_same(through(strong, weak), strong)
        with jax.enable_x64(True):  # Python numbers have other dtypes then
            assert jnp.full((), 0.0).dtype == "float64"
            _assert_same(through(weak, strong), strong)

    def test_another_order_is_the_same_state(self, through):
        state = OrderedDict(a=_zeros(3), b=1, c=_zeros(3) + 2, d=_key(), e=None)
        got = through(state, OrderedDict(reversed(state.items())))
        assert list(got) == ["e", "d", "c", "b", "a"]
        _assert_same(dict(got), dict(state))

    def test_donated_leaves(self, through):
        """Where they were is still known."""
        like = {"x": put(np.zeros(2, np.float32), jax.devices()[3]), "key": _key(2)}
        where = lambda tree: jax.tree.map(lambda x: (x.sharding, x.committed), tree)
        places, state = where(like), {"x": put(np.float32([3, 4])), "key": _key(2)}
        for x in like.values():
            x.delete()
        got = through(state, like)
        assert where(got) == places
        np.testing.assert_array_equal(got["x"], state["x"])


@pytest.mark.parametrize(
    "state",
    [
        put(np.float32([1, -0.0, 3])),
        np.arange(3),
        np.float64(2.5),
        7,
        None,
        {},
        [],
        _key(),
        _zeros((0, 3)),
        [np.zeros((2, 0)), 3],
        {"key": _key(0)},
        {"none": None, "empty": (optax.EmptyState(), {})},
    ],
    ids=str,
)
def test_states_of_one_leaf_or_none(state, through):
    _assert_same(through(state), state)


def test_onto_any_mesh_and_back(through):
    x, keys = random_bits("float32", (8, 8)), _key(8)

    def on(mesh, *specs):
        places = [NamedSharding(mesh, spec) for spec in specs]
        return {"x": put(x, places[0]), "keys": put(keys, places[1])}

    first = state = on(_mesh((4, 2)), P("a", "b"), P("a"))
    for shape, kind in [((1,), AxisType.Auto), ((2,), AxisType.Auto), ((4,), AxisType.Explicit)]:
        like = on(_mesh(shape, kind, ("c",)), P(None, "c"), P("c"))
        state = through(state, like)
        _assert_same(state, like)
    like = on(_mesh((2, 4)), P("b", "a"), P(("a", "b")))
    state = through(state, jax.tree.map(_struct, like))
    _assert_same(state, like)
    _assert_same(through(state, first), first)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_under_a_mesh_of_the_context(kind, through):
    """Leaves lie where they lie, whatever the mesh of the context."""
    state = {"places": _places(), "weak": _weak(), "keys": _keys(), "zero": _sizes_of_zero()}
    with jax.set_mesh(_mesh((2, 1), kind)):
        got = through(state)
    _assert_same(got, state)


class TestWide:
    """Leaves of 64 bits where jax has no such dtypes."""

    @pytest.mark.parametrize("name", WIDE)
    def test_jax_has_them_with_x64_only(self, name, through):
        x = random_bits(name, (2, 3))
        with jax.enable_x64(True):
            state = {"params": [put(x)]}
        assert state["params"][0].dtype == name
        with pytest.raises(ValueError, match=rf"params/0 has {name}, which .* jax_enable_x64"):
            through(state)
        assert _facts(through(state, {"params": [x * 0]})["params"][0]) == _facts(x)
        if name == "float64":
            with jax.enable_x64(True):
                _assert_same(through(state), state)


class TestCopies:
    @pytest.mark.parametrize("make", [np.asarray, jnp.asarray, jax.random.wrap_key_data])
    def test_what_is_stored_shares_no_memory(self, make):
        data = _zeros((4, 2), np.uint32)
        [(leaf, value)], _ = _leaves.flatten(make(data))
        stored = _leaves.to_store(Store(), "0", leaf, value)
        before = np.asarray(_leaves.data_of(leaf, value))
        assert type(stored) is np.ndarray
        assert not np.shares_memory(stored, before)
        np.testing.assert_array_equal(stored, before)


class Color(enum.IntEnum):
    RED = 1


REFUSED = {
    "str": "adam",
    "bytes": b"adam",
    "object": object(),
    "set": {1, 2},
    "Fraction": Fraction(1, 2),
    "Color": Color.RED,
    "function": lambda x: x,
    "mappingproxy": MappingProxyType({}),
    "MaskedArray": np.ma.zeros(2),
    "recarray": np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "memmap": np.ndarray.__new__(np.memmap, 3),
    "array of object": np.array([None, 1]),
    "array of <U1": np.array(["a", "b"]),
    "array of |S1": np.bytes_("a"),
    "array of datetime64": np.array(["2026-11-21"], "M8[D]"),
    "array of timedelta64": np.timedelta64(3, "s"),
    r"array of \[\('a', '<f4'\)\]": np.zeros(2, [("a", "f4")]),
    r"array of \[\('float0'": np.zeros(2, jax.dtypes.float0),
    "array of >f4": np.zeros(2, ">f4"),
    "array of >i8": np.zeros((), ">i8"),
    "array of float128": np.zeros(2, np.longdouble),
    "array of complex256": np.clongdouble(1),
    "array of int4": _zeros(2, ml_dtypes.int4),
    "array of uint2": np.zeros(2, ml_dtypes.uint2),
    "array of float4_e2m1fn": _zeros(2, ml_dtypes.float4_e2m1fn),
    "array of float6_e2m3fn": np.zeros(2, ml_dtypes.float6_e2m3fn),
}


class TestRefusals:
    @pytest.mark.parametrize(("what", "leaf"), REFUSED.items(), ids=REFUSED)
    def test_other_leaves(self, what, leaf, tmp_path):
        checkpoints = lo.checkpoint.Checkpoints(tmp_path / "run")
        remedy = "Convert it with astype" if what.startswith("array") else "Keep it outside"
        for state, path in (({"good": 1, "p": [2.0, leaf]}, "p/1"), (leaf, "The state")):
            with pytest.raises(TypeError, match=f"^{path} is an? {what}.* {remedy}"):
                checkpoints.save(1, state)
        assert not (tmp_path / "run").exists()

    def test_in_like(self, saved, state):
        with pytest.raises(TypeError, match=r"^numbers is a str"):
            saved.restore({**state, "numbers": "1"})

    def test_tracers(self, tmp_path):
        checkpoints = lo.checkpoint.Checkpoints(tmp_path)
        save = jax.jit(lambda x: checkpoints.save(1, {"params": {"w": x}}))
        for x in (1.0, _key()):
            with pytest.raises(TypeError, match=r"^params/w is a tracer.*outside of jit"):
                save(x)

    @pytest.mark.parametrize("make", [lambda: _zeros(3), _key])
    def test_donated_leaves(self, make, tmp_path):
        x = make()
        jax.jit(lambda x: x, donate_argnums=0)(x)
        assert x.is_deleted()
        with pytest.raises(ValueError, match=r"^p/0 was deleted: .* donated .* that the step ret"):
            lo.checkpoint.Checkpoints(tmp_path).save(1, {"p": [x]})

    def test_structs_have_no_numbers(self, tmp_path):
        x = jax.ShapeDtypeStruct((2,), np.float32)
        with pytest.raises(TypeError, match=r"^p/0 is a jax\.ShapeDtypeStruct"):
            lo.checkpoint.Checkpoints(tmp_path).save(1, {"p": [x]})

    def test_two_leaves_of_one_path(self, tmp_path):
        with pytest.raises(ValueError, match="Two leaves have one path"):
            lo.checkpoint.Checkpoints(tmp_path).save(1, {"a/b": 1, "a": {"b": 2}})


BASE = {
    "x": np.zeros((2, 3), np.float32),
    "n": 1,
    "f": 2.0,
    "none": None,
    "masked": optax.MaskedNode(),
    "key": _key(),
    "list": [1, 2],
    "pair": Pair({"x": 1}, 2),
    "empty": np.zeros((0, 3), np.int8),
}
DIFFERENCES = {
    "extra": ({"more": 1}, "more: saved nothing, wanted int"),
    "longer": ({"list": [1, 2, 3]}, "list/2: saved nothing, wanted int"),
    "shorter": ({"list": [1]}, "list/1: saved int, wanted nothing"),
    "shape": ({"x": np.zeros((3, 2), np.float32)}, "x: saved float32[2,3], wanted float32[3,2]"),
    "axes": ({"x": np.zeros(6, np.float32)}, "x: saved float32[2,3], wanted float32[6]"),
    "dtype": ({"x": np.zeros((2, 3))}, "x: saved float32[2,3], wanted float64[2,3]"),
    "width": (
        {"x": np.zeros((2, 3), jnp.bfloat16)},
        "x: saved float32[2,3], wanted bfloat16[2,3]",
    ),
    "no number": ({"n": np.int64(1)}, "n: saved int, wanted int64[]"),
    "weak": ({"f": put(1.0)}, "f: saved float, wanted float32[]"),
    "number": ({"n": 1.0}, "n: saved int, wanted float"),
    "bool": ({"n": True}, "n: saved int, wanted bool"),
    "none": ({"none": optax.MaskedNode()}, "none: saved NoneType, wanted MaskedNode"),
    "masked": ({"masked": None}, "masked: saved MaskedNode, wanted NoneType"),
    "not none": ({"none": 1}, "none: saved NoneType, wanted int"),
    "key": ({"key": np.zeros(2, np.uint32)}, "key: saved key<fry>[], wanted uint32[2]"),
    "impl": ({"key": _key(impl="rbg")}, "key: saved key<fry>[], wanted key<rbg>[]"),
    "keys": ({"key": _key(2)}, "key: saved key<fry>[], wanted key<fry>[2]"),
    "empty": ({"empty": np.zeros((3, 0), np.int8)}, "empty: saved int8[0,3], wanted int8[3,0]"),
    "not empty": ({"empty": np.zeros((1, 3), np.int8)}, "empty: saved int8[0,3], wanted int8[1,3]"),
    "no leaf": ({"list": {}}, "list: saved nothing, wanted dict"),
    "tuple": ({"list": (1, 2)}, "list/0: saved in dict/list, wanted in dict/tuple"),
    "frozen": (
        {"pair": Pair(FrozenDict({"x": 1}), 2)},
        "pair/left/x: saved in dict/Pair/dict, wanted in dict/Pair/FrozenDict",
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with lo.checkpoint.Checkpoints(tmp_path_factory.mktemp("base") / "run") as checkpoints:
        checkpoints.save(3, BASE)
        yield checkpoints


class TestStructures:
    @pytest.mark.parametrize(("change", "line"), DIFFERENCES.values(), ids=DIFFERENCES)
    def test_differences_have_their_paths(self, change, line, base):
        with pytest.raises(ValueError, match="00000003 holds another state than") as error:
            base.restore({**BASE, **change})
        _, *lines, last = str(error.value).split("\n")
        assert line in lines
        assert all(other.split(":")[0].split("/")[0] in change for other in lines)
        assert last == "Restore into the state that was saved, then convert it."

    def test_a_train_state_is_told_to_start_its_step_as_an_array(self, tmp_path):
        """flax starts it as 0 of Python, and a compiled step returns an array."""
        make = partial(
            TrainState.create, apply_fn=None, params={"w": put(np.ones(2))}, tx=optax.sgd(0.1)
        )
        advance = jax.jit(lambda state: state.apply_gradients(grads=state.params))
        with lo.checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, advance(make()))
            with pytest.raises(ValueError, match=r"step: saved int32\[\], wanted int; start it as"):
                checkpoints.restore(make())
            start = make().replace(step=jnp.asarray(0))
            _assert_same(checkpoints.restore(start).state, advance(start))

    @pytest.mark.parametrize(
        ("saved", "wanted", "told"),
        [(1.0, 2.0, True), (True, False, True), (1.0, 2, False), ([1, 2], 2, False)],
    )
    def test_where_an_array_would_help_it_is_said(self, tmp_path, saved, wanted, told):
        with lo.checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"n": jnp.asarray(saved)})
            with pytest.raises(ValueError, match="n: saved") as error:
                checkpoints.restore({"n": wanted})
        assert ("start it as jnp.asarray" in str(error.value)) == told

    def test_all_of_them(self, base):
        like = {**BASE, "x": 1, "n": 2.0}
        del like["f"]
        with pytest.raises(ValueError, match="another state") as error:
            base.restore(like)
        assert sorted(str(error.value).split("\n")[1:-1]) == [
            "f: saved float, wanted nothing",
            "n: saved int, wanted float",
            "x: saved float32[2,3], wanted int",
        ]

    def test_another_root(self, through):
        with pytest.raises(ValueError, match=r"\na: saved int, .*\nthe state: .* wanted float\n"):
            through({"a": 1}, 3.0)

    @pytest.mark.parametrize("count", [10, 11, 25])
    def test_many_are_summed_up(self, count, through):
        with pytest.raises(ValueError, match="another state") as error:
            through([1] * count, [1.0] * count)
        lines = str(error.value).split("\n")
        assert [f"{i}: saved int, wanted float" for i in range(10)] == lines[1:11]
        assert lines[11:-1] == ([f"and {count - 10} more"] if count > 10 else [])

    def test_nothing_was_moved(self, base):
        assert base.verify()[:2] == ((3,), {})


class TestNoPickle:
    def test_none_is_imported(self):
        for path in pathlib.Path(lo.checkpoint.__file__).parent.glob("*.py"):
            tree = ast.parse(path.read_text())
            imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
            names = {getattr(n, "module", "") for n in imports}
            names |= {alias.name for n in imports for alias in n.names}
            assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} & names
            assert "pickle" not in path.read_text()

    def test_none_is_called(self, through, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("pickled")

        for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)
        state = {"a": _zeros(3), "k": _key(), "o": optax.EmptyState(), "n": 1}
        _assert_same(through(state), state)

    def test_no_file_is_one(self, saved):
        """A pickle names the modules of what it holds."""
        modules = (b"optax._src", b"lossopt.", b"flax.", b"jax._src", b"numpy._core", b"copyreg")
        saved.wait()
        files = [path for path in saved.directory.rglob("*") if path.is_file()]
        assert len(files) > 5
        for path in files:
            content = path.read_bytes()
            assert not any(name in content for name in modules)


@pytest.mark.parametrize(
    "asked", [lambda: jax.transfer_guard("disallow"), lambda: jax.debug_nans(True)]
)
def test_what_the_caller_forbids_is_not_forbidden_here(asked, through):
    state = {"nan": jnp.full((3,), jnp.nan), "zeros": jnp.zeros(3), "host": np.ones(2)}
    with asked():
        got = through(state)
    _assert_same(got, state)


def test_memory_of_the_host(through):
    device = jax.devices()[0]
    pinned = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    state = {"moments": jax.device_put(np.arange(6.0, dtype=np.float32), pinned)}
    got = through(state)
    assert got["moments"].sharding == pinned
    np.testing.assert_array_equal(got["moments"], np.arange(6))
