"""Labels made safe to compute with, and the rows in which they are valid.

An invalid label is replaced by a harmless one, so that no NaN enters a gradient there; its row of
the loss becomes NaN in the end, by `jnp.where(valid, loss, jnp.nan)`.
"""

import jax.numpy as jnp

from lossopt import _checks
from lossopt._numerics import common
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Number


def numbers(
    name: str,
    labels: Int[ArrayLike, "*batch"],
    *,
    shape: tuple[int, ...],
    classes: int,
    ignore_index: Number | None = None,
) -> tuple[Int[Array, "*batch"], Bool[Array, "*batch"]]:
    """Class numbers of this shape, valid from 0 to `classes - 1` unless ignored."""
    (labels,) = _checks.integers(labels=labels)
    _checks.exact_shape(shape, labels=labels)
    labels = labels.astype(common(labels.dtype, jnp.int32))  # int8 may not hold classes
    ignored = jnp.zeros(shape, bool) if ignore_index is None else _ignored(labels, ignore_index)
    known = (labels >= 0) & (labels < classes)
    advice = " Name those of padding by ignore_index."
    _state(f"{name}: expected labels from 0 to {classes - 1}", labels, known | ignored, advice)
    return jnp.where(known & ~ignored, labels, 0), known & ~ignored


def probabilities(
    name: str, labels: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Binary labels, valid from 0 to 1."""
    valid = (labels >= 0) & (labels <= 1)
    _state(f"{name}: expected labels from 0 to 1", labels, valid)
    return jnp.where(valid, labels, 0), valid


def binary(
    name: str, labels: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Binary labels, valid if they are 0 or 1."""
    valid = (labels == 0) | (labels == 1)
    _state(f"{name}: expected labels 0 or 1", labels, valid)
    return jnp.where(valid, labels, 0), valid


def classes(
    name: str,
    logits: Float[Array, "*batch classes"],
    labels: Int[ArrayLike, "*batch"] | Float[ArrayLike, "*batch classes"],
    *,
    kept: Bool[Array, "*batch classes"],
    ignore_index: Number | None = None,
) -> tuple[Int[Array, "*batch"] | Float[Array, "*batch classes"], Bool[Array, "*batch"]]:
    """Class numbers or distributions, told apart by dtype, valid on the classes `kept`."""
    shape, dtype = _checks.shape("labels", labels), jnp.result_type(labels)
    floating, integer = jnp.issubdtype(dtype, jnp.floating), jnp.issubdtype(dtype, jnp.integer)
    if not (floating or integer) or shape != logits.shape[: logits.ndim - integer]:
        raise (ValueError if floating or integer else TypeError)(
            f"Expected labels as class numbers, integers of shape {logits.shape[:-1]}, or as "
            f"distributions, floats of shape {logits.shape}; got {dtype} of shape {shape}."
        )
    if integer:
        return _numbers_kept(name, labels, kept, ignore_index)
    if ignore_index is not None:
        raise ValueError("Expected integer labels with ignore_index; weigh distributions by 0.")
    return distributions(name, labels, kept)


def distributions(
    name: str, labels: Float[ArrayLike, "*batch classes"], kept: ArrayLike = True
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch"]]:
    """Distributions, valid if they are at least 0, 0 on masked classes, and add up to 1."""
    dtype = common(labels, jnp.bfloat16)
    tolerance = max(1e-3, float(jnp.finfo(dtype).eps))  # in bfloat16 .9 + .1 is .9986
    (labels,) = _checks.floats(labels=labels)
    total = jnp.sum(labels, axis=-1)
    fit = (labels == 0) | (kept & (labels > 0) & (labels < jnp.inf))
    one = jnp.abs(total - 1) <= tolerance
    _state(f"{name}: expected probabilities >= 0, and 0 on masked classes", labels, fit)
    _state(f"{name}: expected probabilities that add up to 1", total, one)
    return jnp.where(fit, labels, 0), jnp.all(fit, axis=-1) & one


def _numbers_kept(name, labels, kept, ignore_index):
    *batch, count = kept.shape
    labels, known = numbers(
        name, labels, shape=tuple(batch), classes=count, ignore_index=ignore_index
    )
    open_ = jnp.take_along_axis(kept, labels[..., None], axis=-1)[..., 0]
    _state(f"{name}: expected labels on classes that `where` keeps", labels, open_ | ~known)
    return labels, known & open_


def _ignored(labels, ignore_index):
    _checks.fits(ignore_index=ignore_index)
    return labels == jnp.asarray(ignore_index, labels.dtype)


def _state(wanted, labels, holds, advice=""):
    """A condition that shows between which bounds lies what violates it."""
    strays = jnp.where(holds, 0, labels)
    low, high = jnp.min(strays, initial=0), jnp.max(strays, initial=0)
    message = wanted + ", got some between {low} and {high}." + advice
    _checks.condition(holds, message, low=low, high=high)
