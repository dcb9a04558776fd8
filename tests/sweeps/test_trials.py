"""The algebra of trials: whatever is done to them, a row keeps its values and its id."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossopt as lo
from lossopt.sweeps import Choice, Integer, Linear, Log, Static, Trials, folds, join
from lossopt.sweeps._groups import groups, row_values
from lossopt.sweeps._trials import as_trials

KEY = jax.random.key(0)
SPACE = {
    "rate": Log(1e-5, 1e-1),
    "b2": Linear(0.9, 1),
    "warmup": Integer(1, 9),
    "nesterov": Choice([False, True]),
    "mask": Choice(np.eye(3) > 0),
    "rule": Static(["adam", "sgd"]),
    "width": Static([8, 16, None]),
}
MORE = {"rule": Static(["lion", "sgd"]), "width": Static([(8, 8), 16])}  # others of the same names


POOL = [
    lo.sweeps.random(space, 6, jax.random.key(i))
    for i, space in enumerate([SPACE, SPACE | MORE, SPACE])
]


@st.composite
def made(draw):
    """Trials of a few names each, of one to three spaces, perhaps repeated and in any order."""
    parts = []
    for pool in POOL[: draw(st.integers(1, 3))]:
        names = draw(st.lists(st.sampled_from(list(SPACE)), min_size=1, unique=True))
        values = {name: pool.values[name] for name in names}
        options = tuple(pair for pair in pool.options if pair[0] in names)
        part = Trials(values, pool.id, options=options)[: draw(st.integers(1, 6))]
        parts.append(part.repeat(2) if draw(st.booleans()) else part)
    trials = join(*parts)
    return trials[draw(st.permutations(range(len(trials))))]


examples = settings(max_examples=20, deadline=None)


def rows(trials):
    """Everything that is known of each trial, in numbers of Python."""
    plain = lambda x: x.tolist() if isinstance(x, np.ndarray) else x
    marks = zip(trials.id.tolist(), trials.setting.tolist())
    return [
        ({name: plain(x) for name, x in row.items()}, *mark) for row, mark in zip(trials, marks)
    ]


@examples
@given(made(), st.data())
def test_a_part_or_a_permutation_carries_its_ids(trials, data):
    whole, count = rows(trials), len(trials)
    assert rows(trials[[]]) == []
    assert trials[-1].keys() == whole[-1][0].keys()
    order = data.draw(st.permutations(range(count)))
    assert rows(trials[jnp.array(order)]) == rows(trials[order]) == [whole[i] for i in order]
    keep = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    assert rows(trials[np.array(keep)]) == rows(trials[keep]) == [*itertools.compress(whole, keep)]
    cut = data.draw(st.slices(count))
    assert rows(trials[cut]) == whole[cut]
    assert rows(trials[order][np.argsort(order)]) == whole


@examples
@given(made())
def test_columns_are_the_rows(trials):
    for name in trials.names:
        column = trials[name]
        for held, row in zip(column, trials):
            if name not in row:
                assert np.isnan(held).all()
            else:
                assert np.array_equal(held, row[name])


@settings(max_examples=10, deadline=None)
@given(made(), made(), made())
def test_join_then_split_gives_back(a, b, c):
    joined = join(a, b, c)
    splits = np.split(np.arange(len(joined)), np.cumsum([len(a), len(b)]))
    shift = moved = 0
    for part, where in zip((a, b, c), splits):
        want = [(row, id + shift, setting + moved) for row, id, setting in rows(part)]
        assert rows(joined[where]) == want
        shift, moved = shift + part.id.max() + 1, moved + part.setting.max() + 1
    assert len(set(joined.id)) == len(joined)
    for name, x in joined.values.items():
        assert {x.dtype} == {part.values[name].dtype for part in (a, b, c) if name in part}
    assert rows(join(join(a, b), c)) == rows(join(a, join(b, c))) == rows(joined)
    assert rows(join(a)) == rows(a)


@examples
@given(made(), st.integers(1, 3), st.integers(1, 3))
def test_repetitions_have_ids_of_their_own_that_more_of_them_leave_alone(trials, few, more):
    ids, source = {}, rows(trials)
    for count in (few, few + more):
        turned = trials.repeat(count)
        assert len(set(turned.id)) == len(turned) == count * len(trials)
        for place, (row, id, setting) in enumerate(rows(turned)):
            number, turn = divmod(place, count)
            assert (row, setting) == source[number][::2]
            assert ids.setdefault((number, turn), id) == id
        assert list(turned.id[::count]) == list(trials.id)
        assert len(set(turned.repeat(2).id)) == 2 * len(turned)


def test_each_repetition_gets_its_own_values():
    masks = folds(np.arange(7), 3)
    trials = lo.sweeps.random({"rate": SPACE["rate"]}, 4, KEY)
    turned = trials.repeat(3, mask=masks, count=np.arange(3.0))
    assert turned.names == ("rate", "mask", "count")
    assert turned.values["count"].dtype == np.float32
    for setting in range(4):
        part = turned[turned.setting == setting]
        np.testing.assert_array_equal(part["mask"], masks)
        np.testing.assert_array_equal(part["count"], [0, 1, 2])
        assert set(part["rate"]) == {trials["rate"][setting]}


@examples
@given(made())
def test_groups_are_the_trials_that_share_a_program(trials):
    found = groups(trials)
    assert sorted(np.concatenate([group.rows for group in found])) == list(range(len(trials)))
    assert [group.rows[0] for group in found] == sorted(group.rows[0] for group in found)
    assert len({(group.statics, group.names) for group in found}) == len(found)
    for group in found:
        held = row_values(trials, group)
        assert tuple(held) == group.names
        for place, row in enumerate(group.rows):
            want = trials[row]
            assert {name for name, _ in group.statics} | set(held) == set(want)
            for name, option in group.statics:
                assert want[name] is option
            for name, x in held.items():
                assert x.dtype == trials.values[name].dtype
                assert np.array_equal(x[place], want[name])


def test_a_pytree():
    first, second = (lo.sweeps.random(SPACE, 5, jax.random.key(i)) for i in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert rows(jax.tree.map(lambda x: x, first)) == rows(first)
    assert jax.tree.structure(join(first, first)) == jax.tree.structure(join(second, second))
    turn = jax.jit(lambda trials: trials[::-1])
    assert rows(as_trials(turn(first))) == rows(turn(first)) == rows(first)[::-1]
    assert rows(turn(second)) == rows(second)[::-1]
    assert turn._cache_size() == 1
    doubled = jax.vmap(lambda trial: 2 * trial.values["rate"])(first)
    np.testing.assert_array_equal(doubled, 2 * first["rate"])
    assert groups(as_trials(turn(first)))[0].statics == groups(turn(first))[0].statics


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.data())
def test_each_row_validates_once(total, data):
    count, key = data.draw(st.integers(2, total)), data.draw(st.sampled_from([None, KEY]))
    train = {"x": np.zeros((total, 2)), "y": jnp.zeros(total)}
    validates = ~folds(train, count, key)
    assert validates.shape == (count, total)
    assert validates.dtype == bool
    assert (validates.sum(0) == 1).all()
    assert np.ptp(validates.sum(1)) <= 1


def test_folds_are_shuffled_by_a_key_only():
    plain, shuffled = folds(np.arange(20), 4), folds(np.arange(20), 4, KEY)
    assert np.array_equal(np.flatnonzero(~plain[1]), [1, 5, 9, 13, 17])
    assert not np.array_equal(plain, shuffled)
    assert np.array_equal(shuffled, folds(np.arange(20), 4, jax.random.key(0)))
    assert not np.array_equal(shuffled, folds(np.arange(20), 4, jax.random.key(1)))


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (np.arange(3.0), ("hyperparameters",)),
        ({"rate": jnp.arange(3.0), "decay": np.arange(3)}, ("rate", "decay")),
        ({"adam": {"rate": np.arange(3.0)}, "k": jnp.arange(3)}, ("adam/rate", "k")),
        ((np.arange(3), [jnp.ones((3, 2))]), ("0", "1/0")),
        (lo.regularizers.ElasticNet(jnp.ones(3), jnp.arange(3.0)), ("strength", "mix")),
    ],
)
def test_trees_of_arrays_get_ids(tree, names):
    trials = as_trials(tree)
    assert trials.names == names
    assert trials.id.tolist() == trials.setting.tolist() == [0, 1, 2]
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(trials))
    assert jax.tree.structure(trials.values) == jax.tree.structure(tree)
    for name, x in zip(jax.tree.leaves(trials.values), jax.tree.leaves(tree)):
        np.testing.assert_array_equal(name, x)
    assert set(trials[1]) == set(names)
    (group,) = groups(trials)
    part = row_values(trials[[2, 0]], groups(trials[[2, 0]])[0])
    for ours, x in zip(jax.tree.leaves(part), jax.tree.leaves(tree)):
        np.testing.assert_array_equal(ours, x[np.array([2, 0])])
    assert group.statics == ()
    assert trials.repeat(2).id.tolist() == [0, 3, 1, 4, 2, 5]


def test_own_ids():
    trials = Trials({"rate": jnp.arange(3.0)}, np.array([7, 2, 5]))
    assert trials.setting is trials.id
    assert as_trials(trials).id.dtype == np.int32
    assert trials.repeat(2).id.tolist() == [7, 15, 2, 10, 5, 13]
    assert join(trials, trials).id.tolist() == [7, 2, 5, 15, 10, 13]
    kept = as_trials({"x": np.arange(2, dtype=np.float64)})
    assert kept["x"].dtype == np.float32


def test_a_column_of_integers_with_holes_is_of_float64_and_the_values_keep_theirs():
    a = lo.sweeps.grid({"k": Integer(1, 3)}, 3)
    b = lo.sweeps.grid({"rate": Linear(0, 1), "on": Choice([True])}, 2)
    both = join(a, b)
    assert {name: both[name].dtype for name in both.names} == {
        "k": np.float64,
        "rate": np.float32,
        "on": np.float64,
    }
    assert [str(x.dtype) for x in both.values.values()] == ["int32", "float32", "bool"]
    np.testing.assert_array_equal(both["k"], [1, 2, 3, np.nan, np.nan])
    assert "k" in both
    assert "momentum" not in both
    keys = as_trials({"key": jax.random.split(KEY, 2)})
    assert np.isnan(join(a, keys)["key"][:3]).all()
    assert join(keys, a)[:2]["key"].tolist() == keys["key"].tolist()


def test_rows_are_numbers_of_python():
    row = join(lo.sweeps.random(SPACE, 2, KEY), as_trials({"other": np.arange(2)}))[0]
    kinds = {name: type(x) for name, x in row.items()}
    assert kinds.pop("mask") is np.ndarray
    assert kinds.pop("width") in {int, type(None)}
    assert kinds == {"rate": float, "b2": float, "warmup": int, "nesterov": bool, "rule": str}


@pytest.mark.parametrize(("mode", "chunk"), [("vmap", 2), ("sequential", 2)])
def test_typed_keys_may_be_swept(mode, chunk):
    keys = jax.random.split(KEY, 3)
    run = lambda hyperparameters, key: jax.random.uniform(hyperparameters["key"])
    table = lo.sweep(run, {"key": keys}, KEY, mode=mode, chunk=chunk, progress=False)
    np.testing.assert_array_equal(table["loss"], [jax.random.uniform(key) for key in keys])


TRIALS = lo.sweeps.grid({"rate": Linear(0, 1)}, 3)
NESTED = as_trials({"a": {"b": np.arange(3)}})
LARGE = Trials({"x": np.arange(2)}, np.array([0, 2**30]))
BAD = {
    "no array": (lambda: as_trials({}), ValueError, "at least one hyperparameter"),
    "no trial": (lambda: as_trials(TRIALS[:0]), ValueError, "at least one trial"),
    "no rows": (lambda: as_trials({"a": np.zeros(0)}), ValueError, "at least one trial"),
    "unequal axes": (
        lambda: as_trials({"a": np.zeros(2), "b": np.zeros((3, 2))}),
        ValueError,
        "'a': 2, 'b': 3",
    ),
    "a number": (lambda: as_trials({"a": 0.1, "b": np.ones(1)}), ValueError, "'a': -1"),
    "a list": (lambda: as_trials({"a": [1, 2]}), ValueError, "'a/0': -1.*array of a list"),
    "texts": (lambda: as_trials({"a": np.array(["x"])}), TypeError, "a as numbers.*Static"),
    "other ids": (
        lambda: as_trials(Trials({"a": np.zeros(2)}, np.arange(3))),
        ValueError,
        "'a': 2, 'the ids': 3",
    ),
    "one id twice": (lambda: as_trials(TRIALS[[0, 1, 0]]), ValueError, r"\[0\] more often"),
    "ids below 0": (
        lambda: as_trials(Trials({"a": np.zeros(2)}, np.array([-1, 0]))),
        ValueError,
        "ids from 0 to .* got -1",
    ),
    "ids of floats": (
        lambda: as_trials(Trials({"a": np.zeros(2)}, np.array([0.0, 1]))),
        TypeError,
        "integer ids",
    ),
    "options of none": (
        lambda: as_trials(Trials({"a": np.zeros(2)}, np.arange(2), options=(("b", (1,)),))),
        ValueError,
        r"'b' among the hyperparameters \['a'\]",
    ),
    "an option beyond": (
        lambda: as_trials(Trials({"a": np.arange(2)}, np.arange(2), options=(("a", (1,)),))),
        ValueError,
        r"'a' as places among its 1 options, got \[0 1\]",
    ),
    "presence of others": (
        lambda: as_trials(Trials({"a": np.zeros(2)}, np.arange(2), present={"a": np.ones(3)})),
        ValueError,
        "'a present': 3",
    ),
    "rows in a square": (lambda: TRIALS[np.eye(2, dtype=int)], IndexError, "along one axis"),
    "rows by truth": (lambda: TRIALS[True], IndexError, "along one axis"),
    "no name": (lambda: TRIALS["momentum"], KeyError, r"'momentum' is none of.*\['rate'\]"),
    "beyond": (lambda: TRIALS[3], IndexError, "out of bounds"),
    "a mask of others": (lambda: TRIALS[[True, False]], IndexError, "boolean"),
    "repeat by 0": (lambda: TRIALS.repeat(0), ValueError, "count >= 1"),
    "repeat by 2.5": (lambda: TRIALS.repeat(2.5), TypeError, "count as a whole number"),
    "repeat a name": (
        lambda: TRIALS.repeat(2, rate=np.ones(2)),
        ValueError,
        "new name, got 'rate'",
    ),
    "repeat other rows": (
        lambda: TRIALS.repeat(2, mask=np.ones((3, 2))),
        ValueError,
        r"each of 2 repetitions, got shape \(3, 2\)",
    ),
    "repeat a number": (lambda: TRIALS.repeat(2, mask=1), ValueError, r"got shape \(\)"),
    "repeat a tree": (lambda: NESTED.repeat(2, c=np.ones(2)), TypeError, r"tree of \['a/b'\]"),
    "repeat too often": (lambda: LARGE.repeat(3), ValueError, "ids from 0 to"),
    "join none": (lambda: join(), ValueError, "trials to join"),
    "join a tree": (lambda: join(TRIALS, NESTED), TypeError, r"tree of \['a/b'\]"),
    "join dtypes": (
        lambda: join(TRIALS, lo.sweeps.grid({"rate": Integer(0, 1)}, 2)),
        ValueError,
        "'rate' of one dtype and shape, got float32 .* and int32",
    ),
    "join kinds": (
        lambda: join(TRIALS, lo.sweeps.grid({"rate": Static([0.1])}, 2)),
        ValueError,
        "'rate' as Static in all",
    ),
    "join too many": (lambda: join(LARGE, LARGE, LARGE), ValueError, "ids from 0 to"),
    "one fold": (lambda: folds(np.arange(3), 1), ValueError, "count >= 2"),
    "more folds than rows": (lambda: folds(np.arange(3), 4), ValueError, "count <= 3"),
    "folds of unequal": (
        lambda: folds((np.arange(3), np.arange(4)), 2),
        ValueError,
        "train as arrays that share",
    ),
    "folds of a raw key": (
        lambda: folds(np.arange(3), 2, np.zeros(2, np.uint32)),
        TypeError,
        "typed PRNG key",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        make()


def test_scales_are_those_of_the_space():
    space = {
        "a": lo.sweeps.Log(0.5, 1),
        "b": lo.sweeps.Linear(1, 1000),
        "c": lo.sweeps.Choice([1, 100]),
    }
    space |= {"d": lo.sweeps.Integer(1, 9, log=True), "e": lo.sweeps.Integer(1, 1000)}
    trials = lo.sweeps.random(space, 4, jax.random.key(0))
    want = {"a": "log", "b": "linear", "d": "log", "e": "linear"}
    assert dict(trials.scales) == want
    more = lo.sweeps.join(trials[1:], lo.sweeps.grid({"f": lo.sweeps.Log(1, 2)}, 2)).repeat(2)
    assert dict(more.scales) == want | {"f": "log"}
    table = lo.sweep(lambda numbers, key: numbers["a"], trials, jax.random.key(0), mode="vmap")
    assert {name: table.scales[name] for name in want} == want
