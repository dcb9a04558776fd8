"""The digest: the same under every sharding, another after every damage."""

import itertools
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt.checkpoint import _digest
from lossopt.checkpoint._digest import of_arrays, of_host

MIXES = ((0x9E3779B1, 0x243F6A88), (0x85EBCA77, 0xB7E15162))  # what is on disk depends on them
SMALL = ("bool", "int8", "uint8", "int16", "uint16", "float16", "bfloat16")
LARGE = ("int32", "uint32", "float32", "complex64", "int64", "uint64", "float64", "complex128")
FLOAT8 = tuple(name for name in dir(ml_dtypes) if name.startswith("float8_"))
DTYPES = SMALL + LARGE + FLOAT8


def random_bits(dtype, shape, seed=0):
    """Not-a-numbers, subnormals and all."""
    dtype, random = np.dtype(dtype), np.random.default_rng(seed)
    if dtype == np.bool_:
        return random.random(shape) < 0.5
    size = int(np.prod(shape)) * dtype.itemsize
    return random.integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


def _mixed(word, index, k):
    """In integers of Python, from the docstring."""
    step, seed = MIXES[k]
    x = (index * step + seed) % 2**32 ^ word
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def _reference(array, start=0):
    size, data = min(array.dtype.itemsize, 4), array.tobytes()
    words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    return [sum(_mixed(x, start + i, k) for i, x in enumerate(words)) % 2**32 for k in (0, 1)]


def _sums(words, start=0):
    """The same for many rows of words at once."""
    words, sums = np.asarray(words, np.uint64), []
    for step, seed in MIXES:
        x = (np.arange(start, start + words.shape[-1], dtype=np.uint64) * step + seed) % 2**32
        x = words ^ np.broadcast_to(x, words.shape)
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        sums.append((x ^ x >> 16).sum(-1) % 2**32)
    return np.stack(sums, -1).tolist()


ON_DISK = {  # of 0, 1, 2, 3, 4: a step that was saved must verify for good
    "int8": [1892325884, 2931561387],
    "float16": [203891275, 2147118927],
    "float32": [905787949, 653773982],
    "int64": [708927106, 1613404351],
    "complex128": [2810900283, 576923900],
}


@pytest.mark.parametrize("dtype", ON_DISK)
def test_what_is_on_disk_stays_valid(dtype):
    assert of_host(np.arange(5).astype(dtype)) == ON_DISK[dtype]


class TestReference:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_every_dtype(self, dtype):
        x = random_bits(dtype, (2, 3))
        assert of_host(x) == _reference(x)

    @pytest.mark.parametrize("dtype", ["bool", "bfloat16", "complex64", "int64", "complex128"])
    def test_of_every_dtype_on_a_device(self, dtype):
        x = random_bits(dtype, (2, 3))
        with jax.enable_x64(True):
            sums = of_arrays([x, jax.device_put(x)])
        assert sums.tolist() == [[*_reference(x), 0]] * 2
        assert sums.dtype == np.uint32

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1, 5), (2, 3, 2, 2)], ids=str)
    def test_of_every_shape(self, shape):
        x = random_bits("float32", shape)
        assert of_arrays([jax.device_put(x)]).tolist() == [[*_reference(x), 0]]
        assert of_host(x) == _reference(x)

    def test_layouts_in_memory_do_not_matter(self):
        x = random_bits("float64", (6, 4))
        for view in (x.T, x[::-1], x[:, ::2], np.asfortranarray(x), np.broadcast_to(x[:1], (5, 4))):
            assert of_host(view) == _reference(view)

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    @pytest.mark.parametrize("size", [1023, 1024, 1025, 2**20 + 1, 2**21 + 7])
    def test_of_every_size(self, dtype, size):
        x = random_bits(dtype, (size,))
        assert of_host(x) == _sums(x.view(f"u{x.itemsize}"))

    def test_of_many_words_on_a_device(self):
        x = random_bits("uint32", (7, 300_011))
        assert of_arrays([jax.device_put(x)]).tolist() == [[*_sums(x.reshape(-1)), 0]]

    def test_many_rows_at_once(self):
        x = random_bits("float64", (5, 12))
        assert _sums(x.view(np.uint32)) == [_reference(row) for row in x]
        assert _sums(x.view(np.uint32), 2**32 - 5)[3] == _reference(x[3], 2**32 - 5)

    def test_sums_stand_in_the_order_of_the_arrays(self):
        arrays = [random_bits("float32", (2, 3), seed) for seed in range(4)]
        mixed = [jax.device_put(x) if i % 2 else x for i, x in enumerate(arrays)]
        assert of_arrays(mixed).tolist() == [[*_reference(x), 0] for x in arrays]
        assert of_arrays([]).shape == (0, 3)

    def test_nothing_is_zero(self):
        assert of_host(np.zeros((3, 0))) == [0, 0]

    def test_indices_beyond_32_bits(self):
        """One shard of an array of 400 GiB, whose matrices are further apart than 2^32."""
        x, device = random_bits("float32", (2, 2, 3)), jax.devices()[0]
        shape = (3, 2**20 + 7, 2**15 + 3)
        index = (slice(1, 3), slice(2**20, 2**20 + 2), slice(2**15, 2**15 + 3))
        whole = SimpleNamespace(
            shape=shape,
            sharding=SimpleNamespace(devices_indices_map=lambda _: {device: index}),
            addressable_shards=[
                SimpleNamespace(data=jax.device_put(x), device=device, index=index, replica_id=0)
            ],
        )
        first = [(1 + i, 2**20 + j, 2**15) for i, j in np.ndindex(2, 2)]
        starts = [int(np.ravel_multi_index(place, shape)) for place in first]
        parts = [_reference(row, start) for row, start in zip(x.reshape(4, 3), starts)]
        sums = (np.sum(parts, axis=0) % 2**32).tolist()
        assert _digest._finished(_digest._of_shards(whole)) == [*sums, 0]


