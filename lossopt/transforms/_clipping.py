"""Gradients held within a norm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._numerics import root, wide
from lossopt._typing import Array, PyTree, Scalar
from lossopt.transforms._numbers import at, known


class ClipByGlobalNormState(NamedTuple):
    """State of `clip_by_global_norm`.

    Attributes:
      count: updates so far, an integer of shape `()`.
      norm: that of the last gradients before they were clipped, shape `()`, float32 or wider; inf
        or NaN where they were.
    """

    count: Array
    norm: Array


def clip_by_global_norm(max_norm: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    r"""Shortens gradients that are longer than a norm, all leaves by one factor.

    $$g \leftarrow \min(1, \; c / \|g\|) \cdot g, \qquad
    \|g\|^2 = \textstyle\sum_{\text{leaves}} \sum_i g_i^2$$

    The factor is one number, which the update that follows takes into its own pass: no clipped
    gradients are stored. Squares neither overflow nor vanish: gradients of 1e30 are clipped to
    $c$, too. Where gradients hold inf or NaN the norm does, and NaN goes on; see `skip_spikes`.
    Inside of `jax.shard_map` a leaf that is split over devices is not whole: clip outside of it.

    Args:
      max_norm: $c > 0$, in units of the gradient. It may be a number, a tracer, or a schedule of
        the step count; inf clips nothing.

    Returns:
      A transformation of gradients, for `optax.chain`. Its state holds the norm that came. A number
      needs no state: `update(grads, None)` begins anew.

    Raises:
      ValueError: if `max_norm` is not above 0, or is a schedule and `update` gets no state.
      TypeError: if gradients are complex.

    Examples:
      >>> clip = lo.transforms.clip_by_global_norm(1.0)
      >>> grads = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}
      >>> clipped, state = clip.update(grads, clip.init(grads))
      >>> print(clipped["kernel"], clipped["bias"], state.norm)
      [[0.6]] [0.8] 5.0

    References:
      Pascanu, Mikolov and Bengio, "On the Difficulty of Training Recurrent Neural Networks", 2013.
      Blue, "A Portable Fortran Program to Find the Euclidean Norm of a Vector", 1978.
    """
    _checks.above(0, **known(max_norm=max_norm))

    def init(params):
        return ClipByGlobalNormState(jnp.zeros((), jnp.int32), jnp.zeros_like(global_norm(params)))

    def update(updates, state, params=None, **extra):
        del params, extra
        state = _first(max_norm, init(updates)) if state is None else state
        norm = global_norm(updates)
        limit = jnp.asarray(at(state.count, max_norm), norm.dtype)
        within = norm <= limit  # False for NaN, which the factor then keeps
        factor = jnp.where(within, 1, limit / jnp.where(within, 1, norm))
        clipped = jax.tree.map(lambda g: scaled(g, factor), updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return clipped, ClipByGlobalNormState(count, norm.astype(state.norm.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def _first(max_norm, state):
    if callable(max_norm):
        raise ValueError(
            "Expected a state, got None. A schedule of max_norm needs its state, which counts the "
            "steps: make the first by init(params)."
        )
    return state


def global_norm(tree: PyTree) -> Scalar:
    """The Euclidean norm of all leaves together, in float32 or wider, without overflow."""
    leaves = [_checks.floats(gradients=x)[0] for x in jax.tree.leaves(tree)]
    total = sum((jnp.sum(jnp.square(x)) for x in leaves), start=jnp.zeros(()))
    limits = jnp.finfo(total.dtype)
    # The careful form reads everything twice more; it runs only where squares leave the range.
    inside = (total > limits.tiny / limits.eps**2) & (total < jnp.inf)
    careful = lambda: _norm(jnp.array([_norm(x) for x in leaves], total.dtype))
    return jax.lax.cond(inside, lambda: root(total), careful)


def scaled(x: Array, factor: Scalar) -> Array:
    """The product in the array's own dtype, computed in float32 or wider."""
    dtype = jnp.result_type(x)
    return (jnp.asarray(x, wide(jnp.result_type(x, factor))) * factor).astype(dtype)


def _norm(x):
    """The norm, measured in units of the largest number."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    unit = jnp.where((peak > 0) & (peak < jnp.inf), peak, 1)
    return unit * root(jnp.sum(jnp.square(x / unit)))
