"""Losses of a linear layer over many classes, without its logits. Natural logarithms."""

from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from lossopt import _checks
from lossopt._typing import Array, ArrayLike, Float, Int, Num, Number
from lossopt.fused._heads import Distillation, Sigmoid, Softmax
from lossopt.fused._layer import Layer, class_numbers, inputs, used
from lossopt.fused._plan import Memory, Plan
from lossopt.fused._tiles import Form, MeanOrValues

Features = Float[ArrayLike, "*tokens depth"]
Kernel = Float[ArrayLike, "depth classes"]  # [classes, depth] if transposed
Weights = Num[ArrayLike, "*tokens"] | None
Shaped: TypeAlias = Any  # an array or a `jax.ShapeDtypeStruct`


def linear_softmax_cross_entropy(
    features: Features,
    kernel: Kernel,
    labels: Int[ArrayLike, "*tokens"] | tuple[Features, Kernel],
    weights: Weights = None,
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    soft_cap: Number | None = None,
    ignore_index: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Softmax cross entropy of a linear layer, whose logits never exist all at once.

    $$\ell = (1 - a) \log \frac{Z}{e^{z_y}} + \frac{a}{V} \sum_j \log \frac{Z}{e^{z_j}}
        + \zeta \log^2 Z, \qquad z = s \tanh \frac{x W + b}{s}, \quad Z = \sum_j e^{z_j}$$

    The gradient is exact and made on the way, one tile of logits after another.

    Args:
      features: $x$, shape `[*tokens, depth]`.
      kernel: $W$, shape `[depth, classes]`.
      labels: class numbers $y$, shape `[*tokens]`; one out of range makes the loss NaN. Or the
        features and the kernel of a teacher, `[*tokens, other depth]` and `[other depth,
        classes]`, constants: the loss is then the divergence $\text{KL}(q \Vert p)$ from its
        softmax $q$ to that of $z$. Divide both features by a temperature for soft targets.
      weights: shape `[*tokens]` or leading axes of it, at least 0; tokens of weight 0 are not
        read, even if NaN.
      bias: $b$, shape `[classes]`.
      label_smoothing: $a$, from 0 to 1.
      z_loss: $\zeta$, at least 0.
      soft_cap: $s > 0$, the largest size of a logit; None leaves them as they are.
      ignore_index: a label whose tokens have weight 0.
      transposed: whether kernels have shape `[classes, depth]`, as a tied embedding.
      memory: a budget for the tile of logits and temporaries of its shape, see
        `lossopt.fused.plan`.
      per_example: whether to return the loss of each token; gradients then recompute the tiles,
        at 4/3 of the arithmetic.
      token_shards: over how many devices the first axis of the tokens is spread. None reads it
        from an Explicit sharding, or takes the size of the only axis of the mesh.
      differentiable: `"jvp"` also allows `jax.jvp` and forward over reverse over forward, at 4/3
        of the arithmetic; `"vjp"` has reverse mode, and every mode over it.

    Returns:
      The `Mean` over tokens, or shape `[*tokens]`, 0 where the weight is 0.

    Raises:
      ValueError: if shapes do not fit, labels are not integers, weights or `z_loss` are negative,
        `label_smoothing` is outside of [0, 1], `soft_cap` is not positive, or the budget is below
        one tile.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
      >>> loss = lo.fused.linear_softmax_cross_entropy(features, kernel, jnp.array([0, 2]))
      >>> print(f"{loss.value:.4f} {loss.weight:.0f}")
      1.3296 2

    References:
      Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2025.
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
      Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    _checks.at_least(0, label_smoothing=label_smoothing, z_loss=z_loss)
    _checks.at_most(1, label_smoothing=label_smoothing)
    layer = Layer(transposed, memory, per_example, token_shards, differentiable)
    tokens, classes = layer.check(features, kernel, bias, weights)
    rows, columns, numbers = inputs(features, kernel, bias, weights, soft_cap)
    numbers |= used(label_smoothing=label_smoothing, z_loss=z_loss)
    if isinstance(labels, tuple | list):
        if "label_smoothing" in numbers or ignore_index is not None:
            raise ValueError(
                "Expected class numbers with label_smoothing or ignore_index, got a teacher. "
                "Smooth it by a temperature; give tokens to ignore the weight 0."
            )
        if len(labels) != 2:
            raise ValueError(f"Expected a teacher as (features, kernel), got {len(labels)} things.")
        rows["teacher"], columns["teacher"] = map(jnp.asarray, labels)
        layer.check_teacher(tokens, classes, *labels)
        head = Distillation(layer.matrix)
    else:
        rows["labels"] = class_numbers(labels, tokens)
        head = Softmax()
    return layer.loss("linear_softmax_cross_entropy", head, rows, columns, numbers, ignore_index)


def linear_sigmoid_cross_entropy(
    features: Features,
    kernel: Kernel,
    labels: Num[ArrayLike, "*tokens classes"],
    weights: Weights = None,
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    soft_cap: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> MeanOrValues:
    r"""Sigmoid cross entropy of a linear layer with many labels, whose logits never exist at once.

    $$\ell = \frac{1}{V} \sum_j -y_j \log p_j - (1 - y_j) \log(1 - p_j), \qquad
        p = \frac{1}{1 + e^{-z}}$$

    with $z$ as in `linear_softmax_cross_entropy`.

    Args:
      features: shape `[*tokens, depth]`.
      kernel: shape `[depth, classes]`.
      labels: $y$, constants, 0 or 1 or a probability between, shape `[*tokens, classes]`; booleans
        and small integers take the least memory. Outside of $[0, 1]$ the loss is NaN.
      weights: as in `linear_softmax_cross_entropy`.
      bias: shape `[classes]`.
      soft_cap: the largest size of a logit, above 0.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: as in `linear_softmax_cross_entropy`.
      per_example: as in `linear_softmax_cross_entropy`.
      token_shards: as in `linear_softmax_cross_entropy`.
      differentiable: as in `linear_softmax_cross_entropy`.

    Returns:
      The `Mean` over tokens of the average over classes, or shape `[*tokens]`, 0 where the weight
      is 0.

    Raises:
      ValueError: if shapes do not fit, weights are negative, `soft_cap` is not positive, or the
        budget is below one tile.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.array([[2.0, -1.0], [0.0, 3.0]])
      >>> loss = lo.fused.linear_sigmoid_cross_entropy(features, kernel, jnp.eye(2))
      >>> print(f"{loss.value:.4f}")
      0.2955

    References:
      Cox, "The Regression Analysis of Binary Sequences", 1958.
    """
    layer = Layer(transposed, memory, per_example, token_shards, differentiable)
    tokens, classes = layer.check(features, kernel, bias, weights)
    _checks.exact_shape((*tokens, classes), labels=labels)
    rows, columns, numbers = inputs(features, kernel, bias, weights, soft_cap)
    rows["labels"] = jnp.asarray(labels)
    return layer.loss("linear_sigmoid_cross_entropy", Sigmoid(), rows, columns, numbers)


def sequence_log_probs(
    features: Features,
    kernel: Kernel,
    tokens: Int[ArrayLike, "*tokens"],
    weights: Weights = None,
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    soft_cap: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> Float[Array, "*tokens"]:
    r"""Log-probability of each token under a linear layer, without its logits.

    $$\log \pi(y \mid x) = z_y - \log \sum_j e^{z_j}$$

    with $z$ as in `linear_softmax_cross_entropy`; for `lossopt.losses.direct_preference`,
    `clipped_surrogate` and `group_relative` on long contexts.

    Args:
      features: shape `[*tokens, depth]`.
      kernel: shape `[depth, classes]`.
      tokens: $y$, class numbers, shape `[*tokens]`; one out of range is NaN.
      weights: shape `[*tokens]` or leading axes of it; only whether they are 0 counts, and those
        tokens are not read.
      bias: shape `[classes]`.
      soft_cap: the largest size of a logit, above 0.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: as in `linear_softmax_cross_entropy`.
      token_shards: as in `linear_softmax_cross_entropy`.
      differentiable: as in `linear_softmax_cross_entropy`.

    Returns:
      Shape `[*tokens]`, at most 0; 0 where the weight is 0. The sum over a sequence is its
      log-probability.

    Raises:
      ValueError: as `linear_softmax_cross_entropy`.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
      >>> print(np.array(lo.fused.sequence_log_probs(features, kernel, jnp.array([0, 2]))).round(3))
      [-0.357 -2.303]

    References:
      Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
      Model", 2023.
    """
    layer = Layer(transposed, memory, True, token_shards, differentiable)
    shape, _ = layer.check(features, kernel, bias, weights)
    rows, columns, numbers = inputs(features, kernel, bias, weights, soft_cap)
    rows["labels"] = class_numbers(tokens, shape, name="tokens")
    return 0 - layer.loss("sequence_log_probs", Softmax(), rows, columns, numbers)


def plan(
    features: Shaped,
    kernel: Shaped,
    *,
    loss: Literal["softmax", "teacher", "sigmoid"] = "softmax",
    soft_cap: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> Plan:
    """Says how a loss of a linear layer would be computed, before anything is.

    Args:
      features: shape `[*tokens, depth]`; a `jax.ShapeDtypeStruct` will do.
      kernel: shape `[depth, classes]`, likewise.
      loss: `"softmax"` for class numbers, `"teacher"`, or `"sigmoid"` for many labels. The latter
        two hold more temporaries at a time.
      soft_cap: as given to the loss; it, too, needs more temporaries.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: `"auto"`; a budget for the tile and temporaries of its shape in bytes, as a number
        or as in `"256MiB"`; or `Chunks`. `"auto"` is 128 MiB on CPU; elsewhere tiles start from
        4096 rows and 4 GiB.
      per_example: as given to the loss.
      token_shards: as given to the loss.
      differentiable: as given to the loss.

    Returns:
      The `Plan` that the loss will follow.

    Raises:
      ValueError: if the shapes do not fit, or no tile fits into the budget; the message says the
        least that does.

    Examples:
      >>> features = jax.ShapeDtypeStruct((8192, 768), jnp.bfloat16)
      >>> kernel = jax.ShapeDtypeStruct((768, 128256), jnp.bfloat16)
      >>> lo.fused.plan(features, kernel, memory=lo.fused.Chunks(columns=4008)).tiles
      32
    """
    layer = Layer(transposed, memory, per_example, token_shards, differentiable)
    heads = {"softmax": Softmax(), "teacher": Distillation(layer.matrix), "sigmoid": Sigmoid()}
    if loss not in heads:
        raise ValueError(f"Expected loss to be one of {', '.join(heads)}; got {loss!r}.")
    tokens, classes = layer.check(features, kernel, None, None)
    return layer.plan(heads[loss], features, kernel, tokens, classes, soft_cap is not None)
