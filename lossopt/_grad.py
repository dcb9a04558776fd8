"""Exact value and gradient of an objective, in any number of pieces, on any number of devices."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks, _jax, _jaxprs, _keys, _place, _programs
from lossopt._mean import Mean, is_mean, value
from lossopt._numerics import zeros
from lossopt._objective import anew, split_aux
from lossopt._pieces import Pieces, walk
from lossopt._place import HERE, Alike, Here, Place, once
from lossopt._typing import Axis, Batch, Means, PyTree


def measure(
    objective: Callable[..., PyTree],
    *,
    microbatches: int = 1,
    axis_name: Axis = None,
    has_aux: bool = False,
) -> Callable[..., tuple]:
    r"""Measures $F(\theta) = \sum_k T_k(\theta) / W_k$ exactly, piece by piece.

    The forward half of `value_and_grad`: the same pieces, keys, states and devices, and so the same
    numbers, without a gradient and in the memory of one piece. It maps and differentiates as any
    function; but inside of a map over devices `value_and_grad` takes the gradient.

    Args:
      objective: as in `value_and_grad`. Its weights may depend on `params` and `model_state`,
        because totals and weights are pooled before they are divided.
      microbatches: as in `value_and_grad`.
      axis_name: as in `value_and_grad`.
      has_aux: whether the objective returns `(means, aux)`.

    Returns:
      A function of `(params, batch, *args, **kwargs)` giving `(value, means)` or
      `(value, means, aux)`, the same on all devices. Typed PRNG keys among `args` and `kwargs` are
      folded as in `value_and_grad`.

    Raises:
      ValueError: if there are more microbatches than rows, or if the leaves of `batch` differ in
        rows.
      TypeError: if the objective returns another thing than a tree of `Mean`, or for raw keys.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2), "penalty": lo.constant(w**2)}
      >>> value, means = lo.measure(objective, microbatches=2)(1.0, jnp.array([0.0, 2.0, 4.0]))
      >>> print(f"{value:.4f} {means['fit'].value:.4f} {means['fit'].weight}")
      4.6667 3.6667 3.0
    """
    walked = _walked(objective, microbatches, axis_name, has_aux)

    def fn(params, batch, *args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        data = [x if _is_data(x) else None for x in leaves]
        fixed = tuple(None if _is_data(x) else x for x in leaves)
        return _programs.call(_measured, (objective, walked, structure, fixed), params, batch, data)

    return fn


def value_and_grad(
    objective: Callable[..., PyTree],
    *,
    microbatches: int = 1,
    axis_name: Axis = None,
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
      axis_name: axes of an enclosing `pmap`, `shard_map` or `vmap` over which the batch is split,
        on which `params` are the same; None and `()` name none.
      has_aux: whether the objective returns `(means, aux)`.

    Returns:
      A function of `(params, batch, *args, **kwargs)` giving `((value, means), gradient)`, or
      `((value, means, aux), gradient)`, the same on all devices; the gradient has the dtypes of
      `params`. Typed PRNG keys among `args` and `kwargs` are folded with the number of the device
      and of the piece, where there are several; raw ones are refused there.

    Raises:
      ValueError: if weights depend on `params` or `model_state` (also where one `custom_vjp` or
        `while_loop` gives totals and weights together), if there are more microbatches than rows,
        or if the leaves of `batch` differ in rows.
      TypeError: if the objective returns another thing than a tree of `Mean`; for a key that is not
        typed; or, where there are several pieces or devices, for what may be a raw key among `args`
        and `kwargs`, `uint32` of shape `[..., 2]` or `[..., 4]`.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2), "penalty": lo.constant(w**2)}
      >>> fn = lo.value_and_grad(objective, microbatches=2)
      >>> (value, _), gradient = fn(jnp.array(1.0), jnp.array([0.0, 2.0, 4.0]))
      >>> print(f"{value:.4f} {gradient:.4f}")
      4.6667 0.0000
    """
    return _walked(objective, microbatches, axis_name, has_aux).value_and_grad


