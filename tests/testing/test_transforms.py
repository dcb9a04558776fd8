"""Each law of `check_transform` finds the transformation that breaks it."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import lossopt as lo
from lossopt.testing import _transforms

check = lo.testing.check_transform
tree_map = jax.tree.map


def _scaled(rate, *, init=lambda params: (), update=None):
    """Descent, with a state that does nothing good."""

    def step(updates, state, params=None):
        state = update(state) if update else state
        return tree_map(lambda g: (-rate * g).astype(g.dtype), updates), state

    return optax.GradientTransformation(init, step)


def test_a_plain_rule_passes():
    check(_scaled_by_number, {"rate": 0.1})


def _scaled_by_number(rate):
    def update(updates, count, params=None):
        number = rate(count) if callable(rate) else rate
        return tree_map(lambda g: (-number * g).astype(g.dtype), updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _wide(rate):
    update = lambda updates, state, params=None: (
        tree_map(lambda g: -rate * g.astype(jnp.float32), updates),
        state,
    )
    return optax.GradientTransformation(lambda params: (), update)


def _growing(rate):
    return _scaled(rate, init=lambda p: jnp.zeros(1), update=lambda s: jnp.append(s, 0.0))


def _narrowing(rate):
    init = lambda params: tree_map(jnp.zeros_like, params)
    return _scaled(rate, init=init, update=partial(tree_map, lambda s: s.astype(jnp.float32)))


def _weak(rate):
    return _scaled(rate, init=lambda params: 0.0, update=lambda s: jnp.float32(s + 1))


def _branching(rate):
    return _scaled(rate if rate < 1 else 1.0)


BROKEN = {
    "updates must look like the parameters": _wide,
    "a state must keep its structure, shapes and dtypes": _growing,
    "a state must keep its structure": _narrowing,
    "a second step must not compile again": _weak,
    "gives what a loop over them gives. Got: rate: ": _branching,
    "A schedule that is constant does what its number does. Got: rate: ": partial(_scaled),
}


@pytest.mark.parametrize(("law", "make"), BROKEN.items(), ids=BROKEN)
def test_a_broken_law_is_named(law, make):
    with pytest.raises(AssertionError, match=law):
        check(make, {"rate": 0.1})


def test_a_leaf_by_name_is_found_inside_masked():
    def make(rate):
        def update(updates, count, params=None):
            number = rate(count) if callable(rate) else rate
            step = lambda g: (-number * g).astype(g.dtype)
            return {"w": step(updates["w"]), "b": step(updates["b"])}, count + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    with pytest.raises(AssertionError, match="Got: on one leaf alone: KeyError: 'b'"):
        check(make, {"rate": 0.1})


def test_a_number_that_vmap_changes_is_found():
    def make(first, rate):
        batched = "batch" in str(type(rate)).lower()
        return _scaled_by_number(2 * rate if batched else rate)

    with pytest.raises(AssertionError, match=r"Got: rate: \s+Not equal"):
        check(make, {"first": 0.2, "rate": 0.1})


def test_the_number_that_is_no_schedule_is_named():
    def make(rate, decay):
        rule = _scaled_by_number(rate)
        keep = 1 - decay  # no schedule
        update = lambda u, *state: rule.update(
            tree_map(lambda g: (keep * g).astype(g.dtype), u), *state
        )
        return optax.GradientTransformation(rule.init, update)

    with pytest.raises(AssertionError, match="Got: decay: TypeError"):
        check(make, {"rate": 0.1, "decay": 0.5})


def test_the_host_in_which_it_fails_is_named():
    def make(rate):
        if isinstance(rate, jax.Array):
            raise ValueError("a Python number, please")
        return _scaled_by_number(rate)

    with pytest.raises(AssertionError, match=r"^inside optax\.inject_hyperparams: ValueError"):
        _transforms.it_works_inside_optax(_transforms.Subject(make, {"rate": 0.1}, {}, False))


def test_wide_updates_are_asked_for():
    def make(rate):
        inner = _scaled_by_number(rate)

        def update(updates, count, params=None):
            return inner.update(tree_map(lambda g: g.astype(jnp.float32), updates), count)

        return optax.GradientTransformation(inner.init, update)

    check(make, {"rate": 0.1}, wide=True)
    with pytest.raises(AssertionError, match="updates must look like"):
        check(make, {"rate": 0.1})


def test_extra_arguments_are_given():
    def make(rate):
        inner = _scaled_by_number(rate)
        update = lambda updates, state, params=None, *, value, **extra: inner.update(
            tree_map(lambda g: g * value, updates), state
        )
        return optax.GradientTransformationExtraArgs(inner.init, update)

    check(make, {"rate": 0.1}, extra={"value": 2.0})
    with pytest.raises(AssertionError, match="value"):
        check(make, {"rate": 0.1})
