"""An average of the iterates is that of float64, and is found wherever a state holds it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo

pytestmark = pytest.mark.usefixtures("optimized")

average, averaged = lo.transforms.average, lo.transforms.averaged
sgd = lo.transforms.sgd
GOTO = optax.GradientTransformation(
    lambda params: (), lambda goals, state, params: (jax.tree.map(jnp.subtract, goals, params), ())
)
"""A rule that steps to where it is told."""

STEPS, COLUMNS = 10_000, 4
DECAYS = np.float32([0.0, 0.3, 0.9, 0.999, 0.9999])
TAILS = np.array([[0, 1], [1, 1], [2, 1], [7500, 1], [100, 100], [0, 999], [9_999, 7]])


def _paths():
    rng, t = np.random.default_rng(0), np.arange(STEPS)[:, None]
    base = rng.uniform(1, 2, COLUMNS)
    paths = {
        "slow": base * (1 + 1e-7 * t),
        "fast": base * (1 + 1e-5 * t),
        "noise": base + rng.normal(size=(STEPS, COLUMNS)),
        "still": base + 0 * t,
        "falling": base * (1 + 1e10 * np.exp(-t / 3)),
        "bfloat16": base
        * (1 + 0.1 * rng.normal(size=(STEPS, COLUMNS))),  # rounded where it arrives
    }
    return {name: np.float32(path) for name, path in paths.items()}


def _walk(rule, goals):
    """All iterates, and the average."""
    params = {name: jnp.zeros_like(x[0]) for name, x in goals.items()}
    params["bfloat16"] = params["bfloat16"].astype(jnp.bfloat16)

    def step(carry, goal):
        params, state = carry
        updates, state = rule.update(goal, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), iterates = jax.lax.scan(step, (params, rule.init(params)), goals)
    return iterates, state


def _weights(decay):
    """Of the iterates, in float64; the decay is that of each step."""
    left = np.cumprod(np.broadcast_to(np.float64(decay), STEPS)[:0:-1])[::-1]
    return (1 - np.float64(decay)) * np.append(left, 1)


@pytest.fixture(scope="module")
def walked():
    """The iterates, and each average beside the weights that it must have."""

    @jax.jit
    def run(goals, decays, tails):
        forgetting = jax.vmap(lambda b: _walk(average(GOTO, decay=b), goals)[1].average)(decays)
        tail = lambda t: _walk(average(GOTO, start=t[0], every=t[1]), goals)[1].average
        rising = average(GOTO, decay=lambda count: 1 - 10.0 / (20 + count))
        iterates, state = _walk(rising, goals)
        return iterates, state.average, forgetting, jax.vmap(tail)(tails)

    iterates, rising, forgetting, tails = run(_paths(), DECAYS, TAILS)
    counts, pick = np.arange(1, STEPS + 1), lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    fresh = np.float32(10) / np.float32(19 + counts)
    cases = {"rising": (rising, _weights(1 - np.float64(1 - (1 - fresh))))}
    for i, b in enumerate(DECAYS):
        cases[f"{b:.4g}"] = pick(forgetting, i), _weights(b)
    for i, (start, every) in enumerate(TAILS):
        named = np.isin(counts, np.arange(start, STEPS + 1, every))
        cases[f"from {start} by {every}"] = pick(tails, i), np.float64(named)
    return iterates, cases


NAMES = ["rising", *(f"{b:.4g}" for b in DECAYS), *(f"from {t} by {k}" for t, k in TAILS)]


def _errors(got, iterates, weights):
    """In last digits of float32."""
    out = {}
    for name, x in iterates.items():
        x = np.asarray(x, np.float64)
        want = weights @ x / weights.sum()
        out[name] = np.max(abs(np.float64(got[name]) - want) / np.spacing(abs(np.float32(want))))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_mean_of_the_iterates_in_float64(name, walked):
    iterates, cases = walked
    got, weights = cases[name]
    errors = _errors({name: x.real for name, x in got.items()}, iterates, weights)
    parts = {name: np.float64(x.real) + np.float64(x.imag) for name, x in got.items()}
    both = _errors(parts, iterates, weights)
    assert errors.pop("falling") <= 2  # where one iterate is most of the sum
    assert max(errors.values()) <= 1
    assert max(both["slow"], both["fast"]) <= 0.05  # far below the last digit


def test_one_part_in_float32_does_not(walked):
    iterates, _ = walked

    @jax.jit
    def plain(iterates, decay):
        rule = optax.ema(decay)
        step = lambda state, x: rule.update(x, state)[::-1]
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), iterates)
        start = rule.init(jax.tree.map(lambda x: x[0], wide))
        return jax.tree.map(lambda x: x[-1], jax.lax.scan(step, start, wide)[1])

    errors = _errors(plain(iterates, 0.9999), iterates, _weights(np.float64(0.9999)))
    assert errors["slow"] > 100


def test_the_average_of_optax_less_where_it_began():
    """`incremental_update` counts the first point, too, with the weight that is left for it."""
    points, decay = np.float32(np.random.default_rng(2).normal(5, size=(4, 3))), np.float32(0.75)
    add = lambda mean, point: (optax.incremental_update(point, mean, 1 - decay), None)
    theirs, _ = jax.lax.scan(add, points[0], points[1:])
    want = (theirs - decay**3 * points[0]) / (1 - decay**3)
    ours = averaged(_scan(average(GOTO, decay=decay), points[1:]), points[0])
    np.testing.assert_allclose(ours, want, rtol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 2, 5])
@pytest.mark.parametrize("every", [1, 3])
def test_steps_are_counted_from_one(start, every):
    rule = average(GOTO, start=start, every=every)
    params = jnp.array(0.0)
    state, named = rule.init(params), []
    for t in range(1, 8):
        updates, state = rule.update(jnp.float32(t), state, params)
        params = params + updates
        named += [t] if t >= start and (t - start) % every == 0 else []
        assert np.isclose(averaged(state, params), np.mean(named or [t]))


def test_what_was_far_away_leaves_nothing_behind():
    rule = average(GOTO, decay=0.0)
    state = rule.init(jnp.zeros(2))
    for point in ([1e10, -1e30], [1.0, 3.0]):
        state = rule.update(jnp.array(point), state, jnp.zeros(2))[1]
    np.testing.assert_array_equal(state.average, [1, 3])


def test_points_that_have_no_share_are_not_read():
    rule = average(GOTO, start=2)
    state = rule.init(jnp.zeros(()))
    for point in (jnp.inf, 4.0):
        state = rule.update(jnp.asarray(point), state, jnp.zeros(()))[1]
    assert averaged(state, jnp.zeros(())) == 4


def test_float64_is_averaged_in_float64():
    with jax.enable_x64(True):
        points = np.random.default_rng(1).normal(5, size=(300, 2))
        state = jax.jit(lambda: _scan(average(GOTO, start=1), points))()
        want = [math.fsum(column) / 300 for column in points.T]
        np.testing.assert_allclose(averaged(state, points[0]), want, rtol=3e-16)


def _scan(rule, points):
    step = lambda state, point: (rule.update(point, state, 0 * point)[1], None)
    return jax.lax.scan(step, rule.init(points[0]), points)[0]


# Around a rule, and within others

PARAMS = {"w": jnp.array([[0.5, -1.0], [0.25, 2.0]]), "b": jnp.array([0.5, -0.25], jnp.bfloat16)}
GRADS = [jax.tree.map(partial(jnp.multiply, factor), PARAMS) for factor in (1, -2, 0.5)]
FIRST, LABELS = {"w": True, "b": False}, {"w": "a", "b": "b"}
OURS = average(sgd(0.5), decay=0.25)
WRAPPED = {
    "alone": OURS,
    "chain": optax.chain(optax.identity(), OURS),
    "named_chain": optax.named_chain(("clip", optax.identity()), ("rule", OURS)),
    "masked": optax.masked(OURS, FIRST),
    "partition": optax.partition({"a": OURS, "b": optax.set_to_zero()}, LABELS),
    "inject_hyperparams": optax.inject_hyperparams(
        average, static_args=("rule", "start", "every"), hyperparam_dtype=jnp.float32
    )(sgd(0.5), decay=0.25),
    "apply_if_finite": optax.apply_if_finite(OURS, 3),
    "skip_spikes": lo.transforms.skip_spikes(OURS),
    "accumulate": lo.transforms.accumulate(OURS, 1),
    "MultiSteps": optax.MultiSteps(OURS, 1).gradient_transformation(),
}


def _steps(rule, grads=GRADS, params=PARAMS):
    """The parameters after each step, and the last state."""
    update = jax.jit(optax.with_extra_args_support(rule).update)
    state, iterates = rule.init(params), []
    for gradient in grads:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        iterates.append(params)
    return iterates, state


@pytest.mark.parametrize("name", WRAPPED)
def test_it_is_read_wherever_it_is_held(name):
    iterates, state = _steps(WRAPPED[name])
    got = jax.jit(averaged)(state, iterates[-1])
    weights = np.array([0.25**2, 0.25, 1]) / (1 + 0.25 + 0.25**2)
    for leaf, x in got.items():
        points = np.stack([np.asarray(point[leaf], np.float64) for point in iterates])
        masked = leaf == "b" and name in ("masked", "partition")
        want = points[-1] if masked else np.tensordot(weights, points, 1)
        assert x.dtype == PARAMS[leaf].dtype
        tolerance = 1e-6 if leaf == "w" else 2**-8
        np.testing.assert_allclose(np.asarray(x, np.float64), want, rtol=tolerance)


def test_before_the_first_point_it_is_the_parameters():
    for rule in (OURS, average(sgd(0.5), start=5)):
        iterates, state = _steps(rule, GRADS if rule is not OURS else [])
        params = iterates[-1] if iterates else PARAMS
        assert jax.tree.all(jax.tree.map(jnp.array_equal, averaged(state, params), params))


def test_the_updates_are_those_of_the_rule():
    bare, _ = _steps(sgd(0.5))
    held, _ = _steps(OURS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, bare, held))


def test_what_the_rule_asks_for_reaches_it():
    plateau = optax.chain(sgd(0.5), lo.transforms.reduce_on_plateau(0.5, 1))
    rule = average(plateau, decay=0.5)
    _, state = rule.update(PARAMS, rule.init(PARAMS), PARAMS, value=3.0)
    assert state.inner[1].best == 3


def test_an_update_of_zeros_is_a_point_too():
    """So what decides whether there is a step goes around."""
    one = {"w": jnp.ones(2)}
    steps = partial(_steps, grads=[one, one, one, one], params={"w": jnp.zeros(2)})
    iterates, state = steps(lo.transforms.accumulate(average(sgd(1.0), start=1), 2))
    assert (averaged(state, iterates[-1])["w"] == -1.5).all()  # of -1 and -2
    iterates, state = steps(average(lo.transforms.accumulate(sgd(1.0), 2), start=1))
    assert (averaged(state, iterates[-1])["w"] == -1).all()  # of 0, -1, -1 and -2


def test_rounding_goes_within():
    small = {"w": jnp.full(2, 1e-3)}
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    iterates, state = _steps(average(lo.transforms.kahan(sgd(1.0)), start=1), [small] * 4, params)
    points = np.stack([np.asarray(point["w"], np.float64) for point in iterates])
    assert len(np.unique(points)) == 2
    np.testing.assert_allclose(state.average["w"].real, points.mean(0), rtol=1e-7)
    with pytest.raises(ValueError, match=r"8 bits cannot hold AverageState\.average"):
        jax.eval_shape(lo.transforms.quantized(OURS).init, {"w": jnp.zeros(5000)})


def test_an_average_of_exact_zeros_is_not_sparse():
    params, lasso = jnp.array([0.5, 3.0]), lo.regularizers.L1(1.0)
    rule = average(sgd(0.4, regularizer=lasso), start=1)
    iterates, state = _steps(rule, [jnp.zeros(2)] * 3, params)
    assert iterates[-1][0] == 0
    assert 0 < averaged(state, iterates[-1])[0] < 0.1


def test_a_step_needs_no_memory_beside_its_state():
    rule, params = average(sgd(0.1), decay=0.9), jnp.ones(10_000)

    def step(params, state):
        updates, state = rule.update(params, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, rule.init(params))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < params.size
    held = sum(x.nbytes for x in jax.tree.leaves(rule.init(params)))
    assert held < 8.01 * params.size


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_it_lies_where_the_parameters_lie(kind):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
    place = lambda spec: jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, spec))
    params = {"split": place(P("rows")), "whole": place(P())}
    with jax.set_mesh(mesh):
        iterates, state = _steps(OURS, [params], params)
        got = averaged(state, iterates[-1]), jax.jit(averaged)(state, iterates[-1])
    for name, x in params.items():
        for y in (state.average[name], *(tree[name] for tree in got)):
            assert y.sharding.is_equivalent_to(x.sharding, 2)
    spread = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P(None, "rows"))), state.average
    )
    read = averaged(state._replace(average=spread), iterates[-1])
    assert all(read[name].sharding.is_equivalent_to(x.sharding, 2) for name, x in params.items())


def test_gradients_go_through_the_average():
    def read(rate):
        rule = average(sgd(rate), start=2)
        params = jnp.array(1.0)
        state = rule.init(params)
        for _ in range(3):
            updates, state = rule.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return averaged(state, params)

    slope = lambda rate: (-2 * (1 - rate) - 3 * (1 - rate) ** 2) / 2
    assert np.isclose(jax.jit(jax.grad(read))(0.1), slope(0.1))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "got decay=None, start=None"),
        ({"decay": 0.9, "start": 1}, "got decay=0.9, start=1"),
        ({"decay": 0.9, "every": 2}, "every=2"),
        ({"every": 2}, "start=None, every=2"),
        ({"decay": 1.0}, "Expected decay < 1, got 1.0"),
        ({"decay": -0.1}, "Expected decay >= 0, got -0.1"),
        ({"decay": jnp.bfloat16(0.999)}, "Expected decay in float32 or wider"),
        ({"start": -1}, "Expected start >= 0, got -1"),
        ({"start": 1, "every": 0}, "Expected every >= 1, got 0"),
        ({"start": np.ones(2, int)}, "Expected start as one number"),
        ({"start": 0.75 * 100}, r"Expected start as a whole number, got 75\.0"),
        ({"start": 1, "every": jnp.float32(2)}, r"Expected every as a whole number, got 2\.0"),
    ],
)
def test_numbers_that_are_refused(numbers, message):
    with pytest.raises((ValueError, TypeError), match=message):
        average(sgd(0.1), **numbers)


def test_a_schedule_that_gives_fractions_is_refused():
    rule = average(sgd(0.1), start=lambda count: 0.5 * count)
    with pytest.raises(TypeError, match="Expected start as a whole number"):
        rule.update(PARAMS, rule.init(PARAMS), PARAMS)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match=r"no params. Call update\(grads, state, params\)"):
        OURS.update(PARAMS, OURS.init(PARAMS))
    for odd in (jnp.arange(3), jnp.ones(2, complex)):
        with pytest.raises(
            ValueError, match=f"real floating parameters, got a leaf of {odd.dtype}"
        ):
            average(optax.sgd(0.1), decay=0.5).init({"odd": odd})


def test_states_that_cannot_be_read():
    state = OURS.init(PARAMS)
    with pytest.raises(ValueError, match=r"found none. Wrap .*\.average\(rule, decay=0.999\)"):
        averaged(sgd(0.1).init(PARAMS), PARAMS)
    for two in (optax.chain(OURS, OURS), average(OURS, start=1)):
        with pytest.raises(ValueError, match=r"found 2\. Put one average around the whole"):
            averaged(two.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"structure of the parameters.*such as optax\.flatten"):
        averaged(optax.flatten(OURS).init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"got another\. Put .* Dict key mismatch"):
        averaged(state, {"w": PARAMS["w"]})
    many = jax.tree.map(lambda x: jnp.stack([x, x]), (state, PARAMS))
    with pytest.raises(ValueError, match=r"weight of shape \(2, 2\).*jax\.vmap\(lossopt"):
        averaged(*many)
    with pytest.raises(ValueError, match=r"shape of the parameters, \(2, 2\), got \(2,\)"):
        averaged(state, many[1])
    got = jax.vmap(averaged)(*many)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.shape == y.shape, got, many[1]))
