"""What all penalties do alike: the walk over leaves, its checks, widening and groups."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lossopt import _checks
from lossopt._numerics import root
from lossopt._typing import Array, Number, Params, PyTree, Scalar, StepSize

Axis: TypeAlias = int | tuple[int, ...] | Literal["tree"] | None  # None is the whole leaf
Move: TypeAlias = Callable[..., Array]  # of a leaf, its step size and numbers


def penalty(amount: Callable[[Array], Array], params: PyTree) -> Scalar:
    """The sum of `amount` over the leaves, each in float32 or wider."""
    leaves = [_widened(x)[0] for x in jax.tree.leaves(params)]
    return jnp.asarray(sum((amount(x) for x in leaves if x.size), start=0.0))


def nothing(params: PyTree) -> Scalar:
    """The value of a constraint."""
    return penalty(lambda x: jnp.zeros((), x.dtype), params)


def prox(
    move: Move, params: Params, step_size: StepSize, *, axis: Axis = (), **numbers: PyTree
) -> Params:
    """`move(leaf, step_size, *numbers)` on every leaf, in float32 or wider.

    Leaves get their dtypes back. A step size or number may be one for each coordinate. NaN in a
    coordinate, its step size or one of its numbers makes NaN of all along the axes.
    """

    def leaf(x, step_size, *numbers):
        others = {"step_size": step_size, **dict(zip(names, numbers))}
        _at_least_zero_or_nan(step_size)
        fits(x, **others)
        wide, *others = _widened(x, **others)
        if wide.size:
            one = _one_or_nan(_axes(axis, wide.shape), wide, *others)
            wide = one * move(one * wide, *others)
        return wide.astype(jnp.result_type(x))

    names = tuple(numbers)
    return jax.tree.map(leaf, params, *spread(params, step_size=step_size, **numbers))


def prox_of_groups(
    move: Move, params: Params, step_size: StepSize, *, axis: Axis, **numbers: Number
) -> Params:
    """`prox` where `move` sees groups along the last axis; a single step size stays single."""
    if axis == "tree":
        whole, leaves = _whole(params)
        steps = step_size if single(step_size) else _whole_steps(params, step_size)
        return leaves(prox_of_groups(move, whole, steps, axis=None, **numbers))

    def leaf(x, step_size, *numbers):
        split, join = _groups(axis, x)
        return join(move(split(x), split(step_size) if step_size.ndim else step_size, *numbers))

    return prox(leaf, params, step_size, axis=axis, **numbers)


def spread(params: PyTree, **trees: PyTree) -> list[PyTree]:
    """The named as trees like `params`: one number or array stands for every leaf."""
    return [_like_params(name, tree, params) for name, tree in trees.items()]


def single(step_size: StepSize) -> bool:
    """Whether it is one number for the whole tree."""
    return jax.tree_util.all_leaves([step_size]) and jnp.ndim(step_size) == 0


def widened(params: Params, step_size: StepSize) -> tuple[Params, PyTree]:
    """Leaves and step sizes, one for each leaf, in float32 or wider."""
    (steps,) = spread(params, step_size=step_size)
    pair = lambda i: jax.tree.map(lambda x, t: _widened(x, step_size=t)[i], params, steps)
    return pair(0), pair(1)


def like(moved: PyTree, params: Params) -> Params:
    """`moved` with the dtypes of `params`."""
    return jax.tree.map(lambda z, x: z.astype(jnp.result_type(x)), moved, params)


def magnitude(x: Array) -> Array:
    """The absolute value, whose slope at 0 is 0, and at NaN is NaN."""
    return lax.stop_gradient(jnp.sign(x)) * x


def sum_of_norms(params: PyTree, axis: Axis) -> Scalar:
    """The norms of all groups added up; that of a zero group has the slope 0."""
    if axis == "tree":
        params, axis = _whole(params)[0], None
    return penalty(lambda x: jnp.sum(norms(_groups(axis, x)[0](x))), params)


def norms(x: Array) -> Array:
    """Norms along the last axis, kept, by parts of the largest: squares of 1e30 overflow."""
    largest = scale(x)
    return root_of_squares(x / largest) * largest


def root_of_squares(x: Array) -> Array:
    """Norms along the last axis, kept, of what is no larger than 1."""
    return root(jnp.sum(jnp.square(x), -1, keepdims=True))


def scale(x: Array) -> Array:
    """The largest magnitude along the last axis, or 1; a constant to derivatives."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    # XLA may divide by multiplying with the reciprocal, which for the largest numbers is 0.
    return jnp.where(largest > 0, jnp.minimum(largest, jnp.finfo(x.dtype).max / 16), 1)


