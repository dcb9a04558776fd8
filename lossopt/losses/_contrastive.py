"""Losses of embeddings: near to those they belong with, far from others. Natural logarithms."""

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._numerics import root, share
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Num, Number
from lossopt.losses._log_sums import lead, log_sum, surprises

Vectors = Float[ArrayLike, "*batch features"]
Embeddings = Float[ArrayLike, "*batch items features"]
Mask = Bool[ArrayLike, "*batch items"] | None


def contrastive(
    a: Vectors, b: Vectors, labels: Num[ArrayLike, "*batch"], *, margin: Number = 1.0
) -> Float[Array, "*batch"]:
    r"""Pulls the embeddings of a pair together, or apart up to a margin (siamese network).

    $$\ell = y \, d^2 + (1 - y) \max(0, m - d)^2, \qquad d = \lVert a - b \rVert_2$$

    Args:
      a: shape `[*batch, features]`.
      b: shape `[*batch, features]`.
      labels: $y$, 1 for a pair that belongs together, 0 for one that does not, shape `[*batch]`;
        shares between them are taken too. Outside of [0, 1] the loss is NaN.
      margin: $m \ge 0$, the distance that is far enough.

    Returns:
      One loss per pair, shape `[*batch]`. Where `a` equals `b` its gradient is 0.

    Examples:
      >>> a, b = jnp.array([[0.0, 0.0], [0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> lo.losses.contrastive(a, b, jnp.array([1, 0]))
      Array([25.  ,  0.25], dtype=float32)

    References:
      Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", 2006.
    """
    _checks.at_least(0, margin=margin)
    a, b = _checks.same_shape(a=a, b=b)
    _checks.rank_at_least(1, a=a)
    _checks.exact_shape(a.shape[:-1], labels=labels)
    (labels,) = _checks.floats(labels=labels)
    known = (labels >= 0) & (labels <= 1)
    low, high = jnp.min(labels, initial=0), jnp.max(labels, initial=1)
    message = "contrastive: expected labels in [0, 1], got {low} to {high}."
    _checks.condition(known, message, low=low, high=high)
    labels, squared = jnp.where(known, labels, 0), jnp.sum((a - b) ** 2, axis=-1)
    loss = share(labels, squared) + (1 - labels) * jnp.maximum(0, margin - _length(a - b)) ** 2
    return jnp.where(known, loss, jnp.nan)


def triplet(
    anchors: Vectors, positives: Vectors, negatives: Vectors, *, margin: Number = 1.0
) -> Float[Array, "*batch"]:
    r"""Wants each anchor nearer to its positive than to its negative, by a margin.

    $$\ell = \max(0, \; \lVert a - p \rVert_2 - \lVert a - n \rVert_2 + m)$$

    Args:
      anchors: $a$, shape `[*batch, features]`.
      positives: $p$, shape `[*batch, features]`.
      negatives: $n$, shape `[*batch, features]`.
      margin: $m \ge 0$, the lead that is enough, in units of distance (not squared).

    Returns:
      One loss per triplet, shape `[*batch]`. A distance of 0 has gradient 0.

    Examples:
      >>> a, p, n = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 5.5]])
      >>> lo.losses.triplet(a, p, n)
      Array([0.5], dtype=float32)

    References:
      Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and
      Clustering", 2015 (there with squared distances).
    """
    _checks.at_least(0, margin=margin)
    anchors, positives, negatives = _checks.same_shape(
        anchors=anchors, positives=positives, negatives=negatives
    )
    _checks.rank_at_least(1, anchors=anchors)
    near, far = _length(anchors - positives), _length(anchors - negatives)
    return jnp.maximum(0, near - far + margin)


def info_nce(
    queries: Embeddings, keys: Embeddings, *, temperature: Number, items: Mask = None
) -> Float[Array, "*batch items"]:
    r"""Picks each query's own key among the keys of all items.

    $$\ell_i = -\log \frac{e^{q_i \cdot k_i / T}}{\sum_j e^{q_i \cdot k_j / T}}$$

    Args:
      queries: $q$, shape `[*batch, items, features]`, used as given: normalize them first for
        cosine similarities.
      keys: $k$, shape `[*batch, items, features]`; the key of item i is the positive of query i
        and a negative of all others.
      temperature: $T > 0$, the units of the inner products.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item, shape `[*batch, items]`; NaN where masked, so average them with
      `lo.mean(loss, items)`. Microbatches never cut a list of items.

    Examples:
      >>> lo.losses.info_nce(jnp.eye(2), jnp.eye(2), temperature=0.5).round(4)
      Array([0.1269, 0.1269], dtype=float32)

    References:
      Van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
      2018.
    """
    _checks.exact_shape((), temperature=temperature)
    _checks.above(0, temperature=temperature)
    queries, keys, present, others = _items(items, queries=queries, keys=keys)
    loss = _cross_entropy(_products(queries, keys) / temperature, others)
    return jnp.where(present, loss, jnp.nan)


