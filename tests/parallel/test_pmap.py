"""Old code: the step under `jax.pmap`."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.parallel import pad_batch, replicate, split
from tests import regression
from tests.regression import at, close

pytestmark = pytest.mark.usefixtures("uncached")

ROWS = 16
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def batch():
    """Half of the devices have no weight in the first term, all but one none in the second."""
    batch = regression.batch("fractional", "ragged", ROWS)
    batch["mask"][4:12] = 0
    batch["heavy"][:14] = 0
    assert batch["heavy"].any()
    return batch


@cache
def moved():
    """Old code, moved: its state is replicated, its batches are split."""
    init, step = lo.train_step(regression.objective, OPTIMIZER, axis_name="devices")
    return init, jax.pmap(step, axis_name="devices", donate_argnums=0)


def _pointers(tree):
    shards = [x.addressable_shards for x in jax.tree.leaves(tree)]
    return {x.data.unsafe_buffer_pointer() for each in shards for x in each}


class TestStep:
    def test_equals_one_device_and_numpy_by_hand(self):
        """With masks that leave devices empty, and the memory of the state donated."""
        params, rows, rate = regression.params(), batch(), 0.1
        init, step = moved()
        state, parts = replicate(init(params)), split(rows)

        hand, velocity = jax.tree.map(np.float64, params), jax.tree.map(np.zeros_like, params)
        for _ in range(3):
            want, slope = regression.reference(hand, rows)
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
            hand = jax.tree.map(lambda p, v: p - rate * v, hand, velocity)
            given, memory = state, _pointers(state)
            state, measured = step(state, parts)
            assert all(x.is_deleted() for x in jax.tree.leaves(given))
            assert _pointers(state) == memory
            np.testing.assert_allclose(measured.value, np.full(8, want), rtol=1e-6)
        for i in range(8):
            jax.tree.map(close, at(state.params, i), hand)
        close(measured.terms["fit"].weight[3], rows["mask"].sum())
        assert not any(x.is_deleted() for x in jax.tree.leaves(parts))

        alone, one = lo.train_step(regression.objective, OPTIMIZER)
        state, one = alone(params), jax.jit(one)
        for _ in range(3):
            state, _ = one(state, rows)
        jax.tree.map(close, state.params, hand)

    def test_rows_that_do_not_divide_are_padded(self):
        rows, (init, step) = regression.batch("fractional", "ragged", 13), moved()
        padded, mask = pad_batch(rows, 8)
        padded |= {"mask": padded["mask"] * mask, "heavy": padded["heavy"] * mask}
        state, measured = step(replicate(init(regression.params())), split(padded))
        want, slope = regression.reference(regression.params(), rows)
        np.testing.assert_allclose(measured.value[0], want, rtol=1e-6)
        jax.tree.map(
            lambda p, start, g: close(p[5], start - 0.1 * g),
            state.params,
            regression.params(),
            slope,
        )

    def test_one_key_for_all_is_another_for_each(self):
        def objective(w, x, key):
            return {"fit": lo.mean(w * x * jax.random.uniform(key, x.shape))}

        init, step = lo.train_step(objective, optax.sgd(1.0), axis_name="devices")
        x, key = np.arange(1.0, 17, dtype=np.float32), jax.random.key(7)
        state, _ = jax.pmap(step, axis_name="devices")(
            replicate(init(np.float32(0))), split(x), key=replicate(key)
        )
        noise = [jax.random.uniform(jax.random.fold_in(key, i), (2,)) for i in range(8)]
        want = -np.mean(x * np.float64(np.concatenate(noise)))
        np.testing.assert_allclose(state.params, np.full(8, want), rtol=1e-6)


class TestPlaces:
    def test_each_device_has_its_slice_and_pmap_copies_none(self):
        tree = {"x": jnp.arange(48.0).reshape(16, 3), "y": jnp.arange(16)}
        for made in (split(tree), replicate(tree)):
            for leaf in jax.tree.leaves(made):
                on = {x.device: x.data.shape[0] for x in leaf.addressable_shards}
                assert on == dict.fromkeys(jax.local_devices(), 1)
            memory = _pointers(made)
            out = jax.pmap(lambda x: x, axis_name="i", donate_argnums=0)(made)
            assert _pointers(out) == memory

    def test_split_cuts_rows_in_their_order(self):
        tree = {"x": np.arange(48.0).reshape(16, 3), "y": jnp.arange(16)}
        parts = split(tree, jax.local_devices()[4:])
        jax.tree.map(
            lambda part, x: np.testing.assert_array_equal(part.reshape(x.shape), x), parts, tree
        )
        assert parts["y"].shape == (4, 4)
        assert {x.id for x in parts["x"].devices()} == {4, 5, 6, 7}
        keys = jax.random.split(jax.random.key(0), 8)
        assert (split(keys, jax.local_devices()[:2]).reshape(8) == keys).all()

    def test_nothing_is_shared_with_what_was_given(self):
        memory = np.ones(16 * 16 + 16, np.float32)
        begin = -memory.ctypes.data % 64 // 4  # aligned, as jax would take it over
        host = memory[begin : begin + 16 * 16].reshape(16, 16)
        made = jax.block_until_ready([replicate(host), split(host)])
        host[:] = 5
        assert all((x == 1).all() for x in made)

    def test_replicate_keeps_what_it_is_given(self):
        host, here = np.full((1024, 64), 2.0, np.float32), jnp.arange(3, dtype=jnp.bfloat16)
        made = replicate([host, here, 5, jax.random.key(1)])
        assert [x.dtype for x in made[:3]] == [jnp.float32, jnp.bfloat16, jnp.int32]
        jax.block_until_ready(
            jax.pmap(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)(made[:3])
        )
        assert (host == 2).all()
        assert not here.is_deleted()
        assert made[3].shape == (8,)
        assert (made[3] == jax.random.key(1)).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("tree", "error", "match"),
        [
            (
                np.ones(20),
                ValueError,
                r"8 devices divide, got 20.*pad_batch\(batch, 8\).*train_step\(m",
            ),
            ({"x": np.ones(16), "y": np.ones(8)}, ValueError, "share a leading axis of rows"),
            (np.ones(()), ValueError, "share a leading axis of rows"),
            (np.array(["a"] * 8), TypeError, "numbers in batch"),
        ],
    )
    def test_of_batches(self, tree, error, match):
        with pytest.raises(error, match=match):
            split(tree)

    def test_of_states(self):
        with pytest.raises(TypeError, match=r"numbers in tree\['a'\]"):
            replicate({"a": "text"})

    @pytest.mark.parametrize("place", [split, replicate])
    @pytest.mark.parametrize(
        ("devices", "error", "match"),
        [
            (8, TypeError, r"devices as a list of them, got 8. Write jax.local_devices\(\)"),
            (["cpu"], TypeError, "devices as a list of them"),
            ([], ValueError, r"each device once, got \[\]"),
            (jax.devices()[:1] * 2, ValueError, "each device once"),
        ],
    )
    def test_of_devices(self, place, devices, error, match):
        with pytest.raises(error, match=match):
            place(np.ones(16), devices)
