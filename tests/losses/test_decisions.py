import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests.compiled import compiled

cost_sensitive = compiled(lo.losses.cost_sensitive)
decide = compiled(lo.losses.decide)
hinge = compiled(lo.losses.hinge)
multiclass_hinge = compiled(lo.losses.multiclass_hinge)
ordinal = compiled(lo.losses.ordinal)
sigmoid_cross_entropy = compiled(lo.losses.sigmoid_cross_entropy)
squared_hinge = compiled(lo.losses.squared_hinge)

random = np.random.default_rng(0)
scores = 3 * random.normal(size=(6, 5)).astype(np.float32)
labels = np.array([0, 1, 2, 3, 4, 0])
fraud = np.array([[0, 10], [1000, 0]], np.float32)  # false alarm 10, missed fraud 1000
threshold = 10 / 1010


def close(got, want, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("loss", [hinge, squared_hinge])
def test_hinges_know_no_label_but_zero_and_one(loss):
    y = np.array([1, 0, -1, 0.5], np.float32)
    assert np.isnan(loss(jnp.ones(4), y)).tolist() == [False, False, True, True]
    part = lambda s: lo.mean(loss(s, y), np.array([1, 1, 0, 0])).value
    assert np.isfinite(compiled(jax.grad(part))(jnp.ones(4))).all()


@pytest.mark.parametrize("loss", [hinge, squared_hinge])
def test_hinges_are_flat_at_and_beyond_the_margin(loss):
    s = jnp.array([1.0, 1e4, -1.0, -1e4])
    y = np.array([True, True, False, False])
    assert not loss(s, y).any()
    assert not compiled(jax.grad(lambda s: loss(s, y).sum()))(s).any()


class TestMulticlassHinge:
    def test_only_the_best_rival_counts(self):
        s = jnp.array([1.0, 3.0, 2.0])
        close(multiclass_hinge(s, 0), 3.0)
        close(multiclass_hinge(s, 1), 0.0)
        close(compiled(jax.grad(multiclass_hinge))(s, 0), [-1, 1, 0])

    def test_tied_rivals_share_the_slope(self):
        close(compiled(jax.grad(multiclass_hinge))(jnp.zeros(3), 0), [-1, 0.5, 0.5])

    def test_two_classes_are_a_hinge_on_their_difference(self):
        y = np.array([0, 1, 0, 1, 0, 1])
        close(multiclass_hinge(scores[:, :2], y), hinge(scores[:, 1] - scores[:, 0], y))

    def test_a_class_without_rivals_costs_nothing(self):
        assert multiclass_hinge(jnp.zeros(1), 0) == 0
        assert compiled(jax.grad(multiclass_hinge))(jnp.zeros(1), 0) == 0


class TestOrdinal:
    def test_one_threshold_is_a_sigmoid(self):
        y = np.array([0, 1, 0, 1, 0, 1])
        close(ordinal(scores[:, :1], y), sigmoid_cross_entropy(scores[:, 0], y))

    def test_labels_count_the_thresholds_below(self):
        sure = 20 * jnp.array([1.0, 1.0, -1.0])
        losses = jnp.stack([ordinal(sure, label) for label in range(4)])
        close(losses, [40, 20, 0, 20])
        assert jnp.sum(sure > 0) == jnp.argmin(losses)

    def test_labels_beyond_the_last_rank_are_nan(self):
        assert np.isnan(ordinal(scores[:3], np.array([5, 6, -1]))).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "loss", [multiclass_hinge, ordinal, lambda s, y, **k: cost_sensitive(s, y, np.eye(5), **k)]
)
class TestClassNumbers:
    def test_out_of_range_is_nan_and_leaves_gradients_clean(self, loss):
        strange = np.array([-1, 1, 99, 3, -100, 0])
        kept = np.array([False, True, False, True, False, True])
        assert (np.isnan(loss(scores, strange)) == ~kept).all()
        gradient = compiled(jax.grad(lambda s: lo.mean(loss(s, strange), kept).value))(scores)
        assert np.isfinite(gradient).all()
        assert not gradient[~kept].any()

    def test_ignored_rows_are_nan_even_in_range(self, loss):
        assert (np.isnan(loss(scores, labels, ignore_index=0)) == (labels == 0)).all()

    def test_shapes_and_dtypes_are_strict(self, loss):
        with pytest.raises(ValueError, match="Expected labels of shape"):
            loss(scores, labels[:, None])
        with pytest.raises(TypeError, match="Expected integer labels"):
            loss(scores, labels.astype(np.float32))


