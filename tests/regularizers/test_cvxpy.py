"""Every prox against a convex solver that knows the definition alone."""

import functools
import warnings

import cvxpy as cp
import jax
import numpy as np
import pytest

import lossopt as lo

r = lo.regularizers
SHAPE, SEEDS = (4, 5), 3

ABS = lambda z: cp.sum(cp.abs(z))
SQUARES = lambda z: cp.sum_squares(z)
ROWS = lambda z: cp.sum(cp.norm(z, 2, axis=1))
JUMPS = lambda z: cp.sum(cp.abs(cp.diff(z, axis=1)))
NONE = lambda z: 0.0
FREE = lambda z: []
LOWS = np.linspace(-1, 0.5, 20).reshape(SHAPE)

# A member, its value in cvxpy, and its constraints.
MEMBERS = {
    "L1": (r.L1(0.5), lambda z: 0.5 * ABS(z), FREE),
    "L2": (r.L2(0.7), lambda z: 0.7 * SQUARES(z), FREE),
    "ElasticNet": (r.ElasticNet(0.9, 0.3), lambda z: 0.27 * ABS(z) + 0.63 * SQUARES(z), FREE),
    "GroupLasso": (r.GroupLasso(1.1, axis=1), lambda z: 1.1 * ROWS(z), FREE),
    "GroupLasso/columns": (
        r.GroupLasso(1.1, axis=0),
        lambda z: 1.1 * cp.sum(cp.norm(z, 2, axis=0)),
        FREE,
    ),
    "GroupLasso/leaf": (r.GroupLasso(2.0, axis=None), lambda z: 2.0 * cp.norm(z, "fro"), FREE),
    "SparseGroupLasso": (
        r.SparseGroupLasso(0.8, 0.4, axis=1),
        lambda z: 0.32 * ABS(z) + 0.48 * ROWS(z),
        FREE,
    ),
    "Nuclear": (r.Nuclear(0.9), lambda z: 0.9 * cp.normNuc(z), FREE),
    "TotalVariation": (r.TotalVariation(0.6), lambda z: 0.6 * JUMPS(z), FREE),
    "TotalVariation/columns": (
        r.TotalVariation(0.6, axis=0),
        lambda z: 0.6 * cp.sum(cp.abs(cp.diff(z, axis=0))),
        FREE,
    ),
    "NonNegative": (r.NonNegative(), NONE, lambda z: [z >= 0]),
    "Box": (r.Box(-0.4, 0.7), NONE, lambda z: [z >= -0.4, z <= 0.7]),
    "Box/each": (r.Box(LOWS, LOWS + 0.3), NONE, lambda z: [z >= LOWS, z <= LOWS + 0.3]),
    "Simplex": (r.Simplex(2.0), NONE, lambda z: [z >= 0, cp.sum(z) == 2]),
    "Simplex/rows": (r.Simplex(axis=1), NONE, lambda z: [z >= 0, cp.sum(z, axis=1) == 1]),
    "L1Ball": (r.L1Ball(3.0), NONE, lambda z: [ABS(z) <= 3]),
    "L1Ball/columns": (r.L1Ball(1.5, axis=0), NONE, lambda z: [cp.sum(cp.abs(z), axis=0) <= 1.5]),
    "L2Ball": (r.L2Ball(1.5), NONE, lambda z: [cp.norm(z, "fro") <= 1.5]),
    "L2Ball/rows": (r.L2Ball(0.9, axis=1), NONE, lambda z: [cp.norm(z, 2, axis=1) <= 0.9]),
}
SUMS = [
    ("L1", "Box"),
    ("L1", "NonNegative"),
    ("L1", "GroupLasso"),
    ("L1", "TotalVariation"),
    ("GroupLasso", "NonNegative"),
    ("NonNegative", "GroupLasso", "L1"),
    ("L1", "L2", "TotalVariation"),
    ("Box", "ElasticNet"),
    ("NonNegative", "SparseGroupLasso", "L2"),
    *((name, "L2") for name in MEMBERS if "/" not in name),
]
CASES = {name: (name,) for name in MEMBERS} | {" + ".join(names): names for names in SUMS}
# Less regularization and shorter steps: otherwise norms end at 1e-8.
EXACT = {
    "static_regularization_constant": 1e-14,
    "static_regularization_proportional": 0.0,
    "max_step_fraction": 0.9,
}
SCALAR_ONLY = {"Nuclear", "TotalVariation", "TotalVariation/columns"}


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("names", CASES.values(), ids=CASES)
def test_prox_minimizes(names):
    member = functools.reduce(lambda a, b: a + b, (MEMBERS[name][0] for name in names))
    rng = np.random.default_rng(len(names))
    xs = rng.normal(size=(SEEDS, *SHAPE))
    single, each = rng.uniform(0.3, 1.2, SEEDS), 10 ** rng.uniform(-1, 0.3, xs.shape)
    kinds = [single] if SCALAR_ONLY & set(names) else [single, each]
    for steps in kinds:
        for x, step in zip(xs, steps):
            ours, theirs = np.asarray(member.prox(x, step)), _solved(names, x, step)
            paid = _objective(names, ours, x, step)
            assert paid <= theirs * (1 + 1e-8)
            np.testing.assert_allclose(paid, theirs, rtol=1e-6)  # one problem, not two
            assert _violation(names, ours) <= 1e-12
            value = sum(_number(MEMBERS[name][1](ours)) for name in names)
            np.testing.assert_allclose(member(ours), value, rtol=1e-12)


def _solved(names, x, step):
    z = cp.Variable(x.shape)
    cost = cp.sum(cp.multiply(1 / (2 * step) * np.ones_like(x), cp.square(z - x)))
    cost += sum(MEMBERS[name][1](z) for name in names)
    problem = cp.Problem(cp.Minimize(cost), [c for name in names for c in MEMBERS[name][2](z)])
    for tol in (1e-12, 1e-10, 1e-9):  # the tightest that it reaches
        tols = {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol}
        with warnings.catch_warnings(action="ignore"):
            problem.solve(cp.CLARABEL, **tols, **EXACT)
        if problem.status == cp.OPTIMAL:
            return problem.value
    raise AssertionError(problem.status)


def _objective(names, z, x, step):
    value = sum(_number(MEMBERS[name][1](z)) for name in names)
    return np.sum((z - x) ** 2 / (2 * step)) + value


def _violation(names, z):
    point = cp.Variable(z.shape, value=z)
    constraints = [c for name in names for c in MEMBERS[name][2](point)]
    return max([0.0, *(np.max(c.violation()) for c in constraints)])


def _number(expression):
    return getattr(expression, "value", expression)
