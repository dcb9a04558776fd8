"""Steps that are skipped because their gradient is unlike those before."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._typing import Array
from lossopt.transforms._clipping import global_norm
from lossopt.transforms._gate import run_if
from lossopt.transforms._numbers import at, known


class SkipSpikesState(NamedTuple):
    """State of `skip_spikes`.

    Attributes:
      count: updates so far, an integer of shape `()`.
      skipped: updates skipped, an integer of shape `()`.
      seen: norms in the history, an integer of shape `()`.
      mean: average of their logarithms, shape `()`.
      variance: of their logarithms, shape `()`.
      norm: that of the last gradients, shape `()`.
      inner: state of the rule.
    """

    count: Array
    skipped: Array
    seen: Array
    mean: Array
    variance: Array
    norm: Array
    inner: optax.OptState


def skip_spikes(
    rule: optax.GradientTransformation,
    *,
    deviations: optax.ScalarOrSchedule = 6.0,
    horizon: optax.ScalarOrSchedule = 100,
    warmup: optax.ScalarOrSchedule = 20,
    floor: optax.ScalarOrSchedule = 0.1,
) -> optax.GradientTransformationExtraArgs:
    r"""Skips the steps whose gradient norm is far above its recent history, and counts them.

    With mean $m$ and variance $v$ of $\ell = \log \|g\|$ over the last steps, a step is skipped if

    $$\ell > m + k \cdot \max(\sqrt{v}, \, s)$$

    It then gives zero updates and leaves the rule's state as it was: no moment ever holds a spike.
    The history, too, takes every norm within these limits only, above and below. So it does not
    forget itself over one spike, and yet a level that has changed for good is accepted after some
    steps: with a steady history and the default numbers, 10 times the norm after 12 steps, 1000
    times after 19. A norm that is inf or NaN is always skipped and never enters the history.

    Args:
      rule: an optax transformation, a complete one or a chain; clip inside of it.
      deviations: $k > 0$, in standard deviations. This and every other number may be a number, a
        tracer, or a schedule of the step count.
      horizon: steps that the history reaches back, at least 1: the weight of an old norm falls by
        $1 - 1 / \text{horizon}$ a step. A history that is shorter is a plain average.
      warmup: norms before the first judgment, at least 1.
      floor: $s \ge 0$, the least standard deviation, in units of $\log \|g\|$, so that after
        steady norms not every change is a spike: 6 times 0.1 lets pass 1.8 times the norm.

    Returns:
      A transformation. Its state holds the count of skipped steps.

    Raises:
      ValueError: if a number is out of its range.

    Examples:
      >>> optimizer = lo.transforms.skip_spikes(optax.sgd(1.0), warmup=3)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for size in (1.0, 1.1, 0.9, 50.0):
      ...     updates, state = optimizer.update(jnp.array([size]), state)
      >>> print(updates, state.skipped)
      [0.] 1

    References:
      Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022.
      Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025.
    """
    _checks.above(0, **known(deviations=deviations))
    _checks.at_least(1, **known(horizon=horizon, warmup=warmup))
    _checks.at_least(0, **known(floor=floor))
    rule = optax.with_extra_args_support(rule)

    def init(params):
        count, skipped, seen = (jnp.zeros((), jnp.int32) for _ in range(3))
        mean, variance, norm = (jnp.zeros_like(global_norm(params)) for _ in range(3))
        return SkipSpikesState(count, skipped, seen, mean, variance, norm, rule.init(params))

    def update(updates, state, params=None, **extra):
        now = lambda number: jnp.asarray(at(state.count, number), state.mean.dtype)
        norm = global_norm(updates).astype(state.norm.dtype)
        finite, judged = jnp.isfinite(norm), state.seen >= now(warmup)
        reach = now(deviations) * jnp.maximum(jnp.sqrt(state.variance), now(floor))
        reach = jnp.where(judged, reach, jnp.inf)
        entry = finite & (norm > 0)
        distance = jnp.where(entry, jnp.log(jnp.where(entry, norm, 1)) - state.mean, 0)
        spike = ~finite | (distance > reach)

        distance = jnp.clip(distance, -reach, reach)
        rate = jnp.maximum(1 / now(horizon), 1 / (state.seen + 1))
        variance = (1 - rate) * (state.variance + rate * distance**2)
        run = lambda: rule.update(updates, state.inner, params, **extra)
        moved, inner = run_if(~spike, run, state.inner)
        return moved, SkipSpikesState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            skipped=state.skipped + spike,
            seen=jnp.where(entry, optax.safe_increment(state.seen), state.seen),
            mean=state.mean + jnp.where(entry, rate * distance, 0),
            variance=jnp.where(entry, variance, state.variance),
            norm=norm,
            inner=inner,
        )

    return optax.GradientTransformationExtraArgs(init, update)
