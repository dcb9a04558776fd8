"""Spaces and what is drawn from them: ends, distributions, and what more trials leave alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import lossopt as lo
from lossopt.sweeps import Choice, Integer, Linear, Log, Static

KEY = jax.random.key(0)
MASKS = np.array([[True, False], [False, True], [True, True]])
SPACE = {
    "rate": Log(1e-5, 1e-1),
    "decay": Linear(-1, 2),
    "warmup": Integer(-2, 3),
    "steps": Integer(1, 6, log=True),
    "size": Choice([16, 32, 64]),
    "mask": Choice(MASKS),
    "rule": Static(["adam", "sgd", ("lion", 2)]),
}
DRAWS = [lo.sweeps.random, lo.sweeps.sobol]
draws = pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)


def test_points_are_those_of_numpy_rounded_once():
    ends, single = (1e-5, 1e-1), np.float32
    np.testing.assert_array_equal(Log(*ends).points(9), np.geomspace(*ends, 9).astype(single))
    np.testing.assert_array_equal(Linear(-1, 2).points(7), np.linspace(-1, 2, 7).astype(single))
    assert [Log(*ends).points(1), Linear(0, 1).points(1)] == [single(1e-3), single(0.5)]


@pytest.mark.parametrize(("high", "log"), [(1, False), (9, False), (30, True), (1000, True)])
def test_points_of_integers_are_even_and_none_twice(high, log):
    for count in (1, 2, 3, 7, high + 5):
        points = Integer(1 if log else 0, high, log=log).points(count)
        assert points.dtype == np.int32
        assert (np.diff(points) > 0).all()
        assert len(points) <= count
    assert log or list(points) == list(range(high + 1))


def test_points_of_integers_are_as_many_as_wanted_while_there_are_enough():
    for count in range(2, 12):
        points = Integer(0, 10).points(count)
        assert len(points) == min(count, 11)
        assert (points[0], points[-1]) == (0, 10)
        assert np.ptp(np.diff(points)) <= 1


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-37, 1e30), st.floats(1.001, 1e6), st.lists(st.floats(0, 1), max_size=9))
def test_no_value_is_beyond_an_end_of_float32(low, ratio, fractions):
    fractions = np.sort([0.0, *fractions, 1 - 2.0**-53, 1.0])
    for space in (Log(low, low * ratio), Linear(-low, low * ratio)):
        values = space.at(fractions)
        assert values.dtype == np.float32
        assert (np.diff(values) >= 0).all()
        np.testing.assert_allclose(values[[0, -1]], [space.low, space.high], rtol=1e-7)
        assert values[0] >= np.float32(space.low)
        assert values[-1] <= np.float32(space.high)


def test_what_a_logarithm_takes_beyond_an_end_comes_back():
    """Ends half way between numbers of float32, where the last bit of float64 decides."""
    below = np.random.default_rng(0).uniform(0.1, 1, 300).astype(np.float32)
    ends = (below.astype(np.float64) + np.nextafter(below, np.float32(2))) / 2
    raw = np.exp(np.log(ends)).astype(np.float32)
    assert (raw > ends.astype(np.float32)).any()
    assert (raw < ends.astype(np.float32)).any()
    for end in ends:
        assert Log(1e-3, end).at(1.0) <= np.float32(end)
        assert Log(end, 2.0).at(0.0) >= np.float32(end)


def test_in_float64_the_ends_are_exact():
    with jax.enable_x64(True):
        values = Log(1e-5, 0.3).at([0, 0.5, 1])
        assert values.dtype == np.float64
        assert values[0] >= 1e-5
        assert values[2] <= 0.3
        wide = lo.sweeps.random(SPACE, 5, KEY)
    narrow = lo.sweeps.random(SPACE, 5, KEY)
    for name in ("rate", "decay"):
        np.testing.assert_array_equal(wide[name].astype(np.float32), narrow[name])
    assert wide["warmup"].dtype == np.int32


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1 - 2.0**-53, 1.0])
def test_each_fraction_is_a_member(fraction):
    for space, options in [
        (Integer(-2, 3), range(-2, 4)),
        (Integer(3, 10**9, log=True), range(3, 10**9 + 1)),
        (Integer(-(2**31), 2**31 - 1), range(-(2**31), 2**31)),
        (Integer(np.int8(0), np.int8(127)), range(128)),
        (Choice([16, 32, 64]), [16, 32, 64]),
        (Static(["a", "c"]), range(2)),
    ]:
        assert int(space.at(fraction)) in options


@draws
def test_distributions(draw):
    trials, least = draw(SPACE, 2048, KEY), 1e-3
    loguniform = scipy.stats.loguniform(1e-5, 1e-1)
    assert scipy.stats.kstest(trials["rate"], loguniform.cdf).pvalue > least
    assert scipy.stats.kstest(trials["decay"], scipy.stats.uniform(-1, 3).cdf).pvalue > least
    numbers = np.arange(1, 7)
    shares = {
        "warmup": dict.fromkeys(range(-2, 4), 1 / 6),
        "steps": dict(zip(numbers, np.log((numbers + 1) / numbers) / np.log(7))),
        "size": dict.fromkeys([16, 32, 64], 1 / 3),
        "rule": dict.fromkeys(SPACE["rule"].options, 1 / 3),
    }
    for name, share in shares.items():
        column = list(trials[name])
        counts = [column.count(option) for option in share]
        assert scipy.stats.chisquare(counts, 2048 * np.array(list(share.values()))).pvalue > least


@draws
def test_columns_and_neighbors_are_independent(draw):
    trials = draw({name: Linear(0, 1) for name in "abcdef"}, 2048, KEY)
    columns = np.stack([trials[name] for name in "abcdef"])
    bound = 4.5 / np.sqrt(2048)
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < bound
    if draw is lo.sweeps.random:
        shifted = [np.corrcoef(x[1:], x[:-1])[0, 1] for x in columns]
        assert np.abs(shifted).max() < bound


def test_sobol_has_one_value_in_each_of_equal_parts():
    trials = lo.sweeps.sobol({name: Linear(0, 64) for name in "abc"}, 64, KEY)
    for name in "abc":
        assert sorted(np.floor(trials[name])) == list(range(64))
    assert not np.array_equal(trials["a"], trials["b"])


@draws
@pytest.mark.parametrize("n", [1, 7, 256, 300])
def test_the_first_of_more_trials_are_the_same(draw, n):
    few, many = draw(SPACE, n, KEY), draw(SPACE, 2 * n, KEY)
    assert list(few.id) == list(range(n))
    for name in SPACE:
        np.testing.assert_array_equal(few[name], many[:n][name])
    assert jax.tree.structure(few) == jax.tree.structure(many)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_kind(kind):
    key = jax.random.key(3, impl=kind)
    for draw in DRAWS:
        few, many = (draw({"x": Linear(0, 1)}, n, key)["x"] for n in (255, 257))
        np.testing.assert_array_equal(few, many[:255])
        assert len(set(many)) == 257
        other = draw({"x": Linear(0, 1)}, 9, jax.random.key(4, impl=kind))["x"]
        assert not set(other) & set(many)


def test_random_keeps_its_numbers():
    """Checkpoints of sweeps rest on them."""
    trials = lo.sweeps.random({"rate": Linear(0, 1), "size": Integer(0, 999)}, 3, KEY)
    rates = [0.4475462724339342, 0.706405645278551, 0.18407801666018764]
    np.testing.assert_array_equal(trials["rate"], np.float32(rates))
    np.testing.assert_array_equal(trials["size"], [243, 802, 56])


@draws
def test_the_order_of_names_does_not_matter_nor_another_name_to_random(draw):
    turned = draw(dict(reversed(SPACE.items())), 5, KEY)
    trials = draw(SPACE, 5, KEY)
    assert trials.names == tuple(SPACE) == turned.names[::-1]
    for name in SPACE:
        np.testing.assert_array_equal(trials[name], turned[name])
    alone = draw({"rate": SPACE["rate"]}, 5, KEY)
    assert np.array_equal(alone["rate"], trials["rate"]) == (draw is lo.sweeps.random)


def test_grid_is_the_product_of_the_points():
    trials = lo.sweeps.grid(SPACE, {"rate": 2, "decay": 1, "warmup": 99, "steps": 2})
    axes = [
        Log(1e-5, 1e-1).points(2).tolist(),
        [0.5],
        list(range(-2, 4)),
        [1, 6],
        [16, 32, 64],
        MASKS.tolist(),
        ["adam", "sgd", ("lion", 2)],
    ]
    want = [dict(zip(SPACE, values)) for values in itertools.product(*axes)]
    assert [row | {"mask": row["mask"].tolist()} for row in trials] == want
    assert list(trials.id) == list(range(len(want)))
    kinds = {name: trials[name].dtype for name in SPACE}
    assert [str(kind) for kind in kinds.values()] == [
        *["float32"] * 2,
        *["int32"] * 3,
        "bool",
        "object",
    ]


def test_one_number_of_points_is_that_of_all_ranges():
    trials = lo.sweeps.grid({"a": Linear(0, 1), "b": Integer(0, 1), "c": Static([8, 9])}, 3)
    assert len(trials) == 3 * 2 * 2
    assert len(lo.sweeps.grid({"c": Choice([8, 9])}, {"c": 2})) == 2


def test_choices_are_numbers_rows_or_keys():
    assert Choice([1, 2.5]).options.dtype == np.float32
    assert Choice((True, False)).options.dtype == bool
    assert Choice(jnp.ones((3, 2), jnp.bfloat16)).at(0.4).dtype == jnp.bfloat16
    assert Choice([jnp.zeros(2), np.ones(2)]).points().tolist() == [[0, 0], [1, 1]]
    keys = lo.sweeps.random({"key": Choice(jax.random.split(KEY, 2))}, 4, KEY)
    assert jnp.issubdtype(keys.values["key"].dtype, jax.dtypes.prng_key)
    assert keys["key"].shape == (4, 2)
    assert keys[::2]["key"].tolist() == keys["key"][::2].tolist()


def test_static_options_differ_by_type_too():
    options = (1, True, 1.0, None, "1")
    assert lo.sweeps.grid({"x": Static(options)}, {})["x"].tolist() == list(options)
    rules = Static([optimizer := lo.transforms.adam, lo.transforms.sgd])
    assert lo.sweeps.grid({"rule": rules}, 1)[0] == {"rule": optimizer}


RANGE = {"x": Linear(0, 1)}
BAD = {
    "Log of equal ends": (lambda: Log(1, 1), ValueError, "high > 1"),
    "Log of turned ends": (lambda: Log(1, 0.1), ValueError, "high > 1"),
    "Log from 0": (lambda: Log(0, 1), ValueError, "Zero has no logarithm"),
    "Log from below 0": (lambda: Log(-1, 1), ValueError, "low >= 1.2e-38"),
    "Log from a subnormal": (lambda: Log(1e-40, 1), ValueError, "low >= 1.2e-38"),
    "Linear without end": (lambda: Linear(0, np.inf), ValueError, "finite high, got inf"),
    "Linear from NaN": (lambda: Linear(np.nan, 1), ValueError, "finite low, got nan"),
    "Linear beyond float32": (lambda: Linear(0, 1e39), ValueError, r"finite high, got 1e\+39"),
    "Linear of a text": (lambda: Linear("0", 1), TypeError, "low as an array or a number"),
    "Linear of several": (lambda: Linear(np.zeros(2), 1), ValueError, r"low of shape \(\)"),
    "Linear of one": (lambda: Linear(1, 1 + 1e-9), ValueError, "differ in float32.*1 - b2"),
    "Integer of floats": (lambda: Integer(0.5, 1), TypeError, "low as a whole number"),
    "Integer of equal ends": (lambda: Integer(3, 3), ValueError, "high >= 4, got 3"),
    "Integer below int32": (lambda: Integer(-(2**31) - 1, 0), ValueError, "low >= -2147483648"),
    "Integer beyond int32": (lambda: Integer(0, 2**31), ValueError, r"high < 2\*\*31"),
    "Integer of log from 0": (lambda: Integer(0, 3, log=True), ValueError, "low >= 1, got 0"),
    "Choice of none": (lambda: Choice([]), ValueError, "at least one option"),
    "Choice of a number": (lambda: Choice(3), TypeError, "options as a sequence, got 3"),
    "Choice of texts": (lambda: Choice(["a"]), TypeError, "goes into lossopt.sweeps.Static"),
    "Choice of None": (lambda: Choice([1, None]), TypeError, "options as numbers"),
    "Choice of NaN": (lambda: Choice([1, np.nan]), ValueError, "without NaN"),
    "Choice of lengths": (lambda: Choice([[1], [1, 2]]), ValueError, "options of one shape"),
    "Choice beyond int32": (lambda: Choice([2**40]), ValueError, "within 32 bits"),
    "Static of none": (lambda: Static(()), ValueError, "at least one option"),
    "Static of a text": (lambda: Static("adam"), TypeError, "options as a sequence, got 'adam'"),
    "Static of a number": (lambda: Static(3), TypeError, "options as a sequence"),
    "Static of lists": (lambda: Static([[8, 8]]), TypeError, "Write a list as a tuple"),
    "Static of arrays": (lambda: Static(jnp.ones(2)), TypeError, "lossopt.sweeps.Choice"),
    "Static of one twice": (lambda: Static([8, 9, 8]), ValueError, "got 8 twice"),
    "empty": (lambda: lo.sweeps.grid({}, 3), ValueError, "space of at least one"),
    "no dict": (lambda: lo.sweeps.random([Log(1, 2)], 3, KEY), TypeError, "space as a dict"),
    "nested": (
        lambda: lo.sweeps.sobol({"adam": {"rate": Log(1, 2)}}, 3, KEY),
        TypeError,
        "flat space, got a dict at 'adam'.*'adam_rate'",
    ),
    "a constant": (lambda: lo.sweeps.grid({"x": 0.1}, 3), TypeError, "at 'x', got 0.1"),
    "a class": (lambda: lo.sweeps.grid({"x": Log}, 3), TypeError, "at 'x', got <class"),
    "no text": (lambda: lo.sweeps.grid({3: Log(1, 2)}, 3), TypeError, "as texts, got 3"),
    "points of 0": (lambda: lo.sweeps.grid(RANGE, 0), ValueError, "points >= 1"),
    "points of 2.5": (lambda: lo.sweeps.grid(RANGE, 2.5), TypeError, "points as a whole number"),
    "points for none": (lambda: lo.sweeps.grid(RANGE, {}), ValueError, r"none for \['x'\]"),
    "points for others": (lambda: lo.sweeps.grid(RANGE, {"x": 2, "y": 2}), ValueError, r"\['y'\]"),
    "fewer options": (
        lambda: lo.sweeps.grid({"x": Choice([1, 2])}, {"x": 1}),
        ValueError,
        "all 2 options, got points=1",
    ),
    "n of 0": (lambda: lo.sweeps.random(RANGE, 0, KEY), ValueError, "n >= 1"),
    "n of 2.5": (lambda: lo.sweeps.sobol(RANGE, 2.5, KEY), TypeError, "n as a whole number"),
    "raw key": (
        lambda: lo.sweeps.random(RANGE, 2, np.zeros(2, np.uint32)),
        TypeError,
        "typed PRNG key, got uint32",
    ),
    "no key": (lambda: lo.sweeps.sobol(RANGE, 2, None), TypeError, "typed PRNG key, got None"),
    "keys": (
        lambda: lo.sweeps.random(RANGE, 2, jax.random.split(KEY)),
        ValueError,
        r"key of shape \(\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        make()
