"""Ranking, contrastive and policy losses against the same losses of other libraries."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.metrics import log_loss, ndcg_score

import lossopt as lo
from tests.compiled import compiled

RNG = np.random.default_rng(5)
SCORES = RNG.normal(size=(8, 6)).astype(np.float32)
GRADES = RNG.integers(0, 4, size=(8, 6)).astype(np.int32)
A, B, C = RNG.normal(size=(3, 7, 4)).astype(np.float32)


def close(got, want, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class TestScikitLearn:
    """`ndcg_score` takes gains, averages lists and shares the discount among equal scores."""

    def test_approximate_ndcg_is_exact_at_temperature_0(self):
        got = compiled(lo.losses.approximate_ndcg)(SCORES, GRADES, temperature=1e-5)
        want = [1 - ndcg_score([gains], [scores]) for gains, scores in zip(2.0**GRADES - 1, SCORES)]
        close(got, want)

    def test_approximate_ndcg_of_lists_of_different_lengths(self):
        items = np.arange(6) < np.array([2, 3, 4, 5, 6, 6, 2, 3])[:, None]
        got = compiled(lo.losses.approximate_ndcg)(SCORES, GRADES, temperature=1e-5, items=items)
        lists = zip(2.0**GRADES - 1, SCORES, items)
        close(got, [1 - ndcg_score([g[i]], [s[i]]) if g[i].any() else 0 for g, s, i in lists])

    def test_lambda_rank_weighs_each_pair_by_its_swap(self):
        for scores, grades in zip(SCORES, GRADES):
            gains, want = 2.0**grades - 1, 0.0
            for i, j in combinations(range(6), 2):
                swapped = scores.copy()
                swapped[[i, j]] = scores[[j, i]]
                change = abs(ndcg_score([gains], [swapped]) - ndcg_score([gains], [scores]))
                lead = (scores[i] - scores[j]) * np.sign(grades[i] - grades[j])
                want += change * np.logaddexp(0, -lead)
            close(compiled(lo.losses.lambda_rank)(scores, grades), want)

    def test_pairwise_logistic_is_the_log_loss_of_pairs(self):
        for scores, grades in zip(SCORES, GRADES):
            pairs = [(i, j) for i, j in combinations(range(6), 2) if grades[i] != grades[j]]
            first_wins = [int(grades[i] > grades[j]) for i, j in pairs]
            chances = [1 / (1 + np.exp(scores[j] - scores[i], dtype=np.float64)) for i, j in pairs]
            want = log_loss(first_wins, chances, labels=[0, 1])
            close(compiled(lo.losses.pairwise_logistic)(scores, grades), want)


class TestScipy:
    def test_entropy(self):
        close(compiled(lo.losses.entropy)(SCORES), scipy.stats.entropy(np.exp(SCORES), axis=-1))

    def test_advantages_are_z_scores(self):
        rewards = SCORES
        got = compiled(lo.losses.group_relative)(jnp.zeros((8, 6)), jnp.zeros((8, 6)), rewards)
        close(got, -scipy.stats.zscore(rewards, axis=-1), rtol=1e-4)


class TestOptax:
    def test_list_softmax_of_shares(self):
        shares = GRADES / GRADES.sum(-1, keepdims=True)
        want = optax.losses.ranking_softmax_loss(SCORES, jnp.asarray(shares), reduce_fn=None)
        close(compiled(lo.losses.list_softmax)(SCORES, GRADES), want)

    def test_list_softmax_with_items(self):
        items = RNG.random((8, 6)) < 0.7
        kept = np.where(items, GRADES, 0)
        shares = jnp.asarray(kept / np.maximum(kept.sum(-1, keepdims=True), 1), jnp.float32)
        want = optax.losses.ranking_softmax_loss(SCORES, shares, where=items, reduce_fn=None)
        close(compiled(lo.losses.list_softmax)(SCORES, GRADES, items=items), want)

    def test_list_mle_is_a_cross_entropy_of_what_is_left(self):
        order = jax.vmap(jnp.take)(SCORES, jnp.argsort(-GRADES, axis=-1, stable=True))
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        want = sum(cross_entropy(order[:, k:], jnp.zeros(8, int)) for k in range(6))
        close(compiled(lo.losses.list_mle)(SCORES, GRADES), want)

    def test_triplet(self):
        want = optax.losses.triplet_margin_loss(A, B, C, margin=0.7, eps=0.0)
        close(compiled(lo.losses.triplet)(A, B, C, margin=0.7), want)

    def test_contrastive_with_labels_1_is_a_squared_distance(self):
        want = jnp.sum(optax.losses.squared_error(A, B), -1)
        close(compiled(lo.losses.contrastive)(A, B, jnp.ones(7)), want)

    def test_info_nce(self):
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        want = cross_entropy(A @ B.T / 0.3, jnp.arange(7))
        close(compiled(lo.losses.info_nce)(A, B, temperature=0.3), want)

    def test_clip(self):
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        z, own = 2.5 * A @ B.T, jnp.arange(7)
        close(
            compiled(lo.losses.clip)(A, B, 2.5),
            (cross_entropy(z, own) + cross_entropy(z.T, own)) / 2,
        )

    def test_sigmoid_pairs(self):
        binary = optax.losses.sigmoid_binary_cross_entropy
        want = binary(2.5 * A @ B.T - 1.5, jnp.eye(7)).sum(1)
        close(compiled(lo.losses.sigmoid_pairs)(A, B, 2.5, -1.5), want)

    def test_supervised_contrastive_of_two_views_is_ntxent(self):
        z, labels = unit(np.concatenate([A, B])), jnp.tile(jnp.arange(7), 2)
        got = compiled(lo.losses.supervised_contrastive)(z, labels, temperature=0.4)
        close(jnp.mean(got), optax.losses.ntxent(z, labels, 0.4))

    def test_items_without_a_partner_lose_nothing(self):
        z, labels = unit(np.concatenate([A, B])), jnp.tile(jnp.arange(7), 2).at[0].set(99)
        got = compiled(lo.losses.supervised_contrastive)(z, labels, temperature=0.4)
        assert got[0] == got[7] == 0
        close(jnp.sum(got) / 12, optax.losses.ntxent(z, labels, 0.4))

    def test_direct_preference(self):
        c, r, c_ref, r_ref = -np.abs(RNG.normal(size=(4, 9), scale=5)).astype(np.float32)
        logits = 0.2 * ((c - c_ref) - (r - r_ref))
        want = optax.losses.sigmoid_binary_cross_entropy(logits, jnp.ones(9))
        close(compiled(lo.losses.direct_preference)(c, r, c_ref, r_ref, strength=0.2), want)

    def test_margin_ranking_is_a_hinge(self):
        lead = SCORES[0] - SCORES[1]
        want = optax.losses.hinge_loss(lead, jnp.ones(6))
        close(compiled(lo.losses.margin_ranking)(SCORES[0], SCORES[1], margin=1.0), want)

    def test_pairwise_hinge(self):
        lead = SCORES[:, :, None] - SCORES[:, None, :]
        pairs = GRADES[:, :, None] > GRADES[:, None, :]
        hinge = optax.losses.hinge_loss(jnp.asarray(lead), jnp.ones((8, 6, 6)))
        want = jnp.mean(hinge, (1, 2), where=pairs)
        close(compiled(lo.losses.pairwise_hinge)(SCORES, GRADES), want)

    def test_policy_gradient_is_a_weighed_cross_entropy(self):
        actions, advantages = RNG.integers(0, 6, 8), RNG.normal(size=8).astype(np.float32)
        log_probs = jax.nn.log_softmax(SCORES)[np.arange(8), actions]
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(SCORES, actions)
        close(
            compiled(lo.losses.policy_gradient)(log_probs, advantages), advantages * cross_entropy
        )


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        self.torch = pytest.importorskip("torch")
        self.functional = self.torch.nn.functional

    def tensors(self, *arrays):
        return [self.torch.tensor(np.asarray(x), dtype=self.torch.float64) for x in arrays]

    def test_margin_ranking(self):
        better, worse = self.tensors(SCORES[0], SCORES[1])
        ones = self.torch.ones_like(better)
        want = self.functional.margin_ranking_loss(
            better, worse, ones, margin=0.4, reduction="none"
        )
        close(compiled(lo.losses.margin_ranking)(SCORES[0], SCORES[1], margin=0.4), want)

    def test_triplet(self):
        want = self.functional.triplet_margin_loss(
            *self.tensors(A, B, C), margin=0.7, eps=0.0, reduction="none"
        )
        close(compiled(lo.losses.triplet)(A, B, C, margin=0.7), want)

    def test_entropy(self):
        (logits,) = self.tensors(SCORES)
        close(
            compiled(lo.losses.entropy)(SCORES),
            self.torch.distributions.Categorical(logits=logits).entropy(),
        )
