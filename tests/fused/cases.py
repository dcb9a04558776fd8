"""One row per fused loss and option: the fused form, and the dense one as its reference."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lossopt as lo

ROWS, DEPTH, CLASSES = 23, 5, 37


class Fused(NamedTuple):
    """A fused loss of a dict of differentiable inputs, and what it stands for.

    Attributes:
      name: of the row; that of the member, and what is particular.
      fn: `(inputs, weights, **options) -> Mean`, or one value per example with `per_example`.
      inputs: float32 arrays by name.
      weights: float32, some of them 0.
      values: `(inputs, weights) -> one value per example`, from the whole matrix.
      dense: `(inputs, weights) -> Mean`, from the whole matrix.
      masked: names of inputs that have one row per weight.
      matrix: how many numbers the whole matrix holds.
      chunks: options that cut it in every way the loss can be cut.
    """

    name: str
    fn: Callable
    inputs: dict[str, np.ndarray]
    weights: np.ndarray
    values: Callable
    dense: Callable
    masked: tuple[str, ...]
    matrix: int
    chunks: tuple[lo.fused.Chunks, ...]


rng = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


WEIGHTS = np.where(rng.random(ROWS) < 0.2, 0, rng.uniform(0.5, 2.0, ROWS)).astype(np.float32)
_PAIR = {"features": normal(ROWS, DEPTH), "kernel": normal(DEPTH, CLASSES)}
_BIAS, _CAP = {"bias": normal(CLASSES)}, {"soft_cap": np.float32(4.0)}
_NUMBERS = {"label_smoothing": np.float32(0.1), "z_loss": np.float32(0.01)}
_TEACHER = normal(ROWS, 3), normal(3, CLASSES)
_CAPPED = lo.fused.Teacher(*_TEACHER, bias=normal(CLASSES), soft_cap=np.float32(2.0))
_SOFT = {"temperature": np.float32(1.7)}
_LABELS = rng.integers(0, CLASSES, ROWS)
_MANY = rng.random((ROWS, CLASSES)) < 0.2
_EXIST = rng.random(CLASSES) < 0.5
_EXIST[_LABELS] = True
_CUTS = lo.fused.Chunks(rows=8), lo.fused.Chunks(columns=16)  # the last one is smaller


def _linear(name, labels, values, inputs, where=None):
    """`where` says which classes exist; what others have is NaN."""

    def fn(inputs, weights, **options):
        inputs = dict(inputs)
        if where is not None:
            options |= {"where": where}
            for x in {"kernel", "bias"} & inputs.keys():
                inputs[x] = jnp.where(jnp.broadcast_to(where, inputs[x].shape), inputs[x], jnp.nan)
        pair = inputs.pop("features"), inputs.pop("kernel")
        if options.get("transposed"):
            pair = pair[0], jnp.swapaxes(pair[1], 0, 1)
        known = jax.tree.map(lambda x: _as(x, pair[0]), labels)
        function = getattr(lo.fused, name.split()[0])
        return function(*pair, known, weights, **inputs, **options)

    exist = np.flatnonzero(np.ones(CLASSES, bool) if where is None else where)
    whole = lambda inputs, weights: values(inputs, weights, exist)
    dense = lambda inputs, weights: lo.mean(whole(inputs, weights), weights)
    return Fused(name, fn, inputs, WEIGHTS, whole, dense, ("features",), ROWS * CLASSES, _CUTS)


def _as(x, like):
    """Constants as precise as the inputs."""
    return jnp.asarray(x, like.dtype) if x.dtype == np.float32 else x


def _logits(inputs, exist):
    logits = jnp.matmul(inputs["features"], inputs["kernel"])
    logits += inputs["bias"][None, :] if "bias" in inputs else 0
    if "soft_cap" in inputs:
        logits = inputs["soft_cap"] * jnp.tanh(logits / inputs["soft_cap"])
    return logits[:, exist] / inputs.get("temperature", 1)


def _softmax(inputs, weights, exist):
    del weights
    logits, smoothing = _logits(inputs, exist), inputs.get("label_smoothing", 0.0)
    labels = np.searchsorted(exist, _LABELS)
    loss = lo.losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss + inputs.get("z_loss", 0) * jax.nn.logsumexp(logits, axis=-1) ** 2


def _divergence(inputs, weights, exist, teacher=_TEACHER):
    del weights
    names = "features", "kernel", "bias", "soft_cap"
    given = {x: y for x, y in zip(names, teacher, strict=False) if y is not None}
    teacher = {x: _as(y, inputs["features"]) for x, y in given.items()}
    teacher |= {"temperature": jax.lax.stop_gradient(inputs.get("temperature", 1.0))}
    logits, known = _logits(inputs, exist), jax.nn.log_softmax(_logits(teacher, exist))
    loss = jnp.sum(jnp.exp(known) * (known - jax.nn.log_softmax(logits)), axis=-1)
    return loss + inputs.get("z_loss", 0) * jax.nn.logsumexp(logits, axis=-1) ** 2


def _sigmoid(inputs, weights, exist):
    del weights
    labels = jnp.asarray(_MANY[:, exist], inputs["features"].dtype)
    return jnp.mean(lo.losses.sigmoid_cross_entropy(_logits(inputs, exist), labels), axis=-1)


_CROSS_ENTROPY, _BINARY = "linear_softmax_cross_entropy", "linear_sigmoid_cross_entropy"
LINEAR = [
    _linear(_CROSS_ENTROPY, _LABELS, _softmax, _PAIR),
    _linear(f"{_CROSS_ENTROPY} with bias", _LABELS, _softmax, _PAIR | _BIAS),
    _linear(f"{_CROSS_ENTROPY} with soft cap", _LABELS, _softmax, _PAIR | _CAP),
    _linear(f"{_CROSS_ENTROPY} with numbers", _LABELS, _softmax, _PAIR | _NUMBERS),
    _linear(f"{_CROSS_ENTROPY} with padding", _LABELS, _softmax, _PAIR | _NUMBERS, _EXIST),
    _linear(
        f"{_CROSS_ENTROPY} with all",
        _LABELS,
        _softmax,
        _PAIR | _BIAS | _CAP | _NUMBERS | _SOFT,
        _EXIST,
    ),
    _linear(f"{_CROSS_ENTROPY} of a teacher", _TEACHER, _divergence, _PAIR),
    _linear(
        f"{_CROSS_ENTROPY} of a teacher with all",
        _CAPPED,
        partial(_divergence, teacher=_CAPPED),
        _PAIR | _BIAS | _CAP | _SOFT | {"z_loss": np.float32(0.01)},
        _EXIST,
    ),
    _linear(_BINARY, _MANY, _sigmoid, _PAIR),
    _linear(f"{_BINARY} with all", _MANY, _sigmoid, _PAIR | _BIAS | _CAP, _EXIST),
]
_ITEMS = {"a": normal(ROWS, DEPTH), "b": normal(ROWS, DEPTH), "scale": np.float32(1.5)}
_ITEM_LABELS = rng.integers(0, 4, ROWS).astype(np.int32)
_GRADES = rng.integers(0, 4, ROWS).astype(np.int32)
_SCORES = {"scores": normal(ROWS)}
_ROWS_ONLY = (lo.fused.Chunks(rows=8),)


def _pairs_of_items(name, inputs, values):
    def fn(inputs, weights, **options):
        exist = {"weights": weights, "items": weights != 0}
        return getattr(lo.fused, name)(**inputs, **exist, **options)

    exist = lambda inputs, weights: values(**inputs, items=weights != 0)
    dense = lambda inputs, weights: lo.mean(exist(inputs, weights), weights)
    masked = tuple(key for key, x in inputs.items() if x.ndim)
    return Fused(name, fn, inputs, WEIGHTS, exist, dense, masked, ROWS**2, _ROWS_ONLY)


def _supervised(name, inputs):
    def fn(inputs, weights, **options):
        inputs = dict(inputs)
        embeddings = inputs.pop("embeddings")
        return lo.fused.supervised_contrastive(
            embeddings, _ITEM_LABELS, weights, items=weights != 0, **inputs, **options
        )

    def values(inputs, weights):
        return lo.losses.supervised_contrastive(labels=_ITEM_LABELS, items=weights != 0, **inputs)

    dense = lambda inputs, weights: lo.mean(values(inputs, weights), weights)
    return Fused(name, fn, inputs, WEIGHTS, values, dense, ("embeddings",), ROWS**2, _ROWS_ONLY)


def _pairs_of_scores(name, relevance):
    member = name.split()[0]

    def fn(inputs, weights, **options):
        return getattr(lo.fused, member)(inputs["scores"], relevance, weights, **options)

    def values(inputs, weights):
        return getattr(lo.losses, member)(inputs["scores"], relevance, weights)

    dense = lambda inputs, weights: lo.mean(values(inputs, weights))
    return Fused(name, fn, _SCORES, WEIGHTS, values, dense, ("scores",), ROWS**2, _ROWS_ONLY)


def _list(name, inputs):
    def fn(inputs, weights, **options):
        inputs = dict(inputs)
        scores, member = inputs.pop("scores"), getattr(lo.fused, name)
        return member(scores, _GRADES, items=weights != 0, **inputs, **options)

    def values(inputs, weights):
        return getattr(lo.losses, name)(relevance=_GRADES, items=weights != 0, **inputs)

    dense = lambda inputs, weights: lo.mean(values(inputs, weights))
    return Fused(name, fn, inputs, WEIGHTS, values, dense, ("scores",), ROWS**2, _ROWS_ONLY)


_BIT = (_GRADES > 1).astype(np.int32)
PAIRS = [
    _pairs_of_items("clip", _ITEMS, lo.losses.clip),
    _pairs_of_items("sigmoid_pairs", _ITEMS | {"bias": np.float32(-1.0)}, lo.losses.sigmoid_pairs),
    _supervised(
        "supervised_contrastive", {"embeddings": _ITEMS["a"], "temperature": np.float32(0.7)}
    ),
    _pairs_of_scores("pairwise_logistic", _GRADES),
    _pairs_of_scores("pairwise_hinge", _GRADES),
    _pairs_of_scores("pairwise_hinge of two kinds", _BIT),
    _pairs_of_scores("pairwise_squared_hinge", _GRADES),
    _pairs_of_scores("pairwise_squared_hinge of two kinds", _BIT > 0),
    _list("lambda_rank", _SCORES),
    _list("approximate_ndcg", _SCORES | {"temperature": np.float32(0.5)}),
]
LOSSES = {row.name: row for row in LINEAR + PAIRS}
MEMBERS = {name: row for name, row in LOSSES.items() if " " not in name}
_FLAT = {"pairwise_hinge", "lambda_rank"}  # their second derivatives are 0, or as the logistic's
RICHEST = {name: row for name, row in LOSSES.items() if f"{name} with all" not in LOSSES}
RICHEST = {x: row for x, row in RICHEST.items() if "all" in x or x in MEMBERS.keys() - _FLAT}


def shifted(inputs, more):
    """The inputs with one feature more, by which `more` of each row comes to all its logits."""
    (left, *right) = (name for name, x in inputs.items() if x.ndim == 2)
    pair = {left: jnp.concatenate([inputs[left], more[:, None]], axis=1)}
    for name in right:
        x, axis = inputs[name], 0 if name == "kernel" else 1
        ones = jnp.ones_like(jnp.take(x, jnp.array([0]), axis))
        pair[name] = jnp.concatenate([x, ones], axis)
    return inputs | pair


_SMOOTHED = {"label_smoothing": np.float32(0.5)}
_OFFSET = np.full(CLASSES, 1e6, np.float32)
_RAISED = lo.fused.Teacher(*(np.round(2 * x) / 2 for x in _TEACHER), bias=_OFFSET)
SHIFTED = [
    *(LOSSES[f"{_CROSS_ENTROPY}{more}"] for more in ("", " with bias")),
    _linear(f"{_CROSS_ENTROPY} with smoothing", _LABELS, _softmax, _PAIR | _SMOOTHED, _EXIST),
    _linear(
        f"{_CROSS_ENTROPY} of a raised teacher",
        _RAISED,
        partial(_divergence, teacher=_RAISED),
        _PAIR,
    ),
    LOSSES["clip"],
]
SHIFTED = {row.name: row for row in SHIFTED}
