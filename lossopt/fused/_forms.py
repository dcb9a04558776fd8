"""What a method becomes: a sum whose gradient is ready with it, or rows that are recomputed.

A method walks the matrix forward, for values, and backward, for gradients; both are programs
without rules of their own. Here they get the rules: of differentiation, of `vmap` within a budget
of memory, and of rows that are spread over devices.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from lossopt import _jax
from lossopt._mean import Mean, mean
from lossopt._typing import Array
from lossopt.fused._blocks import Blocks
from lossopt.fused._tiles import Facts, Operands


def rows(method: Any, operands: Operands, facts: Facts, *, jvp: bool = False) -> Array:
    """One value per row, shape `[rows]`; its gradient walks the matrix once more."""
    if jvp:
        return _forward(method, operands, facts)[0]
    operands, facts = _jax.alike((operands, facts))
    return _rows(method, operands, facts)


def average(
    method: Any, operands: Operands, facts: Facts, weights: Array, *, jvp: bool = False
) -> Mean:
    """The weighed mean of the rows. Of blocks of rows, the gradient is made on the way."""
    if jvp or not isinstance(method, Blocks):
        return mean(rows(method, operands, facts, jvp=jvp), weights)
    operands, facts, spread = _jax.alike((operands, facts, weights))
    return Mean(_total(method, operands, facts, spread), jnp.sum(weights))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(method, operands, facts):
    return _bounded(_forward, method, operands, facts)[0]


def _rows_forward(method, operands, facts):
    values, measured = _bounded(_forward, method, operands, facts)
    return values, (operands, facts, measured)


def _rows_backward(method, residuals, cotangents):
    operands, facts, measured = residuals
    unit, cotangents = _within_range(operands, cotangents)
    gradient = _bounded(_backward, method, operands, facts, measured, cotangents)[0]
    return _like(operands, gradient, unit), None


_rows.defvjp(_rows_forward, _rows_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(method, operands, facts, weights):
    values, _ = _bounded(_forward, method, operands, facts)
    return mean(values, weights).total


def _total_forward(method, operands, facts, weights):
    unit, cotangents = _within_range(operands, weights)
    gradient, values = _bounded(_backward, method, operands, facts, None, cotangents)
    return mean(values, weights).total, (operands, gradient, unit, values, weights)


def _total_backward(method, residuals, cotangent):
    operands, gradient, unit, values, weights = residuals
    unread = (weights == 0) & ~jnp.isfinite(values)
    to_weights = cotangent * jnp.where(unread, 0, values)
    to_operands = _like(operands, gradient, unit * cotangent)
    return to_operands, None, to_weights.astype(weights.dtype)


_total.defvjp(_total_forward, _total_backward)


def _like(operands, gradient, factor):
    return jax.tree.map(lambda x, g: (factor * g).astype(x.dtype), operands, gradient)


def _within_range(operands, cotangents):
    """A power of two, and cotangents over it: the slopes of a tile shall fit into float16."""
    if all(x.dtype != jnp.float16 for x in jax.tree.leaves(operands)):
        return 1, cotangents
    top = reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(cotangents)])
    unit = jax.lax.stop_gradient(jnp.exp2(jnp.floor(jnp.log2(jnp.where(top == 0, 1, top)))))
    return unit, jax.tree.map(lambda x: x / unit, cotangents)


def _forward(method, operands, facts):
    return _in_groups(method.shards, method.forward, operands, facts)


def _backward(method, operands, facts, measured, cotangents):
    return _in_groups(method.shards, method.backward, operands, facts, measured, cotangents)


def _in_groups(shards, walk, operands, facts, *more):
    """Walks each device's rows on their own, so that gradients of columns are added up once."""
    if shards == 1:
        return walk(operands, facts, *more)
    split = lambda tree: jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), tree)
    join = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    by_row = operands._replace(left=split(operands.left), rows=split(operands.rows))
    facts = facts._replace(rows=split(facts.rows))
    axes = Operands(0, None, 0, None, None), Facts(0, None), *(0 for _ in more)
    out = jax.vmap(walk, axes)(by_row, facts, *split(more))

    def whole(part):
        if not isinstance(part, Operands):
            return join(part)
        pooled = jax.tree.map(lambda x: jnp.sum(x, axis=0), part)
        return pooled._replace(left=join(part.left), rows=join(part.rows))

    return tuple(map(whole, out))


@partial(jax.jit, static_argnums=(0, 1))
def _bounded(walk, method, *args):
    """`walk(method, *args)`; under vmap, as many at once as the budget holds, then the next."""
    return _walk(walk, method, *args)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _walk(walk, method, *args):
    call = custom_vmap(partial(walk, method))
    call.def_vmap(partial(_in_turns, walk, method))
    return call(*args)


@_walk.defjvp
def _walk_jvp(walk, method, primals, tangents):
    return jax.jvp(partial(walk, method), primals, tangents)


def _in_turns(walk, method, size, batched, *args):
    """The rule of `vmap`: all at once if the budget holds them, or some of them at a time."""
    leaves, structure = jax.tree.flatten(args)
    along = tuple(jax.tree.leaves(batched))
    if size <= method.together:
        share = dataclasses.replace(method, together=method.together // size)
        out = _bounded(_Batched(walk, along), share, *args)
    else:
        one = lambda mapped: _bounded(walk, method, *structure.unflatten(_fill(leaves, mapped)))
        mapped = [leaf if each else None for leaf, each in zip(leaves, along, strict=True)]
        out = jax.lax.map(one, mapped, batch_size=method.together if method.together > 1 else None)
    return out, jax.tree.map(lambda _: True, out)


@dataclasses.dataclass(frozen=True)
class _Batched:
    """A walk over many matrices at once; `along` says which leaves of the arguments are many."""

    walk: Callable
    along: tuple[bool, ...]

    def __call__(self, method, *args):
        axes = jax.tree.structure(args).unflatten([0 if each else None for each in self.along])
        return jax.vmap(partial(self.walk, method), axes)(*args)


def _fill(leaves, mapped):
    return [leaf if each is None else each for leaf, each in zip(leaves, mapped, strict=True)]
