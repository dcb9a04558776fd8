"""What every regularizer must do: each law is a function of it, the parameters and a step."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._numerics import wide
from lossopt._typing import PyTree
from lossopt.testing._laws import close, finite, require
from lossopt.testing._nan import nan_stays_nan


def check_regularizer(regularizer: PyTree, params: PyTree, *, step_size: float = 0.5) -> None:
    r"""Asserts the laws of a regularizer.

    It is a pytree of its numbers; its value is one number, in float32 or wider; its prox looks like
    the parameters, minimizes $\tfrac12 \|z - \theta\|^2 / t + R(z)$, and is firmly
    nonexpansive; $(\theta - \text{prox}) / t$ is a subgradient of R at the prox, which is
    Moreau's identity, and the gradient of the envelope; a step of 0 moves nothing but what violates
    a constraint; `jit`, `vmap` and eager calls agree. A step for each coordinate is held to the
    same laws, unless it is refused by a `ValueError`. NaN in a coordinate, its step or a number
    makes NaN of all that depends on it. Minima are measured in float64.

    Args:
      regularizer: what has a value and a prox, as `lossopt.regularizers.Regularizer`. The value of
        a constraint is 0; then other points of its set are what its prox is compared with.
      params: a tree of floating arrays on which the prox does something, away from its kinks.
      step_size: $t$, above 0.

    Raises:
      AssertionError: at the first law that does not hold; the message says which.

    Examples:
      >>> lo.testing.check_regularizer(lo.regularizers.L1(0.3), jnp.array([1.0, -0.1]))
    """
    _checks.above(0, step_size=step_size)
    for law in LAWS:
        law(regularizer, params, step_size)


def it_is_a_pytree_of_its_numbers(regularizer, params, step_size):
    """Its numbers may be swept by `vmap`."""
    law = "a regularizer is a pytree of its numbers"
    numbers = jax.tree.leaves(regularizer)
    kinds = [jnp.result_type(x) for x in numbers if jnp.isscalar(x) or hasattr(x, "dtype")]
    registered = len(kinds) == len(numbers)
    require(registered, f"{law}: register it with jax.tree_util.register_dataclass")
    if not numbers:
        return
    half = jax.tree.map(lambda x: jnp.asarray(x) / 2, regularizer)
    pair = jax.tree.map(lambda x, y: jnp.stack([jnp.asarray(x, y.dtype), y]), regularizer, half)
    both = lambda r: (r(params), r.prox(params, step_size))
    try:
        swept = jax.jit(jax.vmap(both))(pair)
    except TypeError as error:
        raise AssertionError(f"{law}; vmap must take it; {error}") from error
    for i, one in enumerate((regularizer, half)):
        close(f"{law}: swept ones agree", jax.tree.map(lambda x, i=i: x[i], swept), both(one))


def its_value_is_one_number(regularizer, params, step_size):
    """Finite, of shape `()`, in float32 or wider, whatever the parameters' dtype."""
    law = "the value is one finite number, in float32 or wider"
    for tree in (params, _cast(params, jnp.bfloat16)):
        got = jnp.asarray(regularizer(tree))
        require(got.shape == (), f"{law}; got shape {got.shape}")
        require(wide(got.dtype) == got.dtype, f"{law}; got {got.dtype}")
        require(jnp.isfinite(got), f"{law}; got {got}")


def its_prox_looks_like_the_parameters(regularizer, params, step_size):
    """Structure, shapes and dtypes stay."""
    for tree in (params, _cast(params, jnp.bfloat16)):
        want = jax.eval_shape(lambda x: x, tree)
        got = jax.eval_shape(lambda x: regularizer.prox(x, step_size), tree)
        same = jax.tree.structure(got) == jax.tree.structure(want)
        same = same and all(
            (x.shape, x.dtype) == (y.shape, y.dtype)
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want))
        )
        require(same, f"the prox must look like the parameters; got {got} for {want}")


def its_prox_minimizes(regularizer, params, step_size):
    """No other point pays less, be it near or far."""
    seen = _seen(regularizer, params, step_size)
    gain = np.max(seen["paid"] - seen["rivals"])
    allowed = 1e-9 * (1 + abs(seen["paid"]))
    require(gain <= allowed, f"the prox must minimize; another point pays {gain:.3g} less")


def its_prox_is_firmly_nonexpansive(regularizer, params, step_size):
    """Two results are as near as their origins, and more."""
    seen = _seen(regularizer, params, step_size)
    excess = np.max(seen["spread"] - seen["aligned"])
    law = f"the prox must be firmly nonexpansive; two points exceed by {excess:.3g}"
    require(excess <= 1e-9 * (1 + np.max(seen["spread"])), law)


def the_rest_is_a_subgradient(regularizer, params, step_size):
    """Moreau: what the prox took off, per step, supports the penalty at the prox."""
    seen = _seen(regularizer, params, step_size)
    excess = np.max(seen["line"] - seen["values"])
    law = "Moreau: (params - prox) / step_size must be a subgradient at the prox"
    allowed = 1e-9 * (1 + np.max(np.abs(seen["line"])))
    require(excess <= allowed, f"{law}; wrong by {excess:.3g}")


def the_envelope_has_the_gradient(regularizer, params, step_size):
    """The derivative of the least cost is (params - prox) / step_size."""
    seen = _seen(regularizer, params, step_size)
    law = "the gradient of the envelope must be (params - prox) / step_size"
    close(law, seen["envelope_slopes"], seen["slopes"], rtol=1e-4, atol=1e-6)


