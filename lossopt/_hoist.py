"""Traced functions that hold no array and no Python: what they closed over are arguments."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jax.extend.random import threefry_prng_impl

from lossopt import _jax
from lossopt._jaxprs import is_jaxpr, jaxprs
from lossopt._typing import Array, PyTree

_CUSTOM = {primitives.custom_jvp_call_p, primitives.custom_vjp_call_p, _jax.custom_vmap_p}
_CALLS = {primitives.jit_p, primitives.remat_p}
_GENERATOR = type(threefry_prng_impl)
_COPIED = _CUSTOM | _CALLS | {primitives.scan_p, primitives.while_p, primitives.cond_p}


class Hoisted(NamedTuple):
    """A traced function, apart from the arrays that it closed over.

    Attributes:
      fn: from `(arrays, *args)` to what the function returned.
      arrays: those that it closed over.
      pure: whether `fn` is nothing but its equations: it calls no host, and holds no array and no
        Python function.
    """

    fn: Callable[..., PyTree]
    arrays: tuple[Array, ...]
    pure: bool


def hoist(fn: Callable, *args: PyTree) -> Hoisted:
    """Traces `fn(*args)` and makes arguments of the arrays that it closes over, at any depth.

    Conditions of `checkify.debug_check`, whose numbers no two traces share, are deleted together
    with what they alone need; so are the rules of custom derivatives and of `custom_vmap`, which
    nobody asks for.
    Where the host is called, nothing is deleted, and arrays may stay inside.
    """
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    structure = jax.tree.structure(shapes)
    pure = all(map(_transparent, _equations(traced.jaxpr)))
    held = _held(traced) if pure else traced.consts
    compute = _copied(traced, held) if pure else _opened(traced.jaxpr)

    def run(arrays, *args):
        return structure.unflatten(compute(arrays, jax.tree.leaves(args)))

    return Hoisted(run, tuple(map(_own, held)), pure)


def _copied(traced, held):
    copy = _Copies({}).of(traced, held)
    return lambda arrays, leaves: core.jaxpr_as_fun(copy)(*arrays, *leaves)


def _opened(jaxpr):
    return lambda arrays, leaves: core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, arrays))(*leaves)


@dataclasses.dataclass(frozen=True)
class _Copies:
    """Jaxprs without checks, custom derivatives and arrays, each copied once."""

    known: dict[tuple, Any]

    def of(self, jaxpr: Any, held: list) -> Any:
        """A copy that takes the arrays `held` as its first arguments."""
        key = id(jaxpr), *map(id, held)
        if key not in self.known:
            run = lambda arrays, *xs: self._run(jaxpr, dict(zip(key[1:], arrays)), xs)
            inputs = [x.aval for x in getattr(jaxpr, "jaxpr", jaxpr).invars]
            copy = jax.make_jaxpr(run)([jax.typeof(x) for x in held], *inputs)
            self.known[key] = copy if isinstance(jaxpr, core.ClosedJaxpr) else copy.jaxpr
        return self.known[key]

    def _run(self, jaxpr, arrays, inputs):
        consts = [arrays[id(x)] for x in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))
        read = lambda x: x.val if isinstance(x, core.Literal) else env[x]
        for equation in _alive(jaxpr):
            with equation.ctx.manager:
                out = self._again(equation, arrays, list(map(read, equation.invars)))
            env.update(zip(equation.outvars, out))
        return list(map(read, jaxpr.outvars))

    def _again(self, equation, arrays, inputs):
        primitive, params, inner = equation.primitive, equation.params, jaxprs(equation)
        if not _stale(equation):
            return _bind(primitive, params, inputs)
        if primitive in _CUSTOM:
            return self._run(inner[0], arrays, inputs)
        held = _held(*inner)
        more = [arrays[id(x)] for x in held]
        copied = jax.tree.map(
            lambda x: self.of(x, held) if is_jaxpr(x) else x, params, is_leaf=_is_leaf
        )
        if primitive is primitives.scan_p:
            return _scan(copied, more, inputs, _jax.counts_of_scan(params))
        if primitive is primitives.while_p:
            return _bind(primitive, *_while(copied, more, inputs))
        if primitive is primitives.cond_p:
            return _bind(primitive, copied, [inputs[0], *more, *inputs[1:]])
        return _bind(primitive, copied | _wider(copied, len(more)), [*more, *inputs])


def _bind(primitive, params, inputs):
    out = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return out if primitive.multiple_results else [out]


def _scan(params, more, inputs, counts):
    consts, carried = counts
    body = core.jaxpr_as_fun(params["jaxpr"])
    fixed, carry, xs = inputs[:consts], inputs[consts:][:carried], inputs[consts + carried :]

    def step(carry, x):
        out = body(*more, *fixed, *carry, *x)
        return out[:carried], out[carried:]

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, carry, xs, **how)
    return [*carry, *ys]


def _while(params, more, inputs):
    split, count = params["cond_nconsts"], len(more)
    numbers = {name: params[name] + count for name in ("cond_nconsts", "body_nconsts")}
    return params | numbers, [*more, *inputs[:split], *more, *inputs[split:]]


def _wider(params, count):
    """What `jit` and `checkpoint` say of `count` arguments more."""
    usual = {"donated_invars": False, "in_shardings": _jax.UNSPECIFIED, "in_layouts": None}
    wider = {name: (x,) * count + params[name] for name, x in usual.items() if name in params}
    return wider | ({"policy": None} if "policy" in params else {})


def _alive(jaxpr):
    """The equations that a result needs, without checks."""
    needed = set(_variables(jaxpr.outvars))
    alive = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(_variables(equation.invars))
            alive.append(equation)
    return alive[::-1]


def _variables(atoms):
    return [x for x in atoms if not isinstance(x, core.Literal)]


class _Contents(NamedTuple):
    """What is in a jaxpr, at any depth: arrays by their id; and whether an equation is stale."""

    held: dict[int, Any]
    stale: bool


_known: WeakKeyDictionary[Any, _Contents] = WeakKeyDictionary()


def _contents(jaxpr) -> _Contents:
    """Looked for once: jaxprs lie in each other."""
    if jaxpr not in _known:
        held = {id(x): x for x in getattr(jaxpr, "consts", ())}
        stale = [_is_check(equation) or _stale(equation) for equation in jaxpr.eqns]
        for equation in jaxpr.eqns:
            held |= {id(x): x for x in _held(*jaxprs(equation))}
        _known[jaxpr] = _Contents(held, any(stale))
    return _known[jaxpr]


def _held(*those):
    """The arrays in jaxprs, at any depth."""
    found = {}
    for jaxpr in those:
        found |= _contents(jaxpr).held
    return list(found.values())


def _equations(jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs(equation):
            yield from _equations(inner)


def _is_leaf(x):
    return x is None or is_jaxpr(x) or isinstance(x, _GENERATOR)


def _stale(equation):
    """Whether it holds, at any depth, what a copy does not."""
    if equation.primitive in _CUSTOM or equation.params.get("policy") is not None:
        return True
    inner = map(_contents, jaxprs(equation))
    return any(x.stale or x.held for x in inner)


def _is_check(equation):
    return equation.primitive.name == "check" and equation.params["debug"]


def _transparent(equation):
    """Whether the equation is all that it does, or can be copied so that it is."""
    copied = equation.primitive in _COPIED
    if _stale(equation) and not copied:
        return False
    if any(np.ndim(x.val) for x in equation.invars if isinstance(x, core.Literal)):
        return False
    if not copied and any(map(_is_python, jax.tree.leaves(equation.params, is_leaf=_is_leaf))):
        return False
    known = jaxprs(equation) or _is_check(equation)
    return known or all(isinstance(x, _jax.NamedAxisEffect) for x in equation.effects)


def _is_python(x):
    """A function of Python; types and meshes can be called, too, and are none."""
    return callable(x) and not isinstance(x, (type, jax.sharding.Mesh, jax.sharding.AbstractMesh))


def _own(x):
    """An array of jax; one of numpy may be changed behind its back."""
    if isinstance(x, jax.Array):
        return x
    with _jax.undisturbed():
        return jax.device_put(np.array(x))
