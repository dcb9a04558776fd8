"""A sum is built only if its prox is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

r = lo.regularizers
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)

MEMBERS = {
    "L1": r.L1(0.3),
    "GroupLasso": r.GroupLasso(0.5, axis=1),
    "Nuclear": r.Nuclear(0.4),
    "TotalVariation": r.TotalVariation(0.2),
    "NonNegative": r.NonNegative(),
    "Box": r.Box(-0.5, 0.5),
    "Simplex": r.Simplex(),
    "L1Ball": r.L1Ball(1.0),
    "L2Ball": r.L2Ball(1.0),
    "ByPath": r.by_path({"": r.L1(0.3)}),
}
ALLOWED = {
    frozenset(pair)
    for pair in (
        ("L1", "Box"),
        ("L1", "NonNegative"),
        ("L1", "GroupLasso"),
        ("L1", "TotalVariation"),
        ("GroupLasso", "NonNegative"),
    )
}
PAIRS = list(itertools.combinations_with_replacement(MEMBERS, 2))
REFUSED = [pair for pair in PAIRS if frozenset(pair) not in ALLOWED]


class Mine:
    """Somebody's own regularizer: the constraint that all coordinates are 1."""

    def __call__(self, params):
        return jnp.zeros(())

    def prox(self, params, step_size):
        return jax.tree.map(jnp.ones_like, params)


def _registered(*names):
    made = dataclasses.dataclass(frozen=True)
    return lambda cls: jax.tree_util.register_dataclass(made(cls), names, ())


@_registered("high")
class AtMost:
    """Somebody's own constraint, whose prox may follow that of L1."""

    high: float

    def __call__(self, params):
        return r.Box(-jnp.inf, self.high)(params)

    def prox(self, params, step_size):
        return jax.tree.map(lambda x: jnp.minimum(x, self.high), params)

    def stands(self, other):
        return "after" if isinstance(other, r.L1) else None


@_registered("strength")
class Jumps:
    """Somebody's own penalty, whose prox may go before that of L1."""

    strength: float

    def __call__(self, params):
        return r.TotalVariation(self.strength)(params)

    def prox(self, params, step_size):
        return r.TotalVariation(self.strength).prox(params, step_size)

    def stands(self, other):
        return "before" if isinstance(other, r.L1 | AtMost) else None


@_registered("strength")
class NearOne:
    """Somebody's own squares, which go with everything."""

    strength: float

    def __call__(self, params):
        return r.L2(self.strength)(jax.tree.map(lambda x: x - 1, params))

    def prox(self, params, step_size):
        return self.absorb(params, step_size)[0]

    def absorb(self, params, step_size):
        step_size = jax.tree.broadcast(step_size, params)
        factor = jax.tree.map(lambda t: 1 + 2 * t * self.strength, step_size)
        move = lambda x, t, f: (x + 2 * t * self.strength) / f
        return (
            jax.tree.map(move, params, step_size, factor),
            jax.tree.map(lambda t, f: t / f, step_size, factor),
        )


@_registered("strength")
class Both:
    """Somebody's own sum."""

    strength: float

    def __call__(self, params):
        return sum(member(params) for member in self.summands)

    def prox(self, params, step_size):
        return (r.L1(self.strength) + NearOne(self.strength)).prox(params, step_size)

    @property
    def summands(self):
        return r.L1(self.strength), NearOne(self.strength)

    __add__ = r.add


@pytest.mark.parametrize(
    ("mine", "ours"),
    [
        (lambda: AtMost(0.4) + r.L1(0.3), r.Box(-jnp.inf, 0.4) + r.L1(0.3)),
        (lambda: r.L1(0.3) + AtMost(0.4), r.Box(-jnp.inf, 0.4) + r.L1(0.3)),
        (lambda: r.ElasticNet(0.8, 0.5) + AtMost(0.4), r.ElasticNet(0.8, 0.5) + r.Box(-9, 0.4)),
        (lambda: Jumps(0.2) + r.L1(0.3), r.TotalVariation(0.2) + r.L1(0.3)),
        (lambda: r.L1(0.3) + Jumps(0.2), r.TotalVariation(0.2) + r.L1(0.3)),
    ],
)
def test_ones_own_takes_part(mine, ours):
    np.testing.assert_array_equal(mine().prox(X, 0.5), ours.prox(X, 0.5))
    np.testing.assert_allclose(mine()(X), ours(X), rtol=1e-6)


def test_ones_own_go_together():
    points = [
        (a + r.L2(0.1) + b + c).prox(X, 0.5)
        for a, b, c in itertools.permutations([r.L1(0.3), AtMost(0.4), Jumps(0.2)])
    ]
    want = AtMost(0.4).prox((r.TotalVariation(0.2) + r.L1(0.3) + r.L2(0.1)).prox(X, 0.5), 0.5)
    for point in points:
        np.testing.assert_allclose(point, want, rtol=1e-6)


