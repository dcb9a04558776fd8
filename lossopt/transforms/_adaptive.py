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
    """State of `adagrad`'s direction.

    Attributes:
      sum_of_squares: all that came, like the parameters.
    """

    sum_of_squares: PyTree


class RmspropState(NamedTuple):
    """State of `rmsprop`'s direction.

    Attributes:
      nu: second moment, debiased: the average of the squares seen, about `mean` where it is
        centered, like the parameters.
      mean: the average of the gradients seen where it is centered, like the parameters, else `()`.
      mu: the average of the gradients under the momentum, weighed by metric and age, like the
        parameters; without momentum `()`.
      metric: the average of the metrics, weighed by age, like the parameters; or `()`.
      left: what `initial_accumulator` still weighs beside `nu`, 1 at first, in two parts whose
        difference it is.
      gain: what the momentum makes of a step of 1, in two parts whose difference it is.
    """

    nu: PyTree
    mean: PyTree
    mu: PyTree
    metric: PyTree
    left: Array
    gain: Array


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
      regularizer: $R$, as for `sgd`; its prox is taken in the metric $D$.
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
    momentum: optax.ScalarOrSchedule | None = None,
    centered: bool = False,
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

    With `momentum` $\beta$ the step is a sum of $D g$ that forgets, and $D$ in the prox is the same
    sum of metrics, which is what a steady gradient is multiplied by:

    $$v \leftarrow \beta v + D g, \qquad M \leftarrow \beta M + D, \qquad
    \theta \leftarrow \text{prox}_{\eta M R}(\theta - \eta (v + w \theta))$$

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`. It multiplies $v$, as in torch; optax sums steps
        that it has multiplied, which differs where it is a schedule.
      decay: $\rho$, in [0, 1). torch has 0.99.
      eps: $\epsilon > 0$, in float32.
      momentum: $\beta$, in [0, 1); None has no sum. It stores two more numbers a parameter.
      centered: takes off $\nu$ the square of the average gradient, $\mu \leftarrow \rho \mu +
        (1 - \rho) g$: $D = 1 / \sqrt{\nu - \mu^2 + \epsilon}$, of a difference that is never
        negative here. It stores one more.
      initial_accumulator: $\nu$ before the first step, at least 0.
      eps_in_sqrt: False divides by $\sqrt{\nu} + \epsilon$, as torch does.
      weight_decay: $w \ge 0$.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, as for `sgd`; its prox is taken in the metric $D$.
      moments: how $\nu$ and the others are stored; see `quantized` for `"int8"`.

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
    decay_rates(decay=decay, **({} if momentum is None else {"momentum": momentum}))
    _checks.at_least(TINY, **known(eps=eps))
    _checks.at_least(0, **known(initial_accumulator=initial_accumulator))

    def start(params):
        zeros = lambda wanted: jax.tree.map(jnp.zeros_like, params) if wanted else ()
        sums = momentum is not None
        weights = jnp.array([1.0, 0.0]), jnp.zeros(2)
        return RmspropState(zeros(True), zeros(centered), zeros(sums), zeros(sums), *weights)

    def move(gradients, state, count, *_):
        fresh = 1 - at(count, decay)
        state = state._replace(left=gather(state.left, fresh, 0))
        state, squares = _seen(state, gradients, fresh, centered)
        first = at(jnp.zeros_like(count), initial_accumulator)
        rest = lambda s: s + like(s, (state.left[0] - state.left[1]) * first)
        metric = _inverse_root(jax.tree.map(rest, squares), at(count, eps), eps_in_sqrt)
        if momentum is None:
            return jax.tree.map(jnp.multiply, metric, gradients), metric, state
        return _summed(state, gradients, metric, 1 - at(count, momentum))

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)


def _seen(state, gradients, fresh, centered):
    """The state with the gradients in its averages, and what an average from 0 on has of squares.

    Centered, it is the variance about an average from 0 on, of terms that are never negative.
    """
    left, seen = state.left[0] - state.left[1], 1 - state.left[0] + state.left[1]
    share = fresh / seen
    part = lambda nu: like(nu, seen) * nu
    if not centered:
        nu = jax.tree.map(lambda nu, g: toward(nu, g * g, share), state.nu, gradients)
        return state._replace(nu=nu), jax.tree.map(part, nu)
    spread = lambda nu, m, g: toward(nu, like(g, 1 - share) * (g - m) ** 2, share)
    nu = jax.tree.map(spread, state.nu, state.mean, gradients)
    mean = jax.tree.map(lambda m, g: toward(m, g, share), state.mean, gradients)
    squares = jax.tree.map(lambda nu, m: part(nu + like(m, left) * m**2), nu, mean)
    return state._replace(nu=nu, mean=mean), squares


def _summed(state, gradients, metric, fresh):
    """The fading sum of steps as its metric, which is the sum of theirs, times an average."""
    gain = gather(state.gain, fresh, 1)
    average = jax.tree.map(lambda old, d: toward(old, d, 1 / gain[0]), state.metric, metric)
    weigh = lambda mu, g, d, mean: toward(mu, g, d / (like(d, gain[0]) * mean))
    mu = jax.tree.map(weigh, state.mu, gradients, metric, average)
    total = jax.tree.map(lambda d: like(d, gain[0] - gain[1]) * d, average)
    state = state._replace(mu=mu, metric=average, gain=gain)
    return jax.tree.map(jnp.multiply, total, mu), total, state


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam; AdamW with a decay, and NAdam with `nesterov`.

    $$\mu \leftarrow \mu + \frac{1 - b_1}{1 - b_1^t} (g - \mu), \qquad
    \nu \leftarrow \nu + \frac{1 - b_2}{1 - b_2^t} (g^2 - \nu)$$

    $$D = 1 / (\sqrt\nu + \epsilon), \qquad
    \theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta (D \mu + w \theta))$$

    The moments are kept debiased: those of the paper over the weight that they have gathered,
    $1 - b^t$ for constant rates, and the like for scheduled ones. So a steady gradient gives steps
    of the rate from the first one on, for $b_2$ near 1, too.

    With `nesterov` the average looks one step ahead, and $D$ in the prox is multiplied by $k_t$,
    which tends to 1:

    $$d = k_t D \mu' = D ((1 - r_{t + 1}) \mu + r_t g), \qquad k_t = 1 - r_{t + 1} + r_t, \qquad
    r_t = \frac{1 - b_1}{1 - b_1^t}$$

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`.
      b1: in [0, 1).
      b2: in [0, 1).
      eps: $\epsilon > 0$, in float32.
      nesterov: looks one step ahead, as `optax.nadam`.
      weight_decay: $w \ge 0$; decoupled from the gradient, multiplied by the rate.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, as for `sgd`; its prox is taken in the metric $D$.
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
      Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
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
        mu_weight = gather(state.mu_weight, fresh1, fresh1)
        nu_weight = gather(state.nu_weight, fresh2, fresh2)
        share1, share2 = fresh1 / mu_weight[0], fresh2 / nu_weight[0]
        mu = jax.tree.map(lambda mu, g: toward(mu, g, share1), state.mu, gradients)
        nu = jax.tree.map(lambda nu, g: toward(nu, g * g, share2), state.nu, gradients)
        metric = _inverse_root(nu, at(count, eps), in_sqrt=False)
        state = AdamState(mu, nu, mu_weight, nu_weight)
        if nesterov:
            next_share = fresh1 / gather(mu_weight, fresh1, fresh1)[0]
            gain = 1 - next_share + share1
            mu = jax.tree.map(lambda mu, g: toward(mu, g, share1 / gain), mu, gradients)
            metric = jax.tree.map(lambda d: like(d, gain) * d, metric)
        return jax.tree.map(jnp.multiply, mu, metric), metric, state

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)


def _inverse_root(squares, eps, in_sqrt):
    if in_sqrt:
        return jax.tree.map(lambda s: jax.lax.rsqrt(s + like(s, eps)), squares)
    return jax.tree.map(lambda s: 1 / (root(s) + like(s, eps)), squares)
