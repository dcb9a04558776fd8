"""One group, one sum or one norm over all leaves of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

r = lo.regularizers
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(2, 3)), "b": [RNG.normal(size=4), np.array(0.3)]}
STEPS = jax.tree.map(lambda x: np.exp(RNG.uniform(-1, 1, x.shape)), PARAMS)
MEMBERS = {
    "GroupLasso": lambda axis: r.GroupLasso(2.0, axis),
    "SparseGroupLasso": lambda axis: r.SparseGroupLasso(1.5, 0.3, axis),
    "Simplex": lambda axis: r.Simplex(2.0, axis),
    "L1Ball": lambda axis: r.L1Ball(2.0, axis),
    "L2Ball": lambda axis: r.L2Ball(1.1, axis),
    "GroupLasso + NonNegative": lambda axis: r.GroupLasso(0.5, axis) + r.NonNegative(),
    "L2Ball + L2": lambda axis: r.L2Ball(1.1, axis) + r.L2(0.2),
}
EACH = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@EACH
def test_is_that_of_all_in_one_vector(make):
    each = {"a": 0.3, "b": [0.5, 0.2]}
    full = jax.tree.map(lambda x, t: np.full(x.shape, t), PARAMS, each)
    tree, vector = make("tree"), make(None)

    @jax.jit
    def look(params, flat):
        got = [tree.prox(params, step) for step in (0.4, STEPS, each)]
        want = [vector.prox(flat, step) for step in (0.4, _flat(STEPS), _flat(full))]
        return got, want, tree(params), vector(flat)

    with jax.enable_x64(True):
        moved, wanted, value, expected = look(PARAMS, _flat(PARAMS))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    for got, want in zip(moved, wanted):
        assert jax.tree.structure(got) == jax.tree.structure(PARAMS)
        np.testing.assert_allclose(_flat(got), want, rtol=1e-12, atol=1e-14)


def test_by_hand():
    norm = np.linalg.norm(_flat(PARAMS))
    value = r.GroupLasso(2.0, "tree")(PARAMS)
    np.testing.assert_allclose(value, 2 * norm, rtol=1e-6)
    for member, factor in (
        (r.L2Ball(1.1, "tree"), 1.1 / norm),
        (r.GroupLasso(2.0, "tree"), 1 - 0.8 / norm),
    ):
        moved = _flat(member.prox(PARAMS, 0.4))
        np.testing.assert_allclose(moved, _flat(PARAMS) * factor, rtol=1e-6)
    assert not _flat(r.GroupLasso(2.6 * norm, "tree").prox(PARAMS, 0.4)).any()


def test_parts_are_named_by_path():
    kernels = r.by_path({"a|b/0": r.L2Ball(0.5, "tree")})
    moved = kernels.prox(PARAMS, 0.4)
    bound = {"a": moved["a"], "b": moved["b"][0]}
    np.testing.assert_allclose(np.linalg.norm(_flat(bound)), 0.5, rtol=1e-6)
    assert moved["b"][1] == PARAMS["b"][1]
    alone = r.L2Ball(0.5).prox(np.concatenate([np.ravel(PARAMS["a"]), PARAMS["b"][0]]), 0.4)
    np.testing.assert_array_equal(_flat(bound), alone)  # one step stays one


def test_leaves_keep_their_dtypes_and_nan_reaches_all():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    moved = r.L2Ball(1.0, "tree").prox(params, 0.1)
    assert moved["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(moved["b"], 0.2**0.5, rtol=1e-6)
    for bad, step in (({**params, "b": jnp.array([1.0, jnp.nan])}, 0.1), (params, jnp.nan)):
        assert np.isnan(_flat(r.L2Ball(9.0, "tree").prox(bad, step))).all()


def test_no_leaf_and_no_float():
    assert r.L2Ball(1.0, "tree").prox({}, 0.1) == {}
    assert r.GroupLasso(1.0, "tree")({}) == 0
    for use in (r.GroupLasso(1.0, "tree"), lambda x: r.GroupLasso(1.0, "tree").prox(x, 0.1)):
        with pytest.raises(ValueError, match="floating params, got int32"):
            use({"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"step_size of shape \(2,\), got \(3,\)"):
        r.L2Ball(1.0, "tree").prox({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
    for member in (r.L2Ball(1.0, "rows"), r.TotalVariation(1.0, "tree")):
        with pytest.raises(ValueError, match="name axes of the leaf"):
            member.prox(jnp.ones(2), 0.1)


def test_adam_stays_in_a_ball_of_the_whole_tree():
    params = jax.tree.map(lambda x: 0 * jnp.asarray(x, jnp.float32), PARAMS)
    optimizer = lo.transforms.adam(0.2, regularizer=r.L2Ball(1.0, "tree"))
    slope = jax.grad(
        lambda p: sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (p, PARAMS))))
    )

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(slope(params), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    params, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=300)[0]
    x = _flat(PARAMS)
    np.testing.assert_allclose(_flat(params), x / np.linalg.norm(x), atol=2e-3)
