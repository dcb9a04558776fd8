"""What is particular to scores of distributions; the family contract is in `tests/contract`."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import lossopt as lo
from tests.compiled import compiled

gaussian_crps = compiled(lo.losses.gaussian_crps)
fair_crps = compiled(partial(lo.losses.ensemble_crps, fair=True))
own_crps = compiled(partial(lo.losses.ensemble_crps, fair=False))

RNG = np.random.default_rng(0)
MEMBERS = RNG.normal(size=(4, 7)).astype(np.float32)
TARGETS = np.float32([0.3, -2.0, 4.0, 0.0])


def integral(distribution, target):
    """Of the square of what the distribution function and the step at the target differ by."""
    below, above = (
        scipy.integrate.quad(square, *limits, epsabs=1e-12, epsrel=1e-11, limit=200)[0]
        for square, limits in (
            (lambda x: distribution.cdf(x) ** 2, (-np.inf, target)),
            (lambda x: distribution.sf(x) ** 2, (target, np.inf)),
        )
    )
    return below + above


class TestGaussian:
    @pytest.mark.parametrize("spread", [0.1, 1.0, 7.0])
    @pytest.mark.parametrize("target", [-3.0, 0.0, 0.8])
    def test_is_the_integral(self, target, spread):
        got = gaussian_crps(np.float32(0.5), np.float32(target), np.float32(2 * np.log(spread)))
        want = integral(scipy.stats.norm(0.5, spread), target)
        np.testing.assert_allclose(got, want, rtol=1e-6)

    @pytest.mark.parametrize("log_variance", [-np.inf, -1e4, -200.0, -80.0])
    def test_a_narrow_one_is_the_absolute_error(self, log_variance):
        loss = compiled(jax.value_and_grad(lo.losses.gaussian_crps, argnums=(0, 1)))
        value, slopes = loss(np.float32(1), np.float32([3])[0], np.float32(log_variance))
        assert value == pytest.approx(2, rel=1e-6)
        np.testing.assert_allclose(slopes, [-1, 1] if log_variance > -np.inf else 0, rtol=1e-6)
        assert loss(np.float32(1), np.float32(1), np.float32(log_variance))[0] < 1e-9

    def test_is_least_at_the_distribution_of_the_targets(self):
        targets = np.float32(scipy.stats.norm(2, 3).ppf((np.arange(999) + 0.5) / 999))

        def mean(m, s):
            return lo.losses.gaussian_crps(jnp.full(999, m), targets, jnp.full(999, s)).mean()

        slopes = compiled(jax.grad(mean, argnums=(0, 1)))(np.float32(2), np.float32(2 * np.log(3)))
        np.testing.assert_allclose(slopes, 0, atol=2e-3)


class TestEnsemble:
    def test_is_the_integral_for_the_members_as_they_are(self):
        for members, target, got in zip(MEMBERS, TARGETS, own_crps(MEMBERS, TARGETS)):
            edges = np.sort(np.append(members, target).astype(np.float64))
            steps = np.mean(members[:, None] <= edges[:-1], axis=0) - (edges[:-1] >= target)
            np.testing.assert_allclose(got, steps**2 @ np.diff(edges), rtol=1e-5)

    def test_the_fair_one_does_not_depend_on_the_number_of_members(self):
        for size in (2, 4):
            subsets = np.array(list(combinations(range(7), size)))
            draws = MEMBERS[:, subsets]
            per_draw = fair_crps(draws, np.repeat(TARGETS[:, None], len(subsets), axis=1))
            np.testing.assert_allclose(per_draw.mean(1), fair_crps(MEMBERS, TARGETS), rtol=1e-5)
            narrow = own_crps(draws, np.repeat(TARGETS[:, None], len(subsets), axis=1))
            assert (narrow.mean(1) > own_crps(MEMBERS, TARGETS)).all()

    @pytest.mark.parametrize("loss", [fair_crps, own_crps])
    def test_far_from_the_origin_it_keeps_its_digits(self, loss):
        offset = np.float32(2**14)
        members, targets = MEMBERS + offset, TARGETS + offset + 10
        near = loss(members - offset, targets - offset)
        np.testing.assert_allclose(loss(members, targets), near, rtol=1e-6)

    def test_equal_members_have_no_slope_against_each_other(self):
        loss = lambda x: lo.losses.ensemble_crps(x, np.float32(1), fair=True)
        slope = compiled(jax.grad(loss))(np.float32([2, 2, 2, 2]))
        np.testing.assert_allclose(slope, 0.25)
        assert (compiled(jax.grad(loss))(np.ones(4, np.float32)) == 0).all()

    def test_one_member_is_the_absolute_error(self):
        np.testing.assert_allclose(own_crps(MEMBERS[:, :1], TARGETS), abs(MEMBERS[:, 0] - TARGETS))

    @pytest.mark.parametrize(("count", "fair"), [(0, False), (1, True), (0, True)])
    def test_refuses_too_few_members(self, count, fair):
        with pytest.raises(ValueError, match=f"at least {1 + fair} members, got {count}"):
            lo.losses.ensemble_crps(MEMBERS[:, :count], TARGETS, fair=fair)

    def test_refuses_targets_per_member(self):
        with pytest.raises(ValueError, match="Expected targets of shape"):
            lo.losses.ensemble_crps(MEMBERS, MEMBERS, fair=True)
