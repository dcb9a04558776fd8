"""The losses of regression, likelihood, classification, decision and overlap in plain numpy.

Written from the formulas of the docstrings, not from the code, and as literally as they read.
"""

from functools import partial, wraps

import numpy as np
from scipy.special import gammaln, log_softmax, logsumexp
from scipy.stats import norm


def per_example(signature=None):
    """Takes the formula of one example to a batch of them; numbers are keywords."""

    def lift(formula):
        @wraps(formula)
        def reference(*arrays, **numbers):
            of_one = np.vectorize(partial(formula, **numbers), [float], signature=signature)
            with np.errstate(over="ignore", divide="ignore"):
                return of_one(*arrays)

        return reference

    return lift


def per_distribution(formula):
    """Takes a formula of log p and y on the kept classes to logits and both kinds of labels."""

    @wraps(formula)
    def reference(logits, labels, *, where=None, ignore_index=None, **numbers):
        kept = np.broadcast_to(True if where is None else where, np.shape(logits))
        loss = np.full(np.shape(logits)[:-1], np.nan)
        for row in np.ndindex(loss.shape):
            y = _distribution(np.asarray(labels)[row], kept[row], ignore_index)
            if y is not None:
                log_p = log_softmax(logits[row][kept[row]])
                loss[row] = formula(log_p, y[kept[row]], **numbers)
        return loss

    return reference


def _distribution(label, kept, ignore_index=None):
    if np.issubdtype(label.dtype, np.integer):
        in_range = 0 <= label < len(kept) and kept[label] and label != ignore_index
        return np.eye(len(kept))[label] if in_range else None
    holds = (label >= 0).all() and (label[~kept] == 0).all() and abs(label.sum() - 1) <= 1e-3
    return label if holds else None


def _cross_entropy(log_p, y):
    return -sum(y_j * log_p_j for y_j, log_p_j in zip(y, log_p) if y_j != 0)


def _missed(p, y):
    # Shares may add up to a little more than 1, but none of a class is missed beyond all of it.
    return sum(max(0, 1 - y_j) * p_j for y_j, p_j in zip(y, p))


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _log_sigmoid(z):
    return -np.logaddexp(0, -z)  # log(1 - sigmoid(z)) is log(sigmoid(-z))


# Regression


@per_example()
def squared_error(p, t):
    return (p - t) ** 2


@per_example()
def absolute_error(p, t):
    return abs(p - t)


@per_example()
def huber(p, t, *, delta=1.0):
    r = p - t
    return r**2 / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)


@per_example()
def log_cosh(p, t):
    return np.logaddexp(p - t, t - p) - np.log(2)  # cosh r = (exp(r) + exp(-r)) / 2


@per_example()
def quantile(p, t, *, level):
    return max(level * (t - p), (level - 1) * (t - p))


@per_example()
def expectile(p, t, *, level):
    return (level if t >= p else 1 - level) * (t - p) ** 2


@per_example()
def squared_log_error(p, t):
    if p <= -1 or t <= -1:
        return np.nan
    return (np.log1p(p) - np.log1p(t)) ** 2


@per_example()
def absolute_percentage_error(p, t):
    return np.nan if t == 0 else abs(p - t) / abs(t)


@per_example("(n),(n)->()")
def cosine_distance(p, t):
    lengths = np.sqrt(p @ p) * np.sqrt(t @ t)
    return 1.0 if lengths == 0 else 1 - p @ t / lengths


# Likelihoods


@per_example()
def gaussian_nll(m, t, s):
    return (np.log(2 * np.pi) + s + (t - m) ** 2 / np.exp(s)) / 2


@per_example()
def gaussian_crps(m, t, s):
    width = np.exp(s / 2)
    z = (t - m) / width
    return width * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


@per_example("(n),()->()")
def ensemble_crps(x, t, *, fair):
    n = len(x)
    k = n - 1 if fair else n
    return abs(x - t).mean() - sum(abs(a - b) for a in x for b in x) / (2 * n * k)


@per_example()
def poisson_nll(z, t):
    return np.nan if t < 0 else np.exp(z) - t * z + gammaln(t + 1)


@per_example()
def gamma_nll(z, t, *, shape):
    if t <= 0:
        return np.nan
    k, d = shape, z - np.log(t)
    return k * (d + np.exp(-d)) + np.log(t) + gammaln(k) - k * np.log(k)


@per_example()
def tweedie_deviance(z, t, *, power):
    if t < 0:
        return np.nan
    mean_to = lambda exponent: np.exp(z * exponent)
    first = (mean_to(2 - power) - t ** (2 - power)) / (2 - power)
    if t == 0:
        return 2 * first
    return 2 * (first - t * (mean_to(1 - power) - t ** (1 - power)) / (1 - power))


@per_distribution
def kl_divergence(log_p, t):
    return sum(t_j * (np.log(t_j) - l_j) for t_j, l_j in zip(t, log_p) if t_j > 0)


@per_example("(n),(n)->()")
def jensen_shannon(z, t):
    if _distribution(t, np.ones(len(t), bool)) is None:
        return np.nan
    p = np.exp(log_softmax(z))
    m = (p + t) / 2
    relative = lambda a: sum(a_j * np.log(a_j / m_j) for a_j, m_j in zip(a, m) if a_j > 0)
    return (relative(p) + relative(t)) / 2