def _mesh(shape, kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("a", "b"), (kind,) * 2, devices=devices)


SPECS = [P("a", "b"), P(("a", "b")), P("b"), P()]


class TestShardings:
    def test_do_not_matter(self):
        x = random_bits("float32", (8, 8))
        meshes = [_mesh((4, 2), kind) for kind in (AxisType.Auto, AxisType.Explicit)]
        placed = [jax.device_put(x, NamedSharding(m, spec)) for m in meshes for spec in SPECS]
        assert of_arrays(placed).tolist() == [[*_reference(x), 0]] * 8

    def test_nor_how_many_devices_there_are(self):
        x = random_bits("float32", (8, 8))
        meshes = [_mesh(shape) for shape in [(1, 1), (2, 1), (2, 2), (8, 1), (4, 2)]]
        placed = [jax.device_put(x, NamedSharding(mesh, P("a", "b"))) for mesh in meshes]
        assert of_arrays(placed).tolist() == [[*_reference(x), 0]] * 5

    @pytest.mark.parametrize("dtype", ["float64", "complex64", "bfloat16"])
    def test_nor_how_wide_an_element_is(self, dtype):
        x = random_bits(dtype, (4, 2))
        with jax.enable_x64(True):
            placed = jax.device_put(x, NamedSharding(_mesh((2, 1)), P("a")))
            assert of_arrays([placed]).tolist() == [[*_reference(x), 0]]

    @pytest.mark.parametrize(
        ("spec", "damaged", "count"),
        [(P(), [5], 1), (P(), [1, 6], 2), (P(), [0], 7), (P("b"), [2], 1), (P("b"), [3, 4], 2)],
        ids=str,
    )
    def test_replicas_that_differ_are_counted(self, spec, damaged, count):
        x = random_bits("float32", (8, 8))
        whole = jax.device_put(x, NamedSharding(_mesh((4, 2)), spec))
        parts = {shard.device.id: np.array(shard.data) for shard in whole.addressable_shards}
        for device in damaged:
            parts[device].view(np.uint32)[-1, -1] ^= 1 << 31
        parts = [jax.device_put(parts[device.id], device) for device in jax.devices()]
        broken = jax.make_array_from_single_device_arrays(x.shape, whole.sharding, parts)
        good, bad = of_arrays([whole, broken])
        assert good.tolist() == [*_reference(x), 0]
        assert bad[2] == count
        assert (damaged == [0]) == (bad[:2] != good[:2]).any()  # the sums are of the first replica


def _flipped(x, *bits):
    """With these bits flipped, each a place in memory."""
    flipped = x.copy()
    for bit in bits:
        flipped.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    return flipped


def _words(x):
    return np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.itemsize, 4)}")


def _assert_seen(x, damages):
    """Each damage changes both sums, and no two damages have one digest."""
    arrays = [x, *damages]
    digests = _sums([_words(array) for array in arrays])
    assert len(digests) > 1
    assert len(set(map(tuple, digests))) == len(digests)
    assert not np.equal(digests[1:], digests[0]).any()
    for i in np.linspace(0, len(arrays) - 1, 12, dtype=int):
        assert of_host(arrays[i]) == digests[i]


X = np.random.default_rng(1).normal(size=64).astype(np.float32)
PAIRS = list(itertools.combinations(range(64), 2))
PAGES = np.random.default_rng(2).normal(size=(8, 1024)).astype(np.float32)  # of 4096 bytes


def _swapped(x, i, j):
    swapped = x.copy()
    swapped[[i, j]] = swapped[[j, i]]
    return swapped


def _with(x, i, row):
    changed = x.copy()
    changed[i] = row
    return changed