def a_step_of_zero_moves_nothing(regularizer, params, step_size):
    """It is the limit of small steps, and the identity where a step led."""
    with jax.enable_x64(True):
        params = _cast(params, jnp.float64)
        prox = jax.jit(regularizer.prox)
        reached = prox(params, step_size)
        law = "a step of 0 must leave the result of a prox"
        close(law, prox(reached, 0.0), reached, rtol=1e-9, atol=1e-9)
        law = "a step of 0 must be the limit of small steps"
        close(law, prox(params, 0.0), prox(params, 1e-9 * step_size), rtol=1e-6, atol=1e-6)


def jit_and_vmap_agree(regularizer, params, step_size):
    """`jit`, `vmap` and eager calls give one result."""
    both = lambda x: (regularizer(x), regularizer.prox(x, step_size))
    eager = both(params)
    other = jax.tree.map(lambda x: -0.7 * x + 0.1, params)
    pair = jax.tree.map(lambda *x: jnp.stack(x), params, other)
    for name, got in (
        ("jit", lambda: jax.jit(both)(params)),
        ("vmap", lambda: jax.tree.map(lambda x: x[0], jax.vmap(both)(pair))),
    ):
        try:
            result = got()
        except TypeError as error:
            raise AssertionError(f"{name} must take the regularizer; {error}") from error
        close(f"{name} must agree with the eager call", result, eager)


def a_step_for_each_coordinate_is_taken_or_refused(regularizer, params, step_size):
    """A diagonal metric: the same laws; equal steps are one step; zeros do no harm."""
    rng = np.random.default_rng(2)
    drawn = lambda x: (step_size * np.exp(rng.uniform(-1, 1, jnp.shape(x)))).astype(np.float32)
    steps = jax.tree.map(drawn, params)
    try:
        jax.eval_shape(lambda x: regularizer.prox(x, steps), params)
    except ValueError:
        return
    for law in LAWS_OF_STEPS:
        law(regularizer, params, steps)
    prox = jax.jit(lambda steps: regularizer.prox(params, steps))
    for single in (step_size, 0.0):
        equal = jax.tree.map(lambda t, s=single: np.full_like(t, s), steps)
        close("equal steps must be one step", prox(equal), regularizer.prox(params, single))
    zeros = jax.tree.map(lambda t: t * (np.arange(t.size).reshape(t.shape) % 3 > 0), steps)
    finite("steps of 0 for some coordinates must not give NaN", prox(zeros))


LAWS_OF_STEPS = (
    its_prox_minimizes,
    its_prox_is_firmly_nonexpansive,
    the_rest_is_a_subgradient,
    the_envelope_has_the_gradient,
)
LAWS = (
    it_is_a_pytree_of_its_numbers,
    its_value_is_one_number,
    its_prox_looks_like_the_parameters,
    *LAWS_OF_STEPS,
    a_step_of_zero_moves_nothing,
    jit_and_vmap_agree,
    a_step_for_each_coordinate_is_taken_or_refused,
    nan_stays_nan,
)


def _seen(regularizer, params, step_size):
    """What the laws of steps compare, in float64, for directions of several lengths."""
    rng = np.random.default_rng(1)
    lengths = np.repeat([0.03, 0.3, 1.0, 3.0], 3)
    with jax.enable_x64(True):
        params = _cast(params, jnp.float64)
        steps = _cast(jax.tree.broadcast(step_size, params), jnp.float64)
        draw = lambda x: (
            rng.normal(size=(lengths.size, *x.shape)) * lengths.reshape(-1, *[1] * x.ndim)
        )
        directions = jax.tree.map(draw, params)
        return jax.tree.map(np.array, _measured(regularizer, params, steps, directions))


@jax.jit
def _measured(regularizer, params, steps, directions):
    add = partial(jax.tree.map, operator.add)
    less = partial(jax.tree.map, operator.sub)
    times = lambda s, tree: jax.tree.map(lambda x: s * x, tree)
    per_step = lambda tree: jax.tree.map(operator.truediv, tree, steps)
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))
    paid = lambda z, x: dot(less(z, x), per_step(less(z, x))) / 2 + regularizer(z)
    envelope = lambda x: paid(regularizer.prox(x, steps), x)

    near = regularizer.prox(params, steps)
    rest = per_step(less(params, near))

    def along(direction):
        origin = add(params, direction)
        far = regularizer.prox(origin, steps)
        aside = regularizer.prox(add(near, times(1e-2, direction)), times(1e-6, steps))
        moved = less(near, far)
        h = 1e-5
        rise = envelope(add(params, times(h, direction))) - envelope(
            add(params, times(-h, direction))
        )
        line = lambda z: regularizer(near) + dot(rest, less(z, near))
        return {
            "rivals": jnp.stack([paid(far, params), paid(aside, params)]),
            "spread": dot(moved, per_step(moved)),
            "aligned": dot(moved, per_step(less(params, origin))),
            "values": jnp.stack([regularizer(far), regularizer(aside)]),
            "line": jnp.stack([line(far), line(aside)]),
            "envelope_slopes": rise / (2 * h),
            "slopes": dot(rest, direction),
        }

    return {"paid": paid(near, params), **jax.vmap(along)(directions)}


def _cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
