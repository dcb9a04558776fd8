"""Rows in memory: every one once an epoch, in an order that nobody can tell from a shuffle."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt.training._source import Rows, places, source

KEY = jax.random.key(3)
DATA = {"x": np.arange(20.0).reshape(10, 2), "row": np.arange(10)}
LARGEST = 2**31 - 1


def _mixed(word):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = (word ^ (word >> shift)) * factor % 2**32
    return word ^ (word >> 16)


def _sides(rows):
    root = math.isqrt(rows - 1) + 1
    width = min(range(root + root % 2, root + root // 3 + 2, 2), key=lambda side: -rows % side)
    return width, -(-rows // width)


def _places(numbers, rows, words, rounds=None):
    """The bijection again, in numpy's 64 bits, one row of `words` for each of the last axis."""
    width, height = _sides(rows)
    rounds = rounds or 2 + math.ceil(24 / math.log2(max(2, height)))
    words = np.asarray(words, np.int64)

    def once(x, at):
        left, right = np.divmod(x, width)
        size, other = height, width
        for number in range(rounds):
            word = (words[at, number % 2] + 0x9E3779B9 * number) % 2**32
            left, right = right, (left + (_mixed(right ^ word) * size >> 32)) % size
            size, other = other, size
        return left * other + right

    at, x = np.indices((len(words), np.shape(numbers)[-1]))[0], np.asarray(numbers, np.int64)
    x = once(np.broadcast_to(x, at.shape), at)
    while len(beyond := np.nonzero(x >= rows)[0]):
        x[x >= rows] = once(x[x >= rows], beyond)
    return x


def _words(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (count, 2), np.uint32)


@cache
def _orders(rows, count, rounds=None):
    return _places(np.arange(rows), rows, _words(count), rounds)


