"""Coefficients and supports of sparse linear models against scikit-learn, whole batch, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets, linear_model
from sklearn.preprocessing import StandardScaler

import lossopt as lo

pytestmark = pytest.mark.usefixtures("optimized")

STEPS = 20_000
RULES = {
    "sgd": lambda rate, r: lo.transforms.sgd(1.9 * rate, regularizer=r),
    "momentum": lambda rate, r: lo.transforms.momentum(rate, 0.9, regularizer=r),
    "adam": lambda rate, r: lo.transforms.adam(_fading(0.1), regularizer=r),
    "rmsprop": lambda rate, r: lo.transforms.rmsprop(_fading(0.1), regularizer=r),
}


def _fading(rate):
    return lambda count: rate * jnp.exp(-5 * count / STEPS)


def _diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(x), (y - y.mean()) / y.std()


def _half_squared_error(x, y, w):
    return lo.losses.squared_error(x @ w, y) / 2


def _lasso():
    x, y = _diabetes()
    model = linear_model.Lasso(0.1, fit_intercept=False, tol=1e-14, max_iter=10**6)
    return x, y, _half_squared_error, 1, lo.regularizers.L1(0.1), model.fit(x, y).coef_


def _elastic_net():
    x, y = _diabetes()
    numbers = {"alpha": 0.2, "l1_ratio": 0.6}
    model = linear_model.ElasticNet(**numbers, fit_intercept=False, tol=1e-14, max_iter=10**6)
    net = lo.regularizers.ElasticNet(0.16, 0.75)  # 0.2 * 0.6 of L1, half of 0.2 * 0.4 of L2
    return x, y, _half_squared_error, 1, net, model.fit(x, y).coef_


def _saga(x, y, strength):
    """L1 of this strength beside the mean loss."""
    c = 1 / (strength * len(y))
    numbers = {"C": c, "l1_ratio": 1, "solver": "saga", "tol": 1e-12, "max_iter": 10**5}
    return linear_model.LogisticRegression(**numbers, fit_intercept=False).fit(x, y).coef_.T


def _logistic():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    loss = lambda x, y, w: lo.losses.sigmoid_cross_entropy(x @ w, y.astype(float))
    return x, y, loss, 1 / 4, lo.regularizers.L1(0.05), _saga(x, y, 0.05)[:, 0]


def _softmax():
    x, y = datasets.load_digits(n_class=5, return_X_y=True)
    x, y = x[:200] / 16 - 0.3, y[:200]
    loss = lambda x, y, w: lo.losses.softmax_cross_entropy(x @ w, y)
    return x, y, loss, 1 / 2, lo.regularizers.L1(0.02), _saga(x, y, 0.02)


@pytest.mark.parametrize("problem", [_lasso, _elastic_net, _logistic, _softmax])
def test_coefficients_and_support_are_those_of_scikit_learn(problem):
    x, y, loss, bend, regularizer, want = problem()
    rate = 1 / (bend * np.linalg.eigvalsh(x.T @ x / len(x)).max())
    assert 0 < (want != 0).sum() < want.size
    with jax.enable_x64(True):
        mean = lambda w: lo.mean(loss(x, jnp.asarray(y), w)).value
        for name, make in RULES.items():
            got = _solve(mean, make(rate, regularizer), jnp.zeros(want.shape))
            np.testing.assert_allclose(got, want, atol=1e-6 * abs(want).max(), err_msg=name)
            np.testing.assert_array_equal(got != 0, want != 0, err_msg=name)


def _solve(loss, optimizer, start):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    walk = lambda start: jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[0][0]
    return jax.jit(walk)(start)
