"""The average of the parameters that a rule goes through."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from lossopt import _checks
from lossopt._numerics import zeros
from lossopt._typing import Array, Params, PyTree
from lossopt.transforms._averages import gather, toward_in_two
from lossopt.transforms._numbers import at, decay_rates, known

_OTHER = (
    "Expected an average of the structure of the parameters, got another. Put average around what "
    "makes another tree of them, such as optax.flatten."
)


class AverageState(NamedTuple):
    """State of `average`.

    Attributes:
      count: steps taken, an integer of shape `()`.
      weight: that of all iterates in the average, in two parts whose difference it is; 0 before
        the first.
      average: like the parameters, complex numbers of two float32 or wider: the average of the
        iterates, and what rounding has left over of it.
      inner: state of the rule.
    """

    count: Array
    weight: Array
    average: PyTree
    inner: optax.OptState


def average(
    rule: optax.GradientTransformation,
    *,
    decay: optax.ScalarOrSchedule | None = None,
    start: optax.ScalarOrSchedule | None = None,
    every: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the parameters that a rule goes through, beside it: its updates are what they were.

    $$\bar\theta_T = \frac{\sum_{t=1}^T w_t \, \theta_t}{\sum_{t=1}^T w_t}, \qquad
    w_t = \begin{cases} (1 - b_t) \prod_{s=t+1}^{T} b_s & \text{with a decay } b \\
        1 & \text{with a start, for } t = t_0, \; t_0 + k, \; t_0 + 2k, \dots \text{ only}
    \end{cases}$$

    $\theta_t$ is the point after $t$ steps, in the dtype of the parameters; $\theta_0$, where the
    run began, is not among them. With a decay it is the debiased exponential average, with a start
    the plain mean of a run's tail. Both are that of float64 to the last digit of float32: what
    rounding leaves over is kept, or a small share would add nothing. It takes 8 bytes a parameter.

    Wrap the whole optimizer. What changes its updates, such as a factor in `optax.chain`, stands
    inside; what decides whether there is a step at all, such as `accumulate` and `skip_spikes`,
    around it: an update of zeros is one more point, at the same place. Read the result by
    `averaged`.

    Args:
      rule: a complete optax transformation or a chain.
      decay: $b$, in [0, 1): the average reaches back some $1 / (1 - b)$ steps. It may be a number,
        a tracer, or a schedule of the step count. Either this or `start`.
      start: $t_0 \ge 0$, the number of the first step that counts, the first of all being 1. A
        whole number; like `every` a tracer or a schedule, too.
      every: $k \ge 1$, with a start, as for the ends of epochs; None is 1.
        Other steps cost nothing.

    Returns:
      A transformation. `update` requires `params`, and hands extra arguments on.

    Raises:
      ValueError: if not one of `decay` and `start` is given, `every` without a start, a number is
        out of its range, or `params` are missing or not floating.
      TypeError: if `start` or `every` is no whole number.

    Examples:
      >>> optimizer = lo.transforms.average(optax.sgd(1.0), start=2)
      >>> params, state = jnp.array(8.0), optimizer.init(jnp.array(8.0))
      >>> for gradient in (4.0, 2.0, 1.0):  # to 4, 2 and 1
      ...     updates, state = optimizer.update(jnp.array(gradient), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params, lo.transforms.averaged(state, params))
      1.0 1.5

    References:
      Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
      Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima
      and Better Generalization", 2018.
    """
    if decay is not None and start is None and every is None:
        weigh = _forgetting(decay)
    elif start is not None and decay is None:
        weigh = _tail(start, 1 if every is None else every)
    else:
        raise ValueError(
            f"Expected either decay or start, and every with start alone, got decay={decay}, "
            f"start={start}, every={every}. decay=0.999 is an average that forgets, start=t the "
            "plain mean of the iterates from step t on."
        )
    rule = optax.with_extra_args_support(rule)

    def init(params):
        average = jax.tree.map(_started, params)
        return AverageState(jnp.zeros((), jnp.int32), jnp.zeros(2), average, rule.init(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError(
                "An average of the parameters needs the current point, got no params. "
                "Call update(grads, state, params)."
            )
        updates, inner = rule.update(updates, state.inner, params, **extra)
        forgotten, own = weigh(state.count, state.weight.dtype)
        weight = gather(state.weight, forgotten, own)
        share = own / jnp.where(weight[0] > 0, weight[0], 1)
        # Made once and rounded: a compiler would repeat the rule in the loop of the average.
        iterates = jax.lax.optimization_barrier(optax.apply_updates(params, updates))
        average = jax.tree.map(lambda a, x: _added(a, x, share), state.average, iterates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, AverageState(count, weight, average, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(opt_state: optax.OptState, params: Params) -> Params:
    """The average of the parameters that a state holds, at any depth, ready to be used as they are.

    Args:
      opt_state: of an optimizer with one `average` in it, in a chain or another wrapper.
      params: the parameters of that step. They are the result before the first iterate that counts,
        and for leaves that the average is not told of, as in `optax.masked` and `optax.partition`.

    Returns:
      A tree like `params`, in its dtypes and where its arrays lie.

    Raises:
      ValueError: if there is no average, or more than one, or one of other shapes.

    Examples:
      >>> optimizer = lo.transforms.average(optax.sgd(0.5), decay=0.5)
      >>> params, state = jnp.array(3.0), optimizer.init(jnp.array(3.0))
      >>> print(lo.transforms.averaged(state, params))
      3.0
    """
    found = _found(opt_state)
    if not found:
        raise ValueError(
            "Expected a state that holds an average of the parameters, found none. Wrap the whole "
            "optimizer: lossopt.transforms.average(rule, decay=0.999). (What schedule-free "
            "averages is read by optax.contrib.schedule_free_eval_params.)"
        )
    if len(found) > 1:
        raise ValueError(
            f"Expected a state that holds one average of the parameters, found {len(found)}. Put "
            "one average around the whole optimizer, around optax.partition, too."
        )
    (state,) = found
    averages, structure = jax.tree.flatten(state.average, is_leaf=_hidden)
    parts = _beside(averages, structure, params)
    read = lambda a, p: p if _hidden(a) else _read(a, p, state.weight)
    return structure.unflatten(map(read, averages, parts))


def _forgetting(decay):
    """From a count to the share of the old that is forgotten, and the weight of the new."""
    decay_rates(decay=decay)

    def weigh(count, dtype):
        fresh = jnp.asarray(1 - at(count, decay), dtype)
        return fresh, fresh

    return weigh


def _tail(start, every):
    """As `_forgetting`: nothing is forgotten."""
    _whole(**known(start=start, every=every))
    _checks.at_least(0, **known(start=start))
    _checks.at_least(1, **known(every=every))

    def weigh(count, dtype):
        first, gap = _whole(start=at(count, start), every=at(count, every))
        late = count + 1 - first
        return 0, ((late >= 0) & (late % gap == 0)).astype(dtype)

    return weigh


def _whole(**numbers):
    for name, number in numbers.items():
        if not jnp.issubdtype(_checks.dtype(name, number), jnp.integer):
            raise TypeError(f"Expected {name} as a whole number, got {number}. Round it.")
    return list(numbers.values())


def _started(x):
    """No average yet, where the parameter lies."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"Expected real floating parameters, got a leaf of {dtype}. "
            "Leave it out with optax.masked or optax.partition."
        )
    return jax.lax.complex(zeros(x), zeros(x))


def _added(average, iterate, share):
    """The average with one more iterate, which is not read where it has no share."""
    new = jnp.where(share > 0, iterate.astype(average.real.dtype), average.real)
    return toward_in_two(average, new, share.astype(new.dtype))


def _found(tree):
    """All averages of a state, those within others, too."""
    found = []

    def seen(node):
        found.extend([node] if isinstance(node, AverageState) else [])
        return False

    jax.tree.leaves(tree, is_leaf=seen)
    return found


def _hidden(x):
    return isinstance(x, optax.MaskedNode)


def _beside(averages, structure, params):
    """For each average its part of the parameters, a leaf."""
    try:
        parts = structure.flatten_up_to(params)
    except ValueError as error:
        raise ValueError(f"{_OTHER} {error}") from error
    if not all(_hidden(a) or jax.tree_util.all_leaves([p]) for a, p in zip(averages, parts)):
        raise ValueError(_OTHER)
    return parts


def _read(average, params, weight):
    if jnp.shape(weight) != (2,) or jnp.shape(average) != jnp.shape(params):
        raise ValueError(
            f"Expected an average of the shape of the parameters, {jnp.shape(params)}, got "
            f"{jnp.shape(average)} and a weight of shape {jnp.shape(weight)}. States of several "
            "runs are read by jax.vmap(lossopt.transforms.averaged)."
        )
    mean = _placed(average.real.astype(jnp.result_type(params)), params)
    return jnp.where(weight[0] > 0, mean, params)


def _placed(x, like):
    """An array where another one of its shape lies, if that is known yet."""
    if not isinstance(like, jax.Array) or any(isinstance(y, Tracer) for y in (x, like)):
        return x
    there = x.sharding.is_equivalent_to(like.sharding, x.ndim)
    return x if there else jax.device_put(x, like.sharding)
