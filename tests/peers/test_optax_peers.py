"""Which transformations of optax work here: each of its functions that makes one is tried.

All are traced, inside of a run, which carries their state, and inside of our wrappers. That a run
then takes the steps of a plain loop is in `tests/training/test_run.py`.
"""

import inspect
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

CONTRIB, PLAIN = optax.contrib, optax.sgd(0.1)
PAGE = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text()
PARAMS = {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
KEY = jax.random.key(0)
FIRST = {"w": True, "b": False}
EVEN = lambda step, **_: step % 2 == 0
GIVEN = {
    "MultiSteps": (PLAIN, 2),
    "adaptive_grad_clip": (1.0,),
    "add_noise": (0.1, 0.5, 0),
    "apply_if_finite": (PLAIN, 3),
    "clip": (1.0,),
    "clip_by_block_rms": (1.0,),
    "clip_by_global_norm": (1.0,),
    "conditionally_mask": (PLAIN, EVEN),
    "conditionally_transform": (PLAIN, EVEN),
    "ema": (0.9,),
    "flatten": (PLAIN,),
    "freeze": (FIRST,),
    "lookahead": (PLAIN, 2, 0.5),
    "masked": (PLAIN, FIRST),
    "measure_with_ema": (optax.tree.norm, 0.9),
    "monitor": ({"norm": optax.tree.norm},),
    "multi_transform": ({"a": PLAIN}, {"w": "a", "b": "a"}),
    "partition": ({"a": PLAIN}, {"w": "a", "b": "a"}),
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
    "selective_transform": optax.selective_transform(PLAIN, freeze_mask=FIRST),
}


def _required(function):
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _made(name, function):
    """The transformation that a function of optax makes, or None where it makes another thing."""
    if name in MADE:
        return MADE[name]
    if name in GIVEN:
        made = function(*GIVEN[name])
        return made.gradient_transformation() if isinstance(made, optax.MultiSteps) else made
    try:
        needs = _required(function)
        made = function(*[0.1] * len(needs)) if needs in ([], ["learning_rate"]) else None
    except (TypeError, ValueError):  # protocols, types, and functions of another kind
        return None
    return made if isinstance(made, optax.GradientTransformation) else None


def _all():
    """All that optax and its contrib make, by name."""
    rooms = (("", optax), ("contrib.", CONTRIB))
    found = {f"{pre}{k}": f for pre, room in rooms for k, f in vars(room).items() if callable(f)}
    with warnings.catch_warnings(action="ignore"):  # optax's own: some of these are deprecated
        made = {k: _made(k, f) for k, f in found.items() if not k.startswith(("_", "contrib._"))}
    return {k: rule for k, rule in made.items() if rule is not None}


RULES = _all()
TABLE = PAGE.split("## What of optax works here")[1].split("\n## ")[0]
REFUSED = {
    name.removeprefix("optax.")
    for row in re.findall(r"^\| (`.*?) \|", TABLE, re.MULTILINE)
    for name in re.findall(r"`([\w.]+)`", row)
}


def _run(rule, params=None):
    """A run of two epochs, traced."""
    params = PARAMS if params is None else params
    squares = lambda params, batch: sum(
        jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(params)
    )
    objective = lambda params, batch: {"fit": lo.constant(squares(params, batch))}
    options = {"batch_size": 2, "epochs": 2, "key": KEY}
    train = lambda: lo.training.run(objective, params, jnp.arange(2.0), rule, **options)
    return jax.eval_shape(train).params


@pytest.fixture(autouse=True)
def _as_optax_is_used():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_all_of_optax_was_found():
    assert len(RULES) > 120
    assert len(REFUSED) == 9  # which the front pages count
    assert GIVEN.keys() | MADE.keys() | REFUSED <= RULES.keys()
    assert {"adam", "lbfgs", "rmsprop", "contrib.muon", "contrib.prodigy"} <= RULES.keys()


@pytest.mark.parametrize("name", sorted(RULES.keys() - REFUSED))
def test_it_runs(name):
    moved = _run(RULES[name])
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_page_excepts_does_not_run(name):
    uneven = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    with pytest.raises((AttributeError, TypeError, ValueError)):
        _run(RULES[name], uneven)


@pytest.mark.parametrize("name", sorted(RULES.keys() - REFUSED))
def test_our_wrappers_take_it_and_8_bits_say_why_they_cannot(name):
    _run(lo.transforms.accumulate(RULES[name], 2))
    why = ""
    try:
        jax.eval_shape(lo.transforms.quantized(RULES[name]).init, PARAMS)
    except ValueError as error:
        why = str(error)
    assert why == "" or why.startswith("8 bits cannot hold")


def test_what_the_page_says_of_loops_of_your_own():
    target = lambda p: sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(p))
    start = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}

    def last(rule, **extra):
        def step(carry, _):
            params, state = carry
            updates, state = rule.update(jax.grad(target)(params), state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return target(jax.lax.scan(step, (start, rule.init(start)), length=20)[0][0])

    assert last(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01))) < 0.2
    assert last(RULES["contrib.sophia"], obj_fn=target) < target(start)
    assert _run(RULES["contrib.scale_by_muon"], jnp.ones((3, 2))).shape == (3, 2)


SCHEDULES = {
    "constant_schedule": (0.1,),
    "cosine_decay_schedule": (0.1, 10),
    "cosine_onecycle_schedule": (10, 0.1),
    "exponential_decay": (0.1, 10, 0.5),
    "join_schedules": ([optax.constant_schedule(0.1)] * 2, [2]),
    "linear_onecycle_schedule": (10, 0.1),
    "linear_schedule": (0.1, 0.0, 10),
    "piecewise_constant_schedule": (0.1, {2: 0.5}),
    "piecewise_interpolate_schedule": ("linear", 0.1, {2: 0.5}),
    "polynomial_schedule": (0.1, 0.0, 2, 10),
    "sgdr_schedule": (
        [{"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2, "decay_steps": 9}],
    ),
    "warmup_constant_schedule": (0.0, 0.1, 3),
    "warmup_cosine_decay_schedule": (0.0, 0.1, 3, 10),
    "warmup_exponential_decay_schedule": (0.0, 0.1, 3, 10, 0.5),
}


def test_schedules_of_optax_are_rates_and_parts_here():
    names = {k for k in vars(optax.schedules) if k.endswith(("schedule", "schedules", "decay"))}
    assert {name for name in names if name[0] != "_"} == set(SCHEDULES)
    for name, numbers in SCHEDULES.items():
        schedule = getattr(optax.schedules, name)(*numbers)
        wrapped = lo.schedules.warmup(lo.schedules.scale(schedule, 2.0), 3)
        optimizer = lo.transforms.sgd(schedule)
        state = optimizer.init(jnp.ones(()))
        for count in range(2):
            updates, state = optimizer.update(jnp.ones(()), state)
            np.testing.assert_allclose(updates, -schedule(count), err_msg=name)
            np.testing.assert_allclose(wrapped(3 + count), 2 * schedule(count), err_msg=name)


def test_private_descent_takes_the_first_axis_for_examples():
    gradients = {"w": jnp.array([[3.0, 0.0], [0.0, 1.0]]), "b": jnp.array([1.0, 3.0])}
    rule = optax.contrib.differentially_private_aggregate(1e3, 0.0, 0)
    updates, _ = rule.update(gradients, rule.init(gradients), gradients)
    assert updates["w"].tolist() == [1.5, 0.5]  # broadcast over the rows by apply_updates
    assert updates["b"] == 2
