"""Exact gradients of a loss that couples the whole batch, through an encoder that sees pieces."""

import operator
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from lossopt import _checks, _grad, _jax, _keys
from lossopt._mean import Mean, is_mean, value
from lossopt._numerics import zeros
from lossopt._objective import split_aux
from lossopt._pieces import rows, strided, walk
from lossopt._typing import Axis, PyTree


def cached_value_and_grad(
    encode: Callable[..., PyTree],
    loss: Callable[..., PyTree],
    *,
    microbatches: int,
    axis_name: Axis = None,
) -> Callable[..., tuple[tuple, PyTree]]:
    r"""Differentiates `loss(params, encode(params, batch))` with an encoder that sees pieces.

    $$\nabla_\theta F = \frac{\partial F}{\partial \theta}
        + \sum_k \Big( \frac{\partial e_k}{\partial \theta} \Big)^{\!\top} g_k, \qquad
        g_k = \frac{\partial F}{\partial e_k}, \quad e_k = \text{encode}(\theta, x_k)$$

    A contrastive loss couples all items, so that microbatches of it are another loss. Here the
    encoder embeds one piece after another, the loss is taken once of all embeddings, and what it
    asks of them goes back through the encoder, computed anew, piece by piece. The result is exact,
    the activations are those of one piece, and the encoder is evaluated twice (gradient caching).

    Args:
      encode: maps `(params, batch, *args)` to a tree of arrays `[rows, ...]`, each row from its
        own row of the batch: embeddings, and what else the loss reads, such as labels or weights.
      loss: maps `(params, embeddings, *args)` to a tree of `Mean`, of the whole batch.
      microbatches: as in `lossopt.value_and_grad`.
      axis_name: as in `lossopt.value_and_grad`; give it to the loss, too, as in
        `lossopt.fused.clip`, for rivals of all devices.

    Returns:
      A function of `(params, batch, *args)` giving `((value, means), gradient)`, as that of
      `lossopt.value_and_grad`. Typed PRNG keys among `args` are folded with the number of the
      device; for the encoder also with that of the piece, alike both times.

    Raises:
      ValueError: if `encode` does not return one row per row of the batch, if weights depend on
        `params`, if there are more microbatches than rows, or if the leaves of `batch` differ in
        rows.
      TypeError: if the loss returns another thing than a tree of `Mean`.

    Examples:
      >>> encode = lambda params, x: x * params["w"]
      >>> loss = lambda params, x: lo.fused.clip(x, x, params["scale"])
      >>> fn = jax.jit(lo.fused.cached_value_and_grad(encode, loss, microbatches=2))
      >>> (value, _), gradient = fn({"w": 1.0, "scale": 2.0}, jnp.eye(3))
      >>> print(f"{value:.4f} {gradient['w']:.4f} {gradient['scale']:.4f}")
      0.2395 -0.8521 -0.2130

    References:
      Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
    """
    _checks.at_least(1, microbatches=operator.index(microbatches))
    axes = _checks.axes(axis_name)

    def fn(params, batch, *args):
        args = _keys.of_device(args, axes)
        local = _jax.varying(params, axes)
        pieces = strided(batch, microbatches)
        embed = partial(_embed, encode, args)
        _, embeddings = walk(lambda _, number, piece: ((), embed(local, number, piece)), (), pieces)
        embeddings = embeddings.joined()
        whole = lambda p, _, x: split_aux(loss(p, encode(p, x, *args), *args), False)[0]
        _grad.fixed_weights(whole, local, None, batch)

        def share(params, floating):
            means = loss(params, _merged(embeddings, floating), *args)
            return value(_shares(means, axes)), means

        floating = _floating(embeddings)
        slope = jax.grad(share, argnums=(0, 1), has_aux=True)
        (direct, cotangents), means = slope(local, floating)

        def back(grads, number, piece):
            piece, cotangents = piece
            _, pull = jax.vjp(lambda p: _floating(embed(p, number, piece)), local)
            return jax.tree.map(jnp.add, grads, *pull(cotangents)), ()

        grads = jax.tree.map(lambda x, g: zeros(x) + g, local, direct)
        pieces = strided((batch, cotangents), microbatches)
        grads, _ = walk(back, grads, pieces)
        means, grads = jax.lax.psum((means, grads), axes)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, params)
        return (value(means), means), grads

    return fn


def _embed(encode, args, params, number, piece):
    """The embeddings of one piece, with keys of its own."""
    embeddings = encode(params, piece, *_keys.folded(args, number))
    count = rows(piece)
    for path, leaf in jax.tree_util.tree_leaves_with_path(embeddings):
        if jnp.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"Expected encode to return one row for each of {count}, got shape "
                f"{jnp.shape(leaf)} at {jax.tree_util.keystr(path)!r}. Average nothing over rows."
            )
    return embeddings


def _floating(tree):
    """The leaves that have a gradient."""
    return [x for x in jax.tree.leaves(tree) if _is_floating(x)]


def _merged(tree, floating):
    leaves = iter(floating)
    return jax.tree.map(lambda x: next(leaves) if _is_floating(x) else x, tree)


def _is_floating(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _shares(means, axes):
    """What this device adds to the objective; weights are constants."""

    def share(mean):
        weight = jax.lax.stop_gradient(mean.weight)
        return Mean(mean.total, jax.lax.psum(weight, axes))

    return jax.tree.map(share, means, is_leaf=is_mean)
