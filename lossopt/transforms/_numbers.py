"""Numbers of a transformation: each may be a number, a tracer or a schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt import _checks
from lossopt._numerics import wide
from lossopt._typing import Array, Number
from lossopt.regularizers import Regularizer

_NUMBERS = (int, float, np.ndarray, np.generic, jax.Array)


def at(count: Array, number: optax.ScalarOrSchedule | Number) -> Number:
    """The number at a step: a schedule is asked, all else is the number itself."""
    if not callable(number):
        return number
    value = number(count)
    _checks.exact_shape((), **{"the value of a schedule": value})
    return value


def known(**numbers: optax.ScalarOrSchedule | Number) -> dict[str, Number]:
    """The named numbers without the schedules, for the checks of ranges."""
    for name, number in numbers.items():
        if isinstance(number, Regularizer):
            raise ValueError(
                f"Expected {name} as a number or a schedule, got the regularizer {number}. "
                "Pass it as regularizer=."
            )
        if not callable(number) and not isinstance(number, _NUMBERS):
            raise ValueError(
                f"Expected {name} as a number, a tracer or a schedule, got {number!r}. "
                "A schedule is a function of the step count."
            )
    fixed = {name: number for name, number in numbers.items() if not callable(number)}
    for name, number in fixed.items():
        if jnp.shape(number):
            raise ValueError(
                f"Expected {name} as one number, got the shape {jnp.shape(number)}. "
                "Build the transformation inside of jax.vmap, which gives it one of them."
            )
    return fixed


def decay_rates(**numbers: optax.ScalarOrSchedule | Number) -> None:
    """Raises unless the named numbers are rates of forgetting, in [0, 1) and float32 or wider."""
    fixed = known(**numbers)
    for name, number in fixed.items():
        dtype = jnp.result_type(number)
        if wide(dtype) != dtype and jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"Expected {name} in float32 or wider, got {dtype}, where 0.999 is 1. "
                "Under optax.inject_hyperparams, give hyperparam_dtype=jnp.float32."
            )
    _checks.at_least(0, **fixed)
    _checks.below(1, **fixed)
