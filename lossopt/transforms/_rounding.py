"""Rules for parameters in bfloat16: they compute in float32 and lose nothing on the way back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt._typing import Array, Key, PyTree
from lossopt.transforms._codes import nearest_bfloat16, to_bfloat16, together, widen
from lossopt.transforms._noise import key_words, noise


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
      count: steps taken, an integer of shape `()`.
      words: what the noise is seeded by, `uint32` of shape `(2,)`.
      inner: state of the rule, in float32.
    """

    count: Array
    words: Array
    inner: PyTree


class KahanState(NamedTuple):
    """State of `kahan`.

    Attributes:
      compensation: what the rounding has left over, like the `bfloat16` parameters; nothing for
        wider ones.
      inner: state of the rule, in float32.
    """

    compensation: PyTree
    inner: PyTree


def stochastic_rounding(
    rule: optax.GradientTransformation, key: Key[Array, ""]
) -> optax.GradientTransformationExtraArgs:
    r"""Rounds `bfloat16` parameters up or down by chance, so that steps are right on average.

    $$\theta \leftarrow \begin{cases}
        \lceil \theta + u \rceil & \text{with probability }
            (\theta + u - \lfloor \theta + u \rfloor) /
            (\lceil \theta + u \rceil - \lfloor \theta + u \rfloor) \\
        \lfloor \theta + u \rfloor & \text{otherwise} \end{cases}$$

    with the two neighbors of $\theta + u$ among the `bfloat16` numbers. Rounded to nearest, a step
    below 1/512 of its parameter is lost, and so are the next ones. `rule` sees parameters and
    gradients in float32 and keeps its state in float32; float32 parameters get its updates as they
    are.

    Args:
      rule: any complete rule. Nothing goes around the result: not `optax.chain`, not a factor.
      key: a typed key. Two runs of one key round alike.

    Returns:
      A transformation whose updates are float32: `optax.apply_updates` lands exactly on the rounded
      value. Where the step is 0 nothing moves, and a target of 0 is met. `update` requires
      `params`.

    Raises:
      ValueError: if `params` are missing, or in a format other than `bfloat16` or wider.
      TypeError: if `key` is a raw key.

    Examples:
      >>> optimizer = lo.transforms.stochastic_rounding(optax.sgd(1e-3), jax.random.key(0))
      >>> params = jnp.ones(1000, jnp.bfloat16)
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(np.unique(updates), f"{updates.mean():.4f}")
      [-0.00390625  0.        ] -0.0010

    References:
      Gupta, Agrawal, Gopalakrishnan and Narayanan, "Deep Learning with Limited Numerical
      Precision", 2015.
      Zamirai, Zhang, Aberger and De Sa, "Revisiting BFloat16 Training", 2020.
    """
    rule = optax.with_extra_args_support(rule)

    def init(params):
        inner = rule.init(widen(_accepted(params)))
        return StochasticRoundingState(jnp.zeros((), jnp.int32), key_words(key), inner)

    def update(updates, state, params=None, **extra):
        gradients, wide = together(updates, _accepted(params))
        change, inner = rule.update(gradients, state.inner, wide, **extra)
        structure = jax.tree.structure(params)
        change = structure.flatten_up_to(change)
        for i, (p, x) in enumerate(zip(jax.tree.leaves(params), jax.tree.leaves(wide))):
            if _narrow(p):
                bits = noise(state.words, i, state.count, x.shape)
                target = x + change[i].astype(x.dtype)
                change[i] = _between(x, to_bfloat16(target, bits))
        count = jnp.asarray(optax.safe_increment(state.count))
        return structure.unflatten(change), StochasticRoundingState(count, state.words, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def kahan(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Remembers what rounding took from `bfloat16` parameters, and gives it back.

    $$t = (\theta + c) + u, \qquad \theta \leftarrow \text{round}(t), \qquad
    c \leftarrow \text{round}(t - \text{round}(t))$$

    `rule` sees $\theta + c$ and the gradients in float32 and keeps its state in float32; float32
    parameters get its updates as they are. It costs 2 bytes a parameter more than
    `stochastic_rounding`, and adds no noise.

    Args:
      rule: any complete rule. Nothing goes around the result: not `optax.chain`, not a factor.

    Returns:
      A transformation whose updates are float32: `optax.apply_updates` lands exactly on the rounded
      value. `update` requires `params`.

    Raises:
      ValueError: if `params` are missing, or in a format other than `bfloat16` or wider.

    Examples:
      >>> optimizer = lo.transforms.kahan(optax.sgd(1e-3))
      >>> params = jnp.ones(1, jnp.bfloat16)
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates), state.compensation)
      [1] [-0.000999451]

    References:
      Kahan, "Further Remarks on Reducing Truncation Errors", 1965.
      Zamirai, Zhang, Aberger and De Sa, "Revisiting BFloat16 Training", 2020.
    """
    rule = optax.with_extra_args_support(rule)

    def init(params):
        empty = lambda p: jnp.zeros_like(p) if _narrow(p) else optax.MaskedNode()
        inner = rule.init(widen(_accepted(params)))
        return KahanState(jax.tree.map(empty, params), inner)

    def update(updates, state, params=None, **extra):
        gradients, wide = together(updates, _accepted(params))
        add = lambda x, c: x if isinstance(c, optax.MaskedNode) else x + c.astype(x.dtype)
        point = jax.tree.map(add, wide, state.compensation)
        change, inner = rule.update(gradients, state.inner, point, **extra)
        structure = jax.tree.structure(params)
        change, left = map(structure.flatten_up_to, (change, state.compensation))
        trees = map(jax.tree.leaves, (params, wide, point))
        for i, (p, x, exact) in enumerate(zip(*trees)):
            if _narrow(p):
                target = exact + change[i].astype(x.dtype)
                rounded = nearest_bfloat16(target)
                change[i], rest = _between(x, rounded), target - rounded
                left[i] = nearest_bfloat16(jnp.where(jnp.isfinite(rest), rest, 0)).astype(p.dtype)
        return structure.unflatten(change), KahanState(structure.unflatten(left), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _accepted(params):
    if params is None:
        raise ValueError(
            "Rounding needs the current point, got no params. Call update(grads, state, params)."
        )
    for dtype in map(jnp.result_type, jax.tree.leaves(params)):
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).maxexp < 128:
            raise ValueError(
                f"Expected params in bfloat16 or float32, got {dtype}, whose small numbers have "
                "fewer digits. Convert them with astype(jnp.bfloat16)."
            )
    return params


def _narrow(x):
    return jnp.result_type(x) == jnp.bfloat16


def _between(start, end):
    """The difference; 0 where there is none, even between infinities, that leaves -0.0 as it is."""
    return jnp.where(start == end, jnp.copysign(0, start), end - start)
