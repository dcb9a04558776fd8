"""What rests on jax's inner workings or differs between its versions, and nothing else."""

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from traceback import walk_tb
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.config import (
    disable_jit,
    persistent_cache_min_compile_time_secs,
    trace_context,
)
from jax._src.core import NamedAxisEffect as NamedAxisEffect
from jax._src.core import extend_axis_env_nd, trace_state_clean
from jax._src.custom_batching import custom_vmap_p as custom_vmap_p
from jax._src.named_sharding import UNSPECIFIED as UNSPECIFIED
from jax._src.source_info_util import is_user_filename
from jax._src.xla_bridge import backends_are_initialized
from jax.core import Tracer
from jax.sharding import PartitionSpec as P
from jaxlib import xla_client

from lossopt._typing import Array, ArrayLike, PyTree


def varying(tree: PyTree, axes: tuple[Hashable, ...]) -> PyTree:
    """Marks replicated values as per-device, so that `grad` stays local on every kind of map."""
    manual = jax.sharding.get_abstract_mesh().manual_axes  # an axis of vmap is not among them

    def mark(x):
        for axis in (axis for axis in axes if axis in manual):
            with suppress(ValueError):  # already varying
                x = jax.lax.pcast(x, axis, to="varying")
        return x

    return jax.tree.map(mark, tree)


def alike(tree: PyTree) -> PyTree:
    """Marks all leaves as per-device along every axis along which one of them is."""
    axes = frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(tree)))
    return varying(tree, tuple(axes))


def common(x: ArrayLike) -> Array:
    """What all members of a `vmap` hold alike, taken from the first, as one for all of them.

    Where it bounds a loop or decides a `cond`, these stay one for all members, too.
    """
    return _common(x)


@jax.custom_batching.custom_vmap
def _common(x):
    return jnp.asarray(x)


@_common.def_vmap
def _(size, batched, x):
    return _common(x[0]), False


def traced() -> bool:
    """Whether `jit`, `vmap` or `grad` trace what runs here, also where no array of it is traced."""
    return not trace_state_clean()


def started() -> bool:
    """Whether jax has looked for its devices, after which nobody can join the process to others."""
    return backends_are_initialized()


def axes_of_one(axes: tuple[Hashable, ...]) -> Any:
    """A context in which these axes of a map have one device each."""
    return extend_axis_env_nd([(axis, 1) for axis in axes])


def compiles() -> bool:
    """Whether a function of `jit` would compile here."""
    return not traced() and not disable_jit.value


def context() -> Hashable:
    """What a traced program depends on beside its arguments: precision, meshes, ..."""
    return trace_context()


def failures(error: Any) -> list[Any]:
    """Of each kind of error of `checkify`, whether it occurred."""
    return list(error._pred.values())


def codes(source: Any) -> list[CodeType]:
    """The functions that ran where an equation was traced, or an exception raised: outermost first.

    Those of jax are left out.
    """
    if isinstance(source, BaseException):
        found = [frame.f_code for frame, _ in walk_tb(source.__traceback__)]
    else:
        trace = source.source_info.traceback
        found = trace.raw_frames()[0][::-1] if trace else []
    return [code for code in found if is_user_filename(code.co_filename)]


def scope(equation: Any) -> str:
    """The names of `jax.named_scope` under which an equation was traced."""
    return str(equation.source_info.name_stack)


def counts_of_scan(params: dict[str, Any]) -> tuple[int, int]:
    """How many inputs of a `scan` are constant, and how many are carried."""
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since jax 0.12
    return len(list(consts)), len(list(carry))


def shards(batch: PyTree) -> int:
    """In how many equal parts the rows of a batch lie on devices, as far as can be seen.

    Traced arrays show it on Explicit axes alone.
    """

    def count(x):
        sharding = _sharding(x)
        seen = _concrete(x) or sharding.mesh.explicit_axes
        return len(x) // sharding.shard_shape(np.shape(x))[0] if seen else 1

    return max(map(count, jax.tree.leaves(batch)))


def mesh(tree: PyTree) -> Any:
    """The abstract mesh on which arrays lie; that of the caller's context where none does."""
    here = jax.sharding.get_abstract_mesh()
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree))
    return here if not here.empty else next((m for m in meshes if not m.empty), here)


def beside(args: PyTree, arrays: PyTree) -> PyTree:
    """Arrays of one device, copied to all of the mesh on which arguments lie, if any do."""
    found = (getattr(x, "sharding", None) for x in jax.tree.leaves(args))
    meshes = [x.mesh for x in found if isinstance(x, jax.NamedSharding) and x.mesh.size > 1]
    if not meshes or traced():
        return arrays
    everywhere = jax.NamedSharding(meshes[0], P())
    alone = lambda x: len(x.sharding.device_set) == 1
    with undisturbed():
        return jax.tree.map(lambda x: jax.device_put(x, everywhere) if alone(x) else x, arrays)


