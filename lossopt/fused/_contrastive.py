"""Losses of embeddings of a batch, without the matrix of all pairs. Natural logarithms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import softplus

from lossopt import _checks, _jax
from lossopt._mean import mean
from lossopt._numerics import wide
from lossopt._typing import ArrayLike, Axis, Bool, Float, Int, Num, Number
from lossopt.fused import _devices
from lossopt.fused._how import Form, How, MeanOrValues, Memory, on_mesh
from lossopt.fused._logits import InnerProduct, LogSum, joined
from lossopt.fused._rivals import Rivals, belonging, likeness
from lossopt.fused._walk import Facts, Formula, Operands, Rows, average, values

Embeddings = Float[ArrayLike, "items features"]
Weights = Num[ArrayLike, " items"] | None
Mask = Bool[ArrayLike, " items"] | None
MATRIX = InnerProduct(transposed=True)
SMALL = 2**24  # bytes: larger tiles were not faster on a CPU


def clip(
    a: Embeddings,
    b: Embeddings,
    scale: Number,
    weights: Weights = None,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    axis_name: Axis = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Picks each item's partner among all, from `a` to `b` and from `b` to `a`.

    $$\ell_i = -\frac{1}{2} \left( \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
        + \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}} \right), \qquad
        z_{ij} = c \, a_i \cdot b_j$$

    As `lossopt.losses.clip`, in blocks of rows, at 4/3 of its arithmetic.

    Args:
      a: shape `[items, features]`, used as given: normalize them first for cosine similarities.
      b: shape `[items, features]`; item i of `a` and item i of `b` are partners.
      scale: $c$, an inverse temperature, one number, usually learned as `jnp.exp(log_scale)`.
      weights: of the loss of each item, shape `[items]`, at least 0. An item of weight 0 is still
        a rival of others.
      items: shape `[items]`, False for items that do not exist: these are no rivals either, and
        are never read.
      memory: a budget for the tile and temporaries of its shape, see `lossopt.fused.plan`.
      per_example: whether to return the loss of each item.
      axis_name: axes of an enclosing `shard_map` or `pmap` over which the items are spread, as
        many on each device; rivals come from all of them. The `Mean` is that of the device's own
        items, for `lossopt.value_and_grad(objective, axis_name=...)`. None and `()` name none.
      differentiable: `"jvp"` also allows `jax.jvp` and forward over reverse over forward;
        `"vjp"` has reverse mode, and every mode over it.

    Returns:
      The `Mean` over items, each the average of both directions, with these weights:
      `lo.mean(lo.losses.clip(a, b, scale, items=items), weights)`. Or the losses, shape `[items]`,
      NaN where masked.

    Raises:
      ValueError: if shapes do not fit, weights are negative, or the budget is below one tile.
      TypeError: if `items` is not boolean.

    Examples:
      >>> loss = lo.fused.clip(jnp.eye(2), jnp.eye(2), 2.0)
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      0.1269 2

    References:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
    """
    how = How(memory, differentiable, _checks.axes(axis_name))

    def loss(operands, facts, weights, shards):
        if not len(weights):
            return _closed(weights, facts, weights, per_example)
        walk = _walk(partial(Rivals, MATRIX), how, operands, shards, copies=3)
        in_rows, in_columns, own = values(walk, operands, facts, how.form)
        in_columns = _pooled(how, in_columns, shards)
        losses = (softplus(in_rows.over(own)) + softplus(in_columns.over(own))) / 2
        return _closed(losses, facts, weights, per_example)

    return _of_items("clip", how, loss, weights, items, {"scale": scale}, a=a, b=b)


