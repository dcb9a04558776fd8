"""The algebra of `Mean`: what one average is, how averages merge and how an objective reads."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.experimental import checkify

import lossopt as lo
from lossopt._mean import terms

few = settings(max_examples=25, deadline=None)
VALUES = np.linspace(-2, 5, 12, dtype=np.float32).reshape(4, 3)
WEIGHTS = {
    "none": None,
    "one number": 0.25,
    "mask": np.array([True, False, True, True]),
    "integers": np.array([3, 0, 1, 2]),
    "fractional": np.array([0.1, 0.2, 0.05, 0.3], np.float32),
    "huge": np.array([1e30, 3e30, 0, 2e30], np.float32),
    "tiny": np.array([1e-30, 3e-30, 0, 2e-30], np.float32),
    "per element": np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3),
    "half precision": jnp.array([0.5, 0.25, 0, 1], jnp.bfloat16),
}


class TestMean:
    @pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
    def test_is_the_weighted_average(self, weights):
        got = lo.mean(VALUES, weights)
        full = np.float64(1 if weights is None else weights)
        full = np.broadcast_to(full.reshape(full.shape + (1,) * (2 - full.ndim)), VALUES.shape)
        np.testing.assert_allclose(got.total, np.sum(full * VALUES), rtol=1e-6)
        np.testing.assert_allclose(got.weight, np.sum(full), rtol=1e-6)
        np.testing.assert_allclose(got.value, np.average(VALUES, weights=full), rtol=1e-6)
        assert got.total.shape == got.weight.shape == ()

    @pytest.mark.parametrize("weights", [np.zeros(4), np.zeros(4, bool), 0.0])
    def test_nothing_weighed_has_value_0_and_gradient_0(self, weights):
        read = lambda values: lo.mean(values, weights).value
        assert read(VALUES) == 0
        np.testing.assert_array_equal(jax.grad(read)(VALUES), 0)

    def test_no_examples_have_value_0(self):
        empty = lo.mean(jnp.zeros(0), jnp.zeros(0))
        assert empty.total == empty.weight == empty.value == 0
        assert lo.mean(jnp.zeros((0, 3))).value == 0

    @pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
    def test_values_of_weight_0_are_not_read(self, garbage):
        values, mask = jnp.array([1.0, 2.0, garbage]), jnp.array([1.0, 3.0, 0.0])
        read = lambda values: lo.mean(values, mask).value
        assert read(values) == 1.75
        np.testing.assert_array_equal(jax.grad(read)(values), [0.25, 0.75, 0])

    def test_a_nan_that_is_weighed_is_loud(self):
        assert jnp.isnan(lo.mean(jnp.array([1.0, jnp.nan])).value)

    def test_fractional_weights_are_not_rounded_up(self):
        assert lo.mean(jnp.array([3.0]), jnp.array([0.01])).value == 3
        assert lo.constant(2.0).value == 2

    def test_weights_have_gradients(self):
        values, weights = jnp.array([1.0, 2.0, 6.0]), jnp.array([0.5, 1.0, 2.5])
        got = jax.grad(lambda w: lo.mean(values, w).value)(weights)
        mean = np.average(values, weights=weights)
        np.testing.assert_allclose(got, (values - mean) / 4, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, bool])
    def test_low_precision_is_summed_in_float32(self, dtype):
        ones = jnp.ones(5000, dtype)
        got = lo.mean(ones, ones)
        assert (got.total, got.weight) == (5000, 5000)
        assert got.total.dtype == got.weight.dtype == got.value.dtype == jnp.float32

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_cotangents_have_the_dtype_of_the_values(self, dtype):
        got = jax.grad(lambda x: lo.mean(x).value)(jnp.ones(4, dtype))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, 0.25)

    def test_float64_stays(self):
        with jax.enable_x64(True):
            values = np.array([1.0, 1e-9, 3.0])
            got = lo.mean(values, np.array([0.1, 0.2, 0.4]))
            assert got.value.dtype == lo.value([got]).dtype == jnp.float64
            np.testing.assert_allclose(got.value, (0.1 + 2e-10 + 1.2) / 0.7, rtol=1e-14)

    def test_float32_stays_where_float64_is_allowed(self):
        with jax.enable_x64(True):
            got = lo.mean(np.ones(3, np.float32), np.ones(3, np.float32))
            assert got.value.dtype == jnp.float32
            assert lo.value([got, lo.constant(np.float32(2))]).dtype == jnp.float32

    @pytest.mark.parametrize("shape", [(5,), (5, 2), (2, 3), (4, 3, 1), (1,), (4, 1)])
    def test_weights_that_do_not_index_leading_axes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"match the leading axes of \(4, 3\)"):
            lo.mean(VALUES, np.ones(shape))

    def test_a_column_of_weights_for_a_row_of_values_is_refused(self):
        with pytest.raises(ValueError, match="leading axes"):
            lo.mean(jnp.ones(4), jnp.ones((4, 1)))

    @pytest.mark.parametrize(
        ("make", "name", "kind"),
        [
            (lambda: lo.mean([1.0, 2.0], jnp.ones(2)), "values", "list"),
            (lambda: lo.mean(jnp.ones(2), [1, 1]), "weights", "list"),
            (lambda: lo.mean(jnp.ones(2), (True, False)), "weights", "tuple"),
            (lambda: lo.constant([1.0]), "value", "list"),
            (lambda: [2.0] * lo.constant(1.0), "scale", "list"),
        ],
    )
    def test_lists_are_refused_by_name(self, make, name, kind):
        with pytest.raises(TypeError, match=f"Expected {name} as an array .* got {kind}.*asarray"):
            make()

    @pytest.mark.parametrize("large", [2**31, np.int64(2**32), 10**10])
    def test_whole_numbers_that_no_int32_holds_are_themselves(self, large):
        close = partial(np.testing.assert_allclose, rtol=1e-7)
        close(lo.mean(np.int64([large, 0])).value, large / 2)
        close(lo.mean(jnp.array([1.0, 2.0]), np.int64([large, 0])).weight, large)
        close(lo.constant(large).value, large)
        close((large * lo.constant(2.0)).value, 2 * large)

    @pytest.mark.parametrize("weights", [None, True, 2, np.array([1, 0]), jnp.bfloat16([1, 0.5])])
    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.int8, jnp.float32])
    def test_jax_may_be_told_to_promote_nothing(self, dtype, weights):
        values = jnp.array([1, 2], dtype)
        with jax.numpy_dtype_promotion("strict"):
            got = np.float64(0.5) * lo.mean(values, weights)
            assert (np.int32(2) * lo.constant(jnp.bfloat16(3))).value == 6
        want = np.average([1.0, 2.0], weights=np.broadcast_to(1 if weights is None else weights, 2))
        np.testing.assert_allclose(got.value, want / 2, rtol=1e-6)

    def test_complex_values_are_refused(self):
        with pytest.raises(TypeError, match="real values"):
            lo.mean(jnp.ones(2, complex))

    def test_negative_weights_are_reported_by_checkify_and_free_in_a_compiled_run(self):
        weights = jnp.array([1.0, -0.5, 0.0, 1.0])
        error, _ = checkify.checkify(jax.jit(lo.mean))(VALUES, weights)
        assert "expected weights >= 0, got -0.5" in error.get()
        error, _ = checkify.checkify(jax.jit(lo.mean))(VALUES, jnp.abs(weights))
        assert error.get() is None
        assert "callback" not in jax.jit(lo.mean).lower(VALUES, weights).as_text()

    def test_jit_and_vmap_agree_with_eager(self):
        weights = WEIGHTS["per element"]
        eager = lo.mean(VALUES, weights)
        np.testing.assert_allclose(jax.jit(lo.mean)(VALUES, weights).value, eager.value, rtol=1e-6)
        rows = jax.vmap(lo.mean)(VALUES, weights)
        assert rows.total.shape == rows.value.shape == (4,)
        np.testing.assert_allclose(
            rows.value, np.average(VALUES, axis=1, weights=weights), rtol=1e-6
        )
        np.testing.assert_allclose((2 * rows).value, 2 * rows.value, rtol=1e-6)


TWO = [2, 2.0, np.float32(2), np.float64(2), np.array(2.0), np.int32(2), jnp.array(2.0)]


class TestArithmetic:
    term = lo.mean(VALUES, WEIGHTS["fractional"])

    @pytest.mark.parametrize("two", TWO, ids=lambda x: f"{type(x).__name__}")
    def test_a_number_scales_from_either_side(self, two):
        for got in (two * self.term, self.term * two):
            assert isinstance(got, lo.Mean)
            assert got.weight == self.term.weight
            assert got.total == 2 * self.term.total

    def test_the_scale_may_be_traced(self):
        got = jax.grad(lambda scale: (scale * self.term).value)(3.0)
        np.testing.assert_allclose(got, self.term.value, rtol=1e-6)

    @pytest.mark.parametrize("scale", [np.ones(1), np.ones(3), jnp.ones((1, 1)), VALUES])
    def test_an_array_does_not_scale(self, scale):
        for multiply in (lambda: scale * self.term, lambda: self.term * scale):
            with pytest.raises(ValueError, match="scale of shape"):
                multiply()

    @pytest.mark.parametrize("other", [lo.constant(1.0), 0, 1.0, np.float32(1), jnp.ones(())])
    def test_addition_has_two_readings(self, other):
        for add in (lambda: self.term + other, lambda: other + self.term):
            with pytest.raises(TypeError, match="two readings"):
                add()
        with pytest.raises(TypeError, match="two readings"):
            sum([self.term, self.term])

    def test_constant_is_a_mean_of_weight_1(self):
        got = lo.constant(jnp.bfloat16(0.5))
        assert (got.total, got.weight, got.value) == (0.5, 1, 0.5)
        assert got.total.dtype == jnp.float32
        np.testing.assert_array_equal(jax.grad(lambda x: lo.constant(x * x).value)(3.0), 6)

    @pytest.mark.parametrize("microbatches", [1, 3])
    def test_a_constant_without_gradient_counts_in_the_value_alone(self, microbatches):
        x, w = np.array([0.0, 1.0, 5.0, 2.0]), 3.0
        objective = lambda w, x: {
            "fit": lo.mean((w - x) ** 2),
            "penalty": 2 * lo.constant(w**3, gradient=False),
        }
        differentiate = lo.value_and_grad(objective, microbatches=microbatches)
        (value, _), gradient = differentiate(jnp.asarray(w), x)
        np.testing.assert_allclose(value, np.mean((w - x) ** 2) + 2 * w**3, rtol=1e-6)
        np.testing.assert_allclose(gradient, np.mean(2 * (w - x)), rtol=1e-6)

    @pytest.mark.parametrize("penalty", [np.ones(1), np.ones(3), [1.0, 2.0]])
    def test_constant_refuses_arrays(self, penalty):
        with pytest.raises(ValueError, match=r"value of shape \(\)"):
            lo.constant(jnp.asarray(penalty))


class TestTrees:
    a, b = lo.mean(np.array([1.0, 2.0])), lo.mean(np.array([6.0]), np.array([2.0]))

    @pytest.mark.parametrize("build", [lambda m: m, lambda m: [m, {"x": m}], lambda m: (m,)])
    def test_pool_adds_leaves(self, build):
        got = lo.pool(build(self.a), build(self.b), build(self.a))
        assert jax.tree.structure(got) == jax.tree.structure(build(self.a))
        for leaf in jax.tree.leaves(got, is_leaf=lambda x: isinstance(x, lo.Mean)):
            assert (leaf.total, leaf.weight) == (18, 6)

    def test_tree_map_pools(self):
        mapped, pooled = jax.tree.map(operator.add, self.a, self.b), lo.pool(self.a, self.b)
        assert (mapped.total, mapped.weight) == (pooled.total, pooled.weight) == (15, 4)

    def test_psum_and_scan_pool(self):
        values = np.arange(6, dtype=np.float32).reshape(3, 2)
        weights = np.array([[1, 0], [0, 0], [0.5, 2]], np.float32)
        whole = lo.mean(values, weights).value
        summed = jax.vmap(lambda x, w: jax.lax.psum(lo.mean(x, w), "parts"), axis_name="parts")
        add = lambda sums, xw: (lo.pool(sums, lo.mean(*xw)), None)
        zero = lo.mean(jnp.zeros(1), jnp.zeros(1))
        np.testing.assert_allclose(summed(values, weights).value, [whole] * 3, rtol=1e-6)
        scanned, _ = jax.lax.scan(add, zero, (values, weights))
        np.testing.assert_allclose(scanned.value, whole, rtol=1e-6)

    def test_pool_refuses_other_structures(self):
        with pytest.raises(ValueError, match=r"structure|key"):
            lo.pool({"a": self.a}, {"b": self.a})
        with pytest.raises(ValueError, match=r"length|arity"):
            lo.pool([self.a], [self.a, self.a])

    @pytest.mark.parametrize("wrong", [1.0, jnp.ones(()), {"fit": {"x": jnp.ones(3)}}])
    def test_leaves_that_are_no_means_are_refused(self, wrong):
        for fn in (lo.value, lo.pool, lambda tree: lo.pool(self.a, tree)):
            with pytest.raises(TypeError, match=r"Expected a tree of Mean, got \w+ at"):
                fn(wrong)

    def test_the_refusal_names_the_leaf(self):
        with pytest.raises(TypeError, match="got float at 'heads/1'"):
            lo.value({"heads": [self.a, 3.0]})

    def test_value_sums_terms(self):
        got = lo.value({"fit": self.a, "rest": (0.5 * self.b, lo.constant(0.25))})
        assert got == 1.5 + 3 + 0.25
        assert got.shape == ()
        assert lo.value(self.a) == 1.5
        assert lo.value({}) == 0

    def test_terms_are_named_by_their_paths(self):
        assert list(terms({"fit": self.a, "heads": [self.a, self.b]})) == [
            "fit",
            "heads/0",
            "heads/1",
        ]
        assert list(terms(self.a)) == [""]

    def test_two_terms_of_one_name_are_refused(self):
        with pytest.raises(ValueError, match="one name"):
            lo.value({"a/b": self.a, "a": {"b": self.b}})


def _floats(low, high):
    return st.floats(low, high, width=32, allow_nan=False, allow_subnormal=False)


@st.composite
def weighed_examples(draw):
    """Values, weights of one size (zeros among them) and cuts; no product underflows float32."""
    count = draw(st.integers(1, 12))
    values = draw(hnp.arrays(np.float32, count, elements=_floats(-100, 100)))
    values = np.where(np.abs(values) < 1e-3, np.float32(0), values)
    size = draw(st.sampled_from([1e-30, 1e-3, 1, 1e30]))
    fractions = draw(hnp.arrays(np.float32, count, elements=_floats(0, 1)))
    fractions = np.where(fractions < 1e-3, 0, fractions)
    cuts = draw(st.lists(st.integers(0, count), max_size=4))
    return values, np.float32(fractions * size), sorted(cuts)


class TestAlgebra:
    @few
    @given(weighed_examples())
    def test_any_split_pools_to_the_whole(self, examples):
        values, weights, cuts = examples
        parts = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
        pooled = lo.pool(*(lo.mean(v, w) for v, w in parts))
        whole, wide = lo.mean(values, weights), np.float64(weights)
        scale = np.sum(wide * np.abs(values))
        np.testing.assert_allclose(pooled.total, whole.total, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(pooled.weight, whole.weight, rtol=1e-6)
        want = np.sum(wide * values) / (np.sum(wide) or 1)
        error = 1e-6 * np.max(np.abs(values))
        np.testing.assert_allclose(pooled.value, want, rtol=1e-6, atol=error)

    @few
    @given(weighed_examples(), _floats(-10, 10))
    def test_scaling_scales_the_value_and_commutes_with_pooling(self, examples, scale):
        values, weights, _ = examples
        scale = np.float32(0 if abs(scale) < 1e-3 else scale)
        term, other = lo.mean(values, weights), lo.mean(values[::-1].copy(), weights)
        np.testing.assert_allclose((scale * term).value, scale * term.value, rtol=1e-6, atol=1e-6)
        first, second = scale * lo.pool(term, other), lo.pool(scale * term, scale * other)
        size = 1e-6 * abs(scale) * np.sum(np.float64(weights) * np.abs(values))
        np.testing.assert_allclose(first.total, second.total, rtol=1e-6, atol=size)
        assert first.weight == second.weight

    @few
    @given(_floats(-100, 100), st.integers(1, 9))
    def test_a_constant_pools_to_itself(self, number, pieces):
        pooled = lo.pool(*[lo.constant(number)] * pieces)
        np.testing.assert_allclose(pooled.value, number, rtol=1e-6)
        assert pooled.weight == pieces

    @few
    @given(st.lists(weighed_examples(), min_size=1, max_size=4))
    def test_value_is_the_sum_of_term_values(self, examples):
        means = {str(i): lo.mean(*example[:2]) for i, example in enumerate(examples)}
        values = [np.float64(mean.value) for mean in means.values()]
        error = 1e-6 * np.sum(np.abs(values))
        np.testing.assert_allclose(lo.value(means), np.sum(values), rtol=0, atol=error)

    @few
    @given(weighed_examples())
    def test_order_does_not_matter(self, examples):
        values, weights, _ = examples
        forth, back = lo.mean(values, weights), lo.mean(values[::-1].copy(), weights[::-1].copy())
        error = 1e-6 * np.max(np.abs(values))
        np.testing.assert_allclose(forth.value, back.value, rtol=1e-6, atol=error)
