"""How objectives are called, and what they may return."""

import functools

import jax
import jax.numpy as jnp
import pytest

import lossopt as lo
from lossopt._objective import adapt, split_aux
from tests.regression import each_verb

ONE = lo.constant(1.0)


class TestReturns:
    @pytest.mark.parametrize("means", [ONE, {"fit": ONE, "heads": (ONE, [ONE])}, (ONE, ONE)])
    @pytest.mark.parametrize(
        "aux", [{}, {"metrics": {"m": ONE}}, {"metrics": {}, "model_state": 1}, {"metrics": None}]
    )
    def test_means_with_and_without_aux(self, means, aux):
        assert split_aux(means, has_aux=False) == (means, {})
        assert split_aux((means, aux), has_aux=True) == (means, aux)

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ((ONE, {"metrics": {}, "accuracy": 1}), "'metrics' and 'model_state'; got PyTreeDef"),
            ((ONE, {"state": 1}), "'metrics' and 'model_state'"),
            ((ONE, [ONE]), r"returns \(means, aux\)"),
            ((ONE, None), r"returns \(means, aux\)"),
            (ONE, r"returns \(means, aux\)"),
            ([ONE, {}], r"returns \(means, aux\)"),
            ((ONE, {}, {}), r"returns \(means, aux\)"),
            ((jnp.ones(()), {}), "Expected a tree of Mean"),
            ((None, {}), "Expected a tree of Mean with a leaf, got None: is a return missing"),
            (({}, {}), "Expected a tree of Mean with a leaf"),
            ((ONE, {"metrics": {"accuracy": 0.5}}), "got float at 'accuracy'"),
        ],
    )
    def test_with_aux_other_returns_are_refused(self, returned, message):
        with pytest.raises(TypeError, match=message):
            split_aux(returned, has_aux=True)

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (1.0, "got float at ''"),
            ({"a": jnp.ones(3)}, "at 'a'"),
            ((ONE, {"x": 1.0}), "got float at '1/x'"),
            ((ONE, {"metrics": {"m": ONE}}), "say so with has_aux=True"),
            ((ONE, {"model_state": 1}), "say so with has_aux=True"),
            (None, "is a return missing"),
            ((ONE, {}, 0.5), "got float at '2'"),
        ],
    )
    def test_without_aux_other_returns_are_refused(self, returned, message):
        with pytest.raises(TypeError, match=message):
            split_aux(returned, has_aux=False)

    @each_verb
    @pytest.mark.parametrize("microbatches", [1, 2])
    @pytest.mark.parametrize(
        ("returned", "has_aux"),
        [(1.0, False), (None, False), ((ONE, {"x": 1}), True), ((ONE, {"metrics": 1}), True)],
    )
    def test_both_verbs_refuse(self, returned, has_aux, microbatches, verb):
        fn = verb(lambda w, x: returned, microbatches=microbatches, has_aux=has_aux)
        with pytest.raises(TypeError, match=r"Mean|has_aux"):
            fn(1.0, jnp.ones(2))

    @each_verb
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_state_that_was_not_given_is_refused(self, microbatches, verb):
        objective = lambda w, x, *rest: (lo.mean(w * x), {"model_state": 1})
        fn = verb(objective, microbatches=microbatches, has_aux=True)
        with pytest.raises(ValueError, match="pass the first one by its keyword"):
            fn(1.0, jnp.ones(2), 1)


GIVEN = {"key": "k", "model_state": "s", "hyperparameters": "h"}


class TestKeywords:
    """`adapt` passes what the signature names; `seen` is what came."""

    @pytest.mark.parametrize(
        ("objective", "names"),
        [
            (lambda p, b: {}, ""),
            (lambda p, b, key: {"key": key}, "key"),
            (lambda p, b, *, hyperparameters: {"hyperparameters": hyperparameters}, "hyper"),
            (lambda p, b, model_state, key: {"key": key, "model_state": model_state}, "key model"),
            (lambda p, b, hyper=7, **others: others, ""),
        ],
    )
    def test_each_receives_those_that_it_names(self, objective, names):
        seen = []

        @functools.wraps(objective)
        def spied(*args, **kwargs):
            seen.append(objective(*args, **kwargs))
            return ONE

        assert adapt(spied, has_aux=False)("p", "b", **GIVEN) == (ONE, {})
        assert seen == [{n: x for n, x in GIVEN.items() if any(map(n.startswith, names.split()))}]

    def test_none_is_passed_only_where_there_is_no_default(self):
        def objective(params, batch, key, model_state="mine", *, hyperparameters=3):
            assert (key, model_state, hyperparameters) == (None, "mine", 3)
            return ONE

        nothing = dict.fromkeys(GIVEN)
        assert adapt(objective, has_aux=False)("p", "b", **nothing) == (ONE, {})

    @pytest.mark.parametrize("name", ["model_state", "hyperparameters"])
    def test_what_is_given_must_be_named(self, name):
        with pytest.raises(ValueError, match=rf"^{name} was given, .* objective\(.*, {name}\)\.$"):
            adapt(lambda params, batch: ONE, has_aux=False, **{name: 0})
        adapt(lambda params, batch: ONE, has_aux=False, **{name: None})

    @pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
    def test_a_wrapped_objective_is_read_through_its_wrapper(self, wrap):
        objective = wrap(lambda w, x, model_state: lo.mean(w * x + model_state))
        given = {"key": None, "model_state": 2.0, "hyperparameters": None}
        means, aux = adapt(objective, has_aux=False, model_state=2.0)(1.0, jnp.ones(3), **given)
        assert (means.value, aux) == (3, {})

    def test_it_keeps_the_name_and_always_has_aux(self):
        def mine(params, batch):
            return ONE, {"metrics": {"m": ONE}}

        adapted = adapt(mine, has_aux=True)
        assert adapted.__name__ == "mine"
        assert adapted(0, 0, **dict.fromkeys(GIVEN)) == (ONE, {"metrics": {"m": ONE}})
        with pytest.raises(TypeError, match="has_aux=True"):
            adapt(mine, has_aux=False)(0, 0, **dict.fromkeys(GIVEN))
