"""Batches made longer by copies of their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.parallel import pad_batch

pytestmark = pytest.mark.usefixtures("uncached")


class TestPadBatch:
    @pytest.mark.parametrize("rows", [1, 3, 5, 8, 11])
    @pytest.mark.parametrize("multiple", [1, 4, 8])
    def test_copies_of_rows_follow_those_of_the_batch(self, rows, multiple):
        batch = {"x": np.arange(2.0 * rows).reshape(rows, 2) + 1, "y": np.arange(rows)}
        padded, mask = pad_batch(batch, multiple)
        length = multiple * -(-rows // multiple)
        np.testing.assert_array_equal(mask, np.arange(length) < rows)
        for name, x in batch.items():
            assert padded[name].shape == (length, *x.shape[1:])
            np.testing.assert_array_equal(padded[name][:rows], x)
            assert all(row.tolist() in x.tolist() for row in padded[name])

    def test_kinds_of_arrays_and_dtypes_stay(self):
        keys = jax.random.split(jax.random.key(0), 3)
        batch = {"host": np.ones((3, 2), np.uint8), "here": jnp.ones(3, jnp.bfloat16), "keys": keys}
        padded, mask = pad_batch(batch, 2)
        assert type(padded["host"]) is np.ndarray
        assert all(isinstance(x, jax.Array) for x in (padded["here"], padded["keys"], mask))
        assert jax.tree.map(lambda x: x.dtype, padded) == jax.tree.map(lambda x: x.dtype, batch)
        assert padded["keys"][3] == keys[0]
        assert mask.dtype == bool
        padded, mask = pad_batch(batch["host"], 2)
        assert type(mask) is type(padded) is np.ndarray

    def test_what_is_long_enough_is_not_copied(self):
        batch = [np.ones((4, 2)), jnp.ones(4)]
        padded, mask = pad_batch(batch, 4)
        assert all(x is y for x, y in zip(padded, batch))
        assert mask.all()

    def test_under_jit(self):
        padded, mask = jax.jit(pad_batch, static_argnums=1)(jnp.arange(5.0), 4)
        np.testing.assert_array_equal(padded, [0, 1, 2, 3, 4, 0, 1, 2])
        np.testing.assert_array_equal(mask, [1, 1, 1, 1, 1, 0, 0, 0])

    def test_value_and_gradient_are_those_without_copies(self):
        """Also of a model without a derivative at 0, where rows of zeros would give NaN."""

        def objective(w, batch):
            norms = jnp.sqrt(jnp.sum(jnp.square(batch["x"] * w[None]), axis=1))
            weights = batch["weights"] * batch.get("mask", 1)
            return {"fit": lo.mean(norms, weights), "penalty": lo.constant(jnp.sum(w**2))}

        random = np.random.default_rng(0)
        with jax.enable_x64(True):
            batch = {"x": random.normal(size=(5, 2)), "weights": random.uniform(size=5)}
            w = np.array([0.3, -0.7])
            (want, means), slope = lo.value_and_grad(objective)(w, batch)
            padded, mask = pad_batch(batch, 8)
            (got, pooled), grad = lo.value_and_grad(objective, microbatches=3)(
                w, padded | {"mask": mask}
            )
            np.testing.assert_allclose(got, want, rtol=1e-12)
            np.testing.assert_allclose(pooled["fit"].weight, means["fit"].weight, rtol=1e-12)
            np.testing.assert_allclose(grad, slope, rtol=1e-12)

    @pytest.mark.parametrize(
        ("batch", "multiple", "error", "match"),
        [
            ({"x": np.ones(3), "y": np.ones(4)}, 2, ValueError, "share a leading axis of rows"),
            (np.ones((0, 2)), 2, ValueError, "share a leading axis of rows"),
            (np.ones(()), 2, ValueError, "share a leading axis of rows"),
            ({}, 2, ValueError, "got no arrays"),
            (np.ones(3), 0, ValueError, "multiple >= 1, got 0"),
            (np.ones(3), 2.0, TypeError, "multiple as a whole number"),
        ],
    )
    def test_what_cannot_be_padded_is_refused(self, batch, multiple, error, match):
        with pytest.raises(error, match=match):
            pad_batch(batch, multiple)
