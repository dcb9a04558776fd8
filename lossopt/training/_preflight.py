"""What is checked before anything large is compiled."""

from jax.experimental import checkify

from lossopt import _programs
from lossopt._typing import PyTree
from lossopt.training._evaluation import evaluated
from lossopt.training._loop import Data, Plan


def preflight(plan: Plan, data: Data, params: PyTree, model_state: PyTree) -> None:
    """Evaluates the conditions that losses state on values, over all rows.

    The compiler deletes whatever they do not need, the model above all.
    """
    fixed = plan.objective, plan.has_aux, plan.source.batch_size, plan.source.shards
    given = model_state, data.hyperparameters
    for name, part, key in (("train", data.train, data.key), ("validation", data.validation, None)):
        if part is None:
            continue
        message = _programs.call(_broken, fixed, params, part, *given, key).get()
        if message:
            raise ValueError(f"{name}: {message.removesuffix(' (`check` failed)')}")


def _broken(*args):
    """The error of the first condition that does not hold."""
    return checkify.checkify(evaluated, errors=checkify.user_checks)(*args)[0]