@contextmanager
def on_mesh(*trees: PyTree) -> Iterator[None]:
    """In the mesh of the arrays, where its axes are Explicit and the caller named none."""
    found = mesh(trees)
    if not found.explicit_axes or not jax.sharding.get_abstract_mesh().empty:
        yield
        return
    with _entered(found, jax.tree.leaves(trees)):
        yield


@contextmanager
def within(mesh: Any) -> Iterator[None]:
    """On a mesh, whatever the caller's is, so that a program is found again."""
    enter = jax.sharding.use_abstract_mesh if traced() else jax.set_mesh
    with enter(mesh.abstract_mesh if traced() else mesh), unkept(mesh):
        yield


@contextmanager
def unkept(mesh: Any) -> Iterator[None]:
    """Programs for several devices of a CPU stay out of the persistent compilation cache.

    XLA:CPU forgets there in which order they meet in their collectives: they wait for ever.
    """
    devices = [] if isinstance(mesh, jax.sharding.AbstractMesh) else mesh.devices.flat
    if mesh.size == 1 or any(device.platform != "cpu" for device in devices):
        yield
        return
    with persistent_cache_min_compile_time_secs(math.inf):
        yield


def all_auto(mesh: Any) -> Any:
    """The mesh as it is where all its axes are Auto."""
    return jax.sharding.get_abstract_mesh() if mesh.explicit_axes else mesh


def on_auto_axes(fn: Callable, mesh: Any, out: PyTree) -> Callable:
    """`fn`, whose mesh has Auto axes alone; on Explicit ones its results lie as `out` says."""
    if not mesh.explicit_axes:
        return fn
    return jax.sharding.auto_axes(fn, axes=mesh.explicit_axes, out_sharding=out)


def _entered(abstract, leaves):
    """A mesh of devices, where there are some and no trace is under way; else an abstract one."""
    shardings = [x.sharding for x in leaves if _concrete(x)]
    for sharding in shardings:
        with suppress(ValueError):  # inside of jit
            if getattr(sharding, "mesh", None):
                return jax.set_mesh(sharding.mesh)
    return jax.sharding.use_abstract_mesh(abstract)


def _concrete(x):
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def _sharding(x):
    return x.sharding if _concrete(x) else jax.typeof(x).sharding


def by_rows(fn: Callable, parts: int, ahead: int, batch: PyTree, *args: PyTree) -> PyTree:
    """`fn(batch, *args)`, trees of batches that lie as this one does, also on Explicit axes.

    Args:
      fn: gives trees like `batch`, whose rows come in as many equal parts.
      parts: where the devices do not divide it, rows are not sharded.
      ahead: axes before the rows of the results.
      batch: tree of arrays with a leading axis of rows.
      *args: trees of arrays.
    """
    place = mesh(batch)
    if not place.explicit_axes:
        return fn(batch, *args)

    def spec(x):
        rows, *rest = jax.typeof(x).sharding.spec
        return P(*[None] * ahead, rows if parts % shards(x) == 0 else None, *rest)

    with jax.sharding.use_abstract_mesh(place):
        return jax.sharding.auto_axes(fn, out_sharding=jax.tree.map(spec, batch))(batch, *args)


def in_rows(fn: Callable, batch: PyTree, *args: PyTree) -> PyTree:
    """`fn(*args)`, arrays whose rows lie as those of a batch do, also on Explicit axes."""
    place = mesh(batch)
    if not place.explicit_axes:
        return fn(*args)
    axis, *_ = jax.typeof(jax.tree.leaves(batch)[0]).sharding.spec
    with jax.sharding.use_abstract_mesh(place):
        return jax.sharding.auto_axes(fn, out_sharding=P(axis))(*args)


def replicated(x: PyTree, like: PyTree) -> PyTree:
    """An array that each device computes for itself, on the mesh of others."""
    place = mesh(like)
    if not place.auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, jax.NamedSharding(place, P()))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without what the caller asks of jax for computations of his own.

    Under `jax.set_mesh` jax takes arrays of that mesh only; a transfer guard forbids to hand it
    numbers of numpy; NaN is a value like others to who only moves it.
    """
    with nowhere(), jax.transfer_guard("allow"), jax.debug_nans(False):
        yield


def nowhere() -> Any:
    """A context without a mesh, where arrays of any may be computed with."""
    return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


@cache
def simulated(count: int) -> tuple[Any, ...]:
    """So many devices of the CPU, for which programs are compiled and never run."""
    try:
        return tuple(xla_client.make_cpu_client(num_devices=count).devices())
    except (AttributeError, TypeError) as error:  # of another version of jaxlib
        error.add_note(
            f"Start Python with XLA_FLAGS=--xla_force_host_platform_device_count={count} and "
            "JAX_PLATFORMS=cpu instead."
        )
        raise


@cache
def host_device() -> Any:
    """A device of the CPU; None where jax was told to do without."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
