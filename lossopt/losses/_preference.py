"""Losses of pairs of answers, of which one is preferred, measured from a reference policy.

What is given of the reference gets no gradient.
"""

from jax.lax import stop_gradient
from jax.nn import softplus

from lossopt import _checks
from lossopt._numerics import share
from lossopt._typing import Array, ArrayLike, Float, Number

Values = Float[ArrayLike, "*batch"]


def direct_preference(
    chosen: Values,
    rejected: Values,
    reference_chosen: Values,
    reference_rejected: Values,
    *,
    strength: Number,
    label_smoothing: Number = 0.0,
) -> Float[Array, "*batch"]:
    r"""Prefers the chosen of two answers, measured from a reference policy (DPO).

    $$\ell = (1 - a) \log(1 + e^{-\beta h}) + a \log(1 + e^{\beta h}), \qquad
        h = (c - r) - (c_\text{ref} - r_\text{ref})$$

    Args:
      chosen: $c$, log-probability of the whole chosen answer, shape `[*batch]`.
      rejected: $r$, log-probability of the whole rejected answer, shape `[*batch]`.
      reference_chosen: $c_\text{ref}$, a constant to the gradient, shape `[*batch]`.
      reference_rejected: $r_\text{ref}$, a constant to the gradient, shape `[*batch]`.
      strength: $\beta > 0$, how strongly the policy is held to the reference.
      label_smoothing: $a$, from 0 to 1/2, the share of pairs whose preference is the wrong one.

    Returns:
      One loss per pair of answers, shape `[*batch]`.

    Examples:
      >>> chosen, rejected = jnp.array([-3.0]), jnp.array([-5.0])
      >>> lo.losses.direct_preference(chosen, rejected, chosen, chosen, strength=0.5).round(2)
      Array([0.31], dtype=float32)

    References:
      Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
      Model", 2023.
      Mitchell, "A Note on DPO with Noisy Preferences and Relationship to IPO", 2023 (smoothing).
    """
    _checks.above(0, strength=strength)
    _checks.at_least(0, label_smoothing=label_smoothing)
    _checks.at_most(0.5, label_smoothing=label_smoothing)
    lead = strength * _lead(chosen, rejected, reference_chosen, reference_rejected)
    right, wrong = softplus(-lead), softplus(lead)
    return share(1 - label_smoothing, right) + share(label_smoothing, wrong)


def identity_preference(
    chosen: Values,
    rejected: Values,
    reference_chosen: Values,
    reference_rejected: Values,
    *,
    strength: Number,
) -> Float[Array, "*batch"]:
    r"""Wants the chosen of two answers to lead by so much and no more (IPO).

    $$\ell = \Big(h - \frac{1}{2 \tau}\Big)^2, \qquad
        h = (c - r) - (c_\text{ref} - r_\text{ref})$$

    Pairs on which all agree do not drive the policy away from the reference, as they do in
    `direct_preference`.

    Args:
      chosen: $c$, log-probability of the whole chosen answer, shape `[*batch]`; its mean over
        tokens is in use, too.
      rejected: $r$, log-probability of the whole rejected answer, shape `[*batch]`.
      reference_chosen: $c_\text{ref}$, a constant to the gradient, shape `[*batch]`.
      reference_rejected: $r_\text{ref}$, a constant to the gradient, shape `[*batch]`.
      strength: $\tau > 0$, how strongly the policy is held to the reference.

    Returns:
      One loss per pair of answers, shape `[*batch]`.

    Examples:
      >>> chosen, rejected = jnp.array([-3.0]), jnp.array([-5.0])
      >>> print(lo.losses.identity_preference(chosen, rejected, chosen, chosen, strength=0.5))
      [1.]

    References:
      Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences",
      2024.
    """
    _checks.above(0, strength=strength)
    lead = _lead(chosen, rejected, reference_chosen, reference_rejected)
    return (lead - 1 / (2 * strength)) ** 2


def _lead(chosen, rejected, reference_chosen, reference_rejected):
    chosen, rejected, reference_chosen, reference_rejected = _checks.same_shape(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return (chosen - rejected) - stop_gradient(reference_chosen - reference_rejected)
