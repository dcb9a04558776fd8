"""Rules that measure each coordinate in units of the gradients it has seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._numerics import root
from lossopt._typing import Array, PyTree
from lossopt.regularizers import Regularizer
from lossopt.transforms._averages import gather, toward
from lossopt.transforms._numbers import at, decay_rates, known
from lossopt.transforms._quantized import Moments
from lossopt.transforms._rules import Where, like, rule

TINY = float(jnp.finfo(jnp.float32).tiny)


class AdagradState(NamedTuple):
    """State of `adagrad`'s direction. Attributes: sum_of_squares, like the parameters."""

    sum_of_squares: PyTree


class RmspropState(NamedTuple):
    """State of `rmsprop`'s direction.

    Attributes:
      nu: second moment, debiased: the average of the squares seen, like the parameters.
      nu_weight: what they weigh, the rest being `initial_accumulator`'s, in two parts whose
        difference it is.
    """

    nu: PyTree
    nu_weight: Array


class AdamState(NamedTuple):
    """State of `adam`'s direction.

    Attributes:
      mu: first moment, debiased: the average of the gradients seen, like the parameters.
      nu: second moment, debiased: the average of their squares, like the parameters.
      mu_weight: what they weigh in an average that began at 0, in two parts whose difference it
        is.
      nu_weight: the same for `nu`.
    """

    mu: PyTree
    nu: PyTree
    mu_weight: Array
    nu_weight: Array


