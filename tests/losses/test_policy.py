"""What is particular to losses of policies; the family contract is in `tests/contract`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests.compiled import compiled

clipped_surrogate = compiled(lo.losses.clipped_surrogate)
direct_preference = compiled(lo.losses.direct_preference)
entropy = compiled(lo.losses.entropy)
group_relative = compiled(lo.losses.group_relative)
identity_preference = compiled(lo.losses.identity_preference)
policy_gradient = compiled(lo.losses.policy_gradient)
sampled_kl = lo.losses.sampled_kl
value_clipped = compiled(lo.losses.value_clipped)

RNG = np.random.default_rng(0)
LOG_PROBS, OLD, ADVANTAGES = RNG.normal(size=(3, 6)).astype(np.float32)
CONSTANTS = {
    "policy_gradient": (policy_gradient, 1, 2),
    "clipped_surrogate": (clipped_surrogate, 1, 3),
    "value_clipped": (partial(value_clipped, clip_range=0.2), 1, 3),
    "direct_preference": (partial(direct_preference, strength=0.1), 2, 4),
    "identity_preference": (partial(identity_preference, strength=0.1), 2, 4),
    "sampled_kl": (partial(sampled_kl, estimator="k3"), 1, 2),
    "group_relative": (group_relative, 1, 3),
}


@pytest.mark.parametrize(("loss", "varied", "total"), CONSTANTS.values(), ids=CONSTANTS)
def test_what_an_algorithm_holds_constant_has_no_gradient(loss, varied, total):
    inputs = RNG.normal(size=(total, 6)).astype(np.float32)
    gradients = compiled(jax.grad(lambda *x: loss(*x).sum(), argnums=tuple(range(total))))(*inputs)
    assert all((g != 0).any() for g in gradients[:varied])
    assert all((g == 0).all() for g in gradients[varied:])


class TestClippedSurrogate:
    def test_is_the_policy_gradient_at_the_old_policy(self):
        at_old = lambda x: clipped_surrogate(x, x, ADVANTAGES).sum()
        want = compiled(jax.grad(lambda x: policy_gradient(x, ADVANTAGES).sum()))(LOG_PROBS)
        np.testing.assert_allclose(compiled(jax.grad(at_old))(LOG_PROBS), want, rtol=1e-6)

    @pytest.mark.parametrize("log_ratio", [-1e4, -200.0, 200.0, 1e4])
    @pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
    def test_overflow_is_infinite_and_never_nan(self, log_ratio, advantage):
        loss = lambda x: clipped_surrogate(x, 0.0, advantage)
        value, gradient = compiled(jax.value_and_grad(loss))(log_ratio)
        if log_ratio > 0 and advantage < 0:
            assert value == gradient == np.inf
        else:
            assert np.isfinite(value)
            assert gradient == 0

    @pytest.mark.parametrize("old", [-np.inf, -1e9, -200.0])
    @pytest.mark.parametrize("new", [-np.inf, -0.5])
    def test_a_weight_of_zero_masks_what_overflows(self, old, new):
        weights = np.float32([1, 0])
        loss = lambda x: clipped_surrogate(x, np.float32([0, old]), -np.ones(2))
        weighed = lambda x: lo.mean(loss(x), weights).value
        value, gradient = compiled(jax.value_and_grad(weighed))(np.float32([0, new]))
        assert value == 1
        assert gradient.tolist() == [1, 0]

    def test_advantages_that_are_no_number_are_masked_too(self):
        loss = lambda x: clipped_surrogate(x, 0 * x, np.float32([-1, np.nan]))
        weighed = lambda x: lo.mean(loss(x), np.float32([1, 0])).value
        assert compiled(jax.grad(weighed))(np.zeros(2, np.float32)).tolist() == [1, 0]

    def test_stops_only_where_moving_on_would_pay(self):
        far, loss = np.log(2.0), partial(clipped_surrogate, clip_range=0.2)
        slope = lambda log_ratio, advantage: compiled(jax.grad(loss))(log_ratio, 0.0, advantage)
        assert slope(far, 1.0) == slope(-far, -1.0) == 0
        np.testing.assert_allclose([slope(far, -1.0), slope(-far, 1.0)], [2.0, -0.5], rtol=1e-6)


def test_policy_gradient_of_an_impossible_action_without_advantage_is_zero():
    value, slope = compiled(jax.value_and_grad(policy_gradient))(-np.inf, 0.0)
    assert value == slope == 0


def test_value_clipped_within_the_range_is_the_squared_error():
    loss = partial(value_clipped, old_values=0.0, returns=3.0, clip_range=1.0)
    value, slope = compiled(jax.value_and_grad(loss))(0.7)
    np.testing.assert_allclose([value, slope], [2.3**2, -4.6], rtol=1e-6)


class TestEntropy:
    def test_impossible_classes_count_nothing(self):
        masked = np.array([0.3, -np.inf, 1.2, -np.inf], np.float32)
        value, gradient = compiled(jax.value_and_grad(entropy))(masked)
        want, slope = compiled(jax.value_and_grad(entropy))(masked[::2])
        np.testing.assert_allclose(value, want, rtol=1e-6)
        np.testing.assert_allclose(gradient, [slope[0], 0, slope[1], 0], rtol=1e-6)

    @pytest.mark.parametrize("logits", [[1e4, -1e4, 0], [-np.inf, 3, -np.inf], [7]])
    def test_certainty_is_zero(self, logits):
        value, gradient = compiled(jax.value_and_grad(entropy))(np.array(logits, np.float32))
        assert value == 0
        assert (gradient == 0).all()

    def test_is_greatest_for_equal_logits(self):
        value, gradient = compiled(jax.value_and_grad(entropy))(np.full(5, 1e4, np.float32))
        np.testing.assert_allclose(value, np.log(5), rtol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


class TestSampledKl:
    """Averages over all actions, each as often as the policy takes it."""

    POLICY, REFERENCE = (x - np.logaddexp.reduce(x) for x in RNG.normal(size=(2, 5)))

    def _averages(self, estimator):
        taken = np.exp(self.POLICY)
        loss = lambda z: (
            taken @ lo.losses.sampled_kl(jax.nn.log_softmax(z), self.REFERENCE, estimator=estimator)
        )
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, jax.value_and_grad(loss)(self.POLICY))

    def _divergence(self, first, second):
        """Its value, and its slope in the logits of the policy, which comes first or second."""
        p, q = np.exp(first), np.exp(second)
        value = p @ (first - second)
        return value, p * (first - second - value) if first is self.POLICY else q - p

    def test_what_each_is_on_average(self):
        value, slope = self._divergence(self.POLICY, self.REFERENCE)
        _, reverse = self._divergence(self.REFERENCE, self.POLICY)
        (k1, of_k1), (k2, of_k2), (k3, of_k3) = map(self._averages, ("k1", "k2", "k3"))
        np.testing.assert_allclose([k1, k3], value, rtol=1e-12)
        assert abs(k2 / value - 1) > 0.01
        np.testing.assert_allclose(of_k1, 0, atol=1e-12)
        np.testing.assert_allclose(of_k2, slope, rtol=1e-11)
        np.testing.assert_allclose(of_k3, reverse, rtol=1e-11)

    @pytest.mark.parametrize("lead", [-1e-4, 1e-3, 0.02, -0.49, 0.51, 3.0, -40.0])
    def test_k3_keeps_its_digits(self, lead):
        d = np.longdouble(np.float32(lead))
        value, slope = compiled(jax.value_and_grad(partial(lo.losses.sampled_kl, estimator="k3")))(
            -np.float32(lead), np.float32(0)
        )
        np.testing.assert_allclose(value, np.float64(np.expm1(d) - d), rtol=1e-6)
        np.testing.assert_allclose(slope, np.float64(-np.expm1(d)), rtol=1e-6)

    @pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
    def test_an_action_the_reference_cannot_take_is_infinitely_far(self, estimator):
        weights = np.float32([1, 0])
        weighed = lambda x, y: lo.mean(lo.losses.sampled_kl(x, y, estimator=estimator), weights)
        for new, old in ((-1.0, -np.inf), (-np.inf, -np.inf), (-np.inf, -1.0), (-1e9, -1.0)):
            x, y = np.float32([-1, new]), np.float32([-1.5, old])
            slope = jax.grad(lambda x, y: weighed(x, y).value)(x, y)
            assert np.isfinite(slope).all()
            assert slope[1] == 0
        far = lo.losses.sampled_kl(-1.0, -np.inf, estimator=estimator)
        assert far == np.inf


class TestPreferences:
    CHOICES = RNG.normal(size=(4, 6)).astype(np.float32)

    def test_direct_preference_starts_at_log_two(self):
        loss = direct_preference(LOG_PROBS, OLD, LOG_PROBS, OLD, strength=0.1)
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)

    @pytest.mark.parametrize("share", [0.1, 0.4])
    def test_smoothed_it_is_least_where_the_odds_are_those_of_the_labels(self, share):
        lead = np.log((1 - share) / share) / 0.3
        loss = lambda c: direct_preference(c, 0.0, 0.0, 0.0, strength=0.3, label_smoothing=share)
        value, slope = compiled(jax.value_and_grad(loss))(np.float32(lead))
        entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
        np.testing.assert_allclose(value, entropy, rtol=1e-6)
        np.testing.assert_allclose(slope, 0, atol=1e-6)

    def test_smoothing_is_a_preference_turned_round(self):
        c, r, c_ref, r_ref = self.CHOICES
        loss = partial(direct_preference, strength=0.3)
        want = 0.8 * loss(c, r, c_ref, r_ref) + 0.2 * loss(r, c, r_ref, c_ref)
        got = loss(c, r, c_ref, r_ref, label_smoothing=0.2)
        np.testing.assert_allclose(got, want, rtol=1e-6)

    def test_identity_preference_wants_a_lead_and_no_more(self):
        loss = lambda c: lo.losses.identity_preference(c, 0.0, 0.0, 0.0, strength=0.25)
        values = [jax.value_and_grad(loss)(lead) for lead in (0.0, 2.0, 3.0)]
        assert values == [(4, -4), (0, 0), (1, 2)]


class TestGroupRelative:
    loss = staticmethod(group_relative)

    @pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1e4 + 0.1])
    def test_equal_rewards_teach_nothing(self, reward):
        rewards = np.full(6, reward, np.float32)
        assert (self.loss(LOG_PROBS, OLD, rewards) == 0).all()
        assert (
            compiled(jax.grad(lambda x: self.loss(x, OLD, rewards).sum()))(LOG_PROBS) == 0
        ).all()

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_rewards_equal_up_to_rounding_teach_nothing(self, dtype):
        with jax.enable_x64(True):
            rewards = np.array([0.1 + 0.2 + 0.4, 0.7, 0.7, 0.4 + 0.3], dtype)
            rewards[3] = np.nextafter(rewards[3], dtype(1))
            assert np.ptp(rewards) > 0
            zeros = np.zeros(4, dtype)
            for scale in ({}, {"scale": 1.0}):
                assert (self.loss(zeros, zeros, rewards, **scale) == 0).all()
                many = self.loss(zeros, zeros, rewards * np.array([1, 1, 1, 1 + 1e-5]), **scale)
                assert (many != 0).all()

    def test_whole_rewards_are_exact(self):
        rewards = np.array([10_000_000, 10_000_001])
        np.testing.assert_allclose(self.loss(np.zeros(2), np.zeros(2), rewards), [1, -1])

    def test_an_infinite_reward_spoils_its_group_loudly(self):
        for rewards in ([0, np.inf], [0, -np.inf], [np.inf, np.inf], [np.inf, -np.inf]):
            assert np.isnan(self.loss(np.zeros(2), np.zeros(2), np.float32(rewards))).all()

    @pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (3.0, 7.0), (1e6, 0.0)])
    def test_scale_and_origin_of_rewards_do_not_count(self, scale, shift):
        want = self.loss(LOG_PROBS, OLD, ADVANTAGES)
        got = self.loss(LOG_PROBS, OLD, scale * ADVANTAGES + shift)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

    def test_tokens_share_the_advantage_of_their_answer(self):
        log_probs, old = RNG.normal(size=(2, 6, 4)).astype(np.float32)
        got = self.loss(log_probs, old, ADVANTAGES)
        want = jax.vmap(self.loss, in_axes=(1, 1, None), out_axes=1)(log_probs, old, ADVANTAGES)
        assert got.shape == (6, 4)
        np.testing.assert_allclose(got, want, rtol=1e-6)

    @pytest.mark.parametrize("tokens", [(), (4,)])
    def test_masked_answers_are_nan_and_never_read(self, tokens):
        items = np.array([True, False, True, True, False, True])
        spread = items.reshape(6, *[1 for _ in tokens])
        log_probs, old = RNG.normal(size=(2, 6, *tokens)).astype(np.float32)
        padded = np.where(spread, log_probs, np.nan), np.where(spread, old, np.inf)
        rewards = np.where(items, ADVANTAGES, -np.inf)
        got = self.loss(*padded, rewards, items=items)
        assert np.isnan(got[~items]).all()
        want = self.loss(log_probs[items], old[items], ADVANTAGES[items])
        np.testing.assert_allclose(got[items], want, rtol=1e-5)
        average = lambda x: lo.mean(self.loss(x, padded[1], rewards, items=items), items).value
        gradient = compiled(jax.grad(average))(padded[0])
        assert np.isfinite(gradient).all()
        assert (gradient[~items] == 0).all()

    def test_a_wholly_masked_group_is_clean(self):
        none = np.zeros(6, bool)
        average = lambda x: lo.mean(self.loss(x, OLD, ADVANTAGES, items=none), none).value
        assert (compiled(jax.grad(average))(jnp.full(6, jnp.nan)) == 0).all()

    def test_a_nan_reward_spoils_its_group_loudly(self):
        rewards = np.stack([ADVANTAGES, ADVANTAGES])
        rewards[0, 2] = np.nan
        got = self.loss(np.stack([LOG_PROBS] * 2), np.stack([OLD] * 2), rewards)
        assert np.isnan(got).all(axis=1).tolist() == [True, False]

    @pytest.mark.parametrize("rewards", [np.ones(5), np.ones((6, 1)), np.float32(1)])
    def test_refuses_rewards_that_do_not_lead(self, rewards):
        with pytest.raises(ValueError, match="Expected rewards") as refusal:
            self.loss(LOG_PROBS, OLD, rewards)
        assert "per element" not in str(refusal.value)
