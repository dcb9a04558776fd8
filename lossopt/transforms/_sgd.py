"""Descent along the gradient, or along a fading sum of gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt._typing import Array, PyTree
from lossopt.regularizers import Regularizer
from lossopt.transforms._averages import gather, toward
from lossopt.transforms._numbers import at, decay_rates
from lossopt.transforms._quantized import Moments
from lossopt.transforms._rules import Where, like, rule


class MomentumState(NamedTuple):
    """State of `momentum`'s direction.

    Attributes:
      mu: average of the gradients, each weighed by its age: their sum over `gain`, like the
        parameters.
      gain: what the sum makes of a gradient of 1, in two parts whose difference it is.
    """

    mu: PyTree
    gain: Array


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent, as stochastic as its batches are.

    $$\theta \leftarrow \text{prox}_{\eta R}(\theta - \eta (g + w \theta))$$

    Args:
      learning_rate: $\eta \ge 0$. This and every other number may be a number, a tracer, or a
        schedule of the step count.
      weight_decay: $w \ge 0$.
      weight_decay_where: the leaves that decay: a regular expression searched in a leaf's path, as
        in `by_path`; or a function from the parameters to a tree of booleans; None takes those of
        two axes or more, which is wrong for stacked layers: name them. Inside of
        `optax.partition`, which hides the leaves of other groups, a pattern may take none.
      regularizer: $R$, which the objective holds by its value alone, as
        `constant(R(params), gradient=False)`. None has no proximal step.

    Returns:
      A complete transformation. `update` requires `params` for a decay or a regularizer.

    Raises:
      ValueError: if a number is out of its range, or `params` are missing or not floating.

    Examples:
      >>> optimizer = lo.transforms.sgd(0.5, regularizer=lo.regularizers.L1(1.0))
      >>> params, grads = jnp.array([1.0, 0.25]), jnp.array([-3.0, 0.25])
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [2. 0.]

    References:
      Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847.
      Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm", 2009.
    """
    start = lambda params: ()
    move = lambda gradients, state, *_: (gradients, 1.0, state)
    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer)


def momentum(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.ScalarOrSchedule = 0.9,
    *,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_where: Where = None,
    regularizer: Regularizer | None = None,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Descent along a sum of gradients that forgets: heavy ball, or Nesterov's form.

    $$v \leftarrow \beta v + g, \qquad d = v \;\text{ or }\; g + \beta v, \qquad
    \theta \leftarrow \text{prox}_{\eta D R}(\theta - \eta (d + w \theta))$$

    The sum of a constant gradient tends to $g / (1 - \beta)$. A text whose $v$ is an average,
    $v \leftarrow \beta v + (1 - \beta) g$, takes the same steps with the rate
    $\eta / (1 - \beta)$ in place of $\eta$. $D$ is the gain that the sum has reached.

    Args:
      learning_rate: $\eta \ge 0$, as for `sgd`.
      decay: $\beta$, in [0, 1).
      nesterov: looks one step ahead.
      weight_decay: $w \ge 0$.
      weight_decay_where: the leaves that decay, as for `sgd`.
      regularizer: $R$, as for `sgd`; its prox is taken in the metric $D$.
      moments: how $v$ is stored; see `quantized` for `"int8"`.

    Returns:
      A complete transformation. `update` requires `params` for a decay or a regularizer.

    Raises:
      ValueError: if a number is out of its range, or `params` are missing or not floating.

    Examples:
      >>> optimizer = lo.transforms.momentum(0.1, 0.5)
      >>> state = optimizer.init(jnp.array(1.0))
      >>> _, state = optimizer.update(jnp.array(1.0), state)
      >>> print(optimizer.update(jnp.array(1.0), state)[0])
      -0.15

    References:
      Polyak, "Some Methods of Speeding up the Convergence of Iteration Methods", 1964.
      Sutskever et al., "On the Importance of Initialization and Momentum in Deep Learning", 2013.
    """
    decay_rates(decay=decay)

    def start(params):
        return MomentumState(jax.tree.map(jnp.zeros_like, params), jnp.zeros(2))

    def move(gradients, state, count, *_):
        fresh = 1 - at(count, decay)
        gain = gather(state.gain, fresh, 1)
        add = lambda gain: lambda mu, g: toward(mu, g, 1 / gain[0])
        mu = jax.tree.map(add(gain), state.mu, gradients)
        average, reached = mu, gain
        if nesterov:  # as if the gradient came once more
            reached = gather(gain, fresh, 1)
            average = jax.tree.map(add(reached), mu, gradients)
        metric = reached[0] - reached[1]
        direction = jax.tree.map(lambda mu: like(mu, metric) * mu, average)
        return direction, metric, MomentumState(mu, gain)

    return rule(start, move, learning_rate, weight_decay, weight_decay_where, regularizer, moments)
