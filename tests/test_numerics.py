"""Where numbers end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt._numerics import NO_LOGIT, mixed, root, wide, zeros

LOW = [jnp.bfloat16, jnp.float16, jnp.float32]


class TestSums:
    @pytest.mark.parametrize("dtype", [*LOW, jnp.int32, jnp.uint8, jnp.bool_])
    def test_are_float32(self, dtype):
        assert wide(dtype) == wide(jnp.zeros(2, dtype).dtype) == jnp.float32

    def test_or_wider(self):
        assert wide(jnp.complex64) == jnp.complex64
        with jax.enable_x64(True):
            assert wide(jnp.float64) == jnp.float64
            assert zeros(np.float64(1)).dtype == jnp.float64

    @pytest.mark.parametrize("dtype", LOW)
    def test_start_at_zeros_of_the_shape(self, dtype):
        got = zeros(jnp.full((2, 3), jnp.nan, dtype))
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.zeros((2, 3), np.float32))
        assert zeros(3.0).shape == ()


class TestNoLogit:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_lies_below_all_logits_and_is_finite(self, dtype):
        low = dtype(NO_LOGIT[np.dtype(dtype)])
        assert low == NO_LOGIT[np.dtype(dtype)]
        assert low - low == 0
        assert low < np.finfo(dtype).min / 4
        for logit in (np.finfo(dtype).min / 4, -1e4, 0.0, 1e4, np.finfo(dtype).max / 4):
            assert np.isfinite(low - dtype(logit))
            assert low < dtype(logit)

    def test_has_no_share_of_a_softmax_and_no_slope(self):
        low = NO_LOGIT[jnp.dtype(jnp.float32)]
        probability = lambda x: jax.nn.softmax(jnp.stack([x, low]))[1]
        assert jax.value_and_grad(probability)(-1e4) == (0, 0)
        np.testing.assert_array_equal(jax.nn.softmax(jnp.full(2, low)), [0.5, 0.5])


class TestRoot:
    def test_is_the_square_root(self):
        x = np.geomspace(1e-37, 1e37, 50, dtype=np.float32)
        np.testing.assert_allclose(root(jnp.asarray(x)), np.sqrt(np.float64(x)), rtol=3e-7)

    def test_its_slope_at_zero_is_zero(self):
        for derivative in (jax.grad, jax.jacfwd):
            slope = jax.jit(jax.vmap(derivative(root)))(jnp.array([0.0, -0.0, 0.25, 4.0]))
            np.testing.assert_array_equal(slope, [0, 0, 1, 0.25])
        assert root(jnp.float32(0)) == 0
        assert jax.grad(jax.grad(root))(0.0) == 0

    def test_nan_goes_through_and_negative_numbers_are_nan(self):
        x = jnp.array([jnp.nan, -1.0, jnp.inf, -jnp.inf])
        np.testing.assert_array_equal(root(x), [np.nan, np.nan, np.inf, np.nan])
        assert jnp.isnan(jax.grad(root)(jnp.nan))

    @pytest.mark.parametrize("dtype", LOW)
    def test_keeps_the_dtype(self, dtype):
        assert root(jnp.asarray([0, 4], dtype)).dtype == dtype


def _mixed_by_hand(word):
    """By Python's integers, from the published constants."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


def _unshifted(word, shift):
    """What `word ^ (word >> shift)` was made of."""
    out = word
    for _ in range(32 // shift):
        out = word ^ out >> shift
    return out


def _unmixed(word):
    word = _unshifted(word, 16) * pow(0x846CA68B, -1, 2**32) % 2**32
    word = _unshifted(word, 15) * pow(0x7FEB352D, -1, 2**32) % 2**32
    return _unshifted(word, 16)


class TestMixed:
    words = np.concatenate(
        [
            np.arange(1000),
            2**32 - 1 - np.arange(1000),
            1 << np.arange(32),
            np.random.default_rng(0).integers(0, 2**32, 1000),
        ]
    ).astype(np.uint32)

    def test_is_the_published_hash(self):
        got = np.asarray(jax.jit(mixed)(jnp.asarray(self.words)))
        assert got.dtype == np.uint32
        assert got.tolist() == [_mixed_by_hand(word) for word in self.words.tolist()]

    def test_is_a_bijection(self):
        got = np.asarray(mixed(jnp.asarray(self.words))).tolist()
        assert [_unmixed(word) for word in got] == self.words.tolist()

    def test_each_bit_of_the_input_flips_half_of_the_output(self):
        words = jnp.asarray(self.words[-1000:])
        flips = jnp.stack([mixed(words) ^ mixed(words ^ jnp.uint32(1 << i)) for i in range(32)])
        bits = np.unpackbits(np.asarray(flips).view(np.uint8).reshape(32, 1000, 4), axis=-1)
        shares = bits.mean(axis=1)  # of 1000 words: a standard error of 0.016
        assert shares.shape == (32, 32)
        assert np.all(abs(shares - 0.5) < 0.1)