def cox(scores, times, events, *, items=None):
    items = np.ones(np.shape(scores), bool) if items is None else items
    loss = np.full(np.shape(scores), np.nan)
    for row in np.ndindex(loss.shape[:-1]):
        s, tau, e = scores[row], times[row], events[row]
        exist = np.flatnonzero(items[row])
        if np.isnan(tau[exist]).any():
            continue
        for i in exist:
            at_risk = [s[j] for j in exist if tau[j] >= tau[i]]
            if e[i] == 0 or e[i] == 1:
                loss[*row, i] = logsumexp(at_risk) - s[i] if e[i] == 1 else 0
    return loss


# Classification


@per_distribution
def softmax_cross_entropy(log_p, y, *, label_smoothing=0.0):
    a = label_smoothing
    return _cross_entropy(log_p, (1 - a) * y + a / len(y))


@per_distribution
def focal(log_p, y, *, gamma=2.0):
    return _missed(np.exp(log_p), y) ** gamma * _cross_entropy(log_p, y)


@per_distribution
def poly(log_p, y, *, epsilon=2.0):
    return _cross_entropy(log_p, y) + epsilon * _missed(np.exp(log_p), y)


@per_example()
def sigmoid_cross_entropy(z, y):
    if not 0 <= y <= 1:
        return np.nan
    return -y * _log_sigmoid(z) - (1 - y) * _log_sigmoid(-z)


@per_example()
def sigmoid_focal(z, y, *, gamma=2.0, alpha=None):
    if not 0 <= y <= 1:
        return np.nan
    m = y * _sigmoid(-z) + (1 - y) * _sigmoid(z)
    w = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return -w * m**gamma * (y * _log_sigmoid(z) + (1 - y) * _log_sigmoid(-z))


@per_example()
def sigmoid_poly(z, y, *, epsilon):
    if not 0 <= y <= 1:
        return np.nan
    m = y * _sigmoid(-z) + (1 - y) * _sigmoid(z)
    return -y * _log_sigmoid(z) - (1 - y) * _log_sigmoid(-z) + epsilon * m


# Decisions


@per_example()
def hinge(s, y):
    return max(0, 1 - (2 * y - 1) * s) if y in (0, 1) else np.nan


@per_example()
def squared_hinge(s, y):
    return max(0, 1 - (2 * y - 1) * s) ** 2 if y in (0, 1) else np.nan


@per_example("(n),()->()")
def multiclass_hinge(s, y, *, ignore_index=None):
    if not 0 <= y < len(s) or y == ignore_index:
        return np.nan
    rivals = [s[j] for j in range(len(s)) if j != y]
    return max(0, 1 + max(rivals) - s[y]) if rivals else 0


@per_example("(n),()->()")
def ordinal(z, y, *, ignore_index=None):
    if not 0 <= y <= len(z) or y == ignore_index:
        return np.nan
    return -sum(_log_sigmoid(z[k]) if y > k else _log_sigmoid(-z[k]) for k in range(len(z)))


@per_example("(n),(),(n,n)->()")
def cost_sensitive(z, y, costs, *, ignore_index=None):
    if not 0 <= y < len(z) or y == ignore_index:
        return np.nan
    return np.exp(log_softmax(z)) @ costs[y]


@per_example("(n),(n,m)->()")
def decide(z, costs):
    return -1 if np.isnan(z).any() else np.argmin(np.exp(log_softmax(z)) @ costs)


# Overlap


@per_example("(n),(n)->()")
def tversky(z, y, *, alpha, beta, smooth=1.0):
    if not all(0 <= y_i <= 1 for y_i in y):
        return np.nan
    both, only_p, only_y = _sigmoid(z) @ y, _sigmoid(z) @ (1 - y), _sigmoid(-z) @ y
    size = both + alpha * only_p + beta * only_y + smooth
    return 0 if size < 1e-12 else 1 - (both + smooth) / size


def softmax_dice(logits, labels, *, smooth=1.0, ignore_index=None):
    loss, classes = np.empty(logits.shape[:-2]), np.ones(logits.shape[-1], bool)
    for row in np.ndindex(loss.shape):
        counted = [i for i, y in enumerate(labels[row]) if y.ndim or y != ignore_index]
        y = np.array([_distribution(labels[row][i], classes) for i in counted])
        p = np.exp(log_softmax(logits[row][counted], axis=-1))
        shares = []
        for j in range(logits.shape[-1]):
            size = p[:, j].sum() / 2 + y[:, j].sum() / 2 + smooth
            shares.append(0 if size < 1e-12 else 1 - (p[:, j] @ y[:, j] + smooth) / size)
        loss[row] = np.mean(shares)
    return loss


@per_example("(n),(n)->()")
def dice(z, y, *, smooth=1.0):
    if not all(0 <= y_i <= 1 for y_i in y):
        return np.nan
    size = _sigmoid(z).sum() / 2 + y.sum() / 2 + smooth
    return 0 if size < 1e-12 else 1 - (_sigmoid(z) @ y + smooth) / size
