"""How axes of an enclosing map are named, in all functions alike."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

X, LABELS = jnp.array([[1.0, 0.0], [0.5, 1.0], [0.3, -1.0]]), np.array([0, 1, 0])


def objective(params, x):
    return lo.fused.clip(x, x, params)


def _stepped(axes):
    init, step = lo.train_step(objective, optax.sgd(0.1), axis_name=axes)
    return step(init(2.0), X)


TAKERS = {
    "train_step": _stepped,
    "measure": lambda axes: lo.measure(objective, axis_name=axes)(2.0, X),
    "value_and_grad": lambda axes: lo.value_and_grad(objective, axis_name=axes)(2.0, X),
    "cached_value_and_grad": lambda axes: lo.fused.cached_value_and_grad(
        lambda params, x: x, objective, microbatches=2, axis_name=axes
    )(2.0, X),
    "clip": lambda axes: lo.fused.clip(X, X, 2.0, axis_name=axes),
    "sigmoid_pairs": lambda axes: lo.fused.sigmoid_pairs(X, X, 2.0, -1.0, axis_name=axes),
    "supervised_contrastive": lambda axes: lo.fused.supervised_contrastive(
        X, LABELS, temperature=0.5, axis_name=axes
    ),
}


def test_all_that_take_axes_are_here():
    rooms = lo, lo.fused, lo.losses, lo.regularizers, lo.schedules, lo.transforms
    rooms += lo.training, lo.checkpoint, lo.testing
    public = [x for room in rooms for x in vars(room).values() if inspect.isfunction(x)]
    takers = [x.__name__ for x in public if "axis_name" in inspect.signature(x).parameters]
    assert sorted(takers) == sorted(TAKERS)


@pytest.mark.parametrize("name", TAKERS)
def test_none_and_the_empty_tuple_name_no_axis(name):
    one, other = (TAKERS[name](axes) for axes in (None, ()))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", TAKERS)
def test_a_list_of_names_is_refused(name):
    with pytest.raises(TypeError, match=r"axis_name as a name, a tuple of names or None, got \["):
        TAKERS[name](["data"])
