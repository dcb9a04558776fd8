"""Bits of a counter must look as if nobody had counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt.transforms import quantized
from lossopt.transforms._noise import key_words, noise, words

SIZE = 1 << 18


def _noise(seed=0, leaf=0, step=0, shape=(SIZE,)):
    return np.asarray(noise(words(seed), leaf, jnp.int32(step), shape))


def _signs(x):
    """Bits as -1 and 1, one column each."""
    bits = (x.reshape(-1, 1) >> np.arange(32, dtype=np.uint32)) & 1
    return 2 * bits.astype(np.float32) - 1  # sums of whole numbers stay exact


def _correlations(x, y):
    """Of each bit with each, in standard deviations."""
    return _signs(x).T @ _signs(y) / np.sqrt(x.size)


@pytest.mark.parametrize("place", [(0, 0, 0), (5, 0, 1), (0, 3, 0), (1, 1, 100_000)])
def test_bits_and_bytes_are_uniform(place):
    x = _noise(*place)
    assert np.abs(_signs(x).mean(0)).max() * np.sqrt(SIZE) < 4.5
    for shift in (0, 8, 16, 24):
        counts = np.bincount((x >> shift) & 255, minlength=256)
        chi_squared = np.sum((counts - SIZE / 256) ** 2) / (SIZE / 256)
        assert 150 < chi_squared < 375  # 255 with a standard deviation of 22.6


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"step": 256}, {"leaf": 1}, {"leaf": 1, "step": 1}, {"seed": 1}, {"seed": 2**31}],
    ids=str,
)
def test_steps_leaves_and_seeds_differ_in_every_bit(other):
    seed = other.pop("seed", 0)
    seed = jnp.uint32(seed) if seed >= 2**31 else seed
    assert np.abs(_correlations(_noise(), _noise(seed, **other))).max() < 5


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 255, 256, 4096])
def test_neighbors_differ_in_every_bit(lag):
    x = _noise()
    assert np.abs(_correlations(x[lag:], x[:-lag])).max() < 5


def test_one_place_through_the_steps():
    draw = jax.jit(jax.vmap(lambda step: noise(words(0), 3, step, (3, 2))))
    x = np.asarray(draw(jnp.arange(SIZE)))[:, 2, 1]
    assert np.abs(_signs(x).mean(0)).max() * np.sqrt(SIZE) < 4.5
    assert np.abs(_correlations(x[1:], x[:-1])).max() < 5


def test_the_bits_of_both_moments_are_independent():
    x = _noise()
    upper, lower = x >> 12, x & 0xFFF
    assert abs(np.corrcoef(upper, lower)[0, 1]) * np.sqrt(SIZE) < 4


def test_no_stream_is_a_shifted_or_reordered_other():
    sets = [np.sort(_noise(step=step)) for step in (0, 1)]
    shared = np.intersect1d(*sets).size
    assert shared < 4 * SIZE**2 / 2**32  # as many as chance gives: 16


@pytest.mark.parametrize("word", [0, 1])
def test_both_words_matter(word):
    pair = words(0)
    other = pair.at[word].add(jnp.uint32(1))
    x, y = (np.asarray(noise(w, 0, jnp.int32(0), (SIZE,))) for w in (pair, other))
    assert np.mean(x == y) < 1e-4


def test_bits_belong_to_the_place_in_the_flattened_array():
    want = _noise(shape=(60,))
    for shape in [(3, 4, 5), (60, 1), (1, 5, 12)]:
        np.testing.assert_array_equal(_noise(shape=shape).reshape(-1), want)
    assert _noise(shape=()) == want[0]


def test_seeds_and_keys_may_be_vmapped():
    seeds = jnp.arange(3)
    got = jax.vmap(lambda seed: noise(words(seed), 0, jnp.int32(7), (5,)))(seeds)
    np.testing.assert_array_equal(got, [_noise(seed, 0, 7, (5,)) for seed in range(3)])
    keys = jax.random.split(jax.random.key(0), 3)
    assert len(np.unique(jax.vmap(key_words)(keys))) == 6


@pytest.mark.parametrize("kind", [int, np.int64, np.uint32, np.uint64])
def test_a_seed_may_be_any_hash_of_32_bits(kind):
    word = np.uint32(2**32 - 3)
    np.testing.assert_array_equal(words(kind(word)), words(jnp.uint32(word)))
    quantized(optax.sgd(0.1), seed=kind(word)).init(jnp.ones(2))


def test_refusals():
    with pytest.raises(ValueError, match="seed >= 0"):
        words(-1)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        key_words(jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="key of shape"):
        key_words(jax.random.split(jax.random.key(0), 3))