def nt_xent(
    a: Embeddings, b: Embeddings, *, temperature: Number, items: Mask = None
) -> Float[Array, "*batch items"]:
    r"""Picks each view's other view among all views of all items (SimCLR).

    $$\ell_i = \frac{1}{2} \big(\ell(a_i, b_i) + \ell(b_i, a_i)\big), \qquad
        \ell(u, v) = -\log \frac{e^{u \cdot v / T}}
        {e^{u \cdot v / T} + \sum_{j \ne i} (e^{u \cdot a_j / T} + e^{u \cdot b_j / T})}$$

    Args:
      a: one view of each item, shape `[*batch, items, features]`, used as given: normalize them
        first for cosine similarities.
      b: the other view, shape `[*batch, items, features]`.
      temperature: $T > 0$, the units of the inner products.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item, the mean over its two views, shape `[*batch, items]`; NaN where masked, so
      average them with `lo.mean(loss, items)`. Microbatches never cut a list of items.

    Examples:
      >>> lo.losses.nt_xent(jnp.eye(2), jnp.eye(2), temperature=0.5).round(4)
      Array([0.2395, 0.2395], dtype=float32)

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
    """
    _checks.exact_shape((), temperature=temperature)
    _checks.above(0, temperature=temperature)
    a, b, present, others = _items(items, a=a, b=b)
    twice = jnp.concatenate([others, others], axis=-1)

    def of(view, other):
        products = [_products(view, other), _products(view, view)]
        return _cross_entropy(jnp.concatenate(products, axis=-1) / temperature, twice)

    return jnp.where(present, (of(a, b) + of(b, a)) / 2, jnp.nan)


def clip(
    a: Embeddings, b: Embeddings, scale: Number, *, items: Mask = None
) -> Float[Array, "*batch items"]:
    r"""Picks each item's partner among all, from `a` to `b` and from `b` to `a`.

    $$\ell_i = -\frac{1}{2} \left( \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
        + \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}} \right), \qquad
        z_{ij} = c \, a_i \cdot b_j$$

    Args:
      a: shape `[*batch, items, features]`, used as given: normalize them first for cosine
        similarities.
      b: shape `[*batch, items, features]`; item i of `a` and item i of `b` are partners.
      scale: $c$, an inverse temperature, one number, usually learned as `jnp.exp(log_scale)`.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item, shape `[*batch, items]`; NaN where masked, so average them with
      `lo.mean(loss, items)`. Microbatches never cut a list of items.

    Examples:
      >>> lo.losses.clip(jnp.eye(2), jnp.eye(2), 2.0).round(4)
      Array([0.1269, 0.1269], dtype=float32)

    References:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
    """
    _checks.exact_shape((), scale=scale)
    _checks.fits(scale=scale)
    a, b, present, others = _items(items, a=a, b=b)
    logits = scale * _products(a, b)
    both = _cross_entropy(logits, others) + _cross_entropy(jnp.swapaxes(logits, -1, -2), others)
    return jnp.where(present, both / 2, jnp.nan)


def sigmoid_pairs(
    a: Embeddings, b: Embeddings, scale: Number, bias: Number, *, items: Mask = None
) -> Float[Array, "*batch items"]:
    r"""Tells every pair of items whether it belongs together, each on its own (SigLIP).

    $$\ell_i = \sum_j \log(1 + e^{-y_{ij} (c \, a_i \cdot b_j + h)}), \qquad
        y_{ii} = 1, \quad y_{ij} = -1 \text{ for } j \ne i$$

    Args:
      a: shape `[*batch, items, features]`, used as given: normalize them first for cosine
        similarities.
      b: shape `[*batch, items, features]`; item i of `a` and item i of `b` belong together.
      scale: $c$, one number, usually learned as `jnp.exp(log_scale)`.
      bias: $h$, one number, usually learned from -10, because most pairs are negative.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item of `a`, a sum over the items of `b`, shape `[*batch, items]`; NaN where
      masked, so average them with `lo.mean(loss, items)`. Microbatches never cut a list of items.

    Examples:
      >>> lo.losses.sigmoid_pairs(jnp.eye(2), jnp.eye(2), 2.0, -1.0).round(4)
      Array([0.6265, 0.6265], dtype=float32)

    References:
      Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
    """
    _checks.exact_shape((), scale=scale, bias=bias)
    _checks.fits(scale=scale, bias=bias)
    a, b, present, others = _items(items, a=a, b=b)
    logits = scale * _products(a, b) + bias
    negatives = jnp.sum(jax.nn.softplus(logits), axis=-1, where=others)
    loss = jax.nn.softplus(-_diagonal(logits)) + negatives
    return jnp.where(present, loss, jnp.nan)


