"""What is particular to losses of embeddings; the family contract is in `tests/contract`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests.compiled import compiled

clip = compiled(lo.losses.clip)
contrastive = compiled(lo.losses.contrastive)
info_nce = compiled(lo.losses.info_nce)
nt_xent = compiled(lo.losses.nt_xent)
sigmoid_pairs = compiled(lo.losses.sigmoid_pairs)
supervised_contrastive = compiled(lo.losses.supervised_contrastive)
triplet = compiled(lo.losses.triplet)

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 5, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 2, 0])
IN_BATCH = {
    "info_nce": partial(info_nce, temperature=0.5),
    "nt_xent": partial(nt_xent, temperature=0.5),
    "clip": lambda a, b, items=None: clip(a, b, 2.0, items=items),
    "sigmoid_pairs": lambda a, b, items=None: sigmoid_pairs(a, b, 2.0, -1.0, items=items),
    "supervised_contrastive": lambda a, b, items=None: supervised_contrastive(
        a + b, LABELS, temperature=0.5, items=items
    ),
}
in_batch = pytest.mark.parametrize("loss", IN_BATCH.values(), ids=IN_BATCH)


class TestContrastive:
    @pytest.mark.parametrize(("label", "value"), [(0, 1.0), (1, 0.0), (0.25, 0.75)])
    def test_coinciding_points_have_gradient_zero(self, label, value):
        got = compiled(jax.value_and_grad(contrastive, argnums=(0, 1)))(A[0], A[0], label)
        assert got[0] == value
        np.testing.assert_array_equal(got[1], 0)

    def test_coinciding_partners_keep_their_curvature(self):
        curvature = compiled(jax.hessian(contrastive))(A[0], A[0], 1)
        np.testing.assert_allclose(curvature, 2 * np.eye(3))

    def test_labels_out_of_range_are_nan_and_reported(self):
        labels = np.array([2.0, -1.0, np.nan, 0.0, 1.0])
        assert np.isnan(contrastive(A, B, labels)).tolist() == [1, 1, 1, 0, 0]
        weights = np.array([0, 0, 0, 1, 1])
        weighed = lambda a: lo.mean(contrastive(a, B, labels), weights).value
        assert np.isfinite(compiled(jax.grad(weighed))(A)).all()
        error, _ = checkify.checkify(contrastive)(A, B, labels - 1)
        with pytest.raises(checkify.JaxRuntimeError, match="contrastive: expected labels"):
            error.throw()

    def test_refuses_labels_of_another_shape(self):
        with pytest.raises(ValueError, match="Expected labels of shape"):
            lo.losses.contrastive(A, B, LABELS[:, None])


class TestTriplet:
    def test_is_that_of_optax(self):
        want = optax.losses.triplet_margin_loss(A, B, C, margin=0.7)
        np.testing.assert_allclose(triplet(A, B, C, margin=0.7), want, rtol=1e-4)

    def test_coinciding_points_have_gradient_zero(self):
        value, gradients = compiled(jax.value_and_grad(triplet, argnums=(0, 1, 2)))(
            A[0], A[0], A[0]
        )
        assert value == 1
        np.testing.assert_array_equal(gradients, 0)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_distances_of_any_size_are_exact(size):
    """A right triangle with sides of 3, 4 and 5; numbers in proportion to it."""
    anchor, near, far = np.float32([[0, 0], [3, 4], [0, 4]]) * np.float32(size)
    margin = 2 * size
    value, slopes = compiled(jax.value_and_grad(triplet, argnums=(0, 1, 2)))(
        anchor, near, far, margin=margin
    )
    np.testing.assert_allclose(value, 3 * size, rtol=1e-6)
    np.testing.assert_allclose(slopes, [[-0.6, 0.2], [0.6, 0.8], [0, -1]], rtol=1e-5, atol=1e-6)
    apart = compiled(jax.value_and_grad(contrastive))
    assert apart(anchor, near, 0, margin=margin) == (0, pytest.approx(np.zeros(2)))
    _, slope = apart(anchor, near, 0, margin=10 * size)  # of (10 - 5)^2
    np.testing.assert_allclose(slope, np.float32([6, 8]) * np.float32(size), rtol=1e-5)
    _, slope = apart(anchor, near, 1)
    np.testing.assert_allclose(slope, np.float32([-6, -8]) * np.float32(size), rtol=1e-6)


class TestInBatch:
    @in_batch
    def test_masked_items_are_nan_and_never_read(self, loss):
        items = np.array([True, False, True, True, True])
        a, b = np.where(items[:, None], A, np.nan), np.where(items[:, None], B, np.inf)
        assert np.isnan(loss(a, b, items=items)).tolist() == (~items).tolist()
        average = lambda a, b: lo.mean(loss(a, b, items=items), items).value
        for gradient in compiled(jax.grad(average, argnums=(0, 1)))(a, b):
            assert np.isfinite(gradient).all()
            assert (gradient[1] == 0).all()

    @in_batch
    def test_a_wholly_masked_list_is_clean(self, loss):
        none = np.zeros(5, bool)
        average = lambda a: lo.mean(loss(a, B, items=none), none).value
        value, gradient = compiled(jax.value_and_grad(average))(np.full_like(A, np.nan))
        assert value == 0
        assert (gradient == 0).all()

    @in_batch
    def test_items_have_no_order(self, loss):
        order = np.array([4, 1, 0, 3, 2])  # keeps the labels
        np.testing.assert_allclose(loss(A[order], B[order]), loss(A, B)[order], rtol=1e-5)

    @in_batch
    def test_large_embeddings_stay_finite(self, loss):
        for a, b in [(1e4 * A, B), (1e4 * A, 1e4 * B), (0 * A, 0 * B)]:
            value, gradient = compiled(jax.value_and_grad(lambda a, b: loss(a, b).sum()))(a, b)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()

    @in_batch
    def test_refuses_masks_of_another_shape(self, loss):
        with pytest.raises(ValueError, match="Expected items of shape"):
            loss(A, B, items=np.ones((5, 1), bool))

    @pytest.mark.parametrize("name", ["info_nce", "nt_xent", "clip"])
    def test_a_single_item_has_nothing_to_confuse(self, name):
        single = np.arange(5) == 2
        assert IN_BATCH[name](A, B, items=single)[2] == 0
        assert IN_BATCH[name](A[:1], B[:1]).tolist() == [0]


def test_info_nce_is_precise_near_zero():
    loss = info_nce(np.eye(2), np.eye(2), temperature=0.05)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-20.0)), rtol=1e-6)


def test_clip_is_info_nce_both_ways():
    there, back = (info_nce(*pair, temperature=0.25) for pair in ((A, B), (B, A)))
    np.testing.assert_allclose(clip(A, B, 4.0), (there + back) / 2, rtol=1e-5)


def test_nt_xent_has_one_number_per_item_of_that_of_optax():
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (A, B))
    loss = nt_xent(a, b, temperature=0.4)
    assert loss.shape == (5,)
    want = optax.ntxent(np.concatenate([a, b]), np.tile(np.arange(5), 2), 0.4)
    np.testing.assert_allclose(loss.mean(), want, rtol=1e-5)


def test_sigmoid_pairs_sums_binary_losses():
    logits = 2.0 * A @ B.T - 1.0
    want = optax.sigmoid_binary_cross_entropy(logits, jnp.eye(5)).sum(axis=-1)
    np.testing.assert_allclose(sigmoid_pairs(A, B, 2.0, -1.0), want, rtol=1e-5)


@pytest.mark.parametrize("scale", [np.ones(1), np.ones(5)])
def test_scale_is_one_number(scale):
    with pytest.raises(ValueError, match="Expected scale of shape"):
        lo.losses.clip(A, B, scale)
    with pytest.raises(ValueError, match="Expected scale of shape"):
        lo.losses.sigmoid_pairs(A, B, scale, 0.0)


class TestSupervisedContrastive:
    loss = staticmethod(partial(supervised_contrastive, temperature=0.5))

    def test_anchors_without_positives_are_zero(self):
        assert (np.array(self.loss(A, LABELS)) == 0).tolist() == [False, True, False, True, False]

    def test_masked_positives_do_not_count(self):
        items = np.array([True, True, False, True, False])
        assert self.loss(A, LABELS, items=items)[0] == 0

    def test_two_views_of_each_item_are_ntxent(self):
        views, labels = np.concatenate([A, B]), np.tile(np.arange(5), 2)
        unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
        want = optax.ntxent(views, labels, temperature=0.5)
        np.testing.assert_allclose(self.loss(unit, labels).mean(), want, rtol=1e-5)

    def test_only_equality_of_labels_counts(self):
        names = np.array([-1, 7, -1, 900, -1])
        np.testing.assert_array_equal(self.loss(A, names), self.loss(A, LABELS))

    def test_refuses_labels_that_are_not_integers(self):
        with pytest.raises(TypeError, match="integer labels"):
            self.loss(A, LABELS.astype(np.float32))
