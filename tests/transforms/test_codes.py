"""Codes against grids written out in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt.transforms._codes import Code, decode, encode, nearest_bfloat16, to_bfloat16
from lossopt.transforms._noise import noise, words

pytestmark = pytest.mark.usefixtures("optimized")

RANDOM = np.random.default_rng(0)
STEPS = 4096


def _like(second, block=256, dtype=jnp.float32):
    return Code(None, None, second, np.dtype(dtype), block, 0)


@partial(jax.jit, static_argnames=("second", "block"))
def _coded(x, second, block=256, step=0):
    bits = partial(noise, words(0), 0, jnp.asarray(step))
    return encode(x, _like(second, block, x.dtype), bits)


_decoded = jax.jit(decode)


def _grid(count):
    """0 and the `count` largest of the numbers (1 + k / 8) 2^e that are at most 1, in order."""
    numbers = sorted((1 + k / 8) * 2.0**e for e in range(-33, 1) for k in range(8))
    return np.array([0, *[x for x in numbers if x <= 1][-count:]])


GRIDS = {False: _grid(127), True: _grid(255)}


def _neighbors(shares, second):
    """The grid's numbers below and above."""
    grid = GRIDS[second]
    above = np.clip(np.searchsorted(grid, shares), 1, len(grid) - 1)
    return grid[above - 1], grid[above]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("shape", [(4096,), (37, 13, 11), (16, 512), (5, 1000), (256, 17)])
def test_a_number_becomes_one_of_its_neighbors(second, shape):
    x = RANDOM.normal(size=shape).astype(np.float32)
    x = x**2 if second else x
    code = _coded(x, second)
    assert (code.codes.shape, code.codes.dtype) == (shape, jnp.uint8)
    flat = np.pad(x.reshape(-1), (0, -x.size % 256)).reshape(-1, 256)
    scales = np.abs(flat).max(1, keepdims=True)
    np.testing.assert_array_equal(np.reshape(code.scales, scales.shape), scales)
    repeat = np.repeat(scales, 256, 1).reshape(-1)[: x.size].reshape(shape)
    below, above = _neighbors(np.abs(x) / np.float64(repeat), second)
    got = np.float64(_decoded(code))
    assert (np.sign(got) * np.sign(x) >= 0).all()
    share = np.abs(got) / repeat
    assert (np.isclose(share, below, rtol=1e-6) | np.isclose(share, above, rtol=1e-6)).all()
    assert (got[np.abs(x) == repeat] == x[np.abs(x) == repeat]).all()  # the largest is exact


@pytest.mark.parametrize("second", [False, True])
def test_the_mean_over_steps_is_right(second):
    x = np.exp2(RANDOM.uniform(-10, 0, 512)).astype(np.float32)
    x = x if second else x * np.sign(RANDOM.normal(size=512)).astype(np.float32)
    coded = jax.jit(jax.vmap(lambda step: decode(_coded(x, second, step=step))))
    draws = np.float64(coded(jnp.arange(STEPS)))
    scales = np.repeat(np.abs(x).reshape(-1, 256).max(1), 256)
    below, above = _neighbors(np.abs(np.float64(x)) / scales, second)
    deviations = (draws.mean(0) - x) / ((above - below) * scales / 2 / np.sqrt(STEPS))
    assert np.abs(deviations).max() < 4.5
    assert abs(deviations.mean()) * np.sqrt(512) < 4.5


def test_a_second_moment_above_zero_never_becomes_zero():
    x = np.exp2(RANDOM.uniform(-120, 120, (64, 256))).astype(np.float32)
    x[:, ::7] = 0
    for scale in (1.0, 2.0**-5):
        got = _decoded(_coded(np.float32(scale) * x, True))
        np.testing.assert_array_equal(got > 0, x > 0)
    x[:] = 1.01 * np.finfo(np.float32).tiny  # rounded down, it would underflow
    x[:, 0] = 1e-36
    assert np.asarray(_decoded(_coded(x, True))).min() > 0


def test_zeros_are_exact():
    zeros = np.zeros((2, 256), np.float32)
    mixed = zeros.copy()
    mixed[0, 5] = 2
    for second in (False, True):
        code = _coded(zeros, second)
        assert not np.asarray(code.codes).any()
        np.testing.assert_array_equal(_decoded(code), zeros)
        np.testing.assert_array_equal(_decoded(_coded(mixed, second)), mixed)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_poisons_its_block_alone(second, bad):
    x = np.ones((2, 256), np.float32)
    x[0, 3] = bad
    got = np.asarray(_decoded(_coded(x, second)))
    assert not np.isfinite(got[0]).any()
    np.testing.assert_array_equal(got[1], 1)


