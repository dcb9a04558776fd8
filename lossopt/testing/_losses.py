"""What every loss must do: each law is a function of the loss and its inputs."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._mean import mean, pool
from lossopt._numerics import wide
from lossopt._typing import ArrayLike
from lossopt.testing._gradients import check_gradient
from lossopt.testing._laws import close, finite, require


def check_loss(fn: Callable, *inputs: ArrayLike, size: float = 1e4) -> None:
    """Asserts the laws of a per-example loss.

    One number per example, in float32 or wider; the same under `jit` and `vmap`; derivatives that
    agree with finite differences; shapes that do not fit refused, (n, 1) against (n,) above all;
    rows of weight 0 never read; parts pooled give the whole; never NaN, in value or gradient, for
    predictions of ±`size`.

    Args:
      fn: the loss. Bind everything that has no row per example: `partial(fn, margin=1.0)`.
      *inputs: arrays sharing a leading axis of at least 4 rows, predictions first, away from kinks.
      size: how large predictions may become.

    Raises:
      AssertionError: at the first law that does not hold; the message says which.

    Examples:
      >>> predictions, targets = jnp.linspace(-1, 1, 6), jnp.zeros(6)
      >>> lo.testing.check_loss(lo.losses.squared_error, predictions, targets)
      >>> careless = lambda p, t: (p - t) ** 2
      >>> lo.testing.check_loss(careless, predictions, targets)
      Traceback (most recent call last):
      AssertionError: shapes that do not fit must be refused: input 0 of shape (6, 1) was taken
    """
    shape = jnp.shape(inputs[0])
    require(shape[:1] >= (4,), f"expected at least 4 rows, got inputs of shape {shape}")
    _program.cache_clear()  # `fn` may call what has been defined anew
    for law in LAWS:
        law(fn, *inputs)
    large_predictions_are_survived(fn, *inputs, size=size)


def one_number_per_example(fn, *inputs):
    """The result indexes the leading axes of the first input."""
    out, first = jnp.asarray(fn(*inputs)), jnp.shape(inputs[0])
    law = "a loss gives one number per example, in float32 or wider"
    got = f"{law}; got shape {out.shape} for inputs of {first}"
    require(out.ndim, f"{got}: leave sums and averages to lossopt.mean")
    require(first[: out.ndim] == out.shape, got)
    require(wide(out.dtype) == out.dtype, f"{law}; got {out.dtype}")
    finite(law, out)


def jit_and_vmap_agree(fn, *inputs):
    """`jit`, `vmap` and eager calls give one result."""
    eager = fn(*inputs)

    @jax.jit
    def traced(*inputs):
        results = {}
        for name, call in (("jit", fn), ("vmap", jax.vmap(fn))):
            try:
                results[name] = call(*inputs)
            except TypeError as error:
                raise AssertionError(f"{name} must take the loss; {error}") from error
        return results

    for name, got in traced(*map(jnp.asarray, inputs)).items():
        close(f"{name} must agree with the eager call", got, eager)


def gradient_is_right(fn, *inputs):
    """Derivatives of the predictions agree with finite differences."""
    first, *rest = inputs
    check_gradient(lambda x: fn(x, *rest), first)


def mismatched_shapes_are_refused(fn, *inputs):
    """An additional axis in any one input raises."""
    for i, x in enumerate(inputs) if len(inputs) > 1 else ():
        wrong = [*inputs[:i], np.asarray(x)[..., None], *inputs[i + 1 :]]
        try:
            with jax.numpy_rank_promotion("allow"):
                fn(*wrong)
        except (ValueError, TypeError, AssertionError):
            continue
        raise AssertionError(
            f"shapes that do not fit must be refused: input {i} of shape "
            f"{jnp.shape(wrong[i])} was taken"
        )


def low_precision_is_widened(fn, *inputs):
    """bfloat16 in, float32 out."""
    narrow = [x.astype(jnp.bfloat16) if _floating(x) else x for x in map(np.asarray, inputs)]
    got = jax.eval_shape(fn, *narrow).dtype
    require(got == jnp.float32, f"bfloat16 inputs must give a float32 loss; got {got}")


def padding_is_never_read(fn, *inputs):
    """Rows of weight 0 may hold NaN, or labels out of range: the mean of the others stands."""
    inputs = [np.asarray(x) for x in inputs]
    mask = np.arange(len(inputs[0])) % 3 != 2

    def pad(x):
        read = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
        bad = jnp.nan if _floating(x) else -1 if x.dtype != bool else False
        return np.where(read, x, np.array(bad).astype(x.dtype))

    want, true_slope = _measured(fn, mask, *inputs)
    got, slope = _measured(fn, mask, *map(pad, inputs))
    weigh = lambda values: mean(values, mask).value
    close("padding must not be read", weigh(got), weigh(want))
    close("padding must not reach other rows' gradients", slope[mask], true_slope[mask])


def pooled_parts_are_the_whole(fn, *inputs):
    """Means of parts, pooled, are the mean of the whole."""
    inputs = [np.asarray(x) for x in inputs]
    half = len(inputs[0]) // 2
    weights = np.linspace(0, 1, 2 * half, dtype=np.float32)
    values, _ = _measured(fn, np.ones(len(inputs[0]), bool), *inputs)
    loss = jax.jit(lambda *inputs: fn(*inputs))
    parts = [slice(half), slice(half, 2 * half)]
    pooled = pool(*(mean(loss(*(x[part] for x in inputs)), weights[part]) for part in parts))
    whole = mean(values[: 2 * half], weights)
    close("parts pooled must be the whole", pooled.value, whole.value)


def large_predictions_are_survived(fn, *inputs, size: float):
    """Predictions of ±`size` never give NaN, in value or gradient."""
    first, *rest = map(np.asarray, inputs)
    signs = np.where(first > np.mean(first), 1, -1).astype(first.dtype)
    for shape in (signs, -signs, np.ones_like(signs), -np.ones_like(signs)):
        values, slope = _measured(fn, np.ones(len(first), bool), size * shape, *rest)
        bad = np.isnan(values) | (values == -np.inf)
        require(not bad.any(), f"predictions of ±{size:g} must not give NaN; got {values}")
        bad = np.isnan(slope)
        require(not bad.any(), f"gradients at ±{size:g} must not be NaN; got {slope}")


LAWS = (
    one_number_per_example,
    mismatched_shapes_are_refused,
    jit_and_vmap_agree,
    gradient_is_right,
    low_precision_is_widened,
    padding_is_never_read,
    pooled_parts_are_the_whole,
)


def _measured(fn, mask, *inputs):
    """Losses, and the slopes of the sum of those that the mask takes, as arrays of numpy."""
    return jax.tree.map(np.asarray, _program(fn)(np.float32(mask), *inputs))


@cache
def _program(fn):
    """One for all laws that read losses and slopes."""

    @jax.jit
    def values_and_slope(mask, first, *rest):
        values, pull = jax.vjp(lambda x: fn(x, *rest), first)
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        return values, *pull(jnp.broadcast_to(mask, values.shape).astype(values.dtype))

    return values_and_slope


def _floating(x):
    return jnp.issubdtype(x.dtype, jnp.floating)
