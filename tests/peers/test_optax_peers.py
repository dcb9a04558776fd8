"""Which transformations of optax work here: each of its functions that makes one is tried.

All are traced, inside of a run, which carries their state, and inside of our wrappers. That a run
then takes the steps of a plain loop is in `benchmarks/optax_rules.py`.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from benchmarks._optax import GIVEN, MADE, rules

PAGE = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text()
PARAMS = {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
RULES = rules(PARAMS)
TABLE = PAGE.split("## What of optax works here")[1].split("\n## ")[0]
REFUSED = {
    name.removeprefix("optax.")
    for row in re.findall(r"^\| (`.*?) \|", TABLE, re.MULTILINE)
    for name in re.findall(r"`([\w.]+)`", row)
}
SENTENCE = (
    r"^(The optimizer|optax\.).*(needs|gathers|not like the parameters|of another form)"
    r"|^pytree structure error"  # of scale_by_muon, which fails by itself
)


def _objective(params, batch):
    squares = sum(jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(params))
    return {"fit": lo.constant(squares)}


def _run(rule, params=PARAMS):
    """A run of two epochs, traced."""
    options = {"batch_size": 2, "epochs": 2, "key": jax.random.key(0)}
    train = lambda: lo.training.run(_objective, params, jnp.arange(2.0), rule, **options)
    return jax.eval_shape(train).params


@pytest.fixture(autouse=True)
def _as_optax_is_used():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_all_of_optax_was_found():
    assert len(RULES) > 120
    assert len(REFUSED) == 11  # which the front pages count
    assert GIVEN.keys() | MADE.keys() | REFUSED <= RULES.keys()
    assert {"adam", "lbfgs", "rmsprop", "contrib.muon", "contrib.prodigy"} <= RULES.keys()


@pytest.mark.parametrize("name", sorted(RULES.keys() - REFUSED))
def test_it_runs(name):
    moved = _run(RULES[name])
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_page_excepts_does_not_run(name):
    with pytest.raises(ValueError, match=SENTENCE) as caught:
        _run(RULES[name])
    assert name != "contrib.scale_by_muon" or "scale_by_muon" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", sorted(RULES.keys() - REFUSED))
def test_8_bits_take_it_or_say_why_they_cannot(name):
    why = ""
    try:
        jax.eval_shape(lo.transforms.quantized(RULES[name]).init, PARAMS)
    except ValueError as error:
        why = str(error)
    assert why == "" or why.startswith("8 bits cannot hold")


def test_our_accumulation_takes_all_that_run():
    def step(rule):
        optimizer = lo.transforms.accumulate(rule, 2)
        value_fn = lambda params: lo.value(_objective(params, jnp.arange(2.0)))
        value, grad = jax.value_and_grad(value_fn)(PARAMS)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        return optimizer.update(grad, optimizer.init(PARAMS), PARAMS, **extra)[0]

    for name in sorted(RULES.keys() - REFUSED):
        moved = jax.eval_shape(partial(step, RULES[name]))
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, PARAMS), name


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
