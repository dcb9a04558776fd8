"""Ranking, contrastive and policy losses, read off their docstrings: slow, literal, in numpy.

Whoever changes this file must not look at the code under test, and conversely.
"""

from itertools import permutations, product

import numpy as np
from scipy.optimize import brentq


def margin_ranking(better, worse, *, margin):
    return np.maximum(0, margin - (better - worse))


def pairwise_logistic(scores, relevance, weights=None, *, items=None):
    return _pairwise(lambda d: np.logaddexp(0, -d), scores, relevance, weights, items)


def pairwise_hinge(scores, relevance, weights=None, *, items=None):
    return _pairwise(lambda d: np.maximum(0, 1 - d), scores, relevance, weights, items)


def pairwise_squared_hinge(scores, relevance, weights=None, *, items=None):
    return _pairwise(lambda d: np.maximum(0, 1 - d) ** 2, scores, relevance, weights, items)


def list_softmax(scores, relevance, *, items=None):
    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        if r.sum() == 0:
            return 0.0
        return -sum(r[i] / r.sum() * (s[i] - _log_sum_exp(s)) for i in range(len(s)))

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def list_mle(scores, relevance, *, items=None):
    def formula(s, r):
        if np.isnan(r).any():
            return np.nan
        order = sorted(range(len(s)), key=lambda i: (-r[i], i))
        return -sum(s[order[k]] - _log_sum_exp(s[order[k:]]) for k in range(len(order)))

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def lambda_rank(scores, relevance, *, top=np.inf, items=None):
    def of_order(order, s, r, ideal):
        rank = {i: place for place, i in enumerate(order, start=1)}
        loss = 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if r[i] > r[j]:
                    gain = abs(_gain(r[i]) - _gain(r[j])) / ideal
                    discount = abs(_discount(rank[i], top) - _discount(rank[j], top))
                    loss += gain * discount * np.logaddexp(0, -(s[i] - s[j]))
        return loss

    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        ideal = _ideal_dcg(r, top)
        if ideal == 0:
            return 0.0
        return np.mean([of_order(order, s, r, ideal) for order in _orders(s)])

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def approximate_ndcg(scores, relevance, *, temperature, top=np.inf, items=None):
    def count(s, threshold):
        return sum(1 / (1 + np.exp(-(x - threshold) / temperature)) for x in s)

    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        ideal = _ideal_dcg(r, top)
        if ideal == 0:
            return 0.0
        threshold = -np.inf
        if top < len(s):
            width = temperature * 50
            ends = min(s) - width, max(s) + width
            threshold = brentq(lambda t: count(s, t) - top, *ends, xtol=1e-15, rtol=1e-15)
        dcg = 0.0
        for i in range(len(s)):
            others = [j for j in range(len(s)) if j != i]
            behind = sum(np.exp(-np.logaddexp(0, (s[i] - s[j]) / temperature)) for j in others)
            dcg += _gain(r[i]) * _discount(1 + behind) * count(s[i : i + 1], threshold)
        return 1 - dcg / ideal

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def ndcg(scores, relevance, *, top=np.inf, items=None):
    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        ideal = _ideal_dcg(r, top)
        dcg = lambda order: sum(_gain(r[i]) * _discount(k, top) for k, i in enumerate(order, 1))
        return np.mean([dcg(order) for order in _orders(s)]) / ideal if ideal else 0.0

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def reciprocal_rank(scores, relevance, *, top=np.inf, items=None):
    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        first = lambda order: next((k for k, i in enumerate(order, 1) if r[i] > 0), np.inf)
        firsts = [first(order) for order in _orders(s)]
        return np.mean([1 / k if k <= top else 0.0 for k in firsts])

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def average_precision(scores, relevance, *, items=None):
    def of_order(order, r):
        hits = [k for k, i in enumerate(order, 1) if r[i] > 0]
        return np.mean([n / k for n, k in enumerate(hits, 1)]) if hits else 0.0

    def formula(s, r):
        if not (r >= 0).all():
            return np.nan
        return np.mean([of_order(order, r) for order in _orders(s)])

    return _per_list(formula, np.shape(scores), items, scores, relevance)


