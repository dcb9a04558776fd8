"""Traced programs: what is deleted from them, and what is rewritten."""

from collections.abc import Callable
from functools import cache, partial, wraps
from itertools import compress
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import partial_eval
from jax.ref import AbstractRef

from lossopt._typing import PyTree


def prune(fn: Callable, *args: PyTree) -> tuple[Callable[[], PyTree], PyTree]:
    """Traces `fn(*args)` and deletes what its result does not need, also inside of loops.

    Effects without a result, such as `debug.print` and `checkify.debug_check`, are deleted too.

    Returns:
      A function without arguments giving the result, and a tree like `args` of booleans: whether
      the result depends on the leaf.
    """
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    pure = without_mere_effects(traced.jaxpr)
    everything = [True] * len(pure.outvars)
    pruned, used_consts, used = partial_eval.dce_jaxpr_consts(pure, everything, False)
    leaves, structure = jax.tree.flatten(args)
    consts, inputs = list(compress(traced.consts, used_consts)), list(compress(leaves, used))

    def result():
        out = core.jaxpr_as_fun(core.ClosedJaxpr(pruned, consts))(*inputs)
        return jax.tree.structure(shapes).unflatten(out)

    return result, structure.unflatten(used)


def canonical(fn: Callable) -> Callable:
    """`fn`, with each convolution in the order of batch, space, channels where it runs on a CPU.

    XLA has fast kernels for that order, and brings convolutions into it by itself only outside of
    loops. Derivatives of convolutions come in other orders: differentiate first.
    """

    @wraps(fn)
    def run(*args):
        if _platform() != "cpu":
            return fn(*args)
        traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = core.jaxpr_as_fun(rewritten(traced, _in_order))(*jax.tree.leaves(args))
        return jax.tree.structure(shapes).unflatten(out)

    return run


def without_mere_effects(jaxpr: Any) -> Any:
    """Deletes equations that have effects and no results, at every depth."""
    return rewritten(jaxpr, lambda equation: [] if _mere_effect(equation) else None)


def rewritten(jaxpr: Any, rule: Callable[[Any], list | None]) -> Any:
    """A jaxpr with other equations, at every depth; itself, where the rule finds none.

    Args:
      jaxpr: with its constants or without.
      rule: from an equation to those that take its place and give its results. With None it stays,
        but for the jaxprs that it holds, which are rewritten, too.
    """

    @cache  # what is called twice stays one
    def rewrite(jaxpr):
        if not isinstance(jaxpr, core.Jaxpr):  # until jax 0.11 constants make another kind
            bare = rewrite(jaxpr.jaxpr)
            return jaxpr if bare is jaxpr.jaxpr else jaxpr.replace(jaxpr=bare)
        equations = [new for old in jaxpr.eqns for new in replace(old)]
        if equations == jaxpr.eqns:
            return jaxpr
        gone = _effects(jaxpr.eqns) - _effects(equations)
        return jaxpr.replace(eqns=equations, effects=jaxpr.effects - gone)

    def replace(equation):
        new = rule(equation)
        return [_within(equation, rewrite)] if new is None else new

    return rewrite(jaxpr)


def jaxprs(equation: Any) -> list:
    """What an equation holds: the function that it calls, branches, bodies of loops."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [x for x in leaves if is_jaxpr(x)]


def _within(equation, rewrite):
    """The equation with its jaxprs rewritten."""
    old = jaxprs(equation)
    new = [rewrite(x) for x in old]
    if new == old:
        return equation
    visit = lambda x: rewrite(x) if is_jaxpr(x) else x
    change = lambda value: jax.tree.map(visit, value, is_leaf=is_jaxpr)
    params = {name: change(value) for name, value in equation.params.items()}
    gone = _effects(old) - _effects(new)
    return equation.replace(params=params, effects=equation.effects - gone)


def _effects(those):
    return set().union(*(x.effects for x in those))


def is_jaxpr(x: Any) -> bool:
    """Whether it is one, with its constants or without: one and the same since jax 0.11."""
    return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))


def _mere_effect(equation):
    writes = any(isinstance(operand.aval, AbstractRef) for operand in equation.invars)
    return equation.effects and not equation.outvars and not writes


def _platform():
    """What programs are compiled for where nobody says otherwise."""
    device = jax.default_device.value
    return getattr(device, "platform", device) or jax.default_backend()


def _in_order(equation):
    """The equations of a convolution in canonical order; None for other equations."""
    if equation.primitive is not conv_general_dilated_p:
        return None
    with equation.ctx.manager:
        operands = (operand.aval for operand in equation.invars)
        traced = jax.make_jaxpr(partial(_convolve, equation))(*operands).jaxpr
    varies = equation.outvars[0].aval.mat  # along axes of shard_map, of which tracing knows nothing
    between = [out for new in traced.eqns for out in new.outvars]
    names = {x: core.Var(x.aval.update(manual_axis_type=varies)) for x in between}
    names |= zip(traced.invars + traced.outvars, equation.invars + equation.outvars)
    return [
        new.replace(
            invars=[names[x] for x in new.invars],
            outvars=[names[x] for x in new.outvars],
            source_info=equation.source_info,
        )
        for new in traced.eqns
    ]


def _convolve(equation, x, kernel):
    *space, last = range(1, x.ndim)
    data = (0, last, *space)
    order = lax.ConvDimensionNumbers(data, (last, last - 1, *range(last - 1)), data)
    old, sharding = equation.params["dimension_numbers"], equation.outvars[0].aval.sharding
    spec = _arranged(sharding.spec, old.out_spec, data)
    new = {
        "dimension_numbers": order,
        "out_sharding": jax.NamedSharding(sharding.mesh, jax.P(*spec)),
    }
    x = lax.transpose(x, _arranged(range(x.ndim), old.lhs_spec, data))
    kernel = lax.transpose(kernel, _arranged(range(x.ndim), old.rhs_spec, order.rhs_spec))
    out = conv_general_dilated_p.bind(x, kernel, **{**equation.params, **new})
    return lax.transpose(out, _arranged(range(x.ndim), data, old.out_spec))


def _arranged(axes, old, new):
    """What stands at the axes of the old order, as it stands in the new one."""
    return [axes[there] for _, there in sorted(zip(new, old))]