def adagrad(
    learning_rate: optax.ScalarOrSchedule,
    eps: optax.ScalarOrSchedule = 1e-7,
    *,
    initial_accumulator: optax.ScalarOrSchedule = 0.1,
    eps_in_sqrt: bool = True,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Descent whose rate falls, for each coordinate, with all the gradients it has seen.

    $$s \leftarrow s + g^2, \qquad D = 1 / \sqrt{s + \epsilon}, \qquad
    \theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta (D g + w \theta))$$

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`.
      eps: $\epsilon > 0$, in float32.
      initial_accumulator: $s$ before the first step, at least 0. optax has 0.1, torch 0.
      eps_in_sqrt: False divides by $\sqrt{s} + \epsilon$, as torch does.
      weight_decay: $w \ge 0$.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, left out of the objective; its prox is taken in the metric $D$.
      moments: how $s$ is stored; see `quantized` for `"int8"`.

    Returns:
      A complete transformation. `update` requires `params` for a decay or a regularizer.

    Raises:
      ValueError: if a number is out of its range, or `params` are missing or not floating.

    Examples:
      >>> optimizer = lo.transforms.adagrad(1.0, initial_accumulator=0.0, eps_in_sqrt=False)
      >>> updates, _ = optimizer.update(jnp.array([3.0, -0.5]), optimizer.init(jnp.ones(2)))
      >>> print(updates.round(4))
      [-1.  1.]

    References:
      Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
      Optimization", 2011.
    """
    _checks.at_least(TINY, **known(eps=eps))
    _checks.at_least(0, **known(initial_accumulator=initial_accumulator))

    def start(params):
        initial = at(jnp.zeros((), jnp.int32), initial_accumulator)
        return AdagradState(jax.tree.map(lambda x: jnp.full_like(x, initial), params))

    def move(gradients, state, count, *_):
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, gradients)
        metric = _inverse_root(total, at(count, eps), eps_in_sqrt)
        return jax.tree.map(jnp.multiply, metric, gradients), metric, AdagradState(total)

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.ScalarOrSchedule = 0.9,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    initial_accumulator: optax.ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Descent in units of the root of the average squared gradient.

    $$\nu \leftarrow \rho \nu + (1 - \rho) g^2, \qquad D = 1 / \sqrt{\nu + \epsilon}, \qquad
    \theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta (D g + w \theta))$$

    Its steps do not become small by themselves: where the gradient fades, so does its root.
    Let the rate fall to 0.

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`.
      decay: $\rho$, in [0, 1). torch has 0.99.
      eps: $\epsilon > 0$, in float32.
      initial_accumulator: $\nu$ before the first step, at least 0.
      eps_in_sqrt: False divides by $\sqrt{\nu} + \epsilon$, as torch does.
      weight_decay: $w \ge 0$.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, left out of the objective; its prox is taken in the metric $D$.
      moments: how $\nu$ is stored; see `quantized` for `"int8"`.

    Returns:
      A complete transformation. `update` requires `params` for a decay or a regularizer.

    Raises:
      ValueError: if a number is out of its range, or `params` are missing or not floating.

    Examples:
      >>> optimizer = lo.transforms.rmsprop(0.5, 0.75, eps_in_sqrt=False)
      >>> updates, _ = optimizer.update(jnp.array([4.0, -0.5]), optimizer.init(jnp.ones(2)))
      >>> print(updates.round(4))
      [-1.  1.]

    References:
      Tieleman and Hinton, "Lecture 6.5: RMSProp", 2012.
    """
    decay_rates(decay=decay)
    _checks.at_least(TINY, **known(eps=eps))
    _checks.at_least(0, **known(initial_accumulator=initial_accumulator))

    def start(params):
        return RmspropState(jax.tree.map(jnp.zeros_like, params), jnp.zeros(2))

    def move(gradients, state, count, *_):
        fresh = 1 - at(count, decay)
        weight, share = gather(state.nu_weight, fresh, fresh)
        nu = jax.tree.map(lambda nu, g: toward(nu, g * g, share), state.nu, gradients)
        seen, left = weight[0] - weight[1], 1 - weight[0] + weight[1]
        first = left * at(jnp.zeros_like(count), initial_accumulator)
        squares = jax.tree.map(lambda nu: like(nu, seen) * nu + like(nu, first), nu)
        metric = _inverse_root(squares, at(count, eps), eps_in_sqrt)
        return jax.tree.map(jnp.multiply, metric, gradients), metric, RmspropState(nu, weight)

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam, and AdamW with a decay.

    $$\mu \leftarrow \mu + \frac{1 - b_1}{1 - b_1^t} (g - \mu), \qquad
    \nu \leftarrow \nu + \frac{1 - b_2}{1 - b_2^t} (g^2 - \nu)$$

    $$D = 1 / (\sqrt\nu + \epsilon), \qquad
    \theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta (D \mu + w \theta))$$

    The moments are kept debiased: those of the paper over the weight that they have gathered,
    $1 - b^t$ for constant rates, and the like for scheduled ones. So a steady gradient gives steps
    of the rate from the first one on, for $b_2$ near 1, too.

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`.
      b1: in [0, 1).
      b2: in [0, 1).
      eps: $\epsilon > 0$, in float32.
      weight_decay: $w \ge 0$; decoupled from the gradient, multiplied by the rate.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, left out of the objective; its prox is taken in the metric $D$.
      moments: how $\mu$ and $\nu$ are stored; see `quantized` for `"int8"`.

    Returns:
      A complete transformation. `update` requires `params` for a decay or a regularizer.

    Raises:
      ValueError: if a number is out of its range, or `params` are missing or not floating.

    Examples:
      >>> optimizer = lo.transforms.adam(0.1, regularizer=lo.regularizers.L1(1.0))
      >>> params, grads = jnp.array([1.0, 0.01]), jnp.array([-4.0, 0.5])
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [1.075 0.   ]

    References:
      Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2014.
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017.
      Yun, Lozano and Yang, "Adaptive Proximal Gradient Methods for Structured Neural Networks",
      2021.
    """
    decay_rates(b1=b1, b2=b2)
    _checks.at_least(TINY, **known(eps=eps))

    def start(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # twice: buffers may be donated
        return AdamState(zeros(), zeros(), jnp.zeros(2), jnp.zeros(2))

    def move(gradients, state, count, *_):
        fresh1, fresh2 = 1 - at(count, b1), 1 - at(count, b2)
        mu_weight, share1 = gather(state.mu_weight, fresh1, fresh1)
        nu_weight, share2 = gather(state.nu_weight, fresh2, fresh2)
        mu = jax.tree.map(lambda mu, g: toward(mu, g, share1), state.mu, gradients)
        nu = jax.tree.map(lambda nu, g: toward(nu, g * g, share2), state.nu, gradients)
        metric = _inverse_root(nu, at(count, eps), in_sqrt=False)
        direction = jax.tree.map(jnp.multiply, mu, metric)
        return direction, metric, AdamState(mu, nu, mu_weight, nu_weight)

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)


def _inverse_root(squares, eps, in_sqrt):
    if in_sqrt:
        return jax.tree.map(lambda s: jax.lax.rsqrt(s + like(s, eps)), squares)
    return jax.tree.map(lambda s: 1 / (root(s) + like(s, eps)), squares)