@dataclasses.dataclass(frozen=True)
class Walked:
    """An objective, and the pieces and devices over which it is walked."""

    objective: Callable[..., PyTree]
    has_aux: bool
    cut: Callable[[Batch], Pieces]
    place: Place = HERE

    def measure(self, params: PyTree, batch: Batch, *args: PyTree, **kwargs: PyTree) -> tuple:
        """Value and means, and perhaps aux."""
        call, params, state, pieces = self.begin(params, batch, args, kwargs)
        return self.end(*walk(partial(call, params), state, pieces))

    def value_and_grad(
        self, params: PyTree, batch: Batch, *args: PyTree, **kwargs: PyTree
    ) -> tuple[tuple, PyTree]:
        """The same, and the gradient, of each device its own part."""
        call, local, state, pieces = self.begin(params, batch, args, kwargs)

        def weigh(state, number, piece):
            means = lambda params, state, piece: call(params, state, number, piece)[1][0]
            return state, fixed_weights(means, local, state, piece)

        _, weights = walk(weigh, state, pieces)
        weights = jax.lax.psum(weights.added(), self.place.axes)

        def share(params, state, number, piece):
            state, (means, metrics) = call(params, state, number, piece)
            shares = jax.tree.map(lambda m, w: Mean(m.total, w), means, weights, is_leaf=is_mean)
            return value(shares), (state, (means, metrics))

        def step(carry, number, piece):
            state, grads = carry
            add = jax.grad(share, has_aux=True)
            summand, (state, measured) = add(local, state, number, piece)
            return (state, jax.tree.map(_add, grads, self.place.apart(summand))), measured

        start = (state, self.place.apart(jax.tree.map(zeros, local)))
        (state, grads), measured = walk(step, start, pieces)
        grads = self.place.summed(grads)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, params)
        return self.end(state, measured), grads

    def begin(
        self, params: PyTree, batch: Batch, args: tuple, kwargs: dict[str, PyTree]
    ) -> tuple[Callable[..., tuple], PyTree, PyTree, Pieces]:
        """What a walk calls for each piece, and what this device holds: params, state, pieces."""
        _checks.typed_key(kwargs.get("key"))
        local = self.place.moved(params, "rest", "whole")
        state = _jax.varying(kwargs.get("model_state"), self.place.axes)
        kwargs = kwargs | {"model_state": None} if "model_state" in kwargs else kwargs
        inputs = _keys.of_device({"args": args, "kwargs": kwargs}, self.place.axes)
        return partial(self._call, inputs), local, state, self.cut(batch)

    def _call(self, inputs, params, state, number, piece):
        """The objective on one piece: the next model state, and means and metrics."""
        inputs = _keys.folded(inputs, number)
        args, kwargs = inputs["args"], inputs["kwargs"]
        stateful = "model_state" in kwargs
        kwargs = kwargs | {"model_state": anew(state)} if stateful else kwargs
        batch = piece.rows if isinstance(piece, Alike) else piece
        with _place.entered(self.place, params):
            out = self.objective(params, batch, *args, **kwargs)
        means, aux = split_aux(out, self.has_aux)
        if "model_state" in aux and not stateful:
            raise ValueError(
                "The objective returns a model_state that it was not given: pass the first one "
                "by its keyword, model_state=..."
            )
        state = _jax.varying(aux.get("model_state", state), self.place.axes)
        measured = means, aux.get("metrics")
        return state, once(self.place.axes, measured) if isinstance(piece, Alike) else measured

    def end(self, state: PyTree, measured: Pieces) -> tuple:
        """What all pieces on all devices measured: value, means and perhaps aux."""
        axes = self.place.axes
        means, metrics = jax.lax.psum(measured.added(), axes)
        state = jax.tree.map(partial(_average, axes), state) if axes else state
        aux = {"metrics": metrics, "model_state": state}
        aux = {name: part for name, part in aux.items() if part is not None}
        return (value(means), means, aux) if self.has_aux else (value(means), means)


def _measured(_, walked, structure, fixed, params, batch, data):
    """What is no array, such as a flag, is the same in all runs of a program."""
    leaves = [x if y is None else y for x, y in zip(fixed, data)]
    args, kwargs = structure.unflatten(leaves)
    return walked.measure(params, batch, *args, **kwargs)


def _is_data(x):
    return isinstance(x, (jax.Array, np.ndarray, np.generic, float, complex))


def _walked(objective, microbatches, axis_name, has_aux):
    return in_pieces(objective, microbatches, Here(_checks.axes(axis_name)), has_aux)


def in_pieces(objective: Callable, microbatches: int, place: Place, has_aux: bool) -> Walked:
    """An objective in at most so many pieces of what a place has."""
    count = _checks.count("microbatches", microbatches, 1)
    return Walked(objective, has_aux, partial(place.cut, count=count), place)


def fixed_weights(
    means: Callable[[PyTree, PyTree, Batch], Means], params: PyTree, state: PyTree, batch: Batch
) -> PyTree:
    """Weights of `means(params, state, batch)`; raises where they depend on params or state."""

    def weigh(params, state, batch):
        found = means(params, state, batch)
        return jax.tree.map(lambda mean: mean.weight, found, is_leaf=is_mean)

    weights, (params_used, state_used, _) = _jaxprs.prune(weigh, params, state, batch)
    used = {"params": params_used, "model_state": state_used}
    for path, needed in jax.tree_util.tree_leaves_with_path(used):
        if needed:
            raise ValueError(
                f"The weight of a term depends on {path[0].key}{jax.tree_util.keystr(path[1:])}, "
                "but an average over pieces needs weights that the batch alone determines. "
                "Move the factor into the values: mean(factor * values, weights)."
            )
    return weights()


def _add(total, x):
    return total + x.astype(total.dtype)


def _average(axes, x):
    """The average of a leaf of the state over devices; of what is not floating, the largest."""
    if _keys.is_key(x):
        data = _average(axes, jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    floating = jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    return jax.lax.pmean(x, axes) if floating else jax.lax.pmax(x, axes)
