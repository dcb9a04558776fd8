"""Typed keys: every piece and every device draws its own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        tree = {"key": KEYS[0, 0], "keys": KEYS, "data": np.int32([1, 2]), "name": "x", "no": None}
        got = _keys.folded(tree, 7)
        _same(got["key"], jax.random.fold_in(KEYS[0, 0], 7))
        assert got["keys"].shape == (2, 3)
        for place in np.ndindex(2, 3):
            _same(got["keys"][place], jax.random.fold_in(KEYS[place], 7))
        assert got["data"] is tree["data"]
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


def _cached(objective, **numbers):
    """The third verb that folds keys; it takes no keywords."""
    encode = lambda w, x, *args: x * w
    return lo.fused.cached_value_and_grad(
        encode, lambda w, x, *args: objective(w, x, *args), **numbers
    )


OLD = jax.random.PRNGKey(0)
VERBS = {"measure": lo.measure, "value_and_grad": lo.value_and_grad, "cached": _cached}
RAW = {
    "one": (OLD, "0"),
    "of four words": (jax.random.PRNGKey(0, impl="rbg"), "0"),
    "several": (jax.random.split(OLD, 3), "0"),
    "of numpy": (np.asarray(OLD), "0"),
    "nested": ({"noise": [1.0, OLD]}, "0/noise/1"),
}
PASS = {
    "typed": jax.random.key(0),
    "viewed as int32": OLD.view(jnp.int32),
    "other shapes": (np.zeros(3, np.uint32), np.zeros((2, 3), np.uint32), np.uint32(4)),
    "other words": (np.zeros(2, np.int32), np.zeros(2, np.uint8), np.zeros(4, np.float32)),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
class TestRawKeys:
    """Old-style keys look like data, and would draw the same in every piece and on every device."""

    x = jnp.ones(4)

    def _call(self, verb, microbatches=2, axis_name=()):
        """The verb, of an objective that takes all and reads the batch alone."""
        objective = lambda w, x, *args, **kwargs: lo.mean(w * x)
        return verb(objective, microbatches=microbatches, axis_name=axis_name)

    @pytest.mark.parametrize(("raw", "path"), RAW.values(), ids=RAW)
    def test_are_refused_where_there_are_pieces(self, verb, raw, path):
        words = (
            rf"Expected no raw PRNG key beside the batch, got uint32 of shape \(.*\) at '.*{path}'"
            r".*jax\.random\.key\(seed\).*batch.*int32"
        )
        with pytest.raises(TypeError, match=words):
            self._call(verb)(1.0, self.x, raw)
        with pytest.raises(TypeError, match=words):
            jax.jit(self._call(verb))(1.0, self.x, raw)
        self._call(verb, microbatches=1)(1.0, self.x, raw)

    def test_are_refused_where_there_are_devices(self, verb):
        fn = self._call(verb, microbatches=1, axis_name="i")
        with pytest.raises(TypeError, match="raw PRNG key"):
            jax.vmap(fn, in_axes=(None, 0, None), axis_name="i")(1.0, self.x[:, None], OLD)

    @pytest.mark.parametrize("other", PASS.values(), ids=PASS)
    def test_what_is_none_passes(self, verb, other):
        assert jax.tree.leaves(self._call(verb)(1.0, self.x, other))[0] == 1

    def test_pass_in_the_batch(self, verb):
        objective = lambda w, batch, *args: lo.mean(w * batch[0])
        encode = lambda w, batch, *args: (batch[0] * w, batch[1])
        fn = (
            lo.fused.cached_value_and_grad(encode, objective, microbatches=2)
            if verb is _cached
            else verb(objective, microbatches=2)
        )
        fn(1.0, (self.x, jax.random.split(OLD, 4)))


@each_verb
def test_a_raw_key_by_any_keyword_is_refused(verb):
    fn = verb(lambda w, x, *, dropout: lo.mean(w * x), microbatches=2)
    with pytest.raises(TypeError, match=r"raw PRNG key .* at 'kwargs/dropout/key'"):
        fn(1.0, jnp.ones(2), dropout={"key": OLD})


def test_a_raw_key_among_the_hyperparameters_of_a_run_is_refused():
    objective = lambda w, x, hyperparameters: lo.mean(w * x)
    with pytest.raises(TypeError, match=r"raw PRNG key .* at 'kwargs/hyperparameters'"):
        lo.training.run(
            objective,
            1.0,
            jnp.ones(4),
            optax.sgd(0.1),
            batch_size=4,
            microbatches=2,
            epochs=1,
            key=jax.random.key(0),
            hyperparameters=OLD,
        )


def test_a_raw_key_of_the_state_is_passed_on_from_piece_to_piece():
    """No two pieces are given the same one."""

    def objective(w, x, *, model_state):
        now, later = jax.random.split(model_state)
        aux = {"metrics": lo.constant(jax.random.uniform(now)), "model_state": later}
        return lo.mean(w * x), aux

    fn = lo.measure(objective, microbatches=2, has_aux=True)
    _, _, aux = fn(1.0, jnp.ones(2), model_state=OLD)
    first, second = jax.random.split(OLD)
    draws = [jax.random.uniform(key) for key in (first, jax.random.split(second)[0])]
    close(aux["metrics"].value, np.mean(draws))
    assert draws[0] != draws[1]