def sigmoid_pairs(
    a: Embeddings,
    b: Embeddings,
    scale: Number,
    bias: Number,
    weights: Weights = None,
    *,
    items: Mask = None,
    memory: Memory = "auto",
    per_example: bool = False,
    axis_name: Axis = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Tells every pair of items whether it belongs together, each on its own (SigLIP).

    $$\ell_i = \sum_j \log(1 + e^{-y_{ij} (c \, a_i \cdot b_j + h)}), \qquad
        y_{ii} = 1, \quad y_{ij} = -1 \text{ for } j \ne i$$

    As `lossopt.losses.sigmoid_pairs`; the gradient is made on the way, one block of rows after
    another.

    Args:
      a: shape `[items, features]`, used as given: normalize them first for cosine similarities.
      b: shape `[items, features]`; item i of `a` and item i of `b` belong together.
      scale: $c$, one number, usually learned as `jnp.exp(log_scale)`.
      bias: $h$, one number, usually learned from -10, because most pairs are negative.
      weights: as in `clip`.
      items: as in `clip`.
      memory: as in `clip`.
      per_example: whether to return the loss of each item; gradients then recompute the tiles, at
        4/3 of the arithmetic.
      axis_name: as in `clip`.
      differentiable: as in `clip`; `"jvp"` takes 4/3 of the arithmetic.

    Returns:
      The `Mean` over items of `a`, each a sum over the items of `b`, with these weights, which
      the items of `b` have none of. Or the losses, shape `[items]`, NaN where masked.

    Raises:
      ValueError, TypeError: as `clip`.

    Examples:
      >>> loss = lo.fused.sigmoid_pairs(jnp.eye(2), jnp.eye(2), 2.0, -1.0)
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      0.6265 2

    References:
      Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
    """
    how = How(memory, differentiable, _checks.axes(axis_name))
    numbers = {"scale": scale, "bias": bias}
    loss = partial(_in_rows, belonging, 3, how, per_example)
    return _of_items("sigmoid_pairs", how, loss, weights, items, numbers, a=a, b=b)


def supervised_contrastive(
    embeddings: Embeddings,
    labels: Int[ArrayLike, " items"],
    weights: Weights = None,
    *,
    items: Mask = None,
    temperature: Number,
    memory: Memory = "auto",
    per_example: bool = False,
    axis_name: Axis = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Picks the items of the same label among all other items, on average.

    $$\ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i}
        \log \frac{e^{z_i \cdot z_p / T}}{\sum_{j \ne i} e^{z_i \cdot z_j / T}}, \qquad
        P_i = \{p \ne i: y_p = y_i\}$$

    As `lossopt.losses.supervised_contrastive`; the gradient is made on the way, one block of rows
    after another.

    Args:
      embeddings: $z$, shape `[items, features]`, used as given: normalize them first for cosine
        similarities.
      labels: $y$, any integers, of which only equality counts, shape `[items]`.
      weights: as in `clip`.
      items: as in `clip`.
      temperature: $T > 0$, the units of the inner products.
      memory: as in `clip`.
      per_example: as in `sigmoid_pairs`.
      axis_name: as in `clip`.
      differentiable: as in `sigmoid_pairs`.

    Returns:
      The `Mean` over items, with these weights, also of those where $P_i$ is empty, whose loss is
      0. Or the losses, shape `[items]`, NaN where masked.

    Raises:
      ValueError, TypeError: as `clip`; ValueError if the temperature is not positive, TypeError
        if labels are not integers.

    Examples:
      >>> embeddings, labels = jnp.array([[1.0], [1.0], [-1.0]]), jnp.array([0, 0, 1])
      >>> loss = lo.fused.supervised_contrastive(embeddings, labels, temperature=0.5)
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      0.0121 3

    References:
      Khosla et al., "Supervised Contrastive Learning", 2020.
    """
    _checks.above(0, temperature=temperature)
    how = How(memory, differentiable, _checks.axes(axis_name))
    numbers = {"temperature": temperature}
    loss = partial(_in_rows, likeness, 4, how, per_example)
    name = "supervised_contrastive"
    return _of_items(name, how, loss, weights, items, numbers, labels, embeddings=embeddings)


def _of_items(name, how, loss, weights, items, numbers, labels=None, **embeddings):
    """`loss(operands, facts, weights, shards)` of checked items, wherever they live."""
    a, *b = _fit(**embeddings)
    _checks.exact_shape((), **numbers)
    numbers = {key: jnp.asarray(x, wide(jnp.result_type(a, x))) for key, x in numbers.items()}
    rows = {"features": a}
    if items is not None:
        rows["present"] = _checks.mask("items", items, (len(a),))
    if weights is not None:
        rows["weights"] = _weighed(name, weights, rows.get("present", True), len(a))
    if labels is not None:
        _checks.exact_shape((len(a),), labels=labels)
        (rows["labels"],) = _checks.integers(labels=labels)
    shards = 1 if how.axis or not on_mesh(a) else _devices.shards(a, len(a), None)

    def compute(rows, columns, numbers):
        left, right = rows.pop("features"), columns["features"]
        weights = rows.pop("weights", jnp.ones(len(left)))
        first = lax.axis_index(how.axis) * len(left) if how.axis else 0
        rows["index"] = first + jnp.arange(len(left))
        if "present" in rows:
            weights = jnp.where(rows["present"], weights, 0)
            left, right = (jnp.where(rows["present"][:, None], x, 0) for x in (left, right))
        everywhere = partial(_everywhere, how)
        facts = Facts(rows, jax.tree.map(everywhere, rows))
        return loss(Operands(left, everywhere(right), {}, numbers), facts, weights, shards)

    arrays = rows, {"features": [a, *b][-1]}, numbers
    return _devices.automatic(compute, *arrays, shards) if on_mesh(a) else compute(*arrays)


def _in_rows(
    formula: Callable, copies, how, per_example, operands, facts, weights, shards
) -> MeanOrValues:
    """The loss whose rows do not depend on each other."""
    if not len(weights):
        return _closed(weights, facts, weights, per_example)
    walk = _walk(partial(Rows, MATRIX, Formula(formula)), how, operands, shards, copies)
    if per_example:
        return _closed(values(walk, operands, facts, how.form), facts, weights, per_example)
    return average(walk, operands, facts, weights, how.form)


def _walk(kind: Callable, how, operands, shards, copies) -> Any:
    """In the blocks of rows that the budget holds."""
    shape = len(operands.left) // shards, len(operands.right)
    dtype = wide(jnp.result_type(operands.left, operands.right))
    tiles = how.tiles(*shape, dtype, copies=copies, cpu=SMALL)
    walk = kind(tiles.rows, tiles.together)
    return walk if shards == 1 else _devices.Grouped(walk, shards, tiles.together)


def _closed(losses, facts, weights, per_example):
    """The `Mean`, or the loss of each item, NaN where masked."""
    if not per_example:
        return mean(losses, weights)
    return jnp.where(facts.rows.get("present", True), losses, jnp.nan)


def _pooled(how, log_sums, shards):
    """The log-sums of the columns that live here, over the rows of all devices."""
    count = lax.axis_size(how.axis) if how.axis else shards
    parts = [x.reshape(count, -1) for x in log_sums]
    if how.axis:
        parts = [lax.all_to_all(x, how.axis, 0, 0, tiled=True) for x in parts]
    return joined(*map(LogSum, *parts))


def _everywhere(how, x):
    if not how.axis:
        return x
    return lax.all_gather(_jax.varying(x, how.axis), how.axis, tiled=True)


def _fit(**embeddings):
    """The embeddings in one floating dtype."""
    _checks.floats(**embeddings)
    shapes = {name: jnp.shape(x) for name, x in embeddings.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(shape) != 2:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"Expected embeddings of one shape [items, features], got {got}.")
    dtype = jnp.result_type(*embeddings.values())
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else wide(dtype)
    return [jnp.asarray(x, dtype) for x in embeddings.values()]


def _weighed(name, weights, present, count):
    _checks.exact_shape((count,), weights=weights)
    _checks.fits(weights=weights)
    (weights,) = _checks.floats(weights=weights)
    weights = jnp.where(present, weights, 0)
    _checks.at_least(0, weights=weights)
    _checks.nonnegative(name, weights=weights)
    return weights