def test_a_negative_second_moment_is_not_hidden():
    x = np.ones((2, 256), np.float32)
    x[0, 3] = -1e-3
    got = np.asarray(_decoded(_coded(x, True)))
    assert np.isnan(got[0]).all()
    np.testing.assert_array_equal(got[1], 1)
    x[0] = -0.0
    x[0, 7:] = 1
    np.testing.assert_array_equal(_decoded(_coded(x, True)), x)


@pytest.mark.parametrize("block", [1, 7, 64, 1000, 8192])
def test_blocks_of_any_length(block):
    x = RANDOM.normal(size=(50, 91)).astype(np.float32)
    code = _coded(x, False, block)
    assert code.scales.size == -(-x.size // block)
    flat = np.pad(x.reshape(-1), (0, -x.size % block)).reshape(-1, block)
    np.testing.assert_array_equal(code.scales.reshape(-1), np.abs(flat).max(1))
    below_range = 2.0**-15 * np.abs(x).max()
    np.testing.assert_allclose(_decoded(code), x, rtol=0.125, atol=below_range)


def test_float64_keeps_its_dtype_and_its_range():
    with jax.enable_x64(True):
        x = RANDOM.uniform(0.01, 1, (2, 256)) * np.array([[1e-200], [1e250]])
        for second in (False, True):
            got = _decoded(_coded(x, second))
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, x, rtol=0.125, atol=0)
        x[0, 0] = -1
        assert np.isnan(_decoded(_coded(x, True)))[0].all()


def test_bfloat16_codes():
    x = np.float32(RANDOM.normal(size=1000) ** 2)
    first = _coded(x, False, None)
    np.testing.assert_array_equal(first.codes, x.astype(jnp.bfloat16))
    draw = jax.jit(jax.vmap(lambda step: decode(_coded(x, True, None, step))))
    seconds = np.asarray(draw(jnp.arange(512)))
    assert seconds.dtype == np.float32
    gap = np.exp2(np.floor(np.log2(x)) - 7)
    assert (np.abs(seconds - x[None]) < gap).all()
    deviations = (seconds.astype(np.float64).mean(0) - x) / gap
    assert np.abs(deviations).max() < 0.12  # 5.4 deviations of 1/45


def _bfloat16_neighbors(x):
    """By the definition: the two multiples of the spacing at |x|, toward zero and away."""
    gap = np.exp2(np.maximum(np.floor(np.log2(np.abs(np.float64(x)))), -126) - 7)
    toward = np.sign(x) * np.floor(np.abs(np.float64(x)) / gap) * gap
    return toward, toward + np.sign(x) * gap, gap


def test_chance_rounds_to_a_neighbor_and_is_right_on_average():
    x = (RANDOM.normal(size=300) * np.exp2(RANDOM.integers(-60, 60, 300))).astype(np.float32)
    draw = jax.jit(jax.vmap(lambda i: to_bfloat16(jnp.asarray(x), noise(words(1), 0, i, x.shape))))
    got = np.float64(draw(jnp.arange(STEPS)))
    toward, away, gap = _bfloat16_neighbors(x)
    assert ((got == toward) | (got == away)).all()
    deviations = (got.mean(0) - x) / gap * 2 * np.sqrt(STEPS)
    assert np.abs(deviations).max() < 4.5
    assert abs(deviations.mean()) * np.sqrt(x.size) < 4.5


def test_what_is_exact_stays_and_what_is_finite_stays_finite():
    bits = np.full(6, 0xFFFFFFFF, np.uint32)
    largest = np.full(6, np.finfo(np.float32).max)
    x = np.float32([0.0, 1.5, -(2.0**-100), np.nan, np.inf, -np.inf])
    for rounded in (jax.jit(lambda x: to_bfloat16(x, bits)), jax.jit(nearest_bfloat16)):
        np.testing.assert_array_equal(rounded(x), x)
        np.testing.assert_array_equal(rounded(largest), float(jnp.finfo(jnp.bfloat16).max))
    payload = np.full(6, 0x7F800001, np.uint32).view(np.float32)
    assert np.isnan(to_bfloat16(payload, bits)).all()  # cut off, it would be an infinity


def test_nearest_equals_the_cast():
    x = jnp.asarray(RANDOM.normal(size=10_000) * np.exp2(RANDOM.integers(-90, 90, 10_000)), "f4")
    np.testing.assert_array_equal(nearest_bfloat16(x), x.astype(jnp.bfloat16).astype(jnp.float32))
