"""What rests on jax's inner workings or differs between its versions, and nothing else."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import jax
import numpy as np
from jax._src.config import disable_jit, trace_context
from jax._src.core import NamedAxisEffect as NamedAxisEffect
from jax._src.core import trace_state_clean
from jax._src.named_sharding import UNSPECIFIED as UNSPECIFIED

from lossopt._typing import PyTree


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


def compiles() -> bool:
    """Whether a function of `jit` would compile here: nobody traces, maps or differentiates."""
    return trace_state_clean() and not disable_jit.value


def context() -> Hashable:
    """What a traced program depends on beside its arguments: precision, meshes, ..."""
    return trace_context()


def counts_of_scan(params: dict[str, Any]) -> tuple[int, int]:
    """How many inputs of a `scan` are constant, and how many are carried."""
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since jax 0.12
    return len(list(consts)), len(list(carry))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without what the caller asks of jax for computations of his own.

    Under `jax.set_mesh` jax takes arrays of that mesh only; a transfer guard forbids to hand it
    numbers of numpy; NaN is a value like others to who only moves it.
    """
    nowhere = jax.sharding.Mesh(np.empty((), object), ())
    with jax.set_mesh(nowhere), jax.transfer_guard("allow"), jax.debug_nans(False):
        yield


@cache
def host_device() -> Any:
    """A device of the CPU; None where jax was told to do without."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
