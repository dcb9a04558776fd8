from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests.compiled import compiled

focal = compiled(lo.losses.focal)
poly = compiled(lo.losses.poly)
sigmoid_cross_entropy = compiled(lo.losses.sigmoid_cross_entropy)
sigmoid_focal = compiled(lo.losses.sigmoid_focal)
sigmoid_poly = compiled(lo.losses.sigmoid_poly)
softmax_cross_entropy = compiled(lo.losses.softmax_cross_entropy)

random = np.random.default_rng(0)
logits = 3 * random.normal(size=(6, 5)).astype(np.float32)
numbers = np.array([0, 1, 2, 3, 4, 0])
one_hot = np.eye(5, dtype=np.float32)[numbers]
distributions = random.dirichlet(np.ones(5), 6).astype(np.float32)
over_classes = pytest.mark.parametrize("loss", [softmax_cross_entropy, focal, poly])


def close(got, want, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def slope(loss, x):
    return np.asarray(compiled(jax.grad(lambda x: jnp.sum(loss(x))))(x))


class TestSigmoid:
    @pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
    def test_gradient_is_probability_minus_label(self, label):
        z = np.array([-1e4, -30, -1, 0, 2, 1e4], np.float32)
        y = np.full_like(z, label)
        close(slope(lambda z: sigmoid_cross_entropy(z, y), z), jax.nn.sigmoid(z) - y)

    def test_confident_and_right_is_small_but_not_zero(self):
        z = np.array([20.0, 50.0], np.float32)
        close(sigmoid_cross_entropy(z, np.ones(2)), np.exp(-z), atol=0)

    @pytest.mark.parametrize("label", [-1.0, 1.5, np.nan])
    def test_labels_outside_of_zero_to_one_are_nan_and_leave_gradients_clean(self, label):
        z, y = jnp.zeros(2), np.array([1, label], np.float32)
        assert np.isnan(sigmoid_cross_entropy(z, y)).tolist() == [False, True]
        part = lambda z: lo.mean(sigmoid_cross_entropy(z, y), np.array([1, 0])).value
        close(compiled(jax.grad(part))(z), [-0.5, 0])

    @pytest.mark.parametrize(
        ("binary", "classes"),
        [
            (sigmoid_cross_entropy, softmax_cross_entropy),
            (sigmoid_focal, focal),
            (lambda z, y: sigmoid_poly(z, y, epsilon=2.0), poly),
        ],
    )
    def test_is_two_classes(self, binary, classes):
        z, y = logits[:, 0], distributions[:, 0]
        pair = jnp.stack([jnp.zeros(6), z], axis=-1)
        close(binary(z, y), classes(pair, jnp.stack([1 - y, y], axis=-1)))
        close(binary(z, numbers > 1), classes(pair, (numbers > 1).astype(int)))

    def test_alpha_is_the_share_of_label_one(self):
        z, y = logits[0], np.array([0, 1, 1, 0, 0.5], np.float32)
        ratio = sigmoid_focal(z, y, alpha=0.2) / sigmoid_focal(z, y)
        close(ratio, [0.8, 0.2, 0.2, 0.8, 0.5])


class TestLabels:
    @over_classes
    def test_class_numbers_are_one_hot_distributions(self, loss):
        close(loss(logits, numbers), loss(logits, one_hot))

    @over_classes
    @pytest.mark.parametrize(
        ("labels", "error"),
        [
            (numbers[:, None], ValueError),
            (one_hot.astype(int), ValueError),
            (numbers.astype(np.float32), ValueError),
            (distributions[None], ValueError),
            (numbers == 0, TypeError),
        ],
    )
    def test_what_is_neither_number_nor_distribution_is_refused(self, loss, labels, error):
        with pytest.raises(error, match="Expected labels as class numbers"):
            loss(logits, labels)

    @over_classes
    def test_out_of_range_is_nan_and_never_another_class(self, loss):
        labels = np.array([-1, 5, 2, -100, 4, 0])
        strange = np.array([True, True, False, True, False, False])
        assert (np.isnan(loss(logits, labels)) == strange).all()
        gradient = slope(lambda z: lo.mean(loss(z, labels), ~strange).value, logits)
        kept = slope(lambda z: lo.mean(loss(z, labels[~strange])).value, logits[~strange])
        close(gradient[~strange], kept)
        assert not gradient[strange].any()

    @over_classes
    @pytest.mark.parametrize("ignored", [-100, 0])
    def test_ignored_rows_are_nan_and_meant(self, loss, ignored):
        labels = np.array([ignored, 1, 2, 3, 4, ignored])
        ignoring = lambda z, i: loss(z, labels, ignore_index=i)
        assert np.isnan(ignoring(logits, ignored)).tolist() == [True, *[False] * 4, True]
        error, _ = checkify.checkify(jax.jit(ignoring))(logits, ignored)
        assert error.get() is None

    def test_distributions_are_not_ignored(self):
        with pytest.raises(ValueError, match="weigh distributions by 0"):
            softmax_cross_entropy(logits, distributions, ignore_index=0)

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
    def test_narrow_integers_name_classes_beyond_their_range(self, dtype):
        many = np.zeros((2, 300), np.float32)
        close(softmax_cross_entropy(many, np.array([0, 100], dtype)), np.log([300, 300]))

    def test_strange_distributions_are_nan(self):
        labels = np.array(
            [[0.5, 0.5, 0], [0.5, 0.502, 0], [1.5, -0.5, 0], [0, 0, 0], [np.nan, 1, 0]], np.float32
        )
        loss = lambda z: softmax_cross_entropy(z, labels)
        assert np.isnan(loss(jnp.zeros((5, 3)))).tolist() == [False, *[True] * 4]
        weights = np.array([1, 0, 0, 0, 0])
        assert np.isfinite(
            slope(lambda z: lo.mean(loss(z), weights).value, jnp.zeros((5, 3)))
        ).all()

    def test_bfloat16_distributions_add_up_as_well_as_they_can(self):
        labels = jnp.array([[0.9, 0.1]], jnp.bfloat16)
        assert abs(float(labels.astype(jnp.float32).sum()) - 1) > 1e-3
        close(softmax_cross_entropy(jnp.zeros((1, 2)), labels), np.log([2.0]), rtol=2e-3)

    def test_a_preflight_of_padding_says_how_to_name_it(self):
        labels = np.where(numbers == 0, -100, numbers)
        message = lambda **named: checkify.checkify(
            jax.jit(partial(lo.losses.softmax_cross_entropy, **named))
        )(logits, labels)[0].get()
        assert "got some between -100 and 0. Name those of padding by ignore_index" in message()
        assert message(ignore_index=-100) is None

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.array([0, 7, 0, 0, 0, 0]), "poly: expected labels from 0 to 4, got .* 0 and 7"),
            (one_hot / 2, "poly: expected probabilities that add up to 1, got .* 0.5"),
            (one_hot - 0.1, "poly: expected probabilities >= 0, .* -0.1"),
        ],
    )
    def test_a_preflight_names_the_function_and_what_came(self, labels, message):
        error, _ = checkify.checkify(jax.jit(poly))(logits, labels)
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            error.throw()


