"""Scores far from 0 and far from each other: what is large and equal cancels without a trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests import references, references_coupled

RNG = np.random.default_rng(2)
SCORES = np.round(RNG.normal(size=7) * 64) / 64  # so that offsets and steps are exact in float32
GRADES, TIMES = np.array([2, 0, 3, 1, 0, 2, 5]), np.array([3, 1, 4, 1, 5, 0, 9])
ORDER = np.array([1, 5, 0, 6, 2, 4, 3])
FAR = {  # odd items are the best, and the first to go
    "1e8 away": 8 * np.round(SCORES) + 1e8,
    "1e4 away": SCORES + 1e4,
    "1e6 away": np.round(SCORES * 8) / 8 + 1e6,
    "two groups 1e6 apart": np.round(SCORES * 8) / 8 + 1e6 * (np.arange(7) % 2),
}
EYE, ROOMS = np.eye(7), (lo.losses, references_coupled)


def products(loss):
    """Of embeddings whose products are the scores, in rows of an order of their own."""
    table = np.stack([np.roll(np.arange(7), i) for i in range(7)])
    return lambda z: loss(z[table] if isinstance(z, np.ndarray) else jnp.take(z, table))


def pair(room, name, **numbers):
    return products(lambda table: getattr(room, name)(table, EYE.astype(table.dtype), **numbers))


def both(name, *facts, **numbers):
    loss = getattr(lo.losses, name)
    room = references_coupled if hasattr(references_coupled, name) else references
    reference = getattr(room, name)
    return (lambda z: loss(z, *facts, **numbers)), (lambda z: reference(z, *facts, **numbers))


LOSSES = {
    "list_mle": both("list_mle", ORDER),
    "list_softmax": both("list_softmax", GRADES),
    "lambda_rank": both("lambda_rank", GRADES),
    "approximate_ndcg": both("approximate_ndcg", GRADES, temperature=0.5),
    "pairwise_logistic": both("pairwise_logistic", GRADES),
    "pairwise_hinge": both("pairwise_hinge", GRADES),
    "cox": both("cox", TIMES, np.ones(7)),
    "softmax_cross_entropy": both("softmax_cross_entropy", 3),
    "multiclass_hinge": both("multiclass_hinge", 3),
    "info_nce": tuple(pair(room, "info_nce", temperature=1.0) for room in ROOMS),
    "clip": tuple(pair(room, "clip", scale=1.0) for room in ROOMS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_keep_their_digits_and_slopes_add_up_to_nothing(name):
    loss, reference = LOSSES[name]
    weights = np.linspace(1, 2, 7)
    weigh = lambda x, xp: xp.sum(x * weights.astype(x.dtype)) if xp.ndim(x) else x
    program = jax.jit(jax.value_and_grad(lambda z: weigh(loss(z), jnp)))
    for scores in FAR.values():
        value, slope = program(scores.astype(np.float32))
        np.testing.assert_allclose(value, weigh(reference(scores), np), rtol=1e-5, atol=1e-6)
        assert abs(np.sum(np.asarray(slope, float))) <= 1e-6 * np.sum(np.abs(slope))


A, B = np.random.default_rng(3).integers(-2, 3, (2, 6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 2, 1])
PRODUCTS = {
    "info_nce": lambda a, b: lo.losses.info_nce(a, b, temperature=2.0),
    "clip": lambda a, b: lo.losses.clip(a, b, 0.5),
    "nt_xent": lambda a, b: lo.losses.nt_xent(a, b, temperature=2.0),
    "supervised_contrastive": lambda a, b: lo.losses.supervised_contrastive(
        a, LABELS, temperature=2.0
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_constant_in_all_products_changes_nothing(name):
    @jax.jit
    @jax.value_and_grad
    def program(a, more):
        wider = [jnp.concatenate([x, jnp.full_like(x[:, :1], more)], axis=1) for x in (a, B)]
        return jnp.sum(PRODUCTS[name](*wider))

    want, slope = program(A, 0.0)
    got, rise = program(A, 1024.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(rise, slope, rtol=1e-5, atol=1e-6)


ONE, TWO = np.eye(3)[0], np.array([1, 0])
NEAR = {  # a loss of log(1 + e^-20), and its slope
    "list_softmax": lambda d: lo.losses.list_softmax(jnp.stack([d, 0.0, 0.0 * d]), ONE),
    "list_mle": lambda d: lo.losses.list_mle(jnp.stack([d, 0.0]), TWO),
    "pairwise_logistic": lambda d: lo.losses.pairwise_logistic(jnp.stack([d, 0.0]), TWO),
    "supervised_contrastive": lambda d: lo.losses.supervised_contrastive(
        jnp.stack([jnp.stack([1.0, 0.0]), jnp.stack([d, 0.0]), np.zeros(2, np.float32)]),
        np.array([0, 0, 1]),
        temperature=1.0,
    )[0],
    "info_nce": lambda d: lo.losses.info_nce(jnp.eye(2) * d, jnp.eye(2), temperature=1.0)[0],
}


@pytest.mark.parametrize("name", NEAR)
def test_values_and_slopes_near_zero_keep_their_digits(name):
    value, slope = jax.jit(jax.value_and_grad(NEAR[name]))(np.float32(20))
    others = 2 if name == "list_softmax" else 1
    np.testing.assert_allclose(value, np.log1p(others * np.exp(-20.0)), rtol=1e-5)
    np.testing.assert_allclose(slope, -others / (others + np.exp(20.0)), rtol=1e-5)