class TestCosts:
    @pytest.mark.parametrize("share", [0.999, 1.001])
    def test_both_switch_at_the_threshold_of_the_costs(self, share):
        p = share * threshold
        alarm = share > 1

        def population(z):
            pair = jnp.stack([jnp.zeros(2), jnp.full(2, z)], axis=-1)
            return cost_sensitive(pair, jnp.array([0, 1]), fraud) @ jnp.array([1 - p, p])

        for z in (-5.0, 0.0, 5.0):
            assert (compiled(jax.grad(population))(z) < 0) == alarm
        assert decide(jnp.log(jnp.array([1 - p, p])), fraud) == alarm

    def test_unit_costs_are_the_probability_of_an_error(self):
        miss = 1 - jax.nn.softmax(scores)[np.arange(6), labels]
        close(cost_sensitive(scores, labels, 1 - np.eye(5)), miss)

    def test_costs_are_read_label_first(self):
        sure = jnp.array([[50.0, 0], [0, 50.0]])  # decides 0, then 1
        close(cost_sensitive(sure, jnp.array([1, 0]), fraud), [1000, 10])
        assert decide(sure, fraud).tolist() == [0, 1]

    def test_costs_may_be_traced_and_negative(self):
        gain = lambda c: cost_sensitive(scores[0], 1, c * jnp.eye(5))
        close(compiled(jax.grad(gain))(-2.0), jax.nn.softmax(scores[0])[1])
        assert gain(-2.0) < 0

    def test_costs_of_an_ignored_label_are_never_read(self):
        costs = np.where(np.arange(5)[:, None] == 3, np.nan, 1 - np.eye(5))
        loss = lambda z: cost_sensitive(z, labels, costs, ignore_index=3)
        gradient = compiled(jax.grad(lambda z: lo.mean(loss(z), labels != 3).value))(scores)
        assert np.isfinite(gradient).all()

    def test_decisions_need_not_be_classes(self):
        abstain = np.array([[0, 1, 0.2], [1, 0, 0.2]])
        p = jnp.array([[0.95, 0.05], [0.5, 0.5], [0.05, 0.95]])
        assert decide(jnp.log(p), abstain).tolist() == [0, 2, 1]

    def test_decisions_on_narrow_logits_are_made_in_float32(self):
        narrow = jnp.asarray(np.random.default_rng(1).normal(size=(1000, 5)), jnp.bfloat16)
        costs = 1 - np.eye(5)  # the largest logit, which rounded probabilities make a tie
        np.testing.assert_array_equal(decide(narrow, costs), decide(np.float32(narrow), costs))

    def test_ties_go_to_the_first_and_nan_to_none(self):
        z = jnp.array([[0.0, 0.0], [jnp.nan, 0.0]])
        assert decide(z, 1 - np.eye(2)).tolist() == [0, -1]

    def test_shapes_must_match(self):
        with pytest.raises(ValueError, match="Expected costs of shape"):
            cost_sensitive(scores, labels, np.ones((5, 3)))
        with pytest.raises(ValueError, match="Expected costs of shape"):
            decide(scores, np.ones((3, 5)))
        with pytest.raises(ValueError, match="Expected costs with at least 2 axes"):
            decide(scores, np.ones(5))
