"""Each function of optax and of its contrib that makes a transformation, and one that it makes."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax

PLAIN = optax.sgd(0.1)
GIVEN = {
    "MultiSteps": (PLAIN, 2),
    "adaptive_grad_clip": (1.0,),
    "add_noise": (0.1, 0.5, 0),
    "apply_if_finite": (PLAIN, 3),
    "clip": (1.0,),
    "clip_by_block_rms": (1.0,),
    "clip_by_global_norm": (1.0,),
    "conditionally_mask": (PLAIN, lambda step, **_: step % 2 == 0),
    "conditionally_transform": (PLAIN, lambda step, **_: step % 2 == 0),
    "ema": (0.9,),
    "flatten": (PLAIN,),
    "lookahead": (PLAIN, 2, 0.5),
    "measure_with_ema": (optax.tree.norm, 0.9),
    "monitor": ({"norm": optax.tree.norm},),
    "scale": (-0.1,),
    "scale_by_backtracking_linesearch": (5,),
    "scale_by_schedule": (lambda count: -0.1 / (1 + count),),
    "scale_by_zoom_linesearch": (5,),
    "snapshot": ("norm", optax.tree.norm),
    "stateless": (lambda updates, params: updates,),
    "stateless_with_tree_map": (lambda u, p: u,),
    "trace": (0.9,),
    "with_extra_args_support": (PLAIN,),
    "contrib.differentially_private_aggregate": (1.0, 0.1, 0),
    "contrib.dpsgd": (0.1, 1.0, 0.1, 0),
    "contrib.mechanize": (PLAIN,),
    "contrib.sam": (PLAIN, PLAIN),
    "contrib.schedule_free": (PLAIN, 0.1),
    "contrib.split_real_and_imaginary": (PLAIN,),
}
MADE = {
    "chain": optax.chain(PLAIN),
    "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(0.1),
    "noisy_sgd": optax.noisy_sgd(0.1, key=0),
}


def rules(params: dict[str, jax.Array]) -> dict[str, Any]:
    """By name, a transformation for these parameters; masks take the first of them."""
    first = {name: name == next(iter(params)) for name in params}
    given = GIVEN | {
        "freeze": (first,),
        "masked": (PLAIN, first),
        "multi_transform": ({"a": PLAIN}, dict.fromkeys(params, "a")),
        "partition": ({"a": PLAIN}, dict.fromkeys(params, "a")),
    }
    made = MADE | {"selective_transform": optax.selective_transform(PLAIN, freeze_mask=first)}
    rooms = (("", optax), ("contrib.", optax.contrib))
    found = {f"{pre}{k}": f for pre, room in rooms for k, f in vars(room).items() if callable(f)}
    with warnings.catch_warnings(action="ignore"):  # optax's own: some of these are deprecated
        tried = {
            name: made[name] if name in made else _made(function, given.get(name))
            for name, function in found.items()
            if not name.startswith(("_", "contrib._"))
        }
    return {name: rule for name, rule in tried.items() if rule is not None}


def _made(function: Callable, given: tuple | None) -> Any:
    """The transformation that a function of optax makes, or None where it makes another thing."""
    if given is not None:
        made = function(*given)
        return made.gradient_transformation() if isinstance(made, optax.MultiSteps) else made
    try:
        needs = _required(function)
        made = function(*[0.1] * len(needs)) if needs in ([], ["learning_rate"]) else None
    except (TypeError, ValueError):  # protocols, types, and functions of another kind
        return None
    return made if isinstance(made, optax.GradientTransformation) else None


def _required(function):
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
