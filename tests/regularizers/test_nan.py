"""NaN makes NaN of its group and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

r = lo.regularizers
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
BOX, SIGNS, L1, L2 = r.Box(-0.3, 0.5), r.NonNegative(), r.L1(0.3), r.L2(0.3)

# A member, and the places that share a group with place (1, 2).
OWN, ROW, COLUMN, LEAF = np.s_[1, 2], np.s_[1], np.s_[:, 2], np.s_[:]
MEMBERS = {
    "L1": (L1, OWN),
    "L2": (L2, OWN),
    "ElasticNet": (r.ElasticNet(0.5, 0.2), OWN),
    "NonNegative": (SIGNS, OWN),
    "Box": (BOX, OWN),
    "GroupLasso": (r.GroupLasso(0.7, axis=1), ROW),
    "GroupLasso/leaf": (r.GroupLasso(0.7, axis=None), LEAF),
    "SparseGroupLasso": (r.SparseGroupLasso(0.7, 0.4, axis=0), COLUMN),
    "Nuclear": (r.Nuclear(0.8), LEAF),
    "TotalVariation": (r.TotalVariation(0.3, axis=0), COLUMN),
    "Simplex": (r.Simplex(), LEAF),
    "Simplex/rows": (r.Simplex(axis=1), ROW),
    "L1Ball": (r.L1Ball(0.7, axis=0), COLUMN),
    "L1Ball/inside": (r.L1Ball(100.0), LEAF),
    "L2Ball": (r.L2Ball(0.6, axis=1), ROW),
    "L2Ball/inside": (r.L2Ball(100.0), LEAF),
    "by_path": (r.by_path({"": r.L2Ball(0.6, axis=1)}), ROW),
    "L1 + Box": (L1 + BOX, OWN),
    "L1 + NonNegative": (SIGNS + L1, OWN),
    "L1 + GroupLasso": (L1 + r.GroupLasso(0.7, axis=1), ROW),
    "GroupLasso + NonNegative": (r.GroupLasso(0.7, axis=1) + SIGNS, ROW),
    "L1 + TotalVariation": (r.TotalVariation(0.3, axis=0) + L1, COLUMN),
    "ElasticNet + Box": (r.ElasticNet(0.5, 0.2) + BOX, OWN),
    "L2 + Simplex": (L2 + r.Simplex(axis=1), ROW),
}
EACH = pytest.mark.parametrize(("member", "group"), MEMBERS.values(), ids=MEMBERS)


def _spoiled(x):
    return np.where(np.indices(x.shape).T.dot([1, 10]).T == 21, np.nan, x).astype(x.dtype)


@EACH
def test_a_coordinate_or_its_step(member, group):
    bad = np.zeros(X.shape, bool)
    bad[group] = True
    single, each = np.float32(0.5), np.full_like(X, 0.5)
    rows = [(X, single), (_spoiled(X), single), (X, np.float32(np.nan))]
    tables = [(X, each), (_spoiled(X), each), (X, _spoiled(each))]
    slope = lambda x, t: jax.vjp(lambda x: member.prox(x, t), x)[1](jnp.ones_like(x))[0]

    @jax.jit
    def look(rows, tables):
        looks = {"rows": jax.vmap(member.prox)(*rows), "slopes": jax.vmap(slope)(*rows)}
        try:
            return looks | {"tables": jax.vmap(member.prox)(*tables)}
        except ValueError:  # one step only
            return looks

    got = jax.tree.map(np.asarray, look(*(list(map(np.stack, zip(*x))) for x in (rows, tables))))
    good, spoiled, stepped = got["slopes"]
    assert np.isnan(spoiled[OWN])
    assert np.isnan(stepped).all()
    np.testing.assert_array_equal(spoiled[~bad], good[~bad])
    good, spoiled, stepped = got["rows"]
    np.testing.assert_array_equal(spoiled, np.where(bad, np.nan, good))
    assert np.isnan(stepped).all()
    if "tables" in got:
        good, *others = got["tables"]
        for spoiled in others:
            np.testing.assert_array_equal(spoiled, np.where(bad, np.nan, good))


@EACH
def test_a_number(member, group):
    numbers, structure = jax.tree.flatten(member)
    spoiled = np.diag(np.full(len(numbers), np.nan)) + np.float32(numbers)
    moved = jax.jit(jax.vmap(lambda *numbers: structure.unflatten(numbers).prox(X, 0.5)))
    assert not numbers or np.isnan(moved(*spoiled.astype(np.float32))).all()


@pytest.mark.parametrize("name", ["L1", "L2", "GroupLasso", "Nuclear", "TotalVariation"])
def test_a_penalty(name):
    assert np.isnan(MEMBERS[name][0](_spoiled(X)))
    assert np.isnan(jax.grad(MEMBERS[name][0].__call__)(_spoiled(X))[OWN])


def test_a_descent_with_one_bad_gradient_shows_it():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    optimizer = lo.transforms.adam(0.1, regularizer=r.Simplex())
    bad = {"a": jnp.array([jnp.nan, 1.0, 1.0]), "b": jnp.ones(3)}
    updates, _ = jax.jit(optimizer.update)(bad, optimizer.init(params), params)
    assert np.isnan(updates["a"]).all()
    assert np.isfinite(updates["b"]).all()
