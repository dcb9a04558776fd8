"""Rows that are set apart to validate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lossopt as lo

KEY = jax.random.key(5)
OPTIONS = {"batch_size": 8, "epochs": 2, "key": KEY}


def _objective(w, batch):
    return {"fit": lo.mean((w - batch["x"]) ** 2)}


def _data(rows):
    x = np.random.default_rng(rows).normal(size=rows).astype(np.float32)
    return {"x": x, "row": np.arange(rows)}


@pytest.mark.parametrize(
    ("rows", "share", "held"),
    [(13, 0.2, 3), (10, 0.25, 2), (7, 0.9, 6)],
)
def test_each_row_is_on_one_side_and_their_numbers_are_as_told(rows, share, held):
    train, validation = lo.training.split(_data(rows), share, KEY)
    assert len(validation["row"]) == held == round(share * rows)
    assert sorted([*train["row"], *validation["row"]]) == list(range(rows))
    for part in (train, validation):
        np.testing.assert_array_equal(part["x"], _data(rows)["x"][part["row"]])


def test_the_key_decides_and_each_row_is_held_equally_often():
    held = jax.vmap(lambda key: lo.training.split(jnp.arange(10), 0.3, key)[1])
    rows = held(jax.random.split(jax.random.key(0), 2000))
    counts = np.bincount(np.asarray(rows).ravel(), minlength=10)
    assert np.sum((counts - 600) ** 2 / 600) < 27.9  # chi-squared of 9 degrees, one in a thousand
    again = held(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_array_equal(again, rows)


@pytest.mark.parametrize("train", [lo.fit, lo.training.run])
def test_a_share_trains_and_measures_as_its_parts_do(train):
    data, rule = _data(20), optax.sgd(0.1)
    alone, held = lo.training.split(data, 0.2, KEY)
    got = train(_objective, 0.0, data, rule, validation=0.2, **OPTIONS)
    want = train(_objective, 0.0, alone, rule, validation=held, **OPTIONS)
    np.testing.assert_array_equal(got.validation_rows, held["row"])
    np.testing.assert_array_equal(got.params, want.params)
    for name, column in want.history.items():
        if name == "seconds":
            continue
        np.testing.assert_array_equal(got.history[name], column)
    assert want.validation_rows is None
    x = data["x"][np.asarray(got.validation_rows)].astype(np.float64)
    measured = np.mean((float(got.params) - x) ** 2)
    np.testing.assert_allclose(got.history["validation/fit"][-1], measured, rtol=1e-5)


def test_shares_split_under_jit_and_vmap():
    rule = optax.sgd(0.1)
    trial = lambda key: lo.training.run(
        _objective, 0.0, _data(9), rule, epochs=1, key=key, validation=0.3
    )
    runs = jax.jit(jax.vmap(trial))(jax.random.split(KEY, 3))
    alone = trial(jax.random.split(KEY, 3)[1])
    np.testing.assert_array_equal(runs.validation_rows[1], alone.validation_rows)
    np.testing.assert_allclose(runs.history["validation/fit"][1], alone.history["validation/fit"])


@pytest.mark.parametrize("kind", [AxisType.Explicit])
def test_each_device_splits_its_own_rows(kind):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    lies = NamedSharding(mesh, PartitionSpec("rows"))
    sharded = jax.device_put(_data(40), lies)
    parts = lo.training.split(sharded, 0.2, KEY)
    assert [len(part["row"]) for part in parts] == [32, 8]
    for part, alone in zip(parts, lo.training.split(_data(40), 0.2, KEY, shards=8)):
        np.testing.assert_array_equal(part["row"], alone["row"])
        assert part["x"].sharding.is_equivalent_to(lies, 1)
        owners = np.asarray(part["row"]).reshape(8, -1) // 5
        np.testing.assert_array_equal(owners, np.arange(8)[:, None] + 0 * owners)
    run = lo.fit(_objective, 0.0, sharded, optax.sgd(0.1), epochs=2, key=KEY, validation=0.2)
    np.testing.assert_array_equal(run.validation_rows, parts[1]["row"])
    want = np.mean(np.asarray(parts[0]["x"], np.float64)) * (1 - 0.8**2)
    np.testing.assert_allclose(run.params, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("share", "options", "message"),
    [
        (0.0, {}, "{} > 0, got 0.0"),
        (1.0, {}, "{} < 1, got 1.0"),
        (-0.2, {}, "{} > 0"),
        (20, {}, "{} < 1, got 20"),
        (float("nan"), {}, "{} > 0"),
        (0.01, {}, "Expected {} as a share.*got 0.01 of 10 rows in 1 shards, 0 of each"),
        (0.99, {}, "10 of each"),
        (0.1, {"shards": 5}, "0 of each"),
        (0.1, {"shards": 3}, "10 rows in 3 shards, 0 of each"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(share, options, message):
    with pytest.raises(ValueError, match=message.format("share")):
        lo.training.split(_data(10), share, KEY, **options)
    with pytest.raises(ValueError, match=message.format("validation")):
        lo.fit(_objective, 0.0, _data(10), optax.sgd(0.1), validation=share, **OPTIONS | options)


@pytest.mark.parametrize("key", [None, jax.random.PRNGKey(0)])
def test_a_split_needs_a_typed_key(key):
    with pytest.raises(TypeError, match="typed PRNG key"):
        lo.training.split(_data(10), 0.2, key)
    with pytest.raises(TypeError, match="typed PRNG key"):
        lo.fit(_objective, 0.0, _data(10), optax.sgd(0.1), epochs=1, key=key, validation=0.2)
