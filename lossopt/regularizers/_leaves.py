"""What all penalties do alike: the walk over leaves, its checks, widening and groups."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from lossopt import _checks
from lossopt._numerics import root
from lossopt._typing import Array, Number, Params, PyTree, Scalar, Step

Axis: TypeAlias = int | tuple[int, ...] | None  # None is the whole leaf
Move: TypeAlias = Callable[[Array, Array], Array]  # of a leaf and its step


def penalty(measure: Callable[[Array], Array], params: PyTree) -> Scalar:
    """The sum of `measure` over the leaves, each in float32 or wider."""
    leaves = [_widened(x)[0] for x in jax.tree.leaves(params)]
    return jnp.asarray(sum((measure(x) for x in leaves if x.size), start=0.0))


def nothing(params: PyTree) -> Scalar:
    """The value of a constraint."""
    return penalty(lambda x: jnp.zeros((), x.dtype), params)


def prox(move: Move, params: Params, step: Step) -> Params:
    """`move(leaf, step)` on every leaf, in float32 or wider; leaves get their dtypes back."""

    def leaf(x, step):
        _at_least_zero_or_nan(step)
        _checks.exact_shape(jnp.shape(x) if jnp.ndim(step) else (), step=step)
        wide, step = _widened(x, step=step)
        moved = move(wide, step) if wide.size else wide
        return moved.astype(jnp.result_type(x))

    return jax.tree.map(leaf, params, jax.tree.broadcast(step, params))


def prox_of_groups(move: Move, params: Params, step: Step, axis: Axis) -> Params:
    """`prox` where `move` sees groups along the last axis; a single step stays single."""

    def leaf(x, step):
        split, join = _groups(axis, x)
        return join(move(split(x), split(step) if step.ndim else step))

    return prox(leaf, params, step)


def widened(params: Params, step: Step) -> tuple[Params, PyTree]:
    """Leaves and steps, one for each leaf, in float32 or wider."""
    steps = jax.tree.broadcast(step, params)
    pair = lambda i: jax.tree.map(lambda x, t: _widened(x, step=t)[i], params, steps)
    return pair(0), pair(1)


def like(moved: PyTree, params: Params) -> Params:
    """`moved` with the dtypes of `params`."""
    return jax.tree.map(lambda z, x: z.astype(jnp.result_type(x)), moved, params)


def group_norms(x: Array, axis: Axis) -> Array:
    """The norm of each group; that of a zero group has the slope 0."""
    return norms(_groups(axis, x)[0](x))


def norms(x: Array) -> Array:
    """Norms along the last axis, kept, by parts of the largest: squares of 1e30 overflow."""
    largest = scale(x)
    return root(jnp.sum(jnp.square(x / largest), -1, keepdims=True)) * largest


def scale(x: Array) -> Array:
    """The largest magnitude along the last axis, or 1; a constant to derivatives."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    return jnp.where(largest > 0, largest, 1)


def relative(step: Array, x: Array) -> Array:
    """The steps of a projection, as parts of the largest: only their ratios count.

    Where all are 0 they are equal. A single 0 becomes very small, so that a group has a
    projection even if what cannot move lies outside.
    """
    if not step.ndim:
        return jnp.ones_like(x)
    return jnp.where(
        jnp.any(step > 0, -1, keepdims=True), jnp.maximum(step / scale(step), 1e-30), 1
    )


def at_least_zero(**numbers: Number) -> None:
    """Raises unless the named numbers are single and at least 0."""
    _checks.at_least(0, **numbers)
    _checks.exact_shape((), **numbers)


def mixture(strength: Number, mix: Number) -> tuple[Number, Number]:
    """Both checked, and widened, so that `1 - mix` is."""
    _checks.at_least(0, strength=strength, mix=mix)
    _checks.at_most(1, mix=mix)
    return _number(strength), _number(mix)


def one_step(name: str, step: Array) -> None:
    """Raises on a step for each coordinate."""
    if step.ndim:
        raise ValueError(
            f"Expected one step for each leaf, got one for each coordinate, of shape {step.shape}: "
            f"the prox of {name} in a diagonal metric has no closed form. Use a rule without a "
            "metric, such as sgd or momentum, or another penalty."
        )


def one_axis(axis: int, shape: tuple[int, ...]) -> int:
    """The axis counted from the front."""
    return _axes(axis, shape)[0]


def _axes(axis, shape):
    rank = len(shape)
    wanted = range(rank) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = [a + rank if a < 0 else a for a in wanted]
    if len(set(axes)) < len(axes) or not all(0 <= a < rank for a in axes):
        raise ValueError(
            f"Expected axis to name axes of the leaf of shape {shape}, each once, got {axis}. "
            "Name the leaves that are meant with lossopt.regularizers.by_path."
        )
    return axes


def _groups(axis, x):
    """How to bring groups to the last axis, and back."""
    axes = _axes(axis, x.shape)
    rest = [i for i in range(x.ndim) if i not in axes]
    order = [*rest, *axes]
    split = lambda y: y.transpose(order).reshape([*(x.shape[i] for i in rest), -1])
    join = lambda y: y.reshape([x.shape[i] for i in order]).transpose(np.argsort(order).tolist())
    return split, join


def _at_least_zero_or_nan(step):
    """A step that is NaN comes from a gradient that is, and goes on as NaN."""
    if not isinstance(step, Tracer) and np.any(np.asarray(step) < 0):
        raise ValueError(
            f"Expected step >= 0, got {np.nanmin(step)}. A step is a learning rate "
            "times a metric: let neither be negative."
        )


def _widened(x, **step):
    _checks.floating(params=x)
    return _checks.floats(params=x, **step)


def _number(x):
    """A Python number stays as it is, of no dtype."""
    return x if isinstance(x, int | float) else _checks.floats(number=x)[0]
