"""What rests on jax's inner workings or differs between its versions, and nothing else."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import compress
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval
from jax.ref import AbstractRef

from lossopt._typing import PyTree

_trace = partial(core.get_opaque_trace_state, convention="flax")
_NOT_TRACED = _trace()


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


def traced() -> bool:
    """Whether `jit`, `vmap` or `grad` trace what runs here, also where no array of it is traced."""
    return _trace() != _NOT_TRACED


def prune(fn: Callable, *args: PyTree) -> tuple[Callable[[], PyTree], PyTree]:
    """Traces `fn(*args)` and deletes what its result does not need, also inside of loops.

    Effects without a result, such as `debug.print` and `checkify.debug_check`, are deleted too.

    Returns:
      A function without arguments giving the result, and a tree like `args` of booleans: whether
      the result depends on the leaf.
    """
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    pure = _without_mere_effects(traced.jaxpr)
    everything = [True] * len(pure.outvars)
    pruned, used_consts, used = partial_eval.dce_jaxpr_consts(pure, everything, False)
    leaves, structure = jax.tree.flatten(args)
    consts, inputs = list(compress(traced.consts, used_consts)), list(compress(leaves, used))

    def result():
        out = core.jaxpr_as_fun(core.ClosedJaxpr(pruned, consts))(*inputs)
        return jax.tree.structure(shapes).unflatten(out)

    return result, structure.unflatten(used)


def _without_mere_effects(jaxpr):
    """Deletes equations that have effects and no results, at every depth."""
    kept = [_simplify(e) for e in jaxpr.eqns if not _mere_effect(e)]
    effects = set().union(*(e.effects for e in kept))
    gone = set().union(*(e.effects for e in jaxpr.eqns)) - effects
    return jaxpr.replace(eqns=kept, effects=jaxpr.effects - gone)


def _mere_effect(equation):
    writes = any(isinstance(operand.aval, AbstractRef) for operand in equation.invars)
    return equation.effects and not equation.outvars and not writes


def _simplify(equation):
    if not equation.effects:
        return equation
    gone = set()

    def visit(x):
        if isinstance(x, core.Jaxpr):  # since jax 0.11 there is no other kind
            simple = _without_mere_effects(x)
            gone.update(x.effects - simple.effects)
            return simple
        if isinstance(x, core.ClosedJaxpr):
            return x.map_jaxpr(visit)
        return type(x)(map(visit, x)) if type(x) in (tuple, list) else x

    params = {name: visit(value) for name, value in equation.params.items()}
    return equation.replace(params=params, effects=equation.effects - gone)


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
