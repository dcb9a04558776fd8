"""`python -O` turns assertions off, and no law."""

import subprocess
import sys

CODE = """
import dataclasses

import jax
import jax.numpy as jnp
import lossopt as lo
import optax

assert False, "assertions are on"
x = jnp.array([0.3, -0.7, 1.1, 2.0])


def narrow(predictions, targets):
    if jnp.shape(predictions) != jnp.shape(targets):
        raise ValueError
    return jnp.square(predictions - targets)


@jax.tree_util.register_static
class Narrow:
    def __call__(self, params):
        return jnp.sum(jnp.abs(params))

    def prox(self, params, step_size):
        return lo.regularizers.L1(1.0).prox(params, step_size)


def growing(rate):
    update = lambda updates, state, params=None: (updates, jnp.append(state, 0.0))
    return optax.GradientTransformation(lambda params: jnp.zeros(1), update)


half = jax.custom_vjp(lambda x: jnp.sum(x**2))
half.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, g: (x * g,))
for name, *arguments in (
    ("check_loss", narrow, x, x[::-1]),
    ("check_regularizer", Narrow(), x),
    ("check_transform", growing, {"rate": 0.1}),
    ("check_schedule", lambda count: jnp.ones(1), 3),
    ("check_gradient", half, x),
):
    try:
        getattr(lo.testing, name)(*arguments)
    except AssertionError:
        print(name)
"""


def test_every_check_finds_a_fault_without_assertions():
    run = [sys.executable, "-O", "-c", CODE]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    checks = "loss", "regularizer", "transform", "schedule", "gradient"
    assert out.stdout.split() == [f"check_{name}" for name in checks]