def contrastive(a, b, labels, *, margin=1.0):
    distance = np.sqrt(np.sum((a - b) ** 2, axis=-1))
    loss = labels * distance**2 + (1 - labels) * np.maximum(0, margin - distance) ** 2
    return np.where((labels >= 0) & (labels <= 1), loss, np.nan)


def triplet(anchors, positives, negatives, *, margin=1.0):
    near = np.sqrt(np.sum((anchors - positives) ** 2, axis=-1))
    far = np.sqrt(np.sum((anchors - negatives) ** 2, axis=-1))
    return np.maximum(0, near - far + margin)


def info_nce(queries, keys, *, temperature, items=None):
    def formula(q, k):
        z = q @ k.T / temperature
        return [-(z[i, i] - _log_sum_exp(z[i])) for i in range(len(z))]

    return _per_item(formula, np.shape(queries)[:-1], items, queries, keys)


def nt_xent(a, b, *, temperature, items=None):
    def formula(a, b):
        views = np.concatenate([a, b])
        n, losses = len(a), []
        for i in range(2 * n):
            z = views @ views[i] / temperature
            other = (i + n) % (2 * n)
            losses.append(_log_sum_exp(np.delete(z, i)) - z[other])
        return [(losses[i] + losses[i + n]) / 2 for i in range(n)]

    return _per_item(formula, np.shape(a)[:-1], items, a, b)


def clip(a, b, scale, *, items=None):
    def formula(a, b):
        z = scale * a @ b.T
        rows = [z[i, i] - _log_sum_exp(z[i, :]) for i in range(len(z))]
        columns = [z[i, i] - _log_sum_exp(z[:, i]) for i in range(len(z))]
        return [-(row + column) / 2 for row, column in zip(rows, columns)]

    return _per_item(formula, np.shape(a)[:-1], items, a, b)


def sigmoid_pairs(a, b, scale, bias, *, items=None):
    def formula(a, b):
        z = scale * a @ b.T + bias
        sign = lambda i, j: 1 if i == j else -1
        n = range(len(z))
        return [sum(np.logaddexp(0, -sign(i, j) * z[i, j]) for j in n) for i in n]

    return _per_item(formula, np.shape(a)[:-1], items, a, b)


def supervised_contrastive(embeddings, labels, *, temperature, items=None):
    def formula(z, y):
        losses = []
        for i in range(len(z)):
            others = [j for j in range(len(z)) if j != i]
            same = [p for p in others if y[p] == y[i]]
            similarity = z @ z[i] / temperature
            all_others = _log_sum_exp(similarity[others])
            total = -sum(similarity[p] - all_others for p in same)
            losses.append(total / len(same) if same else 0.0)
        return losses

    return _per_item(formula, np.shape(labels), items, embeddings, labels)


def policy_gradient(log_probs, advantages):
    return -advantages * log_probs


def clipped_surrogate(log_probs, old_log_probs, advantages, *, clip_range=0.2):
    low, high = np.broadcast_to(clip_range, 2)
    with np.errstate(over="ignore"):
        ratio = np.exp(log_probs - old_log_probs)
    clipped = np.clip(ratio, 1 - low, 1 + high)
    with np.errstate(invalid="ignore"):  # infinity times an advantage of 0
        loss = -np.minimum(ratio * advantages, clipped * advantages)
    return np.where(advantages == 0, 0.0, loss)


