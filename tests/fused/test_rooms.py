"""A name in two rooms is one objective: `fused.f(...)` is `mean(losses.f(...), weights)`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests.fused.test_laws import near, run

rng = np.random.default_rng(11)
LISTS, ITEMS = 4, 9
SCORES = np.round(rng.normal(size=(LISTS, ITEMS)) * 4) / 4  # with ties
EXIST = rng.random((LISTS, ITEMS)) < 0.8
EXIST[0] = True
GRADES = np.where(np.arange(LISTS)[:, None] == 1, 2, rng.integers(0, 4, (LISTS, ITEMS)))
EXIST[2] = False  # a list of nothing
SCORES[0, GRADES[0] == 0] = -np.inf  # what is not relevant is impossible
HEAVY = np.where(rng.random((LISTS, ITEMS)) < 0.2, 0, rng.uniform(0.3, 2, (LISTS, ITEMS)))
EXIST[3, :2], HEAVY[3, :2] = (True, False), (0, 1)  # a rival without weight, one that is none
A, B = rng.normal(size=(2, ITEMS, 3))
A[2] = A[5]
LABELS = rng.integers(0, 3, ITEMS)
PAIRS = {"pairwise_logistic": GRADES, "pairwise_hinge": GRADES, "pairwise_squared_hinge": GRADES}
PAIRS |= {"pairwise_hinge of two kinds": GRADES > 1}
RANKS = {"lambda_rank": {}, "approximate_ndcg": {"temperature": 0.4}}
RANKS |= {f"{name} of the first": known | {"top": 2} for name, known in RANKS.items()}


def holed(x, exist):
    """NaN in what does not exist."""
    return np.where(exist.reshape(exist.shape + (1,) * (x.ndim - exist.ndim)), x, np.nan)


def of_lists(name):
    """Both of scores and weights of items, one number per list."""
    member, inputs = name.split()[0], {"scores": holed(SCORES, EXIST)}
    inputs |= {"weights": holed(HEAVY, EXIST)} if name in PAIRS else {}
    grades = PAIRS.get(name, GRADES)
    known = {"relevance": grades, "items": EXIST} | RANKS.get(name, {})
    inputs |= {"temperature": known.pop("temperature")} if "temperature" in known else {}
    fused, dense = (partial(getattr(room, member), **known) for room in (lo.fused, lo.losses))
    return inputs, lambda x, **options: fused(**x, **options), lambda x: dense(**x), None


def of_items(name, known, **inputs):
    """Both of embeddings, one number per item, with weights for their mean."""
    weights, exist = HEAVY[3], EXIST[3]
    inputs = {key: holed(x, exist) if np.ndim(x) else x for key, x in inputs.items()}
    fused, dense = (partial(getattr(room, name), **known) for room in (lo.fused, lo.losses))
    of_fused = lambda x, **options: fused(**x, items=exist, **options)
    return inputs, of_fused, lambda x: dense(**x, items=exist), weights


def both(name):
    """Inputs, fused and dense of them, and the weights of the mean."""
    if name in PAIRS or name in RANKS:
        return of_lists(name)
    if name == "supervised_contrastive":
        return of_items(name, {"labels": LABELS}, embeddings=A, temperature=0.5)
    more = {"bias": -1.0} if name == "sigmoid_pairs" else {}
    return of_items(name, {}, a=A, b=B, scale=1.5, **more)


NAMES = [*PAIRS, *RANKS, "clip", "sigmoid_pairs", "supervised_contrastive"]
every_name = pytest.mark.parametrize("name", NAMES)


def test_no_name_is_left_out():
    public = [{x for x in vars(room) if x[0] != "_"} for room in (lo.fused, lo.losses)]
    assert set.intersection(*public) == {name for name in NAMES if " " not in name}


@every_name
def test_the_mean_is_that_of_the_losses(name):
    inputs, fused, dense, weights = both(name)
    chunks = {"memory": lo.fused.Chunks(rows=4)}

    def compute(inputs, weights):
        def ours(x, w):
            mean = fused(x, **chunks) if w is None else fused(x, weights=w, **chunks)
            return mean.value, mean.weight

        def theirs(x, w):
            w = w if w is None else jnp.where(EXIST[3], w, 0)
            mean = lo.mean(dense(x), w)
            return mean.value, mean.weight

        argnums = (0,) if weights is None else (0, 1)
        got, want = (
            jax.value_and_grad(fn, argnums, has_aux=True)(inputs, weights) for fn in (ours, theirs)
        )
        return got, want, fused(inputs, per_example=True, **chunks), dense(inputs)

    with jax.enable_x64(True):
        got, want, each, losses = run(compute, inputs, weights)
    near(got, want, 1e-12)
    np.testing.assert_allclose(each, losses, rtol=1e-12, atol=1e-14)  # NaN where masked, too


@every_name
def test_nothing_is_zero_in_both(name):
    """Lists of no items and no lists, or a batch none of whose items exist."""
    fused, dense = (_call(room, name) for room in (lo.fused, lo.losses))
    if name in PAIRS or name in RANKS:
        known = RANKS.get(name, {})
        empty = {shape: [np.zeros(shape)] * 2 for shape in ((2, 0), (0, 3), (0,))}
        compute = lambda x: (fused(*x, **known), lo.mean(dense(*x, **known)))
    else:
        known = {"items": np.zeros(ITEMS, bool)} | ({"labels": LABELS} if "super" in name else {})
        empty = {(0, ITEMS): both(name)[0]}
        compute = lambda x: (fused(**x, **known), lo.mean(dense(**x, **known), known["items"]))
    means = run(lambda each: [compute(x) for x in each], list(empty.values()))
    for shape, (got, want) in zip(empty, means, strict=True):
        assert (got.total, got.weight) == (want.total, want.weight) == (0, np.prod(shape[:-1]))


WRONG = {  # in place of an input that was right
    "scores": [np.zeros(ITEMS), np.zeros((LISTS, ITEMS, 1)), np.zeros((LISTS, ITEMS)) * 1j],
    "relevance": [np.zeros((LISTS, 1)), GRADES * 1j],
    "a": [A[:-1], A[0], A * 1j],
    "embeddings": [A[:-1], A * 1j],
    "labels": [LABELS / 2, LABELS > 0, LABELS[:, None]],
    "items": [np.ones(3, bool), np.ones((LISTS, ITEMS)), np.ones(ITEMS)],
    "top": [0, np.nan, np.ones(1)],
    "temperature": [0.0, -1.0, np.nan, np.ones(1), np.ones(ITEMS)],
    "scale": [np.ones(2)],
    "bias": [np.ones(ITEMS)],
}


@every_name
def test_the_rooms_refuse_alike_and_take_alike(name):
    if name in PAIRS or name in RANKS:
        args = {"scores": SCORES, "relevance": GRADES, "items": EXIST} | RANKS.get(name, {})
        more = {"weights": [HEAVY[:, 1:], -HEAVY, HEAVY * 1j]} if name in PAIRS else {}
    else:
        inputs, _, _, _ = both(name)
        labels = {"labels": LABELS} if "embeddings" in inputs else {}
        args, more = {**inputs, **labels, "items": EXIST[3]}, {}
    seen = 0
    for key, wrong in ((k, x) for k, xs in (WRONG | more).items() for x in xs):
        if key not in args and key not in more:
            continue
        raised = [_refusal(room, name, args | {key: wrong}) for room in (lo.fused, lo.losses)]
        assert raised[0] == raised[1] in (ValueError, TypeError), (key, np.shape(wrong), raised)
        seen += 1
    assert seen >= 6


def test_slopes_near_zero_keep_their_digits():
    def total(scale):
        pair, other = jnp.stack([jnp.ones(2), scale * jnp.ones(2)]), jnp.zeros((1, 2))
        embeddings, labels = jnp.concatenate([pair, other]), np.array([0, 0, 1])
        loss = lo.fused.supervised_contrastive(embeddings, labels, temperature=1.0)
        return loss.total

    value, slope = run(jax.value_and_grad(total), np.float32(10))
    np.testing.assert_allclose(value, 2 * np.exp(-20.0), rtol=1e-5)
    np.testing.assert_allclose(slope, -2 * 2 * np.exp(-20.0), rtol=1e-5)


def test_integers_are_numbers_in_both():
    a, b = (4 * x.astype(np.int32) for x in (A, B))
    want = lo.mean(lo.losses.clip(a, b, 0.1))
    np.testing.assert_allclose(lo.fused.clip(a, b, 0.1).value, want.value, rtol=1e-6)


def _call(room, name):
    return getattr(room, name.split()[0])


def _refusal(room, name, args):
    """The type of what is raised, while tracing or, of values, at the call."""
    try:
        with jax.numpy_rank_promotion("allow"):
            _call(room, name)(**args)
    except Exception as error:
        return type(error)
    return None
