"""What is particular to losses of real values; the family contract is in `tests/contract`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests.compiled import compiled

absolute_error = compiled(lo.losses.absolute_error)
absolute_percentage_error = compiled(lo.losses.absolute_percentage_error)
cosine_distance = compiled(lo.losses.cosine_distance)
expectile = compiled(lo.losses.expectile)
huber = compiled(lo.losses.huber)
log_cosh = compiled(lo.losses.log_cosh)
quantile = compiled(lo.losses.quantile)
squared_error = compiled(lo.losses.squared_error)
squared_log_error = compiled(lo.losses.squared_log_error)

RNG = np.random.default_rng(0)
TARGETS = RNG.gamma(2.0, size=2001).astype(np.float32)
LEVELS = pytest.mark.parametrize("level", [0.1, 0.5, 0.9])


def slope(loss, constant):
    """Slope of the mean loss of predicting one constant for all targets."""
    mean = lambda c: lo.mean(loss(jnp.full(TARGETS.shape, c), TARGETS)).value
    return compiled(jax.grad(mean))(jnp.float32(constant))


def preflight(loss, *inputs):
    error, _ = jax.jit(checkify.checkify(loss))(*inputs)
    error.throw()


class TestBestConstant:
    def test_of_squared_error_is_the_mean(self):
        np.testing.assert_allclose(slope(squared_error, TARGETS.mean()), 0, atol=1e-5)

    def test_of_absolute_error_is_the_median(self):
        np.testing.assert_allclose(slope(absolute_error, np.median(TARGETS)), 0, atol=1e-6)

    @LEVELS
    def test_of_quantile_is_the_quantile(self, level):
        best = slope(partial(quantile, level=level), np.quantile(TARGETS, level))
        np.testing.assert_allclose(best, 0, atol=1e-3)

    @LEVELS
    def test_of_expectile_balances_what_lies_above_and_below(self, level):
        loss = partial(expectile, level=level)
        above = lambda c: np.maximum(TARGETS - c, 0).mean()
        below = lambda c: np.maximum(c - TARGETS, 0).mean()
        for c in (1.0, 2.0, 4.0):
            want = 2 * ((1 - level) * below(c) - level * above(c))
            np.testing.assert_allclose(slope(loss, c), want, rtol=1e-4)


@pytest.mark.parametrize("loss", [quantile, expectile])
def test_levels_of_a_half_are_halves(loss):
    whole = {"quantile": absolute_error, "expectile": squared_error}
    a, b = np.random.default_rng(1).normal(size=(2, 9)).astype(np.float32)
    want = whole[loss.__name__](a, b) / 2
    np.testing.assert_allclose(loss(a, b, level=0.5), want, rtol=1e-6)


def test_many_levels_at_once():
    levels = jnp.array([0.1, 0.5, 0.9])
    together = jax.vmap(lambda level: quantile(0.0, 1.0, level=level))(levels)
    np.testing.assert_allclose(together, levels)


def test_a_perfect_prediction_has_slope_zero():
    for loss in (absolute_error, absolute_percentage_error):
        assert compiled(jax.grad(loss))(2.0, 2.0) == 0


class TestHuber:
    def test_slope_stops_at_delta(self):
        slopes = jax.vmap(jax.grad(partial(huber, delta=2.0)), (0, None))
        at = jnp.array([-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0])
        np.testing.assert_allclose(slopes(at, 0.0), jnp.clip(at, -2, 2))

    def test_curvature_at_zero(self):
        assert compiled(jax.grad(jax.grad(huber)))(0.0, 0.0) == 1

    def test_an_infinite_delta_is_half_the_squared_error(self):
        assert huber(3.0, 0.0, delta=np.inf) == 4.5


class TestLogCosh:
    @pytest.mark.parametrize("r", [1e-12, -1e-4, 0.1, 0.9999999, 1.0, -1.0000001, 20.0])
    def test_precise_at_every_size(self, r):
        exact = np.float64(np.float32(r))
        want = np.log1p(2 * np.sinh(exact / 2) ** 2)
        np.testing.assert_allclose(log_cosh(r, 0.0), want, rtol=1e-6)
        np.testing.assert_allclose(compiled(jax.grad(log_cosh))(r, 0.0), np.tanh(exact), rtol=1e-6)

    def test_does_not_overflow(self):
        for r in (1e4, -1e4, 1e38):
            value, gradient = compiled(jax.value_and_grad(log_cosh))(r, 0.0)
            np.testing.assert_allclose(value, abs(r) - np.log(2), rtol=1e-6)
            assert gradient == np.sign(r)

    def test_curvature_at_zero(self):
        assert compiled(jax.grad(jax.grad(log_cosh)))(0.0, 0.0) == 1


OUT = [  # a loss, predictions, targets, rows in range, what a preflight says
    (
        squared_log_error,
        [0.0, -1.0, 1.0, 1.0, -0.5],
        [0.0, 1.0, -1.0, np.nan, -0.5],
        [1, 0, 0, 0, 1],
        "squared_log_error: expected predictions and targets > -1, got",
    ),
    (
        absolute_percentage_error,
        [0.0, 1.0, 2.0],
        [0.0, -0.0, -2.0],
        [0, 0, 1],
        "absolute_percentage_error: expected targets other than 0, got 2 that are 0",
    ),
]


@pytest.mark.parametrize(("loss", "predictions", "targets", "known", "message"), OUT)
def test_rows_out_of_range_are_nan_and_weigh_nothing(loss, predictions, targets, known, message):
    predictions, targets, known = jnp.array(predictions), jnp.array(targets), jnp.array(known)
    assert (~jnp.isnan(loss(predictions, targets)) == known).all()
    weighed = lambda p, t: lo.mean(loss(p, t), known).value
    for gradient in compiled(jax.grad(weighed, (0, 1)))(predictions, targets):
        assert jnp.isfinite(gradient).all()
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        preflight(loss, predictions, targets)
    preflight(loss, predictions[-1:], targets[-1:])


class TestCosineDistance:
    A, B = RNG.normal(size=(2, 4, 3)).astype(np.float32)

    @pytest.mark.parametrize("length", [1e-30, 1e-3, 1e4, 1e30])
    def test_lengths_do_not_count(self, length):
        got = cosine_distance(length * self.A, self.B / length)
        np.testing.assert_allclose(got, cosine_distance(self.A, self.B), rtol=1e-5)

    def test_precise_between_nearly_parallel_vectors(self):
        turned = jnp.array([jnp.cos(1e-4), jnp.sin(1e-4)])
        got = cosine_distance(jnp.array([1.0, 0.0]), turned)
        np.testing.assert_allclose(got, 5e-9, rtol=1e-3)

    def test_a_vector_of_zeros_has_loss_one_and_no_gradient(self):
        zeros = np.zeros(3, np.float32)
        differentiate = compiled(jax.value_and_grad(cosine_distance, (0, 1)))
        for a, b in ((zeros, self.B[0]), (self.A[0], zeros), (zeros, zeros)):
            value, gradients = differentiate(a, b)
            assert value == 1
            np.testing.assert_array_equal(gradients, 0)

    def test_gradient_is_at_right_angles(self):
        gradient = compiled(jax.grad(lambda a: cosine_distance(a, self.B).sum()))(self.A)
        np.testing.assert_allclose(jnp.sum(gradient * self.A, axis=-1), 0, atol=1e-6)

    def test_refuses_numbers(self):
        with pytest.raises(ValueError, match="at least 1 axes"):
            lo.losses.cosine_distance(1.0, 1.0)
