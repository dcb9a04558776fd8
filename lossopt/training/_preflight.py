"""What is checked before anything large is compiled."""

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from lossopt import _jax, _programs
from lossopt._jaxprs import prune
from lossopt._typing import Array, PyTree
from lossopt.training._evaluation import evaluated
from lossopt.training._loop import Data, Plan


def preflight(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> None:
    """Evaluates the conditions that losses state on values, over all rows."""
    fixed = plan.objective, plan.has_aux, plan.source.batch_size, plan.source.shards
    given = model_state, data.hyperparameters
    for name, part, key in (("train", data.train, data.key), ("validation", data.validation, None)):
        args = params, part, *given, key
        if part is None or not _programs.call(_broken, fixed, *args):
            continue
        message = jax.jit(lambda *args: _error(*fixed, *args))(*args).get()
        raise ValueError(f"{name}: {message.removesuffix(' (`check` failed)')}")


def _broken(*args) -> Array:
    """Whether a condition does not hold; all that it does not need, such as the model, is deleted.

    The messages are not part of the program, so that another objective may use it.
    """
    fixed, data = args[:4], args[4:]
    failed = lambda *data: jnp.any(jnp.array(_jax.failures(_error(*fixed, *data)), bool))
    return prune(failed, *data)[0]()


def _error(*args):
    """The first condition that does not hold."""
    return checkify.checkify(evaluated, errors=checkify.user_checks)(*args)[0]