class TestDetection:
    def test_every_pair_of_sign_flips(self):
        assert len(PAIRS) == 2016
        _assert_seen(X, [_flipped(X, 32 * i + 31, 32 * j + 31) for i, j in PAIRS])

    def test_plain_sums_miss_sign_flips(self):
        """A sum of words misses every pair, words times an odd number and one shift every other."""

        def plain(x):
            words, indices = x.view(np.uint32), np.arange(64, dtype=np.uint32)
            product = (words ^ indices * np.uint32(0x9E3779B1)) * np.uint32(0x85EBCA6B)
            mixed = product ^ product >> np.uint32(15)
            return words.sum(dtype=np.uint32), mixed.sum(dtype=np.uint32)

        sums = [plain(_flipped(X, 32 * i + 31, 32 * j + 31)) for i, j in PAIRS]
        missed = np.equal(sums, plain(X)).mean(axis=0)
        assert missed[0] == 1
        assert 0.4 < missed[1] < 0.6

    def test_pairs_of_any_bits(self):
        bits = np.random.default_rng(3).integers(0, 2048, (4000, 2))
        bits = {tuple(sorted(pair)) for pair in bits.tolist() if pair[0] != pair[1]}
        _assert_seen(X, [_flipped(X, *pair) for pair in bits])

    @pytest.mark.parametrize("dtype", ["float64", "int64", "float32", "bfloat16", "int8", "bool"])
    def test_every_single_bit(self, dtype):
        x = random_bits(dtype, (12,))
        bits = range(0, 8 * x.nbytes, 8) if dtype == "bool" else range(8 * x.nbytes)
        _assert_seen(x, [_flipped(x, bit) for bit in bits])

    @pytest.mark.parametrize("dtype", ["float64", "int64"])
    def test_pairs_in_upper_halves(self, dtype):
        x = random_bits(dtype, (24,))
        signs = itertools.combinations(range(63, 64 * 24, 64), 2)
        upper = [[64 * i + bit for i in (3, 17)] for bit in range(32, 63)]
        _assert_seen(x, [_flipped(x, *bits) for bits in [*signs, *upper]])

    def test_a_row_negated(self):
        x = X.reshape(16, 4)
        _assert_seen(x, [_with(x, i, -x[i]) for i in range(16)])

    def test_many_rows_negated(self):
        chosen = np.random.default_rng(4).random((500, 16)) < 0.5
        x = X.reshape(16, 4)
        signs = {tuple(row) for row in np.where(chosen, -1.0, 1.0).tolist() if min(row) < 0}
        _assert_seen(x, [np.float32(row)[:, None] * x for row in signs])

    def test_swapped_words_and_rows(self):
        _assert_seen(X, [_swapped(X, i, j) for i, j in PAIRS])
        x = X.reshape(16, 4)
        _assert_seen(x, [_swapped(x, i, j) for i, j in itertools.combinations(range(16), 2)])

    def test_pages(self):
        pairs = list(itertools.combinations(range(8), 2))
        swapped = [_swapped(PAGES, i, j) for i, j in pairs]
        written = [_with(PAGES, i, PAGES[j]) for i, j in itertools.permutations(range(8), 2)]
        zeroed = [_with(PAGES, i, 0) for i in range(8)]
        _assert_seen(PAGES, swapped + written + zeroed)

    def test_permutations(self):
        random = np.random.default_rng(5)
        shuffled = [random.permutation(X) for _ in range(500)]
        shifted = [np.roll(X, i) for i in range(1, 64)]
        _assert_seen(X, [*shuffled, *shifted, X[::-1], X.reshape(8, 8).T])

    def test_bits_that_move(self):
        """One bit among zeros: 2048 arrays with one sum of words for each place in a word."""
        zeros = np.zeros(64, np.float32)
        _assert_seen(zeros, [_flipped(zeros, bit) for bit in range(2048)])


class TestMix:
    WORDS = np.random.default_rng(6).normal(size=8192).astype(np.float32).view(np.uint32)
    INDICES = np.arange(8192, dtype=np.uint32)

    def _shares(self, difference):
        """How often each bit is set."""
        return [float(np.mean(difference >> np.uint32(bit) & np.uint32(1))) for bit in range(32)]

    @pytest.mark.parametrize("k", [0, 1])
    @pytest.mark.parametrize("what", ["word", "index"])
    def test_each_bit_flips_each_bit_half_of_the_time(self, k, what):
        mix = lambda words, indices: _digest._terms(words, indices)[k]
        before, shares = mix(self.WORDS, self.INDICES), []
        for bit in np.uint32(1) << np.arange(32, dtype=np.uint32):
            word, index = (bit, 0) if what == "word" else (0, bit)
            after = mix(self.WORDS ^ np.uint32(word), self.INDICES ^ np.uint32(index))
            shares.append(self._shares(before ^ after))
        assert np.abs(np.asarray(shares) - 0.5).max() < 0.05

    def test_the_two_mixes_have_nothing_in_common(self):
        both = _digest._terms(self.WORDS, self.INDICES)
        assert np.abs(np.asarray(self._shares(both[0] ^ both[1])) - 0.5).max() < 0.05

    def test_it_is_one_to_one(self):
        words = np.arange(1 << 16, dtype=np.uint32)
        for mixed in _digest._terms(words, np.full_like(words, 7)):
            assert np.unique(mixed).size == 1 << 16
