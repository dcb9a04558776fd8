"""Compiled programs that outlive the calls they were made for, and let go of what they knew."""

import dataclasses
import hashlib
import re
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from lossopt import _jax
from lossopt._hoist import hoist
from lossopt._typing import Array, PyTree

_OBJECTIVES = 4
_PROGRAMS = 256
_SHARED = 256


class Program(NamedTuple):
    """A compiled program, apart from the arrays that its functions closed over.

    Attributes:
      run: from `(arrays, *args)` to what the function returned.
      arrays: those that it closed over.
      digest: of its text, without addresses.
      pure: whether it calls no host.
    """

    run: jax.stages.Wrapped
    arrays: tuple[Array, ...]
    digest: bytes
    pure: bool


_programs: OrderedDict[Hashable, OrderedDict[Hashable, Any]] = OrderedDict()
_shared: OrderedDict[Hashable, jax.stages.Wrapped] = OrderedDict()
_lock = threading.RLock()


def call(fn: Callable, plan: tuple, *args: PyTree) -> PyTree:
    """`fn(*plan, *args)`, compiled; programs outlive calls and let go of what they were made for.

    Where something is traced already, or nothing is to be compiled, it is the call itself.

    Args:
      fn: a function of a module.
      plan: what a program is made for; the objective stands first. Functions and objects are
        themselves alone, bound methods and partials are what they are made of; numbers, strings,
        tuples and frozen dataclasses are compared by value and type. Programs of the last four
        objectives are kept.
      *args: trees of arrays and numbers.
    """
    leaves = jax.tree.leaves(args)
    traced = any(issubclass(kind, Tracer) for kind in set(map(type, leaves)))
    if traced or not _jax.compiles():
        return fn(*plan, *args)
    program = made(fn, plan, *args)
    return program.run(program.arrays, *args)


def again(fn: Callable, plan: tuple) -> Callable[..., PyTree]:
    """`call` as a function of its arguments, which are of the same shapes each time.

    It looks its program up once, and keeps it for as long as it lives.
    """
    program = None

    def run(*args):
        nonlocal program
        if not _jax.compiles():
            return fn(*plan, *args)
        program = program or made(fn, plan, *args)
        return program.run(program.arrays, *args)

    return run


def made(fn: Callable, plan: tuple, *args: PyTree) -> Program:
    """The program of `call` for arguments, or for `jax.ShapeDtypeStruct`s of them."""
    return _remembered(_made, fn, plan, args)


def unplaced(program: Program, args: Sequence[PyTree]) -> bytes:
    """The digest of a program for arguments, wherever they and its arrays lie."""
    given = program.arrays, *args
    if not program.pure or not any(getattr(x, "committed", False) for x in jax.tree.leaves(given)):
        return program.digest
    lowered = program.run.lower(*jax.tree.map(_shape, given))
    return hashlib.sha256(lowered.as_text().encode()).digest()


def held(fn: Callable, plan: tuple, *args: PyTree) -> bool:
    """Whether `made` has made this program, which is still kept."""
    owner, key = _names(_made, fn, plan, args)
    with _lock:
        return key in _programs.get(owner, {})


def outlined(fn: Callable, plan: tuple, *args: PyTree) -> PyTree:
    """What `jax.eval_shape` says of `fn(*plan, *args)`, which is traced once, as programs are."""
    return _remembered(_outlined, fn, plan, args)


def _remembered(make, fn, plan, args):
    """What `make(fn, plan, args)` gave for arguments like these."""
    owner, key = _names(make, fn, plan, args)
    with _lock:
        made = _found(_found(_programs, owner, {}), key, None)
    if made is None:
        made = make(fn, plan, args)
        with _lock:
            kept = _kept(_programs, owner, OrderedDict(), _OBJECTIVES)
            made = _kept(kept, key, made, _PROGRAMS)
    return made


def _names(make, fn, plan, args):
    """By what a program is kept: that of its objective, and its own."""
    leaves, structure = jax.tree.flatten(args)
    context = _jax.context()
    arrays = all(hasattr(kind, "aval") for kind in set(map(type, leaves)))
    avals = map(attrgetter("aval"), leaves) if arrays else (_aval(x, context) for x in leaves)
    owner = _identity(_objective(plan))
    return owner, (make, fn, _identity(plan), structure, tuple(avals), context)


def clear() -> None:
    """Forgets all programs."""
    with _lock:
        _programs.clear()
        _shared.clear()


def _made(fn, plan, args):
    """A program, which another objective may have left behind: one of equal text is the same."""
    hoisted = hoist(partial(fn, *plan), *args)
    run, arrays = jax.jit(hoisted.fn), _jax.beside(args, hoisted.arrays)
    traced = run.trace(arrays, *args)
    if not hoisted.pure:
        return Program(run, arrays, hashlib.sha256(_named(traced)).digest(), False)
    lowered = traced.lower()
    digest = hashlib.sha256(lowered.as_text().encode()).digest()
    jaxpr = traced.jaxpr.jaxpr
    avals = tuple(x.aval for x in (*jaxpr.invars, *jaxpr.outvars))
    trees = jax.tree.structure(args), lowered.out_tree
    settings = tuple(jax.config.values.values())
    key = digest, trees, avals, _jax.context(), settings
    with _lock:
        return Program(_kept(_shared, key, run, _SHARED), arrays, digest, True)


def _outlined(fn, plan, args):
    return jax.eval_shape(partial(fn, *plan), *args)


def _named(traced):
    """What calls the host, without the addresses of what it calls."""
    return re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)).encode()


def _shape(x):
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)


def _aval(x, context):
    if hasattr(x, "aval"):
        return x.aval
    return _numpy(x.shape, x.dtype, context) if type(x) is np.ndarray else jax.typeof(x)


@lru_cache(maxsize=4096)
def _numpy(shape, dtype, context):
    """What jax makes of an array of numpy, which it is slow to say."""
    return jax.typeof(np.broadcast_to(np.zeros((), dtype), shape))


def _found(kept, key, otherwise):
    if key not in kept:
        return otherwise
    kept.move_to_end(key)
    return kept[key]


def _kept(kept, key, new, most):
    """What stands at the key, perhaps `new`; what was used longest ago makes room."""
    kept.setdefault(key, new)
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to itself alone; it keeps its object alive, so that no other takes its place."""

    it: Any

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.it is other.it


def _identity(x: Any) -> Hashable:
    """Equal for what a program cannot tell apart."""
    if x is None or type(x) in (bool, int, str, bytes, jax.tree_util.PyTreeDef):
        return type(x), x
    if type(x) in (float, complex):
        return type(x), repr(x)
    if isinstance(x, PartitionSpec):
        return type(x), _identity(tuple(x))
    if isinstance(x, (Enum, type, types.FunctionType)):
        return _Itself(x)
    if isinstance(x, tuple):
        return type(x), *map(_identity, x)
    if hasattr(x, "__self__") and hasattr(x, "__func__"):
        return type(x), _identity(x.__self__), _Itself(x.__func__)
    if isinstance(x, partial):
        named = sorted(x.keywords.items())
        return type(x), _identity(x.func), _identity(x.args), _identity(tuple(named))
    record = getattr(type(x), "__dataclass_params__", None)
    if record and record.frozen and not callable(x):
        fields = dataclasses.fields(x)
        return type(x), *(_identity(getattr(x, field.name)) for field in fields)
    return _Itself(x)


def _objective(plan):
    """What stands first, at any depth of tuples."""
    while isinstance(plan, tuple) and plan and not callable(plan):
        plan = plan[0]
    return plan
