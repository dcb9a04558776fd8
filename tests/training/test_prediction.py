"""A model over rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lossopt as lo
from tests.counted import counted

predict = lo.training.predict


def _model(params, batch):
    """A tree of another form than the batch's, of several ranks and dtypes."""
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return {"hidden": hidden, "parts": (jnp.argmax(hidden, axis=1), batch["row"])}


def _data(rows):
    x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "row": np.arange(rows)}


PARAMS = {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}


def _check(got, data):
    want = np.tanh(data["x"].astype(np.float64) @ PARAMS["w"])
    np.testing.assert_allclose(got["hidden"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["parts"][0], np.argmax(want, axis=1))
    np.testing.assert_array_equal(got["parts"][1], data["row"])


@pytest.mark.parametrize("batch_size", [None, 1, 4, 5, 10, 11, 64])
def test_rows_come_back_in_their_order(batch_size):
    data = _data(11)
    _check(predict(_model, PARAMS, data, batch_size=batch_size), data)


def test_results_may_have_no_columns():
    got = predict(lambda params, x: x[:, :0], None, np.ones((11, 2)), batch_size=4)
    assert got.shape == (11, 0)


def test_no_more_than_a_batch_is_given_to_the_model():
    seen = set()

    def model(params, batch):
        seen.add(batch.shape)
        return batch

    predict(model, None, np.ones((11, 2)), batch_size=4)
    assert seen == {(4, 2), (3, 2)}


def test_a_second_call_traces_nothing():
    data = _data(11)
    predict(_model, PARAMS, data, batch_size=4)
    with counted() as count:
        predict(_model, {"w": 2 * PARAMS["w"]}, data, batch_size=4)
    assert (count.traces, count.lowered, count.compiled) == (0, 0, 0)


def test_it_may_be_traced_and_differentiated():
    data = _data(11)
    _check(jax.jit(partial(predict, _model, batch_size=4))(PARAMS, data), data)
    total = lambda params: jnp.sum(predict(_model, params, data, batch_size=4)["hidden"])
    slope = jax.grad(total)(jax.tree.map(jnp.asarray, PARAMS))["w"]
    x = data["x"].astype(np.float64)
    want = x.T @ (1 - np.tanh(x @ PARAMS["w"]) ** 2)
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("batch_size", [None, 16, 24])
def test_rows_stay_on_their_devices(kind, batch_size):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    lies = NamedSharding(mesh, PartitionSpec("rows"))
    data = _data(40)
    got = predict(_model, PARAMS, jax.device_put(data, lies), batch_size=batch_size)
    _check(got, data)
    for x in jax.tree.leaves(got):
        assert x.sharding.is_equivalent_to(lies, x.ndim)


REFUSED = {
    "an average": (lambda params, x: jnp.mean(x), r"each of the 4 of a batch.*got \(\)"),
    "columns": (lambda params, x: {"a": x, "b": x.T}, r"\['a'\] \(4, 2\), \['b'\] \(2, 4\)"),
    "nothing": (lambda params, x: None, "got no arrays"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_row_for_each_is_refused(name):
    model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        predict(model, None, jnp.ones((6, 2)), batch_size=4)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (jnp.ones((0, 2)), {}, ValueError, "leading axis of rows"),
        ((jnp.ones(2), jnp.ones(3)), {}, ValueError, r"\[1\] \(3,\)"),
        (jnp.ones(2), {"batch_size": 0}, ValueError, "batch_size >= 1"),
        (jnp.ones(2), {"batch_size": 1.0}, TypeError, "batch_size as a whole number"),
    ],
)
def test_what_cannot_be_cut_is_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        predict(lambda params, x: x, None, data, **options)