class TestWhere:
    where = np.array([True, False, True, True, False])

    @over_classes
    @pytest.mark.parametrize("shape", [(5,), (6, 5)])
    def test_is_the_loss_on_the_classes_kept(self, loss, shape):
        labels = np.array([0, 2, 3, 0, 2, 3])
        masked = np.where(self.where, logits, np.nan)
        where = np.broadcast_to(self.where, shape)
        renumbered = np.array([0, 1, 2, 0, 1, 2])
        kept = logits[:, self.where]
        close(loss(masked, labels, where=where), loss(kept, renumbered))
        soft = np.where(self.where, distributions, 0)
        soft /= soft.sum(axis=-1, keepdims=True)
        close(loss(masked, soft, where=where), loss(kept, soft[:, self.where]))
        gradient = slope(lambda z: loss(z, labels, where=where), masked)
        close(gradient[:, self.where], slope(lambda z: loss(z, renumbered), kept))
        assert not gradient[:, ~self.where].any()

    @over_classes
    def test_labels_on_a_masked_class_are_nan(self, loss):
        assert np.isnan(loss(logits, numbers, where=self.where))[[1, 4]].all()
        spilled = np.array([0.9999, 0.0001, 0, 0, 0], np.float32)
        assert np.isnan(loss(logits[0], spilled, where=self.where))

    @over_classes
    @pytest.mark.parametrize("labels", [np.array(0), np.array([1, 0, 0, 0, 0], np.float32)])
    def test_a_class_without_rivals_costs_nothing(self, loss, labels):
        alone = lambda z: loss(z, labels, where=np.arange(5) == 0)
        assert alone(logits[0]) == 0
        assert not slope(alone, logits[0]).any()

    def test_its_shape_and_dtype_are_checked(self):
        with pytest.raises(ValueError, match="Expected where"):
            softmax_cross_entropy(logits, numbers, where=np.ones(6, bool))
        with pytest.raises(TypeError, match="Expected a boolean where"):
            softmax_cross_entropy(logits, numbers, where=np.ones(5))


