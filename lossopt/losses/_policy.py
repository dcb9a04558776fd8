"""Losses of a policy's log-probabilities: reinforcement learning.

Natural logarithms. What the algorithms hold constant (advantages, rewards, returns, old and
reference log-probabilities) gets no gradient.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._numerics import NO_LOGIT, share, still
from lossopt._typing import Array, ArrayLike, Bool, Float, Num, Number

Values = Float[ArrayLike, "*batch"]
ClipRange = Number | tuple[Number, Number]
SERIES = [1 / math.factorial(k) for k in range(15, 1, -1)]


def policy_gradient(log_probs: Values, advantages: Values) -> Float[Array, "*batch"]:
    r"""Makes actions more likely in proportion to their advantage (REINFORCE).

    $$\ell = -A \log \pi(a \mid s)$$

    Args:
      log_probs: log-probability of the action taken, shape `[*batch]`.
      advantages: $A$, a constant to the gradient, shape `[*batch]`.

    Returns:
      One loss per action, shape `[*batch]`.

    Examples:
      >>> lo.losses.policy_gradient(jnp.array([-0.5, -2.0]), jnp.array([1.0, -1.0]))
      Array([ 0.5, -2. ], dtype=float32)

    References:
      Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
      Learning", 1992.
    """
    log_probs, advantages = _checks.same_shape(log_probs=log_probs, advantages=advantages)
    return share(jax.lax.stop_gradient(advantages), -log_probs)


def clipped_surrogate(
    log_probs: Values, old_log_probs: Values, advantages: Values, *, clip_range: ClipRange = 0.2
) -> Float[Array, "*batch"]:
    r"""Policy gradient that stops where the policy has moved far enough (PPO).

    $$\ell = -\min(\rho A, \; \text{clip}(\rho, 1 - \epsilon_-, 1 + \epsilon_+) A), \qquad
        \rho = \frac{\pi(a \mid s)}{\pi_\text{old}(a \mid s)}$$

    Args:
      log_probs: $\log \pi$ of the action taken, shape `[*batch]`.
      old_log_probs: $\log \pi_\text{old}$, a constant to the gradient, shape `[*batch]`. In the
        first step after sampling they are `log_probs` themselves.
      advantages: $A$, a constant to the gradient, shape `[*batch]`.
      clip_range: $\epsilon$ in (0, 1], or a pair of $\epsilon_-$ in (0, 1] and
        $\epsilon_+ > 0$.

    Returns:
      One loss per action, shape `[*batch]`; 0 where the advantage is 0; `inf` where the ratio of
      an action of negative advantage overflows; NaN where both log-probabilities are `-inf`.

    Examples:
      >>> log_probs, old = jnp.log(jnp.array([0.6, 0.6])), jnp.log(jnp.array([0.4, 0.4]))
      >>> lo.losses.clipped_surrogate(log_probs, old, jnp.array([1.0, -1.0])).round(1)
      Array([-1.2,  1.5], dtype=float32)

    References:
      Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
      Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", 2025 (the pair).
    """
    log_probs, old_log_probs, advantages = _checks.same_shape(
        log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    return _surrogate(log_probs, old_log_probs, advantages, clip_range)


def value_clipped(
    values: Values, old_values: Values, returns: Values, *, clip_range: Number
) -> Float[Array, "*batch"]:
    r"""Squared error of a value function that may move only so far at a time; no half.

    $$\ell = \max((v - R)^2, \; (\text{clip}(v, v_\text{old} - \epsilon, v_\text{old} + \epsilon)
        - R)^2)$$

    Args:
      values: $v$, shape `[*batch]`.
      old_values: $v_\text{old}$, a constant to the gradient, shape `[*batch]`.
      returns: $R$, a constant to the gradient, shape `[*batch]`.
      clip_range: $\epsilon > 0$, the units of `values`.

    Returns:
      One loss per state, shape `[*batch]`.

    Examples:
      >>> values, old, returns = jnp.array([1.5, 0.5]), jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0])
      >>> lo.losses.value_clipped(values, old, returns, clip_range=0.25)
      Array([0.5625, 2.25  ], dtype=float32)

    References:
      Schulman et al., "Proximal Policy Optimization Algorithms", 2017 (in its implementation).
    """
    _checks.exact_shape((), clip_range=clip_range)
    _checks.above(0, clip_range=clip_range)
    values, old, returns = _checks.same_shape(values=values, old_values=old_values, returns=returns)
    old, returns = jax.lax.stop_gradient((old, returns))
    clipped = jnp.clip(values, old - clip_range, old + clip_range)
    return jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def entropy(logits: Float[ArrayLike, "*batch classes"]) -> Float[Array, "*batch"]:
    r"""Entropy of a categorical distribution in nats: a bonus, so weigh it negatively.

    $$H = -\sum_c p_c \log p_c, \qquad p = \text{softmax}(\text{logits})$$

    Args:
      logits: shape `[*batch, classes]`; `-inf` for a class that cannot be chosen.

    Returns:
      One entropy per example in [0, log classes], shape `[*batch]`.

    Examples:
      >>> bonus = -0.01 * lo.mean(lo.losses.entropy(jnp.zeros((3, 4))))
      >>> print(f"{bonus.value:.5f}")  # -0.01 log 4
      -0.01386

    References:
      Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016.
    """
    (logits,) = still(*_checks.floats(logits=logits))
    _checks.rank_at_least(1, logits=logits)
    finite = jnp.maximum(logits, NO_LOGIT[logits.dtype])  # no 0 * inf for impossible classes
    log_probs = jax.nn.log_softmax(finite, axis=-1)
    return jnp.sum(jnp.exp(log_probs) * -log_probs, axis=-1)


def sampled_kl(
    log_probs: Values, reference_log_probs: Values, *, estimator: Literal["k1", "k2", "k3"]
) -> Float[Array, "*batch"]:
    r"""Divergence of a policy from a reference, estimated from the actions that it took.

    $$k_1 = -d, \qquad k_2 = \frac{d^2}{2}, \qquad k_3 = e^d - 1 - d, \qquad
        d = \log \pi_\text{ref} - \log \pi$$

    For actions drawn from $\pi$ itself, on average:

    - $k_1$ is $\text{KL}(\pi ‖ \pi_\text{ref})$, but may be negative and varies most. Its gradient
      is 0 on average: it is a number to report or to subtract from rewards, not to minimize.
    - $k_2$ is biased, the more the policies differ, but its gradient is that of
      $\text{KL}(\pi ‖ \pi_\text{ref})$.
    - $k_3$ is $\text{KL}(\pi ‖ \pi_\text{ref})$ and never negative, but its gradient is that of the
      reverse, $\text{KL}(\pi_\text{ref} ‖ \pi)$.

    For actions of an older policy all are biased: multiply by the ratio of the policies.

    Args:
      log_probs: $\log \pi$ of the action taken, shape `[*batch]`.
      reference_log_probs: $\log \pi_\text{ref}$, a constant to the gradient, shape `[*batch]`.
      estimator: which of the three.

    Returns:
      One estimate per action in nats, shape `[*batch]`; NaN where both are `-inf`.

    Raises:
      ValueError: if the shapes differ, or if there is no such estimator.

    Examples:
      >>> log_probs, reference = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 1.0]))
      >>> print(lo.losses.sampled_kl(log_probs, reference, estimator="k3").round(3))
      [0.193 0.307]

    References:
      Schulman, "Approximating KL Divergence", 2020.
      Tang and Munos, "On a Few Pitfalls in KL Divergence Gradient Estimation for RL", 2025.
    """
    log_probs, reference = _checks.same_shape(
        log_probs=log_probs, reference_log_probs=reference_log_probs
    )
    lead = jax.lax.stop_gradient(reference) - log_probs
    if estimator == "k1":
        return -lead
    if estimator == "k2":
        return lead**2 / 2
    if estimator == "k3":
        return _excess(lead)
    raise ValueError(f"Expected estimator 'k1', 'k2' or 'k3', got {estimator!r}.")


def group_relative(
    log_probs: Float[ArrayLike, "*batch_items_tokens"],
    old_log_probs: Float[ArrayLike, "*batch_items_tokens"],
    rewards: Num[ArrayLike, "*batch items"],
    *,
    clip_range: ClipRange = 0.2,
    scale: Number | None = None,
    items: Bool[ArrayLike, "*batch items"] | None = None,
) -> Float[Array, "*batch_items_tokens"]:
    r"""Clipped surrogate whose advantages are rewards relative to the answers' group (GRPO).

    $$\ell = -\min(\rho A_i, \; \text{clip}(\rho, 1 - \epsilon_-, 1 + \epsilon_+) A_i), \quad
        \rho = e^{\log \pi - \log \pi_\text{old}}, \quad A_i = \frac{R_i - \bar R}{s}, \quad
        s = \sqrt{\frac{1}{n} \sum_j (R_j - \bar R)^2}$$

    $\bar R$ is the mean over the n items of the group; nothing is added to the denominator. In a
    group of equal rewards all advantages are 0: rewards are equal if they differ by no more than
    $8 \epsilon \max_j |R_j|$, where $\epsilon$ is the epsilon of float32, or of float64 if rewards
    have that, or 0 if they are integers. There is no penalty on the distance to a reference policy:
    return one as a term of its own, with `sampled_kl`.

    Args:
      log_probs: $\log \pi$ of each answer, shape `[*batch, items]`, or of each token,
        `[*batch, items, *tokens]`.
      old_log_probs: $\log \pi_\text{old}$, a constant to the gradient, shaped as `log_probs`.
      rewards: $R$, one per answer, a constant to the gradient, shape `[*batch, items]`; items is
        the group of answers to one question.
      clip_range: $\epsilon$ in (0, 1], or a pair of $\epsilon_-$ in (0, 1] and
        $\epsilon_+ > 0$.
      scale: $s > 0$ instead of the group's standard deviation, one number, the units of rewards.
        1 leaves the division out.
      items: shape `[*batch, items]`, False for answers that do not exist, which are never read.

    Returns:
      One loss per answer or token, shaped as `log_probs`; NaN where masked. Average over answers
      with `lo.mean(loss, items)`, over tokens with a mask that is False for masked answers, too.
      Microbatches never cut a group.

    Examples:
      >>> log_probs, rewards = jnp.zeros(4), jnp.array([1.0, 0.0, 0.0, 1.0])
      >>> lo.losses.group_relative(log_probs, log_probs, rewards)
      Array([-1.,  1.,  1., -1.], dtype=float32)

    References:
      Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
      Models", 2024.
      Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", 2025 (scale 1).
    """
    log_probs, old_log_probs = _checks.same_shape(log_probs=log_probs, old_log_probs=old_log_probs)
    _checks.rank_at_least(1, rewards=rewards)
    if log_probs.shape[: jnp.ndim(rewards)] != jnp.shape(rewards):
        raise ValueError(
            f"Expected rewards of shape [*batch, items], the leading axes of log_probs "
            f"{log_probs.shape}, got {jnp.shape(rewards)}. Give one reward per answer."
        )
    present = _checks.mask("items", items, jnp.shape(rewards))
    shape = present.shape + (1,) * (log_probs.ndim - present.ndim)
    advantages = _advantages(rewards, present, scale).reshape(shape)
    log_probs, old_log_probs, advantages = _checks.floats(
        log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    present = present.reshape(shape)
    log_probs, old_log_probs = (jnp.where(present, x, 0) for x in (log_probs, old_log_probs))
    loss = _surrogate(log_probs, old_log_probs, advantages, clip_range)
    return jnp.where(present, loss, jnp.nan)


def _surrogate(log_probs, old_log_probs, advantages, clip_range):
    low, high = _bounds(clip_range)
    old_log_probs, advantages = jax.lax.stop_gradient((old_log_probs, advantages))
    # Without an advantage there is a NaN, but no slope, which a weight of 0 would not mask.
    log_probs = jnp.where(jnp.isfinite(advantages), log_probs, jax.lax.stop_gradient(log_probs))
    log_ratio = log_probs - old_log_probs
    # Clipped before it is exponentiated, on the one side that the advantage's sign leaves: what
    # overflows is then never multiplied by an advantage of 0.
    below = jnp.minimum(log_ratio, jnp.log1p(high))
    above = jnp.maximum(log_ratio, jnp.log1p(jnp.negative(low)))
    return -advantages * _ratio(jnp.where(advantages < 0, above, below))


def _bounds(clip_range):
    bounds = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    if len(bounds) != 2:
        raise ValueError(f"Expected clip_range as a number or a pair (low, high), got {bounds}.")
    for bound in bounds:
        _checks.exact_shape((), clip_range=bound)
        _checks.above(0, clip_range=bound)
    _checks.at_most(1, clip_range=bounds[0])
    return bounds


def _excess(x):
    """exp(x) - 1 - x, near 0 by its series, because there nothing is left of the difference."""
    near = jnp.clip(x, -0.5, 0.5)
    series = near**2 * jnp.polyval(jnp.array(SERIES, x.dtype), near)
    far = _ratio(x) - 1 - jnp.minimum(x, -NO_LOGIT[x.dtype])
    return jnp.where(jnp.abs(x) < 0.5, series, far)


@jax.custom_jvp
def _ratio(log_ratio):
    """Its slope is infinite where it overflows, and yet 0 when multiplied by a weight of 0."""
    return jnp.exp(log_ratio)


@_ratio.defjvp
def _slope(primals, tangents):
    (x,), (tangent,) = primals, tangents
    root = jnp.exp(jnp.minimum(x / 2, math.floor(math.log(jnp.finfo(x.dtype).max))))
    return _ratio(x), root * (root * tangent)


def _advantages(rewards, present, scale):
    whole = jnp.issubdtype(jnp.result_type(rewards), jnp.integer)
    (rewards,) = _checks.floats(rewards=rewards)
    rewards = jnp.where(present, rewards, 0)
    rounding = 0 if whole else 8 * jnp.finfo(rewards.dtype).eps
    noise = rounding * jnp.max(jnp.abs(rewards), axis=-1, keepdims=True, initial=0)
    low = jnp.min(rewards, axis=-1, keepdims=True, initial=jnp.inf, where=present)
    rewards = jnp.where(present, rewards - low, 0)
    reach = jnp.max(rewards, axis=-1, keepdims=True, initial=0)
    equal = (reach <= noise) & (reach < jnp.inf)
    unit = jnp.where(equal, 1, reach)  # of which the deviations are shares: no square overflows
    count = jnp.maximum(1, jnp.sum(present, axis=-1, keepdims=True, dtype=rewards.dtype))
    rewards = rewards / unit
    deviations = rewards - jnp.sum(rewards, axis=-1, keepdims=True) / count
    variance = jnp.sum(deviations**2, axis=-1, keepdims=True, where=present) / count
    if scale is None:
        return jnp.where(equal, 0, deviations / jnp.sqrt(jnp.where(equal, 1, variance)))
    _checks.exact_shape((), scale=scale)
    _checks.above(0, scale=scale)
    return jnp.where(equal, 0, deviations * unit / scale)
