"""Averages that forget: they rest on a steady gradient, and their weights are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.transforms._averages import gather, toward

pytestmark = pytest.mark.usefixtures("optimized")

adam, momentum, rmsprop = lo.transforms.adam, lo.transforms.momentum, lo.transforms.rmsprop
STEPS, SLOW = 200_000, 0.99999
STEADY = np.random.default_rng(0).normal(size=8).astype(np.float32)
SIGN, GAIN = np.sign(STEADY), (1 - SLOW**STEPS) / (1 - SLOW)
SEEN = np.sqrt(1 - SLOW**STEPS)  # by an average that began at 0 and is not debiased
LATE = {
    "adam": (lambda r: adam(1.0, b2=SLOW, regularizer=r), SIGN),
    "adam, both slow": (lambda r: adam(1.0, SLOW, SLOW, regularizer=r), SIGN),
    "adam, scheduled": (
        lambda r: adam(1.0, b2=lambda t: 1 - 1e-5 / (1 + 0 * t), regularizer=r),
        SIGN,
    ),
    "rmsprop": (lambda r: rmsprop(1.0, SLOW, regularizer=r), SIGN / SEEN),
    "nadam": (lambda r: adam(1.0, b2=SLOW, nesterov=True, regularizer=r), SIGN),
    "momentum": (lambda r: momentum(1.0, SLOW, regularizer=r), STEADY * GAIN),
    "nesterov": (
        lambda r: momentum(1.0, SLOW, nesterov=True, regularizer=r),
        STEADY * (1 + SLOW * GAIN),
    ),
}
RULES = {name: make for name, (make, _) in LATE.items()} | {
    "rmsprop, momentum": lambda r: rmsprop(1.0, momentum=SLOW, regularizer=r)
}


def _late(*rules):
    """The updates of each rule after many steps with one gradient."""
    params = jnp.zeros_like(STEADY)

    def step(_, carry):
        return [rule.update(STEADY, s, params)[::-1] for rule, (s, _) in zip(rules, carry)]

    start = [(rule.init(params), params) for rule in rules]
    last = jax.jit(lambda: jax.lax.fori_loop(0, STEPS, step, start))()
    return [np.asarray(updates, np.float64) for _, updates in last]


@pytest.fixture(scope="module")
def late():
    """The last steps of all rules, alone and under a prox that takes half off a gradient of 1."""
    half = lo.regularizers.L1(0.5 * float(abs(STEADY).min()))
    rules = [make(r) for make in RULES.values() for r in (None, half)]
    *steps, theirs = _late(*rules, optax.adam(1.0, b2=SLOW))
    return dict(zip(RULES, zip(steps[::2], steps[1::2]))) | {"optax": (theirs, theirs)}


@pytest.mark.parametrize("name", LATE)
def test_a_steady_gradient_gives_the_step_that_the_formula_gives(name, late):
    np.testing.assert_allclose(-late[name][0], LATE[name][1], rtol=1e-6)


def test_those_of_optax_do_not(late):
    assert (abs(late["optax"][0] / SIGN + 1) > 1e-4).all()


@pytest.mark.parametrize("name", RULES)
def test_the_prox_is_in_the_metric_of_that_step(name, late):
    share = 1 - 0.5 * abs(STEADY).min() / abs(STEADY)
    np.testing.assert_allclose(late[name][1], late[name][0] * share, rtol=2e-6)


def test_moments_in_bfloat16_rest_on_a_steady_gradient_too():
    rules = [adam(1.0, b1, SLOW, moments="bfloat16") for b1 in (0.9, SLOW)]
    np.testing.assert_allclose(-np.stack(_late(*rules)), [SIGN, SIGN], rtol=2**-8 + 2**-9)


@pytest.mark.parametrize("centered", [False, True])
def test_the_beginning_fades_to_nothing(centered):
    rule = rmsprop(1.0, 0.8, 1e-30, initial_accumulator=1.0, centered=centered)
    gradients = jnp.array([1e-6, -1e-8])
    step = lambda state, sign: rule.update(sign * gradients, state)[::-1]
    signs = jnp.where(jnp.arange(400) % 2 == 0, 1.0, -1.0)  # an average near 0
    updates = jax.lax.scan(step, rule.init(gradients), signs)[1]
    np.testing.assert_allclose(updates[-1], [1, -1], rtol=2e-2)


@pytest.mark.parametrize("b", [0.5, 0.9, 0.999, 0.99999])
def test_weights_stay_what_they_are_over_many_steps(b):
    def step(_, carry):
        average, total = carry
        return gather(average, 1 - b, 1 - b), gather(total, 1 - b, 1.0)

    pairs = jax.lax.fori_loop(0, 100_000, step, (jnp.zeros(2), jnp.zeros(2)))
    got = [np.float64(total) - np.float64(lost) for total, lost in pairs]
    seen = -np.expm1(1e5 * np.log(b))
    np.testing.assert_allclose(got, [seen, seen / (1 - b)], rtol=2e-7)


def test_scheduled_weights_are_those_of_float64():
    fresh = np.exp(np.random.default_rng(1).uniform(-14, 0, 3000)).astype(np.float32)

    def step(carry, f):
        seen, left = gather(carry[0], f, f), gather(carry[1], f, 0)
        return (seen, left), (seen, left)

    start = jnp.zeros(2), jnp.array([1.0, 0.0])
    got = jax.lax.scan(step, start, fresh)[1]
    left = np.cumprod(1 - fresh.astype(np.float64))
    for parts, want in zip(got, (1 - left, left)):
        parts = np.asarray(parts, np.float64)
        np.testing.assert_allclose(parts[:, 0] - parts[:, 1], want, rtol=1e-6, atol=1e-37)


def test_the_first_gradient_is_the_average():
    gradients = jnp.array([1e-30, 3.0, -7e20])
    for rule in (adam(1.0, b1=0.99999), momentum(1.0, 0.99999)):
        state = rule.update(gradients, rule.init(gradients))[1]
        np.testing.assert_array_equal(state.inner.mu, gradients)
    state = rmsprop(1.0, 0.99999).update(gradients, rmsprop(1.0).init(gradients))[1]
    np.testing.assert_array_equal(state.inner.nu[1], 9)


def test_what_is_forgotten_leaves_no_rounding_behind():
    assert toward(jnp.float32(1e10), jnp.float32(1.0), jnp.float32(1.0)) == 1
    optimizer = adam(1.0, b1=0.0, b2=0.0)
    state = optimizer.update(jnp.array([1e10]), optimizer.init(jnp.ones(1)))[1]
    updates = optimizer.update(jnp.array([3.0]), state)[0]
    np.testing.assert_allclose(jnp.asarray(updates), [-1], rtol=1e-6)