def supervised_contrastive(
    embeddings: Embeddings,
    labels: Int[ArrayLike, "*batch items"],
    *,
    temperature: Number,
    items: Mask = None,
) -> Float[Array, "*batch items"]:
    r"""Picks the items of the same label among all other items, on average.

    $$\ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i}
        \log \frac{e^{z_i \cdot z_p / T}}{\sum_{j \ne i} e^{z_i \cdot z_j / T}}, \qquad
        P_i = \{p \ne i: y_p = y_i\}$$

    Args:
      embeddings: $z$, shape `[*batch, items, features]`, used as given: normalize them first for
        cosine similarities.
      labels: $y$, any integers, of which only equality counts, shape `[*batch, items]`.
      temperature: $T > 0$, the units of the inner products.
      items: shape `[*batch, items]`, False for items that do not exist, which are never read.

    Returns:
      One loss per item, shape `[*batch, items]`; 0 where $P_i$ is empty; NaN where masked, so
      average them with `lo.mean(loss, items)`. Microbatches never cut a list of items.

    Examples:
      >>> z, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), jnp.array([0, 1, 0])
      >>> lo.losses.supervised_contrastive(z, labels, temperature=0.5).round(4)
      Array([0.1269, 0.    , 0.1269], dtype=float32)

    References:
      Khosla et al., "Supervised Contrastive Learning", 2020 (the form with the sum outside).
    """
    _checks.exact_shape((), temperature=temperature)
    _checks.above(0, temperature=temperature)
    embeddings, present, others = _items(items, embeddings=embeddings)
    _checks.exact_shape(present.shape, labels=labels)
    (labels,) = _checks.integers(labels=labels)
    logits = _products(embeddings, embeddings) / temperature
    positives = others & (labels[..., :, None] == labels[..., None, :])
    losses = surprises(logits, others)
    count = jnp.maximum(1, jnp.sum(positives, axis=-1, dtype=losses.dtype))
    loss = jnp.sum(losses, axis=-1, where=positives) / count
    return jnp.where(present, loss, jnp.nan)


def _items(items, **embeddings):
    """The embeddings, 0 where masked; who is present; which pairs of two different items are."""
    arrays = _checks.same_shape(**embeddings)
    _checks.rank_at_least(2, **embeddings)
    shape = arrays[0].shape[:-1]
    present = _checks.mask("items", items, shape)
    pairs = present[..., :, None] & present[..., None, :]
    others = pairs & ~jnp.broadcast_to(jnp.eye(shape[-1], dtype=bool), pairs.shape)
    return *(jnp.where(present[..., None], array, 0) for array in arrays), present, others


def _products(a, b):
    return jnp.einsum("...if,...jf->...ij", a, b)


def _diagonal(logits):
    return jnp.diagonal(logits, axis1=-2, axis2=-1)


def _cross_entropy(logits, others):
    """Of each row against its diagonal: the lead of the others through softplus, exact near 0."""
    top, rest = log_sum(logits, others)
    return jax.nn.softplus(lead(top, _diagonal(logits)) + rest)


@jax.custom_jvp
def _length(vectors):
    largest, shares = _scaled(vectors)
    return largest * jnp.sqrt(jnp.sum(shares**2, axis=-1))


@_length.defjvp
def _slope(primals, tangents):
    """By itself: the chain rule multiplies it by a length and divides again."""
    return _length(*primals), jnp.sum(_direction(*primals) * tangents[0], axis=-1)


def _direction(vectors):
    _, shares = _scaled(vectors)
    length = root(jnp.sum(shares**2, axis=-1, keepdims=True))
    return shares / jnp.where(length == 0, 1, length)


def _scaled(vectors):
    """The largest entry and its multiples: squares of very long or short vectors are lost."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, initial=0))
    return largest, vectors / jnp.where(largest == 0, 1, largest)[..., None]
