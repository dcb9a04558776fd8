"""Every leaf goes to the first pattern that its path holds."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

L1, L2, by_path = lo.regularizers.L1, lo.regularizers.L2, lo.regularizers.by_path

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])},
    "head": {"kernel": jnp.array([4.0])},
}


def test_each_member_gets_its_own_leaves():
    regularizer = by_path({"kernel": L1(0.5), "bias": L2(2.0)})
    assert regularizer(PARAMS) == 0.5 * (1 + 2 + 4) + 2 * 9
    moved = regularizer.prox(PARAMS, 1.0)
    np.testing.assert_allclose(moved["dense"]["kernel"], [[0.5, -1.5]])
    np.testing.assert_allclose(moved["dense"]["bias"], [0.6])
    np.testing.assert_allclose(moved["head"]["kernel"], [3.5])


def test_the_first_match_takes_the_leaf():
    first, second = {"head/kernel": L2(1.0)}, {"kernel": L1(1.0)}
    assert by_path(first | second)(PARAMS) == 16 + 3
    moved = by_path(first | second).prox(PARAMS, 0.5)
    np.testing.assert_allclose(moved["head"]["kernel"], [2.0])
    with pytest.raises(ValueError, match="'head/kernel' takes no leaf"):
        by_path(second | first)(PARAMS)


def test_unmatched_leaves_are_free():
    regularizer = by_path({"bias": L2(1.0)})
    assert regularizer(PARAMS) == 9
    moved = regularizer.prox(PARAMS, 10.0)
    for part in ("dense", "head"):
        np.testing.assert_array_equal(moved[part]["kernel"], PARAMS[part]["kernel"])
    slope = jax.grad(regularizer)(PARAMS)
    assert not slope["head"]["kernel"].any()
    np.testing.assert_allclose(slope["dense"]["bias"], [6.0])


@pytest.mark.parametrize("use", [lambda r: r(PARAMS), lambda r: r.prox(PARAMS, 1.0)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_a_pattern_that_takes_nothing_raises_and_lists_the_paths(use, wrap):
    regularizer = by_path({"kernel": L1(0.5), "scale$": L2(0.5)})
    with pytest.raises(ValueError, match=r"'scale\$' takes no leaf") as error:
        wrap(use)(regularizer)
    for path in ("dense/kernel", "dense/bias", "head/kernel"):
        assert f"'{path}'" in str(error.value)


def test_patterns_are_searched_not_matched():
    assert by_path({"ense/k": L1(1.0)})(PARAMS) == 3
    assert by_path({"^head": L1(1.0)})(PARAMS) == 4
    assert by_path({"l$": L1(1.0)})(PARAMS) == 7
    assert by_path({"(dense|head)/kernel$": L1(1.0)})(PARAMS) == 7
    assert by_path({"": L1(1.0)})(PARAMS) == 10
    with pytest.raises(ValueError, match="takes no leaf"):
        by_path({"^kernel": L1(1.0)})(PARAMS)


@partial(jax.tree_util.register_dataclass, data_fields=["scale", "layers"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Model:
    scale: jax.Array
    layers: list


@pytest.mark.parametrize(
    ("pattern", "want"),
    [("^scale$", 1.0), ("layers/0/", 2.0), ("layers/1/1", 8.0), ("layers/./1", 8.0), ("0", 6.0)],
)
def test_paths_name_fields_keys_and_places(pattern, want):
    layers = [{"kernel": jnp.array(2.0)}, (jnp.array(4.0), jnp.array(8.0))]
    model = _Model(jnp.array(1.0), layers)
    regularizer = by_path({pattern: L1(1.0)})
    assert regularizer(model) == want
    moved = regularizer.prox(model, 100.0)
    assert jax.tree.structure(moved) == jax.tree.structure(model)
    left = sum(jax.tree.leaves(moved))
    assert left == 15 - want


def test_a_lone_array_has_an_empty_path():
    assert by_path({"^$": L1(1.0)})(jnp.array([1.0, -1.0])) == 2
    with pytest.raises(ValueError, match=r"takes no leaf of \[''\]"):
        by_path({"kernel": L1(1.0)})(jnp.ones(2))


def test_the_paths_of_flax_are_those_of_the_documentation():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    init = lambda: Net().init(jax.random.key(0), jnp.zeros((1, 3)))
    for pattern in ("^params/Dense_0/kernel$", "^params/Dense_0/bias$"):
        use = lambda p=pattern: by_path({p: L2(1.0)})(init())
        assert jax.eval_shape(use).shape == ()


def test_no_rules_leave_all_free():
    assert by_path({})(PARAMS) == 0
    jax.tree.map(np.testing.assert_array_equal, by_path({}).prox(PARAMS, 1.0), PARAMS)


def test_strengths_are_swept_inside_of_jit():
    strengths = jnp.array([0.0, 0.5, 1.0])

    @jax.jit
    @jax.vmap
    def trial(strength):
        regularizer = by_path({"kernel": L1(strength), "bias": L2(2 * strength)})
        return regularizer(PARAMS), regularizer.prox(PARAMS, 1.0)

    values, moved = trial(strengths)
    np.testing.assert_allclose(values, strengths * (7 + 18))
    np.testing.assert_allclose(moved["dense"]["bias"][:, 0], 3 / (1 + 4 * strengths))
    many = by_path({"kernel": L1(strengths), "bias": L2(2 * strengths)})
    np.testing.assert_allclose(jax.vmap(lambda r: r(PARAMS))(many), values)


def test_steps_go_with_their_leaves():
    regularizer = by_path({"bias": L2(0.5), "kernel": L1(1.0)})
    steps = {"dense": {"kernel": jnp.array([[0.5, 1.0]]), "bias": 2.0}, "head": 3.0}
    moved = regularizer.prox(PARAMS, steps)
    np.testing.assert_allclose(moved["dense"]["kernel"], [[0.5, -1.0]])
    np.testing.assert_allclose(moved["dense"]["bias"], [1.0])
    np.testing.assert_allclose(moved["head"]["kernel"], [1.0])


def test_a_member_may_be_anything_with_two_verbs():
    class Box:
        """Keeps leaves within ±1; has no numbers."""

        def __call__(self, params):
            return jnp.zeros(())

        def prox(self, params, step_size):
            return jax.tree.map(lambda x: jnp.clip(x, -1, 1), params)

    moved = by_path({"kernel": Box()}).prox(PARAMS, 1.0)
    np.testing.assert_allclose(moved["dense"]["kernel"], [[1.0, -1.0]])
    np.testing.assert_allclose(moved["dense"]["bias"], [3.0])


def test_members_refuse_as_they_do_alone():
    with pytest.raises(ValueError, match="strength >= 0"):
        by_path({"kernel": L1(-1.0)})(PARAMS)


def test_rules_may_be_nested():
    params = {"a": {"k": jnp.array([2.0]), "b": jnp.array([2.0])}, "c": jnp.array([2.0])}
    rules = lo.regularizers
    nested = rules.by_path({r"^a": rules.by_path({r"k$": rules.L1(0.5)})})
    assert nested(params) == 1.0
    moved = nested.prox(params, 1.0)
    assert (moved["a"]["k"], moved["a"]["b"], moved["c"]) == (1.5, 2.0, 2.0)


def test_leaves_of_one_path_are_refused():
    params = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    r = lo.regularizers.by_path({"a": lo.regularizers.L1(1.0)})
    for use in (r, lambda p: r.prox(p, 1.0)):
        with pytest.raises(ValueError, match="Two leaves have one path"):
            use(params)


def test_every_kind_of_member_has_its_leaves():
    r, x = lo.regularizers, jnp.array([[3.0, -4.0], [0.3, 0.4]])
    params = {"rows": x, "image": x, "line": x, "share": x, "both": x, "free": x}
    rules = {
        "rows": r.GroupLasso(1.0, axis=1),
        "image": r.Nuclear(1.0),
        "line": r.TotalVariation(1.0),
        "share": r.Simplex(axis=1),
        "both": r.L1(0.5) + r.Box(-1.0, 1.0),
    }
    moved = by_path(rules).prox(params, 0.2)
    for name, member in rules.items():
        np.testing.assert_array_equal(moved[name], member.prox(x, 0.2))
    np.testing.assert_array_equal(moved["free"], x)
    np.testing.assert_allclose(by_path(rules)(params), sum(m(x) for m in rules.values()), rtol=1e-6)


def test_in_a_partition_each_group_has_the_members_that_take_its_leaves():
    regularizer = by_path({"kernel$": L1(0.5), "bias$": lo.regularizers.Simplex(2.0)})
    rule = lo.transforms.sgd(1.0, regularizer=regularizer)
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    optimizer = optax.partition({"a": rule, "b": rule}, {"dense": "a", "head": "b"})
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    want, _ = rule.update(still, rule.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, updates, want)


def test_squares_are_added_to_rules():
    for both in (by_path({"kernel": L1(0.5)}) + L2(0.1), L2(0.1) + by_path({"kernel": L1(0.5)})):
        np.testing.assert_allclose(both(PARAMS), 0.5 * 7 + 0.1 * 30, rtol=1e-6)
        moved = both.prox(PARAMS, 1.0)
        np.testing.assert_allclose(moved["dense"]["bias"], [3 / 1.2], rtol=1e-6)
        np.testing.assert_allclose(moved["head"]["kernel"], [(4 - 0.5) / 1.2], rtol=1e-6)
