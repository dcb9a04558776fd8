"""Exact value and gradient of an objective, in any number of pieces, on any number of devices."""

import operator
from collections.abc import Callable, Hashable
from functools import partial

import jax
import jax.numpy as jnp

from lossopt import _checks, _jax, _keys
from lossopt._mean import Mean, is_mean, terms, value
from lossopt._numerics import zeros
from lossopt._pieces import strided, walk
from lossopt._typing import ArrayLike, Batch, PyTree

AUX = {"metrics", "model_state"}


def value_and_grad(
    objective: Callable[..., PyTree],
    *,
    microbatches: int = 1,
    axis_name: Hashable | tuple[Hashable, ...] = (),
    has_aux: bool = False,
) -> Callable[..., tuple[tuple, PyTree]]:
    r"""Differentiates $F(\theta) = \sum_k T_k(\theta) / W_k$ exactly, piece by piece.

    The weights $W_k$ are summed over the whole batch first, by a program from which the model is
    deleted. Each piece then adds its share of $\sum_k \nabla T_k / W_k$ to one gradient tree,
    however many terms there are, in float32 or wider.

    Args:
      objective: maps `(params, batch, *args, **kwargs)` to a tree of `Mean`; with `has_aux` to
        `(means, aux)`, where the dict `aux` may hold `"metrics"`, a tree of `Mean`, which pieces
        and devices pool, and `"model_state"`, which pieces pass on in order as the keyword
        `model_state` and devices average (leaves that are not floating: the largest).
      microbatches: at most how many pieces the leading axis of `batch` is cut into, each of
        `ceil(rows / microbatches)` rows but perhaps a smaller last one. Rows go round: piece `i`
        of `k` full ones holds rows `i, i + k, ...`, so that a sharded batch stays where it is.
      axis_name: axes of an enclosing `pmap`, `shard_map` or `vmap` over which the batch is split;
        `params` are the same on all.
      has_aux: whether the objective returns `(means, aux)`.

    Returns:
      A function of `(params, batch, *args, **kwargs)` giving `((value, means), gradient)`, or
      `((value, means, aux), gradient)`, the same on all devices; the gradient has the dtypes of
      `params`. Typed PRNG keys among `args` and `kwargs` are folded with the number of the device
      and of the piece, where there are several.

    Raises:
      ValueError: if weights depend on `params` or `model_state` (also where one `custom_vjp` or
        `while_loop` gives totals and weights together), if there are more microbatches than rows,
        or if the leaves of `batch` differ in rows.
      TypeError: if the objective returns another thing than a tree of `Mean`.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2), "penalty": lo.constant(w**2)}
      >>> fn = lo.value_and_grad(objective, microbatches=2)
      >>> (value, _), gradient = fn(jnp.array(1.0), jnp.array([0.0, 2.0, 4.0]))
      >>> print(f"{value:.4f} {gradient:.4f}")
      4.6667 0.0000
    """
    _checks.at_least(1, microbatches=operator.index(microbatches))
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def fn(params, batch, *args, **kwargs):
        pieces = strided(batch, microbatches)
        inputs = _keys.of_device((args, kwargs), axes)
        call = partial(_call, objective, has_aux, inputs)
        local, state = _jax.varying((params, kwargs.get("model_state")), axes)

        def weigh(state, number, piece):
            return state, fixed_weights(call, local, state, number, piece)

        _, weights = walk(weigh, state, pieces)
        weights = psum(weights.added(), axes)

        def share(params, state, number, piece):
            means, metrics, state = call(params, state, number, piece)
            shares = jax.tree.map(lambda m, w: Mean(m.total, w), means, weights, is_leaf=is_mean)
            return value(shares), (state, (means, metrics))

        def step(carry, number, piece):
            state, grads = carry
            add = jax.grad(share, has_aux=True)
            summand, (state, measured) = add(local, state, number, piece)
            state = _jax.varying(state, axes)
            return (state, jax.tree.map(jnp.add, grads, summand)), measured

        start = (state, jax.tree.map(zeros, local))
        (state, grads), measured = walk(step, start, pieces)
        (means, metrics), grads = psum((measured.added(), grads), axes)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, params)
        aux = {"metrics": metrics, "model_state": _average(state, axes)}
        aux = {name: part for name, part in aux.items() if part is not None}
        return ((value(means), means, aux) if has_aux else (value(means), means)), grads

    return fn


def split_aux(out: PyTree, has_aux: bool) -> tuple[PyTree, dict[str, PyTree]]:
    """What an objective returned, as means and aux; raises where `has_aux` says otherwise."""
    pair = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)
    means, aux = out if pair else (out, {})
    if has_aux and not (pair and aux.keys() <= AUX):
        raise TypeError(
            "With has_aux the objective returns (means, aux), where the dict aux may hold "
            f"'metrics' and 'model_state'; got {jax.tree.structure(out)}."
        )
    if not has_aux and aux.keys() & AUX:
        raise TypeError("The objective returns (means, aux): say so with has_aux=True.")
    if not terms(means if has_aux else out):
        raise TypeError(f"Expected a tree of Mean with a leaf, got {means}: is a return missing?")
    return (means, aux) if has_aux else (out, {})


def _call(objective, has_aux, inputs, params, state, number, piece):
    """The objective on one piece: means, metrics and the next model state."""
    args, kwargs = _keys.folded(inputs, number)
    _checks.typed_key(kwargs.get("key"))
    stateful = "model_state" in kwargs
    kwargs = kwargs | {"model_state": state} if stateful else kwargs
    means, aux = split_aux(objective(params, piece, *args, **kwargs), has_aux)
    terms(aux.get("metrics"))
    if "model_state" in aux and not stateful:
        raise ValueError(
            "The objective returns a model_state that it was not given: pass the first one "
            "by its keyword, model_state=..."
        )
    return means, aux.get("metrics"), aux.get("model_state", state)


def fixed_weights(
    call: Callable[..., tuple],
    params: PyTree,
    state: PyTree,
    number: ArrayLike | None,
    piece: Batch,
) -> PyTree:
    """Weights of the means that `call` returns first; raises where they depend on parameters."""

    def weigh(params, state, piece):
        means, _, _ = call(params, state, number, piece)
        return jax.tree.map(lambda mean: mean.weight, means, is_leaf=is_mean)

    weights, (params_used, state_used, _) = _jax.prune(weigh, params, state, piece)
    used = {"params": params_used, "model_state": state_used}
    for path, needed in jax.tree_util.tree_leaves_with_path(used):
        if needed:
            raise ValueError(
                f"The weight of a term depends on {path[0].key}{jax.tree_util.keystr(path[1:])}, "
                "but an average over pieces needs weights that the batch alone determines. "
                "Move the factor into the values: mean(factor * values, weights)."
            )
    return weights()


def _average(state, axes):
    def average(x):
        if _keys.is_key(x):
            data = average(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        floating = jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        return jax.lax.pmean(x, axes) if floating else jax.lax.pmax(x, axes)

    return jax.tree.map(average, state) if axes else state


def psum(tree: PyTree, axes: tuple[Hashable, ...]) -> PyTree:
    """The sum over devices; without axes the tree itself."""
    return jax.lax.psum(tree, axes) if axes else tree