def group_relative(log_probs, old_log_probs, rewards, *, clip_range=0.2, scale=None, items=None):
    def formula(new, old, rewards):
        spread = np.sqrt(np.mean((rewards - np.mean(rewards)) ** 2)) if len(rewards) else 0.0
        spread = spread if scale is None else scale
        equal = len(set(rewards.tolist())) < 2
        advantages = 0.0 * rewards if equal else (rewards - np.mean(rewards)) / spread
        advantages = advantages.reshape(advantages.shape + (1,) * (new.ndim - 1))
        return clipped_surrogate(new, old, advantages, clip_range=clip_range)

    shape = np.shape(rewards)
    tokens = np.shape(log_probs)[len(shape) :]
    return _per_item(formula, shape, items, log_probs, old_log_probs, rewards, tokens=tokens)


def value_clipped(values, old_values, returns, *, clip_range):
    clipped = np.clip(values, old_values - clip_range, old_values + clip_range)
    return np.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def entropy(logits):
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    possible = np.exp(log_p) > 0
    return -np.sum(np.exp(log_p) * np.where(possible, log_p, 0.0), axis=-1)


def sampled_kl(log_probs, reference_log_probs, *, estimator):
    d = np.longdouble(reference_log_probs) - log_probs
    with np.errstate(over="ignore"):
        return {"k1": -d, "k2": d**2 / 2, "k3": np.expm1(d) - d}[estimator].astype(float)


def direct_preference(
    chosen, rejected, reference_chosen, reference_rejected, *, strength, label_smoothing=0.0
):
    h = (chosen - rejected) - (reference_chosen - reference_rejected)
    right, wrong = np.logaddexp(0, -strength * h), np.logaddexp(0, strength * h)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def identity_preference(chosen, rejected, reference_chosen, reference_rejected, *, strength):
    h = (chosen - rejected) - (reference_chosen - reference_rejected)
    return (h - 1 / (2 * strength)) ** 2


def _pairwise(phi, scores, relevance, weights, items):
    weights = np.ones(np.shape(scores)) if weights is None else weights

    def formula(s, r, w):
        exists = [i for i in range(len(s)) if w[i] != 0]
        if np.isnan(r[exists]).any():
            return np.nan
        pairs = [(i, j) for i in exists for j in exists if r[i] > r[j]]
        if not pairs:
            return 0.0
        total = sum(w[i] * w[j] * phi(s[i] - s[j]) for i, j in pairs)
        return total / sum(w[i] * w[j] for i, j in pairs)

    return _per_list(formula, np.shape(scores), items, scores, relevance, weights)


def _gain(relevance):
    return np.expm1(relevance * np.log(2))  # 2 ** relevance - 1


def _discount(rank, top=np.inf):
    return 1 / np.log2(1 + rank) if rank <= top else 0.0


def _ideal_dcg(relevance, top=np.inf):
    best_first = sorted(relevance, reverse=True)
    return sum(_gain(r) * _discount(rank, top) for rank, r in enumerate(best_first, start=1))


def _orders(scores):
    """All orders by decreasing score; equal scores stand in any order."""
    values = sorted(set(scores.tolist()), reverse=True)
    groups = [permutations(np.flatnonzero(scores == value)) for value in values]
    return [sum(order, ()) for order in product(*groups)]


def _log_sum_exp(x):
    return np.logaddexp.reduce(x)


def _per_list(formula, shape, items, *arrays):
    """The formula of one list at every list of a batch, with only the items that exist."""
    exists = np.ones(shape, bool) if items is None else np.asarray(items)
    out = np.empty(shape[:-1])
    for index in np.ndindex(*shape[:-1]):
        out[index] = formula(*(np.asarray(x)[index][exists[index]] for x in arrays))
    return out


def _per_item(formula, shape, items, *arrays, tokens=()):
    """As `_per_list`, for formulas with one result per item: NaN for items that do not exist."""
    exists = np.ones(shape, bool) if items is None else np.asarray(items)
    out = np.full(shape + tokens, np.nan)
    for index in np.ndindex(*shape[:-1]):
        out[index][exists[index]] = formula(*(np.asarray(x)[index][exists[index]] for x in arrays))
    return out