@pytest.mark.parametrize("other", [r.Simplex(), r.L1(0.3), r.GroupLasso(0.5, 1), AtMost(0.4)])
def test_ones_own_squares_go_with_everything(other):
    for both in (NearOne(0.7) + r.L2(0.1) + other, other + (r.L2(0.1) + NearOne(0.7))):
        step = 0.5 / (1 + 2 * 0.5 * 0.8)
        want = other.prox((X + 2 * 0.5 * 0.7) / (1 + 2 * 0.5 * 0.8), step)
        np.testing.assert_allclose(both.prox(X, 0.5), want, rtol=1e-5, atol=1e-6)


def test_ones_own_sum_is_its_summands():
    both, parts = Both(0.3) + AtMost(0.4), r.L1(0.3) + NearOne(0.3) + AtMost(0.4)
    np.testing.assert_array_equal(both.prox(X, 0.5), parts.prox(X, 0.5))
    with pytest.raises(ValueError, match=r"Both \+ L1, which holds the pair L1 \+ L1"):
        Both(0.3) + r.L1(0.1)
    for stranger in (AtMost(0.4), Jumps(0.1)):
        with pytest.raises(ValueError, match=rf"{type(stranger).__name__} \+ GroupLasso"):
            stranger + r.GroupLasso(0.5, 1)


def test_the_protocols_are_known_by_their_methods():
    assert isinstance(AtMost(0.4), r.Summand)
    assert isinstance(NearOne(0.4), r.Quadratic)
    assert isinstance(r.L2(0.4), r.Quadratic)
    assert isinstance(r.L1(0.4), r.Summand)
    assert not isinstance(Mine(), r.Summand | r.Quadratic)


def test_five_pairs_are_known():
    assert len(PAIRS) - len(REFUSED) == 5