def relative(step_size: Array, x: Array) -> Array:
    """The step sizes of a projection, as parts of the largest: only their ratios count.

    Where all are 0 they are equal. A single 0 becomes very small, so that a group has a
    projection even if what cannot move lies outside; its derivative is that of the step size.
    """
    if not step_size.ndim:
        return jnp.ones_like(x)
    parts = step_size / scale(step_size)
    parts += lax.stop_gradient(jnp.maximum(parts, 1e-30) - parts)
    return jnp.where(jnp.any(step_size > 0, -1, keepdims=True), parts, 1)


def fits(x: Array, **numbers: Number) -> None:
    """Raises unless the named are single, or one for each coordinate of the leaf."""
    for name, number in numbers.items():
        _checks.exact_shape(jnp.shape(x) if jnp.ndim(number) else (), **{name: number})


def at_least_zero(**numbers: Number) -> None:
    """Raises unless the named numbers are single and at least 0."""
    _checks.at_least(0, **numbers)
    _checks.exact_shape((), **numbers)


def mixture(strength: Number, mix: Number) -> tuple[Number, Number]:
    """Both checked, and widened, so that `1 - mix` is."""
    _checks.at_least(0, strength=strength, mix=mix)
    _checks.at_most(1, mix=mix)
    return _number(strength), _number(mix)


def one_step_size(name: str, step_size: Array) -> None:
    """Raises on a step size for each coordinate."""
    if step_size.ndim:
        raise ValueError(
            "Expected one step_size for each leaf, got one for each coordinate, of shape "
            f"{step_size.shape}: the prox of {name} in a diagonal metric has no closed form. Use a "
            "rule without a metric, such as sgd or momentum, or another penalty."
        )


def one_axis(axis: int, shape: tuple[int, ...]) -> int:
    """The axis counted from the front."""
    return _axes(axis, shape)[0]


def _axes(axis, shape):
    rank = len(shape)
    wanted = range(rank) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    known = [*range(-rank, rank)]
    axes = [a % rank for a in wanted if a in known]
    if len(set(axes)) < len(wanted):
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


def _whole(params):
    """All leaves in one vector, and the way back."""
    jax.tree.map(lambda x: _checks.floating(params=x), params)
    return ravel_pytree(params)


def _whole_steps(params, step_size):
    (steps,) = spread(params, step_size=step_size)
    jax.tree.map(lambda x, t: fits(x, step_size=t), params, steps)
    each = jax.tree.map(lambda x, t: jnp.broadcast_to(t, jnp.shape(x)), params, steps)
    return ravel_pytree(each)[0]


def _like_params(name, tree, params):
    try:
        return jax.tree.broadcast(tree, params)
    except ValueError as error:
        raise ValueError(
            f"Expected {name} as one number or array, or a tree like params, of "
            f"{jax.tree.structure(params)}, got {jax.tree.structure(tree)}. Give each leaf its own."
        ) from error


def _one_or_nan(axes, x, *others):
    """A factor of what goes in and what comes out, so that derivatives are NaN, too."""
    bad = jnp.isnan(x)
    for other in others:
        bad |= jnp.isnan(other)
    return jnp.where(jnp.any(bad, axes, keepdims=True), jnp.nan, 1)


def _at_least_zero_or_nan(step_size):
    """A step size that is NaN comes from a gradient that is, and goes on as NaN."""
    if not isinstance(step_size, Tracer) and np.any(np.asarray(step_size) < 0):
        raise ValueError(
            f"Expected step_size >= 0, got {np.nanmin(step_size)}. It is a learning rate "
            "times a metric: let neither be negative."
        )


def _widened(x, **others):
    _checks.floating(params=x)
    return _checks.floats(params=x, **others)


def _number(x):
    """A Python number stays as it is, of no dtype."""
    return x if isinstance(x, int | float) else _checks.floats(number=x)[0]
