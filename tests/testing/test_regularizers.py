"""Each law of a regularizer is broken by one that looks right."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.testing import _regularizers

PARAMS = np.array([[1.3, -0.4, 0.02], [0.9, 2.0, -1.1]], np.float32)
STEP = 0.5
LAWS = {law.__name__: law for law in _regularizers.LAWS}


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=["value", "move"])
@dataclasses.dataclass(frozen=True)
class _Made:
    value: Callable
    move: Callable
    strength: float = 0.4

    def __call__(self, params):
        return self.value(self.strength, _wide(params))

    def prox(self, params, step_size):
        step_size = jnp.broadcast_to(step_size, jnp.shape(params))
        moved = self.move(_wide(params), self.strength, step_size)
        return moved.astype(jnp.result_type(params))


def _wide(x):
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _l1(strength, x):
    return strength * jnp.sum(jnp.abs(x))


def _soft(x, strength, step):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - strength * step, 0)


def _zero(strength, x):
    return jnp.zeros((), x.dtype)


def _count(strength, x):
    return strength * jnp.sum(x != 0).astype(x.dtype)


def _traced(x):
    return isinstance(x, jax.core.Tracer)


def _hard(x, strength, step):
    return jnp.where(x**2 > 2 * step * strength, x, 0)


def _differs_when_traced(x, strength, step):
    return _soft(x, strength, step) * (1.001 if _traced(x) and x.dtype == jnp.float32 else 1)


def _group_by_mean_step(x, strength, step):
    return x * jnp.maximum(1 - strength * jnp.mean(step) / jnp.linalg.norm(x), 0)


def _box_that_divides(x, strength, step):
    return jnp.clip(x / step, -1 / step, 1 / step) * step


def _ball_that_compares(x, strength, step):
    norm = jnp.linalg.norm(x)
    return jnp.where(norm > 1, x / norm, x)


class _NoTree:
    def __call__(self, params):
        return _l1(0.4, params)

    def prox(self, params, step_size):
        return _soft(params, 0.4, step_size)


@jax.tree_util.register_static
class _TwoBoxes:
    def __call__(self, params):
        return _zero(0, _wide(params))

    def prox(self, params, step_size):
        size = 1.0 if jnp.ndim(step_size) else 0.9
        return jnp.clip(params, -size, size)


class _ForgetsTheDtype:
    def prox(self, params, step_size):
        return _soft(_wide(params), 0.4, step_size)


BROKEN = {
    "it_is_a_pytree_of_its_numbers": [
        (_NoTree(), "register it"),
        (_Made(lambda s, x: float(s) * jnp.sum(x), _soft), "vmap must take it"),
        (_Made(lambda s, x: _l1(0.4 if _traced(s) else s, x), _soft), "swept ones agree"),
    ],
    "its_value_is_one_number": [
        (_Made(lambda s, x: s * jnp.abs(x), _soft), r"got shape \(2, 3\)"),
        (_Made(lambda s, x: _l1(s, x).astype(jnp.bfloat16), _soft), "got bfloat16"),
        (_Made(lambda s, x: _l1(s, x) / 0, _soft), "got inf"),
    ],
    "its_prox_looks_like_the_parameters": [
        (_ForgetsTheDtype(), "must look like"),
        (_Made(_l1, lambda x, s, t: _soft(x, s, t).reshape(-1)), "must look like"),
    ],
    "its_prox_minimizes": [(_Made(_l1, lambda x, s, t: _soft(x, 2 * s, t)), "pays 0.0")],
    "its_prox_is_firmly_nonexpansive": [(_Made(_count, _hard), "two points exceed")],
    "the_rest_is_a_subgradient": [(_Made(_zero, lambda x, s, t: x / 2), "Moreau")],
    "the_envelope_has_the_gradient": [(_Made(lambda s, x: _l1(2 * s, x), _soft), "envelope")],
    "a_step_of_zero_moves_nothing": [
        (_Made(_l1, lambda x, s, t: _soft(x, s, jnp.maximum(t, 0.1))), "leave the result"),
        (_Made(_zero, lambda x, s, t: jnp.where(t > 0, jnp.clip(x, -1, 1), x)), "the limit"),
        (_Made(_zero, _box_that_divides), "a step of 0"),
    ],
    "jit_and_vmap_agree": [(_Made(_l1, _differs_when_traced), "jit must agree")],
    "a_step_for_each_coordinate_is_taken_or_refused": [
        (_Made(lambda s, x: s * jnp.linalg.norm(x), _group_by_mean_step), "must minimize"),
        (_TwoBoxes(), "must be one step"),
        (
            _Made(
                _zero,
                lambda x, s, t: jnp.clip(x, -1, 1) + jnp.where(t.max() > 0, 0 * t.max() / t, 0),
            ),
            "must not give NaN",
        ),
    ],
    "nan_stays_nan": [
        (_Made(_zero, _ball_that_compares), r"where params has NaN at place 0 of shape \(2, 3\)"),
        (_Made(_l1, lambda x, s, t: jnp.where(s > 0, _soft(x, s, t), x)), "where a number has NaN"),
        (_Made(_l1, lambda x, s, t: jnp.where(t > 0, _soft(x, s, t), x)), "where step_size has"),
        (_Made(lambda s, x: jnp.nansum(s * jnp.abs(x)), _soft), "where a number has NaN"),
    ],
}
CASES = [(law, *case) for law, cases in BROKEN.items() for case in cases]


def test_every_law_is_broken_here():
    assert list(BROKEN) == list(LAWS)


def test_a_good_regularizer_passes():
    lo.testing.check_regularizer(_Made(_l1, _soft), PARAMS)
    lo.testing.check_regularizer(_Made(_l1, _soft), jnp.asarray(PARAMS[0]), step_size=2.0)


@pytest.mark.parametrize(("law", "regularizer", "message"), CASES)
def test_a_law_catches_what_breaks_it(law, regularizer, message):
    with pytest.raises(AssertionError, match=message):
        LAWS[law](regularizer, PARAMS, STEP)


def test_a_refused_metric_is_no_failure():
    def move(x, strength, step):
        if step is not None and jnp.ndim(step):
            raise ValueError("one step only")
        return _soft(x, strength, step)

    class _OneStep:
        def __call__(self, params):
            return _l1(0.4, params)

        def prox(self, params, step_size):
            return move(params, 0.4, step_size)

    LAWS["a_step_for_each_coordinate_is_taken_or_refused"](_OneStep(), PARAMS, STEP)


def test_the_check_names_the_law():
    with pytest.raises(AssertionError, match="the prox must minimize"):
        lo.testing.check_regularizer(_Made(_l1, lambda x, s, t: _soft(x, 2 * s, t)), PARAMS)
    with pytest.raises(ValueError, match="step_size > 0"):
        lo.testing.check_regularizer(_Made(_l1, _soft), PARAMS, step_size=0.0)