@pytest.mark.parametrize(("a", "b"), REFUSED)
def test_every_other_pair_is_refused_when_built(a, b):
    for one, other in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=rf"holds the pair {one} \+ {other}\. \w+"):
            MEMBERS[one] + MEMBERS[other]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: r.L1(1.0) + r.L1(2.0), r"L1 \+ L1\. Write one L1 for both"),
        (lambda: r.Nuclear(1.0) + r.Nuclear(2.0), r"Write one Nuclear for both"),
        (lambda: r.GroupLasso(1.0, 0) + r.GroupLasso(2.0, 0), r"Write one GroupLasso for both"),
        (lambda: r.GroupLasso(1.0, 0) + r.GroupLasso(2.0, 1), "by_path"),
        (lambda: r.TotalVariation(1.0) + r.TotalVariation(2.0), "Write one TotalVariation"),
        (lambda: r.Box(0, 1) + r.NonNegative(), r"Box \+ NonNegative\. Write one .*, give each"),
        (lambda: r.Box(0, 1) + r.Box(0, 2), r"Box \+ Box\. Write one Box for both"),
        (lambda: r.Simplex() + r.L1(1.0), r"Simplex \+ L1\. .*give each its own leaves .*by_path"),
        (lambda: r.TotalVariation(1.0) + r.Box(0, 1), r"TotalVariation \+ Box\. .*give each"),
        (lambda: r.ElasticNet(1.0, 0.5) + r.L1(1.0), r"ElasticNet \+ L1, which .* pair L1 \+ L1"),
        (lambda: r.L2(1.0) + r.L1(1.0) + r.L1(1.0), r"\(L2 \+ L1\) \+ L1, which .* L1 \+ L1"),
        (lambda: r.L1(1.0) + r.Box(0, 1) + r.GroupLasso(1.0, 0), r"pair Box \+ GroupLasso"),
        (lambda: r.SparseGroupLasso(1.0, 0.5, 0) + r.L1(1.0), r"pair L1 \+ L1"),
        (lambda: r.L1(1.0) + (r.L2(1.0) + r.Nuclear(1.0)), r"pair L1 \+ Nuclear"),
        (lambda: Mine() + r.L1(1.0), r"Mine \+ L1\."),
        (lambda: r.L1(1.0) + Mine(), r"L1 \+ Mine\."),
        (lambda: Mine() + (r.L2(1.0) + r.L1(1.0)), r"pair Mine \+ L1"),
        (lambda: r.ElasticNet(1.0, 1.5) + r.L2(1.0), "mix <= 1, got 1.5"),
        (lambda: r.ElasticNet(-1.0, 0.5) + r.L2(1.0), "strength >= 0, got -1.0"),
    ],
)
def test_the_refusal_names_the_pair_and_the_remedy(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("other", [0, None, 1.5])
def test_only_regularizers_are_added(other):
    for build in (lambda: r.L1(1.0) + other, lambda: other + r.L1(1.0)):
        with pytest.raises(TypeError, match="unsupported operand"):
            build()


@pytest.mark.parametrize("name", [*MEMBERS, "L2"])
def test_squares_go_with_everything(name):
    member = MEMBERS.get(name, r.L2(0.3))
    for both in (member + r.L2(0.7), r.L2(0.7) + member):
        np.testing.assert_allclose(both(X), member(X) + 0.7 * jnp.sum(X**2), rtol=1e-6)
        shrunk, step = X / (1 + 2 * 0.7 * 0.6), 0.6 / (1 + 2 * 0.7 * 0.6)
        np.testing.assert_allclose(both.prox(X, 0.6), member.prox(shrunk, step), atol=1e-6)


def test_squares_go_with_a_stranger():
    for both in (Mine() + r.L2(2.0), r.L2(2.0) + Mine(), r.L2(1.0) + Mine() + r.L2(1.0)):
        np.testing.assert_allclose(both(X), 2 * jnp.sum(X**2), rtol=1e-6)
        np.testing.assert_array_equal(both.prox(X, 0.5), jnp.ones_like(X))


def test_the_order_of_terms_does_not_matter():
    terms = [r.L1(0.3), r.L2(0.2), r.NonNegative(), r.GroupLasso(0.5, axis=1)]
    points = [(a + b + c + d).prox(X, 0.8) for a, b, c, d in itertools.permutations(terms)]
    for point in points:
        np.testing.assert_allclose(point, points[0], rtol=1e-6)
    assert (points[0] >= 0).all()
    assert (points[0] > 0).any()
    left, right = terms[:2], terms[2:]
    grouped = (left[0] + left[1]) + (right[0] + right[1])
    np.testing.assert_allclose(grouped.prox(X, 0.8), points[0], rtol=1e-6)


def test_an_elastic_net_is_its_parts():
    net, parts = r.ElasticNet(0.8, mix=0.25), r.L1(0.2) + r.L2(0.6)
    np.testing.assert_allclose(net(X), parts(X), rtol=1e-6)
    np.testing.assert_allclose(net.prox(X, 0.5), parts.prox(X, 0.5), rtol=1e-6)
    group, parts = r.SparseGroupLasso(0.8, 0.25, axis=0), r.L1(0.2) + r.GroupLasso(0.6, axis=0)
    np.testing.assert_allclose(group.prox(X, 0.5), parts.prox(X, 0.5), rtol=1e-6)


def test_the_laws_hold_for_sums():
    groups = r.by_path({"": r.GroupLasso(0.5, axis=1) + r.NonNegative()})
    lo.testing.check_regularizer(groups + r.L2(0.2), X)


def test_strengths_of_a_sum_are_swept():
    strengths = jnp.array([0.1, 0.5])
    swept = jax.vmap(lambda both: both.prox(X, 0.5))(
        r.ElasticNet(strengths, jnp.array([0.5, 0.2])) + r.NonNegative()
    )
    for i, (strength, mix) in enumerate([(0.1, 0.5), (0.5, 0.2)]):
        alone = (r.ElasticNet(strength, mix) + r.NonNegative()).prox(X, 0.5)
        np.testing.assert_allclose(swept[i], alone, rtol=1e-6)


def test_low_precision_is_rounded_once():
    x = jnp.linspace(-1, 1, 301).astype(jnp.bfloat16)
    both = r.L1(0.013) + r.L2(0.37)
    want = both.prox(x.astype(jnp.float32), 0.9).astype(jnp.bfloat16)
    got = both.prox(x, jnp.bfloat16(0.9))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(both.prox(x, 0.9), want)
    wide = both.prox(x.astype(jnp.float32), jnp.float32(jnp.bfloat16(0.9))).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, wide)
    mixed = r.ElasticNet(jnp.bfloat16(1.0), jnp.bfloat16(0.002))
    np.testing.assert_allclose(mixed(jnp.ones(1)), 1.0, rtol=1e-6)


def test_a_tree_keeps_its_steps():
    params = {"a": X, "b": {"c": X[0]}}
    both = r.L2(0.5) + r.by_path({"c": r.L1(0.3)})
    moved = both.prox(params, {"a": 0.2, "b": 0.7})
    np.testing.assert_allclose(moved["a"], X / 1.2, rtol=1e-6)
    shrunk = r.L1(0.3).prox(X[0] / 1.7, 0.7 / 1.7)
    np.testing.assert_allclose(moved["b"]["c"], shrunk, rtol=1e-6)
    with pytest.raises(ValueError, match="floating params"):
        both.prox({"a": jnp.arange(3), "b": {"c": X[0]}}, 0.1)
