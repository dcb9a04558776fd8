"""What is particular to likelihoods; the family contract is in `tests/contract`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests.compiled import compiled

cox = compiled(lo.losses.cox)
gamma_nll = compiled(lo.losses.gamma_nll)
gaussian_nll = compiled(lo.losses.gaussian_nll)
jensen_shannon = compiled(lo.losses.jensen_shannon)
kl_divergence = compiled(lo.losses.kl_divergence)
poisson_nll = compiled(lo.losses.poisson_nll)
softmax_cross_entropy = compiled(lo.losses.softmax_cross_entropy)
tweedie_deviance = compiled(lo.losses.tweedie_deviance)

RNG = np.random.default_rng(0)
gamma = partial(gamma_nll, shape=2.0)
tweedie = partial(tweedie_deviance, power=1.5)
DIVERGENCES = pytest.mark.parametrize("loss", [kl_divergence, jensen_shannon])


def preflight(loss, *inputs):
    error, _ = jax.jit(checkify.checkify(loss))(*inputs)
    error.throw()


class TestGaussian:
    def test_a_perfect_mean_at_vanishing_variance(self):
        value, gradients = compiled(jax.value_and_grad(gaussian_nll, (0, 1, 2)))(2.0, 2.0, -1e4)
        np.testing.assert_allclose(value, (np.log(2 * np.pi) - 1e4) / 2, rtol=1e-6)
        np.testing.assert_array_equal(gradients, [0, 0, 0.5])

    @pytest.mark.parametrize("residual", [1e-30, 1.0, -1e4])
    def test_overflow_is_infinite_and_points_back(self, residual):
        value, gradients = compiled(jax.value_and_grad(gaussian_nll, (0, 2)))(residual, 0.0, -1e4)
        assert value == np.inf
        np.testing.assert_array_equal(gradients, [np.sign(residual) * np.inf, -np.inf])

    @pytest.mark.parametrize("log_variance", [-20.0, 0.0, 3.0])
    def test_curvature_at_a_perfect_mean_is_the_precision(self, log_variance):
        curvature = compiled(jax.grad(jax.grad(gaussian_nll)))(2.0, 2.0, log_variance)
        np.testing.assert_allclose(curvature, np.exp(-log_variance), rtol=1e-6)

    def test_best_variance_is_the_squared_residual(self):
        by_variance = jax.grad(gaussian_nll, 2)
        np.testing.assert_allclose(by_variance(1.0, 4.0, np.log(9.0)), 0, atol=1e-6)


@pytest.mark.parametrize("loss", [poisson_nll, gamma, tweedie])
class TestLogLink:
    def test_best_where_the_mean_is_the_target(self, loss):
        targets = jnp.array([0.5, 3.0, 200.0])
        slopes = jax.vmap(jax.grad(loss))(jnp.log(targets), targets)
        np.testing.assert_allclose(slopes / targets, 0, atol=1e-6)

    def test_never_nan_at_extremes(self, loss):
        targets = jnp.array([1.0, 1e4] if loss is gamma else [0.0, 1.0, 1e4])
        differentiate = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), (None, 0)))
        for log_mean in (1e4, -1e4):
            value, gradients = differentiate(log_mean, targets)
            assert not np.isnan(value).any()
            assert not np.isnan(gradients).any()

    def test_rows_out_of_range_are_nan_and_weigh_nothing(self, loss):
        log_means, targets = jnp.linspace(-1, 1, 4), jnp.array([1.0, -0.5, np.nan, -2.0])
        assert np.isnan(loss(log_means, targets)).tolist() == [0, 1, 1, 1]
        weighed = lambda z, t: lo.mean(loss(z, t), jnp.array([1, 0, 0, 0])).value
        for gradient in compiled(jax.grad(weighed, (0, 1)))(log_means, targets):
            assert jnp.isfinite(gradient).all()
        with pytest.raises(checkify.JaxRuntimeError, match=r"expected targets >=? 0, got -2\.0"):
            preflight(loss, log_means[2:], jnp.array([1.0, -2.0]))
        preflight(loss, log_means[:1], targets[:1])


def test_zero_is_a_count_and_no_gamma_amount():
    assert np.isfinite(poisson_nll(0.0, 0))
    assert np.isfinite(tweedie(0.0, 0))
    assert np.isnan(gamma(0.0, 0))


def test_probabilities_of_all_counts_add_up_to_one():
    log_probs = -poisson_nll(jnp.full(60, 2.0), jnp.arange(60))
    np.testing.assert_allclose(jnp.exp(log_probs).sum(), 1, rtol=1e-5)


def test_gamma_density_adds_up_to_one():
    t = (jnp.arange(4000) + 0.5) / 200
    density = jnp.exp(-gamma_nll(jnp.full(4000, 0.5), t, shape=3.0))
    np.testing.assert_allclose(density.sum() / 200, 1, rtol=1e-4)


class TestTweedie:
    @pytest.mark.parametrize(
        "power", [0, 1, 2, 3, 1.0, 2.0, -1.5, np.nan, np.float32(2), jnp.array(1.0)]
    )
    def test_other_powers_are_refused_with_advice(self, power):
        with pytest.raises(ValueError, match="squared_error for power 0, poisson_nll for 1, gamma"):
            lo.losses.tweedie_deviance(0.0, 1.0, power=power)

    @pytest.mark.parametrize("log_ratio", [1e-3, 1e-4])
    def test_precise_near_zero(self, log_ratio):
        got = tweedie(np.float32(np.log(3)) + np.float32(log_ratio), np.float32(3))
        np.testing.assert_allclose(got, np.sqrt(3) * log_ratio**2, rtol=5e-3)

    def test_near_power_one_it_is_the_deviance_of_poisson(self):
        z, t = (
            np.random.default_rng(1).normal(size=5).astype(np.float32),
            np.array([0.5, 1, 2, 3, 9], np.float32),
        )
        excess = poisson_nll(z, t) - poisson_nll(np.log(t), t)
        got = tweedie_deviance(z, t, power=1 + 1e-6)
        np.testing.assert_allclose(got, 2 * excess, rtol=1e-4, atol=1e-5)

    def test_zeros_follow_their_limit(self):
        z = jnp.array([-30.0, 0.0, 2.0])
        value, slope = jax.vmap(jax.value_and_grad(tweedie), (0, None))(z, 0.0)
        np.testing.assert_allclose(value, 4 * np.exp(z / 2), rtol=1e-6)
        np.testing.assert_allclose(slope, 2 * np.exp(z / 2), rtol=1e-6)

    def test_power_may_be_learned(self):
        by_power = jax.grad(lambda q, t: tweedie_deviance(0.7, t, power=q))
        at = lambda q, t: np.float64(tweedie_deviance(0.7, t, power=q))
        for t in (0.0, 5.0):
            want = (at(1.51, t) - at(1.49, t)) / 0.02
            np.testing.assert_allclose(by_power(1.5, t), want, rtol=1e-3)


@DIVERGENCES
class TestDivergences:
    LOGITS = RNG.normal(size=(3, 4)).astype(np.float32)

    def test_zero_where_equal(self, loss):
        targets = jax.nn.softmax(self.LOGITS, axis=-1)
        value, gradient = compiled(jax.value_and_grad(lambda z: loss(z, targets).sum()))(
            self.LOGITS + 5
        )
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    @pytest.mark.parametrize("targets", [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    def test_sure_predictions_and_absent_classes_stay_finite(self, loss, targets):
        logits, targets = jnp.array([1e4, -1e4, 0.0]), jnp.array(targets, jnp.float32)
        value, gradients = compiled(jax.value_and_grad(loss, (0, 1)))(logits, targets)
        assert np.isfinite(value)
        assert np.isfinite(gradients).all()

    def test_classes_that_neither_has_are_not_read(self, loss):
        logits, targets = np.array([0.3, -0.2, -np.inf]), np.array([0.6, 0.4, 0.0])
        value, gradient = compiled(jax.value_and_grad(loss))(logits, targets)
        np.testing.assert_allclose(value, loss(logits[:2], targets[:2]), rtol=1e-6)
        np.testing.assert_allclose(gradient[2], 0)

    def test_what_is_no_distribution_is_nan_and_weighs_nothing(self, loss):
        targets = [[0.5, 0.5, 0.1], [-0.1, 0.6, 0.5], [np.nan, 0.5, 0.5], [np.inf, 0, 0], [0, 1, 0]]
        logits, targets, weights = jnp.ones((5, 3)), jnp.array(targets), jnp.array([0, 0, 0, 0, 1])
        assert np.isnan(loss(logits, targets)).tolist() == [1, 1, 1, 1, 0]
        weighed = lambda z, t: lo.mean(loss(z, t), weights).value
        for gradient in compiled(jax.grad(weighed, (0, 1)))(logits, targets):
            assert jnp.isfinite(gradient).all()
        with pytest.raises(checkify.JaxRuntimeError, match="expected probabilities"):
            preflight(loss, logits[:1], targets[:1])
        preflight(loss, logits[4:], targets[4:])

    def test_rounding_of_the_targets_is_forgiven(self, loss):
        assert np.isfinite(loss(jnp.zeros(2), jnp.array([0.9, 0.1], jnp.bfloat16)))
        assert np.isfinite(loss(jnp.zeros(2), np.array([0, 1])))


def test_kl_divergence_is_cross_entropy_less_entropy():
    logits = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    targets = jax.nn.softmax(2 * logits[::-1], axis=-1)
    entropy = -jnp.sum(targets * jnp.log(targets), axis=-1)
    want = softmax_cross_entropy(logits, targets) - entropy
    np.testing.assert_allclose(kl_divergence(logits, targets), want, rtol=1e-5)


class TestJensenShannon:
    def test_precise_near_zero(self):
        logits = jnp.log(jnp.array([0.2, 0.3, 0.5]))
        step = jnp.array([1e-3, -2e-3, 0.5e-3])
        p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (logits + step, logits))
        got = jensen_shannon(logits + step, jax.nn.softmax(logits))
        np.testing.assert_allclose(got, np.sum((p - q) ** 2 / q) / 8, rtol=1e-2)

    def test_roles_may_be_swapped(self):
        a, b = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
        there = jensen_shannon(a, jax.nn.softmax(b))
        np.testing.assert_allclose(jensen_shannon(b, jax.nn.softmax(a)), there, rtol=1e-5)


class TestCox:
    SCORES = RNG.normal(size=(4, 9)).astype(np.float32)
    TIMES = RNG.integers(0, 4, size=(4, 9))
    EVENTS = RNG.random((4, 9)) < 0.7
    ITEMS = RNG.random((4, 9)) < 0.6

    def test_masked_items_are_as_if_absent(self):
        got = cox(self.SCORES, self.TIMES, self.EVENTS, items=self.ITEMS)
        assert (np.isnan(got) == ~self.ITEMS).all()
        keep = self.ITEMS[0]
        alone = [x[0, keep] for x in (self.SCORES, self.TIMES, self.EVENTS)]
        np.testing.assert_allclose(got[0, keep], cox(*alone), atol=1e-6)

    def test_masked_items_are_never_read(self):
        weights = self.EVENTS * self.ITEMS

        @jax.jit
        @jax.value_and_grad
        def average(scores, times, events):
            return lo.mean(cox(scores, times, events, items=self.ITEMS), weights).value

        inputs = [x.astype(np.float32) for x in (self.SCORES, self.TIMES, self.EVENTS)]
        want = average(*inputs)
        assert (want[1][~self.ITEMS] == 0).all()
        for junk in (np.nan, np.inf, -np.inf, 7.0):
            filled = [np.where(self.ITEMS, x, junk).astype(np.float32) for x in inputs]
            for got, wanted in zip(average(*filled), want):
                np.testing.assert_array_equal(got, wanted)
        preflight(partial(cox, items=self.ITEMS), *filled)

    def test_only_the_order_of_times_and_differences_of_scores_count(self):
        scores = np.round(64 * self.SCORES) / 64  # exact at 8192, too
        want = cox(scores, self.TIMES, self.EVENTS)
        got = cox(scores + 8192, 3.0 * self.TIMES - 7, self.EVENTS)
        np.testing.assert_allclose(got, want, atol=1e-6)

    def test_positions_do_not_count(self):
        order = np.random.default_rng(1).permutation(9)
        moved = cox(*(x[:, order] for x in (self.SCORES, self.TIMES, self.EVENTS)))
        want = cox(self.SCORES, self.TIMES, self.EVENTS)
        np.testing.assert_allclose(moved, want[:, order], atol=1e-6)

    def test_those_who_tie_share_a_risk_set(self):
        loss = cox(jnp.zeros(5), jnp.array([2, 1, 2, 2, 3]), jnp.array([1, 1, 1, 0, 1]))
        np.testing.assert_allclose(loss, np.log([4, 5, 4, 1, 1]), atol=1e-6)

    @pytest.mark.parametrize(
        "times", [np.array([0.0, -0.0]), np.array([np.inf, np.inf]), np.array([-np.inf, -np.inf])]
    )
    def test_unusual_ties(self, times):
        np.testing.assert_allclose(cox(jnp.zeros(2), times, jnp.ones(2)), np.log(2))

    def test_large_integer_times_do_not_tie(self):
        times = 1_700_000_000 + np.array([0, 1, 2])
        loss = cox(jnp.zeros(3), times, jnp.ones(3))
        np.testing.assert_allclose(loss, np.log([3, 2, 1]), atol=1e-6)

    def test_extreme_scores_keep_finite_gradients(self):
        scores = np.where(np.random.default_rng(1).random((4, 9)) < 0.5, 1e4, -1e4).astype(
            np.float32
        )
        total = lambda s: cox(s, self.TIMES, self.EVENTS).sum()
        value, gradient = compiled(jax.value_and_grad(total))(scores)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-2)  # 1e4 is known to 1e-3

    def test_one_item_or_none_has_nothing_to_learn_from(self):
        alone = np.arange(9) == np.array([[0], [3], [3], [8]])
        loss = cox(self.SCORES, self.TIMES, np.ones((4, 9)), items=alone)
        assert (loss[alone] == 0).all()
        nobody = cox(self.SCORES, self.TIMES, self.EVENTS, items=np.zeros((4, 9), bool))
        assert np.isnan(nobody).all()
        assert cox(jnp.zeros((2, 0)), jnp.zeros((2, 0)), jnp.zeros((2, 0))).shape == (
            2,
            0,
        )

    def test_other_events_make_the_item_nan_and_lost_times_the_list(self):
        scores, times, events = jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3))
        strange = cox(scores, times, events.at[0, 1].set(0.5))
        assert np.isnan(strange).tolist() == [[0, 1, 0], [0, 0, 0]]
        lost = cox(scores, times.at[1, 0].set(np.nan), events)
        assert np.isnan(lost).tolist() == [[0, 0, 0], [1, 1, 1]]
        with pytest.raises(checkify.JaxRuntimeError, match="cox: expected times other than NaN"):
            preflight(lo.losses.cox, scores, times, 2 * events)

    def test_refusals(self):
        with pytest.raises(TypeError, match="Expected a boolean items"):
            lo.losses.cox(self.SCORES, self.TIMES, self.EVENTS, items=np.ones((4, 9)))
        with pytest.raises(ValueError, match="Expected items of shape"):
            lo.losses.cox(self.SCORES, self.TIMES, self.EVENTS, items=np.ones(9, bool))
        with pytest.raises(ValueError, match="at least 1 axes"):
            lo.losses.cox(0.0, 1.0, 1.0)
