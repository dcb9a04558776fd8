"""What a state is made of, and how each kind of leaf goes to disk and comes back."""

import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, NamedSharding

from lossopt import _paths
from lossopt._typing import Array, PyTree
from lossopt.checkpoint._store import Store

DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
}
WRITE = {
    bool: str,
    int: hex,
    float: lambda x: struct.pack(">d", x).hex(),
    complex: lambda z: struct.pack(">dd", z.real, z.imag).hex(),
}
READ = {
    "bool": lambda text: text == "True",
    "int": lambda text: int(text, 16),
    "float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "complex": lambda text: complex(*struct.unpack(">dd", bytes.fromhex(text))),
}


class Leaf(NamedTuple):
    """What must be the same in the state that is saved and in the one that is restored.

    Attributes:
      path: its place in the tree, as in `"params/Dense_0/kernel"`.
      kind: `"array"`, `"key"`, `"number"` (of Python) or `"empty"`, a node without children.
      type: the dtype, or the name of the Python type.
      shape: the shape of an array or of keys.
      within: the names of the containers that it is in, from outside, as in `"dict/tuple"`.
    """

    path: str
    kind: str
    type: str
    shape: tuple[int, ...]
    within: str

    def __str__(self) -> str:
        shape = f"[{','.join(map(str, self.shape))}]" if self.kind in ("array", "key") else ""
        return f"{self.type}{shape}"

    @property
    def stored(self) -> bool:
        """Whether Orbax stores it: it refuses arrays of size zero."""
        return self.kind in ("array", "key") and 0 not in self.shape


def flatten(tree: PyTree) -> tuple[list[tuple[Leaf, Any]], Any]:
    """Each leaf and each node without children, with what it is, and the structure."""
    values, structure = jax.tree.flatten(tree, is_leaf=_childless)
    found = zip(_paths.paths(tree, is_leaf=_childless), _containers(tree), values)
    return [(_leaf(path, within, value), value) for path, within, value in found], structure


def compare(saved: list[Leaf], wanted: list[Leaf]) -> list[str]:
    """A line for each path where the two differ."""
    had, want = ({leaf.path: leaf for leaf in leaves} for leaves in (saved, wanted))
    lines = []
    for path in {**had, **want}:
        if had.get(path) != want.get(path):
            was, now = (str(leaves.get(path, "nothing")) for leaves in (had, want))
            if was == now:
                was, now = f"in {had[path].within}", f"in {want[path].within}"
            remedy = _remedy(had.get(path), want.get(path))
            lines.append(f"{path or 'the state'}: saved {was}, wanted {now}{remedy}")
    return lines


def facts(leaf: Leaf, value: Any) -> dict[str, Any]:
    """What the manifest keeps of a leaf besides; raises where it has no bits to save."""
    if isinstance(value, jax.ShapeDtypeStruct):
        raise _refusal(leaf.path, "a jax.ShapeDtypeStruct, without numbers")
    if isinstance(value, jax.Array) and value.is_deleted():
        raise ValueError(
            f"{leaf.path or 'The state'} was deleted: its buffer was donated to a step. Save the "
            "state that the step returned."
        )
    if leaf.kind == "number":
        return {"value": WRITE[type(value)](value)}
    if leaf.kind == "key":
        return {"impl": str(jax.random.key_impl(value))}
    return {"weak": bool(getattr(value, "weak_type", False))}


def to_store(store: Store, name: str, leaf: Leaf, value: Any) -> np.ndarray | Array:
    """The bits that Orbax stores, out of reach of whatever the caller does to the leaf next.

    What this process holds all of is copied to the host, and the rest beside itself on a CPU:
    Orbax would keep its buffers, so that the next step could not be donated them.
    """
    value = data_of(leaf, value)
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return _as_stored(leaf, store.copy(name, value))
    here = next(iter(value.sharding.addressable_devices))
    return _as_stored(leaf, jnp.copy(value) if here.platform == "cpu" else value)


