"""What is checked before anything large is compiled."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from lossopt import _audit, _jax
from lossopt._jaxprs import prune
from lossopt._mean import terms
from lossopt._place import joined, parted
from lossopt._typing import Array, PyTree
from lossopt.training._evaluation import columns, measured
from lossopt.training._inputs import start_is_finite
from lossopt.training._layout import within
from lossopt.training._loop import Data, Plan

Check = bool | Sequence[str]


class Broken(NamedTuple):
    """What is known of data without the model.

    Attributes:
      conditions: whether one that the losses state does not hold.
      weights: the sum of the weights of each term, by its name.
      rows: whether a row holds a number that is not finite.
    """

    conditions: Array
    weights: dict[str, Array]
    rows: Array


def preflight(
    plan: Plan, data: Data, params: PyTree, model_state: PyTree, check: Check = True
) -> None:
    """Tries what losses and training state on values, over all rows; raises where it does not hold.

    Args:
      plan: of the run.
      data: what it reads.
      params: the first ones.
      model_state: the first one.
      check: whether to; or the names of terms that may depend on how a batch is cut.
    """
    if check is False:
        return
    start_is_finite(params)
    given = model_state, data.hyperparameters
    for name, part, key in (("train", data.train, data.key), ("validation", data.validation, None)):
        if part is None:
            continue
        args = params, part, *given, key
        found = jax.device_get(plan.measured(_broken, *args))
        if found.conditions:
            with within(plan.layout):
                message = jax.jit(lambda *args: _error(*plan.measure, *args)[0])(*args).get()
            raise ValueError(f"{name}: {message.removesuffix(' (`check` failed)')}")
        if name == "train":
            _weighed(found.weights)
            _known(check, found.weights)
        if found.rows:
            _readable(plan, name, (params, joined(part), *given, key))
    if plan.microbatches > 1:
        parts = parted(data.train, 1)
        _cut(plan, check, (params, *(parts.even or parts.rest), *given, data.key))


def _broken(*args) -> Broken:
    """What is broken; all that it does not need, such as the model, is deleted.

    The messages are not part of the program, so that another objective may use it.
    """
    fixed, (params, part, *given) = args[:5], args[5:]

    def find(params, part, *given):
        error, weights = _error(*fixed, params, part, *given)
        failed = jnp.any(jnp.array(_jax.failures(error), bool))
        leaves = filter(_audit.is_inexact, jax.tree.leaves(part))
        whole = [jnp.all(jnp.isfinite(x)) for x in leaves]
        return Broken(failed, weights, ~jnp.all(jnp.array(whole, bool)))

    return prune(find, params, part, *given)[0]()


def _error(*args):
    """The first condition that does not hold, and the weights of terms."""
    return checkify.checkify(_weights, errors=checkify.user_checks)(*args)


def _weights(*args) -> dict[str, Array]:
    means, metrics = measured(*args)
    columns(means, metrics)  # refuses names
    return {name: term.weight for name, term in terms(means).items()}


def _weighed(weights):
    for name, weight in weights.items():
        if weight == 0:
            raise ValueError(
                f"train: the weights of {_called(name)} are all 0, so nothing is learned from it. "
                "Look at the mask; leave the term out, or scale it by a number of hyperparameters."
            )


def _known(check: Check, names: Iterable[str]) -> None:
    """Raises where `check` names what is no term."""
    wanted = [] if check is True else check
    listed = isinstance(wanted, (list, tuple, set, frozenset))
    known = [name or "value" for name in names]
    if not listed or not set(wanted) <= set(known):
        raise ValueError(
            f"Expected check as True, False or a list of names of terms, got {check!r}; the terms "
            f"are {', '.join(known)}."
        )


def _readable(plan, name, args):
    params, part, *given = args
    found = _audit.not_finite(part)
    size = -(-plan.source.batch_size // plan.microbatches)
    trial = _audit.Trial(plan.objective, plan.has_aux)
    with within(plan.layout):
        why = _audit.spoils(trial, found, size, name == "train", params, part, *given)
    if why:
        raise ValueError(f"{name}: {why}")


def _cut(plan, check, args):
    meant = () if check is True else check
    with within(plan.layout):
        names = _audit.torn(_audit.Trial(plan.objective, plan.has_aux), *args)
    names = [name for name in names if (name or "value") not in meant]
    if names:
        listed = [name or "value" for name in names]
        raise ValueError(
            f"train: {_audit.torn_message(names)} microbatches={plan.microbatches} cuts it here: "
            f"take 1; or say check={listed} if the term is meant for each piece on its own."
        )


def _called(name):
    return f"the term {name!r}" if name else "the only term"