class TestPlaces:
    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 10, 64, 97, 1797])
    def test_a_bijection_as_in_numpy(self, rows):
        words = _words(3)
        got = jax.jit(jax.vmap(lambda w: places(jnp.arange(rows), rows, w)))(words)
        np.testing.assert_array_equal(np.sort(got), np.tile(np.arange(rows), (3, 1)))
        np.testing.assert_array_equal(got, _places(np.arange(rows), rows, words))
        assert got.dtype == jnp.int32

    @pytest.mark.parametrize("rows", [46340**2, LARGEST - 1, LARGEST])
    def test_as_many_rows_as_there_may_be(self, rows):
        numbers = np.r_[:50, rows // 2 : rows // 2 + 50, rows - 50 : rows]
        got = np.asarray(jax.jit(lambda w: places(jnp.asarray(numbers), rows, w))(_words(1)[0]))
        np.testing.assert_array_equal(got, _places(numbers, rows, _words(1))[0])
        assert len(np.unique(got)) == 150
        assert 0 <= got.min() <= got.max() < rows

    def test_no_number_of_rows_overflows(self):
        """Pairs are below 2**32, sides at most 2**16, and more than one pair walks at most half."""
        random = np.random.default_rng(0).integers(1, LARGEST, 100)
        for rows in (*range(1, 300), *random, *(46341**2 - k for k in range(9)), LARGEST):
            width, height = _sides(int(rows))
            assert height <= width <= 2**16
            assert rows <= width * height < min(2**32, 2 * rows + 1)
            assert height > 1 or rows <= 2

    def test_in_loops_and_under_derivatives(self):
        rows, words = 10, _words(1)[0]
        x = jnp.arange(10.0) ** 2
        want = np.asarray(x)[_places(np.arange(rows), rows, words[None])[0]]

        def scanned(scale):
            step = lambda c, i: (c, scale * x[places(i[None], rows, jnp.asarray(words))[0]])
            return jax.lax.scan(step, (), jnp.arange(rows))[1]

        def looped(scale):
            body = lambda i, c: c.at[i].set(scale * x[places(i[None], rows, jnp.asarray(words))[0]])
            return jax.lax.fori_loop(jnp.int32(0), jnp.int32(rows), body, jnp.zeros(rows))

        np.testing.assert_array_equal(jax.jacrev(scanned)(1.0), want)
        np.testing.assert_array_equal(jax.jacfwd(looped)(1.0), want)


def _excess(counts, expected):
    """Chi-square less its mean, in standard deviations."""
    freedom = len(counts) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


def _pairs(orders, places, rows):
    """How evenly two places hold the pairs of rows."""
    counts = np.bincount(orders[:, places] @ [rows, 1], minlength=rows**2).reshape(rows, rows)
    assert not counts.trace()
    return _excess(counts[~np.eye(rows, dtype=bool)], len(orders) / (rows * (rows - 1)))


class TestShuffle:
    """Chi-squares stay within 5 deviations, as a shuffle of numpy's does; fewer rounds do not."""

    count = 100_000

    @pytest.mark.parametrize("rows", [3, 5, 7, 10])
    def test_every_place_holds_every_row_and_every_two_places_every_pair(self, rows):
        generator = np.random.default_rng(1)
        theirs = generator.permuted(np.tile(np.arange(rows), (self.count, 1)), axis=1)
        for orders in (theirs, _orders(rows, self.count)):
            for place in range(rows):
                counts = np.bincount(orders[:, place], minlength=rows)
                assert abs(_excess(counts, self.count / rows)) < 5
            for pair in ([0, 1], [0, 2], [0, rows - 1], [rows - 2, rows - 1]):
                assert abs(_pairs(orders, pair, rows)) < 5

    @pytest.mark.parametrize("rows", [5, 6, 7])
    def test_all_orders_are_as_frequent(self, rows):
        codes = _orders(rows, self.count) @ rows ** np.arange(rows)
        _, counts = np.unique(codes, return_counts=True)
        assert len(counts) == math.factorial(rows)
        assert abs(_excess(counts, self.count / len(counts))) < 5

    @pytest.mark.parametrize(("rows", "rounds"), [(3, 5), (5, 12), (7, 12), (10, 6)])
    def test_with_fewer_rounds_one_could_tell(self, rows, rounds):
        orders = _orders(rows, self.count, rounds)
        pairs = [0, 1], [0, 2], [0, rows - 1], [rows - 2, rows - 1]
        assert max(_pairs(orders, pair, rows) for pair in pairs) > 5

    @pytest.mark.parametrize("rows", [1797, 1_000_000])
    def test_rows_that_lay_together_lie_anywhere(self, rows):
        """Of pairs with one side alike before, the difference of each side after."""
        width, _ = _sides(rows)
        words = _words(self.count)
        begin = np.random.default_rng(1).integers(0, rows - 2 * width, self.count)
        for step in (1, width, 2 * width):
            pairs = np.stack([begin, begin + step], axis=1)
            assert max(_apart(pairs, rows, words)) < 5
        assert max(_apart(pairs, rows, words, rounds=3)) > 5

    def test_epochs_know_nothing_of_each_other(self):
        rows = 1797
        numbers, epochs = np.arange(rows), _orders(rows, 40)
        correlations = np.corrcoef(np.r_[numbers[None], epochs])[np.triu_indices(41, 1)]
        assert abs(correlations).max() < 5 / math.sqrt(rows)
        assert abs(correlations.std() * math.sqrt(rows) - 1) < 0.1
        stayed = (epochs[1:] == epochs[:-1]).sum()  # one a pair of epochs, if they are independent
        assert abs(stayed - 39) < 5 * math.sqrt(39)
        neighbors = (abs(np.diff(epochs)) == 1).sum() / 40
        assert abs(neighbors - 2) < 5 * math.sqrt(2 / 40)


def _apart(pairs, rows, words, rounds=None):
    """How evenly the two rows of a pair differ in each of their sides, beside any two rows."""
    width, height = _sides(rows)
    moved, every = _places(pairs, rows, words, rounds), np.arange(rows)
    for side, size in ((lambda x: x // width, height), (lambda x: x % width, width)):
        held = np.fft.fft(np.bincount(side(every), minlength=size))
        expected = np.fft.ifft(abs(held) ** 2).real - rows * (np.arange(size) == 0)
        counts = np.bincount(np.subtract(*side(moved).T) % size, minlength=size)
        yield _excess(counts, expected * len(pairs) / (rows * (rows - 1)))


class TestRows:
    def test_counts(self):
        for rows, size, drop_last, full, rest in [
            (10, 4, False, 2, 2),
            (10, 4, True, 2, 0),
            (10, 5, False, 2, 0),
            (10, 10, True, 1, 0),
            (1, 1, False, 1, 0),
        ]:
            cut = Rows(rows, size, drop_last)
            assert (cut.full, cut.rest, cut.steps) == (full, rest, full + (rest > 0))
            assert hash(cut) == hash(Rows(rows, size, drop_last))

    @pytest.mark.parametrize("size", [1, 3, 5])
    def test_an_epoch_is_the_order_however_it_is_cut(self, size):
        cut = source(DATA, size, False)
        words = jax.random.bits(KEY, (2,), jnp.uint32)
        order = _places(np.arange(10), 10, words[None])[0]
        batches = jax.jit(
            lambda key: jax.lax.map(lambda i: cut.batch(DATA, key, i), np.arange(cut.full))
        )
        got = {name: x.reshape(-1, *x.shape[2:]) for name, x in batches(KEY).items()}
        if cut.rest:
            got = {name: np.r_[got[name], x] for name, x in cut.last(DATA, KEY).items()}
        assert got["row"].tolist() == order.tolist()
        np.testing.assert_array_equal(got["x"], DATA["x"][order])

    def test_eager_jit_and_vmap_agree(self):
        cut, keys = source(DATA, 4, False), jax.random.split(KEY, 2)
        both = lambda key, number: (cut.batch(DATA, key, number), cut.last(DATA, key))
        many = jax.jit(jax.vmap(both, (0, None)))(keys, 1)
        eager = both(keys[0], 1), both(keys[1], 1)
        jax.tree.map(
            np.testing.assert_array_equal, many, jax.tree.map(lambda *x: np.stack(x), *eager)
        )
        jax.tree.map(np.testing.assert_array_equal, jax.jit(both)(keys[0], 1), eager[0])

    def test_other_rows_are_dropped_in_each_epoch(self):
        cut = source(DATA, 4, True)
        rows = lambda key: [cut.batch(DATA, key, number)["row"] for number in range(cut.steps)]
        kept = np.concatenate(jax.jit(jax.vmap(rows))(jax.random.split(KEY, 200)), axis=1)
        assert all(len(set(epoch)) == 8 for epoch in kept.tolist())
        dropped = 200 - np.bincount(kept.ravel(), minlength=10)  # of each row a fifth
        assert abs(dropped - 40).max() < 5 * math.sqrt(200 * 0.2 * 0.8)

    @pytest.mark.parametrize("size", [None, 10, 11, 2**40])
    def test_all_rows_are_given_as_they_are(self, size):
        cut = source(DATA, size, False)
        assert cut == (10, 10, False, 1)
        assert cut.batch(DATA, KEY, 0) is DATA

    def test_keys_and_numbers_without_axes_are_rows_as_well(self):
        data = {"key": jax.random.split(KEY, 10), "row": jnp.arange(10), "empty": np.zeros((10, 0))}
        batch = source(data, 4, False).batch(data, KEY, 0)
        want = jax.random.key_data(data["key"])[batch["row"]]
        np.testing.assert_array_equal(jax.random.key_data(batch["key"]), want)
        assert batch["empty"].shape == (4, 0)

    def test_bad_counts_and_data_are_refused(self):
        with pytest.raises(TypeError, match=r"Expected batch_size as a whole number, got 4\.0"):
            source(DATA, 4.0, False)
        with pytest.raises(ValueError, match="Expected batch_size >= 1, got 0"):
            source(DATA, 0, False)
        with pytest.raises(ValueError, match="Expected batch_size <= 10, got 11"):
            source(DATA, 11, True)
        with pytest.raises(ValueError, match=r"share a leading axis of rows, got .*'x'"):
            source(DATA | {"x": np.zeros((9, 2))}, 4, False)