class TestSoftmax:
    def test_confident_and_right_is_small_but_not_zero(self):
        z = np.array([20.0, 0, 0], np.float32)
        tiny = np.exp(-20.0)
        close(softmax_cross_entropy(z, 0), 2 * tiny, atol=0)
        close(slope(lambda z: softmax_cross_entropy(z, 0), z), [-2 * tiny, tiny, tiny], atol=0)

    @pytest.mark.parametrize("labels", [numbers, distributions], ids=["numbers", "distributions"])
    def test_gradient_is_probability_minus_smoothed_label(self, labels):
        soft = one_hot if labels is numbers else labels
        gradient = slope(lambda z: softmax_cross_entropy(z, labels, label_smoothing=0.2), logits)
        close(gradient, jax.nn.softmax(logits) - (0.8 * soft + 0.2 / 5))

    def test_smoothing_spreads_over_the_classes_kept(self):
        where = np.array([True, True, True, False, True])
        label, loss = np.array(0), softmax_cross_entropy
        z = np.where(where, logits[0], np.nan)
        soft = 0.8 * one_hot[0] + 0.2 * where / 4
        close(loss(z, label, where=where, label_smoothing=0.2), loss(z, soft, where=where))

    def test_smoothing_may_be_traced(self):
        smooth = lambda a: softmax_cross_entropy(logits, numbers, label_smoothing=a)
        close(jax.vmap(smooth)(jnp.array([0.0, 0.3])), [smooth(0.0), smooth(0.3)])

    def test_an_impossible_rival_is_no_rival(self):
        z = jnp.array([1.0, 2.0, -jnp.inf])
        close(softmax_cross_entropy(z, 0), softmax_cross_entropy(z[:2], 0))


class TestFocal:
    @pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
    @pytest.mark.parametrize("gap", [1.0, 30.0, 100.0, 1e4])
    def test_first_and_second_derivatives_are_finite_when_certain(self, gamma, gap):
        for derivative in self._derivatives(gamma)(np.float32([gap, 0, -gap])):
            assert np.isfinite(derivative).all()

    @staticmethod
    @cache
    def _derivatives(gamma):
        """Of a class number and of its distribution."""
        losses = [partial(focal, labels=y, gamma=gamma) for y in (0, np.float32([1, 0, 0]))]
        ways = [way(loss) for loss in losses for way in (jax.grad, jax.hessian)]
        return jax.jit(lambda z: [way(z) for way in ways])

    def test_without_gamma_is_cross_entropy(self):
        close(focal(logits, numbers, gamma=0), softmax_cross_entropy(logits, numbers))
        close(
            slope(lambda z: focal(z, distributions, gamma=0), logits),
            slope(lambda z: softmax_cross_entropy(z, distributions), logits),
        )

    def test_gamma_may_be_swept_and_differentiated(self):
        loss = lambda gamma: focal(logits, numbers, gamma=gamma)
        close(jax.vmap(loss)(jnp.array([0.0, 2.0])), [loss(0.0), loss(2.0)])
        assert compiled(jax.grad(lambda gamma: loss(gamma).sum()))(0.0) < 0


def test_poly_adds_the_probability_of_missing():
    miss = 1 - jnp.take_along_axis(jax.nn.softmax(logits), numbers[:, None], axis=-1)[:, 0]
    excess = poly(logits, numbers, epsilon=-0.7) - softmax_cross_entropy(logits, numbers)
    close(excess, -0.7 * miss)


@pytest.mark.parametrize("offset", [-1e4, 1e3, 1e4])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, focal, poly])
def test_an_offset_of_all_logits_costs_no_precision(loss, offset):
    logits, labels = np.float32([[0, 1, 2, -1, 4]] * 5), np.arange(5)
    np.testing.assert_allclose(loss(logits + np.float32(offset), labels), loss(logits, labels))


def test_an_impossible_class_without_probability_costs_nothing():
    logits, labels = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([0.25, 0.75, 0.0])
    value, gradient = compiled(jax.value_and_grad(softmax_cross_entropy))(logits, labels)
    want = softmax_cross_entropy(logits[:2], labels[:2])
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert jnp.isfinite(gradient).all()
