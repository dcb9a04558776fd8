"""Refusals: what passes, what is refused, and in which words."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from lossopt import _checks

KEY = jax.random.key(0)


def _refuses(error, words, check, *args, **arrays):
    """The words of the refusal, whole."""
    with pytest.raises(error, match=rf"^{re.escape(words)}$"):
        check(*args, **arrays)


class TestFloats:
    @pytest.mark.parametrize(
        "given",
        [
            [jnp.bfloat16(1), 2],
            [np.float64(1), jnp.float16(2)],
            [True, np.int8([1, 2])],
            [1.0, jnp.float32(2)],
        ],
    )
    def test_one_dtype_float32_or_wider(self, given):
        got = _checks.floats(a=given[0], b=given[1])
        assert [x.dtype for x in got] == [jnp.float32] * 2
        assert not any(x.weak_type for x in got)
        for x, value in zip(got, given):
            np.testing.assert_array_equal(x, np.asarray(value))

    def test_float64_where_one_is(self):
        with jax.enable_x64(True):
            got = _checks.floats(a=np.float64(1), b=jnp.float16(2))
            assert [x.dtype for x in got] == [jnp.float64] * 2

    def test_complex_numbers_are_refused(self):
        words = "Expected real b, got complex64. Take its parts apart."
        _refuses(TypeError, words, _checks.floats, a=1.0, b=jnp.complex64(1j))


class TestShapes:
    def test_same_shapes_pass_as_floats(self):
        got = _checks.same_shape(a=np.int32([1, 2]), b=np.float16([0.5, 1.5]))
        assert [(x.shape, x.dtype) for x in got] == [((2,), jnp.float32)] * 2
        assert [x.dtype for x in _checks.same_shape(a=True)] == [jnp.float32]

    @pytest.mark.parametrize(
        ("a", "b"), [((3, 1), (3,)), ((), (1,)), ((2,), (3,)), ((2, 3), (3, 2))]
    )
    def test_others_are_refused_although_they_may_broadcast(self, a, b):
        words = f"Expected equal shapes, got a {a}, b {b}. Reshape one of them explicitly."
        _refuses(ValueError, words, _checks.same_shape, a=np.zeros(a), b=np.zeros(b))

    @pytest.mark.parametrize("shape", [(), (4,), (4, 3), (4, 3, 2)])
    def test_leading_axes_pass(self, shape):
        _checks.prefix_shape((4, 3, 2), weights=np.zeros(shape))

    @pytest.mark.parametrize("shape", [(3,), (4, 1), (1,), (4, 3, 2, 1), (3, 2)])
    def test_other_axes_are_refused(self, shape):
        words = (
            f"Expected weights to match the leading axes of (4, 3, 2), got {shape}: "
            "one number per example, or one per element."
        )
        zero = np.zeros(shape)
        _refuses(ValueError, words, _checks.prefix_shape, (4, 3, 2), fits=0, weights=zero)

    def test_an_exact_shape(self):
        _checks.exact_shape((2, 1), a=np.zeros((2, 1)), b=jnp.zeros((2, 1)))
        _checks.exact_shape((), scale=1.0)
        words = "Expected scale of shape (), got (1,). Reshape it explicitly."
        _refuses(ValueError, words, _checks.exact_shape, (), one=1.0, scale=np.zeros(1))

    def test_a_rank_of_at_least(self):
        _checks.rank_at_least(1, a=np.zeros(2), b=np.zeros((2, 2)))
        words = "Expected logits with at least 2 axes, got shape (3,)."
        given = {"fits": np.zeros((1, 1)), "logits": np.zeros(3)}
        _refuses(ValueError, words, _checks.rank_at_least, 2, **given)


class TestTypes:
    def test_floating_leaves_pass(self):
        _checks.floating(a=1.0, b=jnp.bfloat16(1), c=np.complex64(1))

    @pytest.mark.parametrize("x", [1, True, np.int8(1), jnp.uint32(1)])
    def test_leaves_without_a_step_are_refused(self, x):
        words = (
            f"Expected floating params, got {jnp.result_type(x)}. Name the leaves that are meant "
            "with lossopt.regularizers.by_path. (optax.inject_hyperparams takes a regularizer for "
            "a schedule: name it in static_args.)"
        )
        _refuses(ValueError, words, _checks.floating, step=1.0, params=x)

    def test_integers_pass_as_arrays(self):
        got = _checks.integers(a=3, b=np.uint8([1, 2]))
        assert [(x.shape, str(x.dtype)) for x in got] == [((), "int32"), ((2,), "uint8")]
        assert all(isinstance(x, jax.Array) for x in got)

    @pytest.mark.parametrize("x", [1.0, True, np.float32([1])])
    def test_what_is_no_integer_is_refused(self, x):
        words = (
            f"Expected integer labels, got {jnp.result_type(x)}. "
            "Convert class numbers with astype(int); pass distributions where they are taken."
        )
        _refuses(TypeError, words, _checks.integers, fits=1, labels=x)

    def test_keys_pass(self):
        for key in (KEY, None, {"a": KEY, "b": jax.random.split(KEY, 3)}):
            _checks.typed_key(key)

    @pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0, {"a": KEY, "b": np.uint32([0, 1])}])
    def test_raw_keys_are_refused(self, key):
        dtype = jnp.result_type(jax.tree.leaves(key)[-1])
        words = (
            f"Expected a typed PRNG key, got {dtype}. "
            "Make it with jax.random.key(seed), or wrap it by jax.random.wrap_key_data."
        )
        _refuses(TypeError, words, _checks.typed_key, key)


class TestArrays:
    @pytest.mark.parametrize(
        "x", [1, 1.5, True, 1j, np.float32(1), np.ones((2, 1)), jnp.ones(3), KEY, jnp.bfloat16(1)]
    )
    def test_arrays_and_numbers_have_a_shape_and_a_dtype(self, x):
        assert _checks.shape("x", x) == jnp.shape(x)
        assert _checks.dtype("x", x) == jnp.result_type(x)

    @pytest.mark.parametrize("x", [[1.0], (1, 2), None, "1", {"a": 1}, {1}])
    def test_all_else_is_refused_by_name(self, x):
        words = (
            f"Expected x as an array or a number, got {type(x).__name__}. "
            "Make an array of it first, with jnp.asarray."
        )
        for check in (_checks.shape, _checks.dtype):
            _refuses(TypeError, words, check, "x", x)
        checks = [_checks.floats, _checks.same_shape, _checks.integers, _checks.fits]
        for check in [*checks, *(partial(check, 0) for check, *_ in RANGES)]:
            _refuses(TypeError, words, check, fits=1, x=x)
        for check, bound in ((_checks.exact_shape, ()), (_checks.rank_at_least, 0)):
            _refuses(TypeError, words, check, bound, x=x)
        _refuses(TypeError, words, _checks.prefix_shape, (2, 3), x=x)
        if x is not None:
            _refuses(TypeError, words, _checks.mask, "x", x, ())


class TestWhole:
    @pytest.mark.parametrize(
        "x",
        [
            2**31 - 1,
            -(2**31),
            np.int64([1, -(2**31)]),
            np.uint32(2**32 - 1),
            np.uint64(2**32 - 1),
            1e30,
            np.float64(1e30),
            jnp.uint32(2**32 - 1),
            np.zeros(0, np.int64),
        ],
    )
    def test_what_jax_holds_fits(self, x):
        _checks.fits(x=x)
        jax.jit(lambda x: _checks.fits(x=x) or x)(x)

    @pytest.mark.parametrize(
        ("x", "stray"),
        [
            (2**31, 2**31),
            (-(2**31) - 1, -(2**31) - 1),
            (10**30, 10**30),
            (np.int64([[1, 2**32], [3, 4]]), 2**32),
            (np.uint64(2**32), 2**32),
        ],
    )
    def test_what_it_would_wrap_is_refused(self, x, stray):
        words = (
            f"Expected x within 32 bits, got {stray}. Write a number as a float; count classes and "
            "identities from 0."
        )
        for check in (_checks.fits, partial(_checks.at_least, -(10**40))):
            _refuses(ValueError, words, check, one=1, x=x)

    def test_64_bits_hold_more(self):
        with jax.enable_x64(True):
            _checks.fits(x=2**62, y=np.int64([2**62]))
            words = (
                f"Expected x within 64 bits, got {2**63}. Write a number as a float; count classes "
                "and identities from 0."
            )
            _refuses(ValueError, words, _checks.fits, x=2**63)

    @pytest.mark.parametrize("x", [3, np.int64(3), np.uint8(3), jnp.int32(3), True + 2])
    def test_a_count_is_one_of_python(self, x):
        got = _checks.count("keep", x, 3)
        assert (got, type(got)) == (3, int)
        assert _checks.count("keep", 10**30, 0) == 10**30

    @pytest.mark.parametrize("x", [3.0, "3", None, np.float32(3)])
    def test_a_count_is_whole(self, x):
        words = f"Expected keep as a whole number, got {x!r}. Round it."
        _refuses(TypeError, words, _checks.count, "keep", x, 1)

    def test_a_flag_is_no_count(self):
        words = "Expected keep as a whole number, got True. Give the number itself."
        _refuses(TypeError, words, _checks.count, "keep", True, 1)

    def test_a_count_has_a_lowest(self):
        words = "Expected keep >= 1, got 0. Choose keep within this range."
        _refuses(ValueError, words, _checks.count, "keep", 0, 1)


class TestMask:
    shapes = (2, 3), (3,)

    def test_none_is_true_everywhere(self):
        got = _checks.mask("items", None, *self.shapes)
        assert (got.shape, got.dtype, bool(got.all())) == ((2, 3), jnp.bool_, True)

    def test_one_of_the_shapes_is_broadcast_to_the_first(self):
        row, table = np.array([True, False, True]), np.eye(2, 3, dtype=bool)
        np.testing.assert_array_equal(_checks.mask("items", row, *self.shapes), [row, row])
        np.testing.assert_array_equal(_checks.mask("items", table, *self.shapes), table)

    @pytest.mark.parametrize("shape", [(2,), (1, 3), (), (3, 2)])
    def test_other_shapes_are_refused(self, shape):
        words = f"Expected items of shape (2, 3) or (3,), got {shape}."
        given = "items", np.zeros(shape, bool), *self.shapes
        _refuses(ValueError, words, _checks.mask, *given)

    def test_what_is_not_boolean_is_refused(self):
        words = "Expected a boolean items, got float32. Compare with `!= 0`."
        given = "items", np.ones(3, np.float32), *self.shapes
        _refuses(TypeError, words, _checks.mask, *given)


RANGES = [  # a check, its bound, what passes, what does not, the words
    (_checks.at_least, 1, [1, 2, 1.0, np.array([1, 5])], [0, 0.9, np.array([1, 0])], ">= 1"),
    (_checks.at_most, 1, [1, 0, -2.5, np.array([0, 1])], [2, 1.1, np.array([1, 2])], "<= 1"),
    (_checks.above, 0, [1e-9, 1, np.array([1, 2])], [0, -1.0, np.array([1, 0])], "> 0"),
    (_checks.below, 1, [0.999, -3, np.array([0, 0.5])], [1, 1.5, np.array([0, 1])], "< 1"),
]


@pytest.mark.parametrize(("check", "bound", "fits", "others", "words"), RANGES)
class TestRanges:
    def test_numbers_within_pass(self, check, bound, fits, others, words):
        for number in fits:
            check(bound, rate=number)

    def test_numbers_outside_are_refused(self, check, bound, fits, others, words):
        for number in [*others, np.nan]:
            says = f"Expected rate {words}, got {number}. Choose rate within this range."
            _refuses(ValueError, says, check, bound, fits=fits[0], rate=number)

    def test_a_tracer_passes(self, check, bound, fits, others, words):
        jax.eval_shape(lambda number: check(bound, rate=number), np.float32(others[0]))
        checked = jax.jit(lambda number: check(bound, rate=number) or number)
        assert checked(others[0]) == others[0]


class TestCondition:
    def _check(self, x):
        _checks.condition(x < 3, "expected x < 3, got {x}.", x=jnp.max(x))
        return 2 * x

    @pytest.mark.parametrize("run", [lambda f: f, jax.jit])
    def test_speaks_under_checkify(self, run):
        checked = run(checkify.checkify(self._check))
        assert checked(jnp.arange(3))[0].get() is None
        error, out = checked(jnp.arange(4))
        assert error.get().startswith("expected x < 3, got 3.")
        np.testing.assert_array_equal(out, [0, 2, 4, 6])

    @pytest.mark.parametrize("run", [lambda f: f, jax.jit])
    def test_else_it_is_silent(self, run):
        np.testing.assert_array_equal(run(self._check)(jnp.arange(4)), [0, 2, 4, 6])

    def test_costs_nothing_in_a_compiled_program(self):
        program = jax.jit(self._check).lower(jnp.arange(4)).compile().as_text()
        assert "multiply" in program
        assert not any(name in program for name in ("compare", "reduce", "callback"))

    def test_may_be_a_python_boolean(self):
        def fn(x):
            _checks.condition(False, "never")
            return x

        assert checkify.checkify(fn)(1.0)[0].get().startswith("never")
