"""One row per transformation: how it is built, its numbers, and what else `update` needs."""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import lossopt as lo


class Transform(NamedTuple):
    """`make(**numbers)` builds it."""

    make: Callable
    numbers: dict
    extra: Mapping = MappingProxyType({})
    wide: bool = False


RULES = {
    "sgd": Transform(lo.transforms.sgd, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "momentum": Transform(
        lo.transforms.momentum, {"learning_rate": 0.1, "decay": 0.8, "weight_decay": 0.1}
    ),
    "adagrad": Transform(
        lo.transforms.adagrad,
        {"learning_rate": 0.1, "eps": 1e-3, "initial_accumulator": 0.5, "weight_decay": 0.1},
    ),
    "rmsprop": Transform(
        partial(lo.transforms.rmsprop, centered=True, regularizer=lo.regularizers.L1(0.01)),
        {
            "learning_rate": 0.1,
            "decay": 0.8,
            "momentum": 0.7,
            "eps": 1e-3,
            "initial_accumulator": 0.5,
            "weight_decay": 0.1,
        },
    ),
    "adam": Transform(
        partial(lo.transforms.adam, nesterov=True, regularizer=lo.regularizers.L1(0.01)),
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "proximal": Transform(
        partial(
            lo.transforms.proximal,
            lo.regularizers.L1(0.01),
            direction=optax.ema(0.9, accumulator_dtype=jnp.float32),
        ),
        {"learning_rate": 0.1},
    ),
}

AVERAGE = partial(lo.transforms.average, lo.transforms.adam(0.1))


def _read(make):
    """Steps to the average, so that what holds for updates holds for what is read."""

    @wraps(make)
    def made(**numbers):
        rule = make(**numbers)

        def update(updates, state, params):
            _, state = rule.update(updates, state, params)
            average = lo.transforms.averaged(state, params)
            return jax.tree.map(jnp.subtract, average, params), state

        return optax.GradientTransformation(rule.init, update)

    return made


GUARDS = {
    "clip_by_global_norm": Transform(
        lo.transforms.clip_by_global_norm, numbers={"max_norm": 1.0}, extra={}
    ),
    "accumulate": Transform(
        partial(lo.transforms.accumulate, optax.adam(0.1)),
        numbers={"every": 2},
        extra={"weight": 2.0},
    ),
    "average": Transform(_read(AVERAGE), {"decay": 0.8}),
    "reduce_on_plateau": Transform(
        lo.transforms.reduce_on_plateau,
        numbers={
            "factor": 0.5,
            "patience": 2,
            "threshold": 0.1,
            "cooldown": 1,
            "accumulation_size": 1,
            "min_scale": 0.1,
        },
        extra={"value": 1.0},
    ),
    "skip_spikes": Transform(
        partial(lo.transforms.skip_spikes, optax.adam(0.1)),
        numbers={"deviations": 3.0, "horizon": 10, "warmup": 2, "floor": 0.1},
        extra={},
    ),
}


def _around_adam(wrap):
    return lambda learning_rate: wrap(lo.transforms.adam(learning_rate))


LOW_PRECISION = {
    "quantized": Transform(partial(lo.transforms.quantized, optax.adam(0.1)), {"seed": 3}),
    "stochastic_rounding": Transform(
        _around_adam(partial(lo.transforms.stochastic_rounding, key=jax.random.key(0))),
        {"learning_rate": 0.1},
        wide=True,
    ),
    "kahan": Transform(_around_adam(lo.transforms.kahan), {"learning_rate": 0.1}, wide=True),
}


def _slower(learning_rate, factor):
    rule = lo.transforms.adam(learning_rate, regularizer=lo.regularizers.L1(0.01))
    return lo.transforms.scale_by_path(rule, {"w": factor})


BY_PATH = {"scale_by_path": Transform(_slower, {"learning_rate": 0.1, "factor": 0.5})}

TRANSFORMS = RULES | GUARDS | LOW_PRECISION | BY_PATH

FORMS = {  # further ones of a member above, with other numbers
    "average, of a tail": Transform(_read(AVERAGE), {"start": 1, "every": 2}),
}
