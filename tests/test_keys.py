"""Typed keys: every piece and every device draws its own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt import _keys
from tests.regression import close, cut, each_verb

KEYS = jax.random.split(jax.random.key(0), (2, 3))


def _data(tree):
    return jax.tree.map(lambda x: jax.random.key_data(x) if _keys.is_key(x) else x, tree)


def _same(got, want):
    jax.tree.map(np.testing.assert_array_equal, _data(got), _data(want))


class TestFolded:
    def test_keys_one_by_one_and_nothing_else(self):
        tree = {"key": KEYS[0, 0], "keys": KEYS, "raw": np.uint32([1, 2]), "name": "x", "no": None}
        got = _keys.folded(tree, 7)
        _same(got["key"], jax.random.fold_in(KEYS[0, 0], 7))
        assert got["keys"].shape == (2, 3)
        for place in np.ndindex(2, 3):
            _same(got["keys"][place], jax.random.fold_in(KEYS[place], 7))
        assert got["raw"] is tree["raw"]
        assert (got["name"], got["no"]) == ("x", None)

    def test_without_a_number_they_are_as_they_were(self):
        tree = {"keys": KEYS}
        assert _keys.folded(tree, None) is tree
        assert _keys.of_device(tree, ()) is tree

    def test_of_a_device_by_the_number_along_each_axis(self):
        fold = lambda _: _keys.of_device(KEYS[0, 0], ("i", "j"))
        got = jax.vmap(jax.vmap(fold, axis_name="j"), axis_name="i")(jnp.zeros((2, 3)))
        for i, j in np.ndindex(2, 3):
            _same(got[i, j], jax.random.fold_in(jax.random.fold_in(KEYS[0, 0], i), j))

    @pytest.mark.parametrize(
        ("x", "is_one"),
        [
            (KEYS, True),
            (KEYS[0, 0], True),
            (jax.random.PRNGKey(0), False),
            (None, False),
            (1, False),
        ],
    )
    def test_what_is_a_key(self, x, is_one):
        assert _keys.is_key(x) == is_one

    def test_a_traced_key_is_one(self):
        seen = []
        jax.eval_shape(lambda key: seen.append(_keys.is_key(key)), KEYS)
        assert seen == [True]


def _noisy(w, x, key, *, noise, rest=()):
    """Weights and values both drawn from keys."""
    weights = jax.random.uniform(noise["weights"], x.shape)
    values = jnp.tanh(w * x + jax.random.normal(key, x.shape))
    return lo.mean(values, weights), lo.mean(values**2, jax.random.bernoulli(key, 0.5, x.shape))


class TestOfAnObjective:
    x = np.linspace(-2, 2, 13, dtype=np.float32)

    @pytest.mark.parametrize("microbatches", [1, 4])
    def test_are_folded_with_the_number_of_the_piece_in_both_passes(self, microbatches):
        key, noise = jax.random.key(1), {"weights": jax.random.key(2)}
        fn = jax.jit(lo.value_and_grad(_noisy, microbatches=microbatches))
        (value, means), grad = fn(0.7, self.x, key, noise=noise)

        def whole(w):
            parts = []
            for i, piece in enumerate(cut(self.x, microbatches)):
                fold = lambda k, i=i: k if microbatches == 1 else jax.random.fold_in(k, i)
                parts.append(_noisy(w, piece, fold(key), noise=jax.tree.map(fold, noise)))
            pooled = lo.pool(*parts)
            return lo.value(pooled), pooled

        (want, want_means), want_grad = jax.jit(jax.value_and_grad(whole, has_aux=True))(0.7)
        close(value, want)
        close(grad, want_grad)
        jax.tree.map(close, means, want_means)

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_batches_of_keys_are_folded_one_by_one(self, microbatches):
        keys = jax.random.split(jax.random.key(0), (2, 3))
        draw = jax.vmap(jax.vmap(jax.random.uniform))

        def objective(w, x, keys):
            return lo.mean(w * x), {"metrics": lo.Mean(draw(keys), 1.0)}

        fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
        (_, _, aux), _ = fn(1.0, jnp.ones(2), keys)
        fold = lambda i: jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, i)))(keys)
        want = draw(keys) if microbatches == 1 else draw(fold(0)) + draw(fold(1))
        close(aux["metrics"].total, want)

    @each_verb
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_raw_key_is_refused_and_none_passes(self, microbatches, verb):
        fn = verb(lambda w, x, key: lo.mean(w * x), microbatches=microbatches)
        with pytest.raises(TypeError, match=r"typed PRNG key, got uint32.*jax.random.key"):
            fn(1.0, jnp.ones(2), key=jax.random.PRNGKey(0))
        assert jax.tree.leaves(fn(1.0, jnp.ones(2), key=None))[0] == 1

    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_other_arguments_are_passed_on_as_they_are(self, microbatches):
        seen, sentinel = [], object()

        def objective(w, x, *args, **kwargs):
            seen.append((args, kwargs))
            return args[0](w * x), {}

        fn = lo.value_and_grad(objective, microbatches=microbatches, has_aux=True)
        (value, _, _), _ = fn(1.0, jnp.ones(2), lo.mean, "float32", mode="train", it=sentinel, n=3)
        assert value == 1
        assert seen
        for args, kwargs in seen:
            assert args == (lo.mean, "float32")
            assert kwargs == {"mode": "train", "it": sentinel, "n": 3}
