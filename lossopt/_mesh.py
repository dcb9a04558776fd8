"""Meshes of devices, and which of their axes rows and parameters lie over."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt import _checks
from lossopt._typing import Array, ArrayLike


class Axes(NamedTuple):
    """The axes of a mesh that training uses; the others, if any, are the model's.

    Attributes:
      rows: over which the rows of a batch lie, in the order of the mesh.
      fsdp: those of them over which parameters may lie.

    An axis of one device is left out.
    """

    rows: tuple[str, ...]
    fsdp: tuple[str, ...]


def mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh of devices for `train_step(..., mesh=)`, of axes `data` and `fsdp`.

    The rows of a batch lie over both; with `partition="fsdp"` the parameters over `fsdp`. Both are
    Auto axes: the compiler places what is between.

    Args:
      data: how many groups of devices hold all parameters each, at least 1; -1 for as many as the
        devices allow.
      fsdp: how many devices share the parameters, at least 1; -1 likewise.

    Returns:
      A mesh of the first `data * fsdp` devices.

    Raises:
      ValueError: if both are -1, there are not so many devices, or -1 would leave some of them
        idle.

    Examples:
      >>> dict(lo.parallel.mesh(data=2, fsdp=4).shape)
      {'data': 2, 'fsdp': 4}
    """
    sizes = {"data": data, "fsdp": fsdp}
    devices = jax.devices()
    for name, size in sizes.items():
        _checks.count(name, size, -1 if size == -1 else 1)
    if data == fsdp == -1:
        raise ValueError(
            "Expected one of data and fsdp as a number, got -1 for both. Write mesh(fsdp=-1, "
            "data=1) to share the parameters over all devices."
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    others, idle = divmod(len(devices), known)
    shape = tuple(others if size == -1 else size for size in sizes.values())
    if not 0 < math.prod(shape) <= len(devices):
        raise ValueError(
            f"Expected a mesh within {_counted(len(devices))}, got data={data}, fsdp={fsdp}. Ask "
            f"for fewer; simulate more on a CPU with jax.config.update('jax_num_cpu_devices', "
            f"{max(known, math.prod(shape))}) before anything runs; or plan on "
            "jax.sharding.AbstractMesh, which needs none."
        )
    if idle and -1 in sizes.values():
        raise ValueError(
            f"Expected -1 to take all of {_counted(len(devices))}, got data={data}, fsdp={fsdp}, "
            f"which leaves {idle} idle. Choose a number that divides them, or write "
            f"mesh(data={shape[0]}, fsdp={shape[1]}) to leave these out."
        )
    kinds = (AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("data", "fsdp"), kinds, devices=devices[: math.prod(shape)])


def axes_of(
    mesh: Mesh | AbstractMesh, axes: Mapping[str, str | Sequence[str]] | None = None
) -> Axes:
    """Which axes of a mesh are `data` and which `fsdp`: as `axes` says, else by their names.

    The only axis of a mesh is both.
    """
    if not isinstance(mesh, (Mesh, AbstractMesh)):
        raise TypeError(
            f"Expected mesh as a jax.sharding.Mesh, got {mesh!r}. Make one with "
            "lossopt.parallel.mesh()."
        )
    found = _found(mesh.axis_names, axes)
    several = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    rows = tuple(name for name in several if name in found["data"] + found["fsdp"])
    return Axes(rows, tuple(name for name in several if name in found["fsdp"]))


def _found(names, axes):
    """The axes that are `data` and `fsdp`; one that `axes` leaves out has its own name, if free."""
    said = _said(names, axes)
    taken = [name for given in said.values() for name in given]
    for name in taken:
        if name not in names:
            raise ValueError(
                f"Expected axes among those of mesh, {names}, got {name!r}. Correct axes=, or make "
                "a mesh that has it."
            )
    own = {name: (name,) for name in ("data", "fsdp") if name in names and name not in taken}
    if not said and len(names) == 1:
        own = {"data": names, "fsdp": names}
    if not said | own:
        raise ValueError(
            f"Expected a mesh with an axis 'data' or 'fsdp', got axes {names}. Say which is which: "
            "axes={'data': ..., 'fsdp': ...}."
        )
    return {"data": (), "fsdp": ()} | own | said


def _said(names, axes):
    if not isinstance(axes, Mapping | None):
        raise TypeError(
            f"Expected axes as a dict of 'data' and 'fsdp', got {axes!r}. Write axes={{'data': "
            f"{names[0] if names else ...!r}}}."
        )
    if strays := sorted(map(str, set(axes or ()) - {"data", "fsdp"})):
        raise ValueError(
            f"Expected 'data' and 'fsdp' in axes, got {strays}. Their values are the names that "
            f"mesh has, {names}: axes={{'data': ..., 'fsdp': ...}}; other axes are the model's."
        )
    return {name: named(given) for name, given in (axes or {}).items()}


def size(mesh: Mesh | AbstractMesh, names: Sequence[str]) -> int:
    """How many devices lie along these axes."""
    return math.prod(mesh.shape[name] for name in names)


@cache
def held(mesh: Mesh, names: tuple[str, ...]) -> dict[int, frozenset[int]]:
    """Of each process the places of rows on its devices; raises where a process has none."""
    places = NamedSharding(mesh, spec(names)).devices_indices_map((size(mesh, names),))
    found: dict[int, set[int]] = {}
    for device, (index, *_) in places.items():
        found.setdefault(device.process_index, set()).add(index.start or 0)
    if left_out := sorted(set(range(jax.process_count())) - set(found)):
        raise ValueError(
            f"Expected a mesh with devices of all {jax.process_count()} processes, got none of "
            f"process {left_out[0]}. Make it of all of jax.devices(), as lossopt.parallel.mesh() "
            "is."
        )
    return {process: frozenset(part) for process, part in sorted(found.items())}


def in_words(mesh: Mesh | None) -> str:
    """A mesh, with the order of its devices."""
    if mesh is None:
        return "None"
    return f"{dict(mesh.shape)} of devices {[device.id for device in mesh.devices.flat]}"


def spec(names: Sequence[str], ahead: int = 0) -> P:
    """The spec of arrays whose axis after `ahead` others lies over these axes of a mesh."""
    return P(*[None] * ahead, _entry(names))


def placed(mesh: Mesh | AbstractMesh, specs) -> object:
    """A tree of shardings from a tree of specs."""
    return jax.tree.map(lambda x: NamedSharding(mesh, x), specs, is_leaf=_is_spec)


def put(x: ArrayLike, sharding: NamedSharding) -> Array:
    """An array where it is to lie; several processes each give it whole and alike.

    Of memory of others it is a copy: on a CPU jax goes on reading what it was given.
    """
    x = np.array(x) if hasattr(x, "shape") and not isinstance(x, jax.Array) else x
    there = isinstance(x, jax.Array) and not x.is_fully_addressable
    if there or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if jnp.shape(x) == () and getattr(x, "weak_type", False):  # was a number of Python
        return _copy(sharding)(np.asarray(x).item())
    whole = np.asarray(x, jnp.result_type(x))
    return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place])


@cache
def _copy(sharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


def put_part(sharding: NamedSharding, x: ArrayLike) -> Array:
    """An array of which each process gives the part that it holds."""
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def named(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of axes as a tuple; None names none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def _is_spec(x):
    return isinstance(x, P)


def _entry(names):
    names = tuple(names)
    return names[0] if len(names) == 1 else names or None


def _counted(n):
    return "1 device" if n == 1 else f"{n} devices"
