"""A penalty and its proximal step belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import lossopt as lo

L1, L2, by_path = lo.regularizers.L1, lo.regularizers.L2, lo.regularizers.by_path

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": [RNG.normal(size=4), np.array(0.05)]}
OTHERS = jax.tree.map(lambda x: RNG.normal(size=x.shape), PARAMS)
STRENGTHS = [0.0, 0.3, 4.0]

MEMBERS = {
    "L1": L1,
    "L2": L2,
    "by_path": lambda strength: by_path({"kernel": L1(strength), "bias/0": L2(strength)}),
}
EACH = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)

# One coordinate by hand: the penalty and the proximal step of its convex conjugate.
PENALTY = {L1: lambda s, z: s * np.abs(z), L2: lambda s, z: s * z**2}
CONJUGATE_PROX = {
    L1: lambda s, x, step: np.clip(x, -s, s),
    L2: lambda s, x, step: x / (1 + 1 / (2 * s * step)),
}


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def _each(fn, *trees):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.tree.map(fn, *trees))])


def _flat(tree):
    return _each(np.asarray, tree)


@pytest.mark.parametrize("member", [L1, L2])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_penalty_adds_up_over_all_leaves(member, strength):
    want = PENALTY[member](strength, _flat(PARAMS)).sum()
    np.testing.assert_allclose(member(strength)(PARAMS), want, rtol=1e-13)


@pytest.mark.parametrize("member", [L1, L2])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("step", [0.0, 0.1, 2.0])
def test_the_prox_minimizes_every_coordinate(member, strength, step):
    got = member(strength).prox(PARAMS, step)
    assert jax.tree.structure(got) == jax.tree.structure(PARAMS)
    if step == 0:
        np.testing.assert_array_equal(_flat(got), _flat(PARAMS))
        return
    for x, z in zip(_flat(PARAMS), _flat(got)):
        paid = lambda z, x=x: (z - x) ** 2 / (2 * step) + PENALTY[member](strength, z)
        best = minimize_scalar(paid, bounds=(-4, 4), options={"xatol": 1e-10})
        np.testing.assert_allclose(z, best.x, atol=1e-6)
        assert paid(z) <= best.fun + 1e-12


@EACH
def test_the_prox_beats_every_other_point(make):
    member, step = make(0.3), 0.7

    def paid(tree):
        far = _each(lambda z, x: (z - x) ** 2, tree, PARAMS).sum()
        return far / (2 * step) + float(member(tree))

    best = member.prox(PARAMS, step)
    for scale in (1e-3, 0.1, 1.0):
        aside = jax.tree.map(lambda z, d, s=scale: z + s * d, best, OTHERS)
        assert paid(best) < paid(aside)
    assert paid(best) <= paid(PARAMS)


@EACH
def test_the_prox_is_firmly_nonexpansive(make):
    x, y = _flat(PARAMS), _flat(OTHERS)
    for strength in STRENGTHS:
        member = make(strength)
        moved = _flat(member.prox(PARAMS, 0.7)) - _flat(member.prox(OTHERS, 0.7))
        assert moved @ moved <= moved @ (x - y) + 1e-12


@pytest.mark.parametrize("member", [L1, L2])
def test_moreau_splits_every_point(member):
    strength, step = 0.3, 0.7
    near = _flat(member(strength).prox(PARAMS, step))
    rest = CONJUGATE_PROX[member](strength, _flat(PARAMS) / step, step)
    np.testing.assert_allclose(near + step * rest, _flat(PARAMS), rtol=1e-12)


@EACH
def test_the_envelope_descends_towards_the_prox(make):
    member, step = make(0.3), 0.7

    def envelope(params):
        near = member.prox(params, step)
        far = jax.tree.map(lambda z, x: jnp.sum((z - x) ** 2), near, params)
        return sum(jax.tree.leaves(far)) / (2 * step) + member(near)

    params = jax.tree.map(jnp.asarray, PARAMS)
    slope = jax.grad(envelope)(params)
    want = jax.tree.map(lambda x, z: (x - z) / step, params, member.prox(params, step))
    np.testing.assert_allclose(_flat(slope), _flat(want), rtol=1e-12, atol=1e-14)
    assert abs(_flat(want)).max() > 0.1


def test_l1_makes_exact_zeros_and_l2_makes_none():
    x = jnp.array([-0.4, -0.2, 0.0, 0.2, 0.4])
    assert (L1(1.0).prox(x, 0.3) == 0).tolist() == [False, True, True, True, False]
    assert (L2(1.0).prox(x, 0.3) == 0).tolist() == [False, False, True, False, False]


def test_l2_has_no_half():
    x = jnp.array([3.0, -1.0])
    assert L2(0.5)(x) == 5
    np.testing.assert_allclose(jax.grad(L2(0.5))(x), x)


# Numbers as leaves


@EACH
def test_strengths_vmap(make):
    strengths = jnp.array(STRENGTHS)
    many = jax.vmap(make)(strengths)
    values = jax.vmap(lambda r: r(PARAMS))(many)
    moved = jax.vmap(lambda r: r.prox(PARAMS, 0.7))(many)
    for i, strength in enumerate(STRENGTHS):
        np.testing.assert_allclose(values[i], make(strength)(PARAMS))
        one = jax.tree.map(lambda x, i=i: x[i], moved)
        np.testing.assert_allclose(_flat(one), _flat(make(strength).prox(PARAMS, 0.7)))


@EACH
def test_strengths_are_differentiable_leaves(make):
    member = make(jnp.array(0.3))
    assert len(jax.tree.leaves(member)) == (2 if make is MEMBERS["by_path"] else 1)
    slope = jax.grad(lambda r: r(PARAMS))(member)
    parts = jax.tree.leaves(slope)
    np.testing.assert_allclose(0.3 * sum(parts), member(PARAMS))
    h, half = 1e-6, lambda s: sum(jax.tree.leaves(jax.tree.map(jnp.sum, make(s).prox(PARAMS, 0.7))))
    want = (half(0.3 + h) - half(0.3 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(half)(0.3), want, rtol=1e-6)


@EACH
def test_compiled_and_eager_agree(make):
    value, moved = jax.jit(lambda r, p, t: (r(p), r.prox(p, t)))(make(0.3), PARAMS, 0.7)
    np.testing.assert_allclose(value, make(0.3)(PARAMS), rtol=1e-13)
    np.testing.assert_allclose(_flat(moved), _flat(make(0.3).prox(PARAMS, 0.7)), rtol=1e-13)


@EACH
def test_the_penalty_has_the_right_gradient(make):
    lo.testing.check_gradient(make(0.3), jax.tree.map(jnp.asarray, PARAMS))


@EACH
def test_a_step_may_be_a_tree(make):
    steps = jax.tree.map(lambda x: np.abs(x) + 0.1, OTHERS)
    got = make(0.3).prox(PARAMS, steps)
    for one in (0.2, 0.9):
        same = make(0.3).prox(PARAMS, jax.tree.map(lambda x, s=one: np.full(x.shape, s), PARAMS))
        np.testing.assert_allclose(_flat(same), _flat(make(0.3).prox(PARAMS, one)), rtol=1e-13)
    coordinate = make(0.3).prox(PARAMS, float(steps["kernel"][1, 0]))["kernel"][1, 0]
    np.testing.assert_allclose(got["kernel"][1, 0], coordinate)
    per_leaf = make(0.3).prox(PARAMS, {"kernel": 0.2, "bias": 0.9})
    np.testing.assert_allclose(per_leaf["kernel"], make(0.3).prox(PARAMS, 0.2)["kernel"])
    np.testing.assert_allclose(per_leaf["bias"][0], make(0.3).prox(PARAMS, 0.9)["bias"][0])


@EACH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_stay_and_sums_are_wide(make, dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    strength = jnp.float32(0.3)
    moved = make(strength).prox(params, jnp.float32(0.7))
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(dtype)}
    assert make(strength)(params).dtype in (jnp.float32, jnp.float64)


def test_low_precision_is_summed_and_moved_in_float32():
    with jax.enable_x64(False):
        ones = jnp.ones(1000, jnp.bfloat16)
        for member in (L1(1.0), L2(1.0)):
            assert member(ones).dtype == jnp.float32
            assert member(ones) == 1000, "bfloat16 counts to 256"
        x = jnp.array([1.0], jnp.bfloat16)  # 0.999 - 0.5 rounds once, to 0.5
        assert L1(0.501).prox(x, 1.0) == jnp.bfloat16(0.499)
        assert L2(0.001).prox(x, 1.0) == jnp.bfloat16(1 / 1.002)


def test_no_parameters_have_no_penalty():
    assert L1(0.3)({}) == 0
    assert L2(0.3).prox({}, 1.0) == {}


# Refusals


@pytest.mark.parametrize("member", [L1, L2])
@pytest.mark.parametrize("strength", [-0.1, np.float32(-1), np.array(-2)])
def test_negative_strengths_are_refused(member, strength):
    for use in (lambda r: r(PARAMS), lambda r: r.prox(PARAMS, 1.0)):
        with pytest.raises(ValueError, match=r"strength >= 0, got -"):
            use(member(strength))


@pytest.mark.parametrize("member", [L1, L2])
def test_negative_steps_are_refused(member):
    with pytest.raises(ValueError, match="step_size >= 0, got -1"):
        member(0.5).prox(PARAMS, -1.0)


@pytest.mark.parametrize("member", [L1, L2])
@pytest.mark.parametrize("shapes", [((3, 1), (3, 3)), ((1,), (3,))])
def test_steps_of_another_shape_are_refused(member, shapes):
    params, step = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match="step_size"):
        member(0.5).prox(params, step)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="real params"):
        L1(0.1)(jnp.ones(2, complex))


def test_members_are_regularizers():
    from lossopt.regularizers._base import Regularizer

    assert all(isinstance(make(0.1), Regularizer) for make in MEMBERS.values())


@pytest.mark.parametrize("member", [lo.regularizers.L1, lo.regularizers.L2])
def test_what_is_no_float_or_no_number_is_refused(member):
    with pytest.raises(ValueError, match=r"floating params, got int.*by_path"):
        member(0.5)(jnp.arange(3))
    with pytest.raises(ValueError, match=r"floating params, got int.*by_path"):
        member(0.5).prox(jnp.arange(3), 1.0)
    with pytest.raises(ValueError, match=r"strength of shape \(\), got \(2,\)"):
        member(jnp.ones(2))(jnp.ones(2))


def test_the_penalty_of_a_zero_has_no_slope():
    assert jax.grad(lo.regularizers.L1(1.0))(jnp.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("member", [lo.regularizers.L1, lo.regularizers.L2])
def test_a_low_precision_step_is_widened_first(member):
    step = jnp.array([0.3], jnp.bfloat16)
    got = member(np.float32(0.7)).prox(jnp.ones(1), step)
    want = member(np.float32(0.7)).prox(jnp.ones(1), step.astype(jnp.float32))
    np.testing.assert_array_equal(got, want)
    strength = jnp.array(0.7, jnp.bfloat16)
    got = member(strength).prox(jnp.ones(1), step)
    want = member(strength.astype(jnp.float32)).prox(jnp.ones(1), step.astype(jnp.float32))
    np.testing.assert_array_equal(got, want)