def from_store(
    leaf: Leaf, entry: dict[str, Any], data: Any, like: Any, place: jax.sharding.Sharding | None
) -> Any:
    """The leaf as `like` has it: its kind of array, in its place. No data is a size of zero."""
    if leaf.kind == "empty":
        return like
    if leaf.kind == "number":
        return READ[leaf.type](entry["value"])
    data = of_no_size(leaf, like) if data is None else _as_saved(leaf, data)
    if isinstance(like, np.ndarray):
        return data
    if isinstance(like, np.generic):
        return data[()]
    if jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype:
        raise ValueError(
            f"{leaf.path} has {leaf.type}, which jax would make narrower here. Switch "
            "jax_enable_x64 on, or restore it into an array of numpy."
        )
    if not isinstance(data, jax.Array):
        data = jax.device_put(data, place)
    if leaf.kind == "key":
        return jax.random.wrap_key_data(data, impl=entry["impl"])
    return _weak(data, place) if entry["weak"] else data


def data_of(leaf: Leaf, value: Any) -> Any:
    """The array whose bits are stored and digested."""
    value = np.asarray(value) if isinstance(value, np.generic) else value
    return jax.random.key_data(value) if leaf.kind == "key" else value


def of_no_size(leaf: Leaf, like: Any) -> np.ndarray:
    """The bits of a leaf that Orbax does not store."""
    if leaf.kind == "key":
        data = jax.eval_shape(jax.random.key_data, like)
        return np.zeros(data.shape, data.dtype)
    return np.zeros(leaf.shape, jnp.dtype(leaf.type))


def place(like: Any) -> jax.sharding.Sharding | None:
    """Where the leaf has to lie; None is wherever jax puts what nobody has placed."""
    nobody = isinstance(like, jax.Array) and not like.committed
    sharding = None if nobody else getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.abstract_mesh != sharding.mesh:
        raise ValueError(
            f"`like` has shardings without devices, on {sharding.mesh}, as jax.eval_shape makes "
            "them. Restore under jax.set_mesh(mesh), or give the state itself."
        )
    return NamedSharding(mesh, sharding.spec)


def _remedy(was, now):
    """For a number of Python that came out of a compiled step, as the `step` of a `TrainState`."""
    if not was or not now or (was.kind, was.shape, now.kind) != ("array", (), "number"):
        return ""
    started = "; start it as jnp.asarray of that number, because a compiled step returns an array"
    return started if was.type.startswith(now.type) else ""


def _children(node):
    """The children of a container; None of a leaf."""
    level = jax.tree_util.default_registry.flatten_one_level(node)
    return None if level is None else list(level[0])


def _childless(node):
    return _children(node) == []


def _containers(node, within=""):
    """For each leaf and each node without children the containers that it is in."""
    children = _children(node)
    if not children:
        return [within]
    name = f"{within}/{type(node).__name__}".lstrip("/")
    return [inner for child in children for inner in _containers(child, name)]


def _leaf(path, within, value):
    if _childless(value):
        return Leaf(path, "empty", type(value).__name__, (), within)
    if type(value) in WRITE:
        return Leaf(path, "number", type(value).__name__, (), within)
    if isinstance(value, Tracer):
        raise _refusal(path, "a tracer", "Call it outside of jit.")
    plain = type(value) is np.ndarray  # a subclass means more than its bits
    if not plain and not isinstance(value, jax.Array | jax.ShapeDtypeStruct | np.generic):
        raise _refusal(path, f"a {type(value).__name__}")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return Leaf(path, "key", str(value.dtype), value.shape, within)
    name = value.dtype.name
    if not value.dtype.isnative or not (name in DTYPES or name.startswith("float8_")):
        raise _refusal(path, f"an array of {value.dtype}", "Convert it with astype.")
    return Leaf(path, "array", name, value.shape, within)


def _refusal(path, what, remedy="Keep it outside of the state."):
    return TypeError(
        f"{path or 'The state'} is {what}. A state holds arrays of numbers (8 bits and more), "
        f"typed PRNG keys, Python numbers, None and containers of these. {remedy}"
    )


def _as_stored(leaf, data):
    """Floats of 8 bits go as integers: Orbax does not know all of them."""
    if not leaf.type.startswith("float8_"):
        return data
    if isinstance(data, jax.Array):
        return lax.bitcast_convert_type(data, jnp.uint8)
    return data.view(np.uint8)


def _as_saved(leaf, data):
    if not leaf.type.startswith("float8_"):
        return data
    if isinstance(data, jax.Array):
        return lax.bitcast_convert_type(data, jnp.dtype(leaf.type))
    return data.view(jnp.dtype(leaf.type))


def _weak(data, place):
    """The same numbers with the weak type that Python numbers have in jax."""
    zero = jax.device_put(jnp.full(data.shape, data.dtype.type(0).item()), place)
    return zero.at[...].set(data) if zero.dtype == data.dtype else data
