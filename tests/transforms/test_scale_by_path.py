"""Steps multiplied by path are those of other rates, prox and decay included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

T, R = lo.transforms, lo.regularizers
adam, momentum, sgd, scale_by_path = T.adam, T.momentum, T.sgd, T.scale_by_path

RNG = np.random.default_rng(0)
PARAMS = {"a": {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=3)}, "c": RNG.normal(size=3)}
SLOPES = jax.tree.map(lambda x: RNG.normal(size=(6, *x.shape)), PARAMS)
LABELS = {"a": {"w": "third", "b": "third"}, "c": "twice"}
FACTORS = {"a/": 1 / 3, "c": 2.0}
EVERY = lambda params: jax.tree.map(lambda x: True, params)
DECAYS = {"weight_decay": 0.1, "weight_decay_where": EVERY}
LASSO = {"regularizer": R.L1(0.3)}


def _walk(optimizer, dtype=jnp.float64, slopes=SLOPES, params=PARAMS):
    """Parameters after each step."""
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    update = optax.with_extra_args_support(optimizer).update

    def step(carry, slopes):
        params, state = carry
        slopes = jax.tree.map(lambda x: x.astype(dtype), slopes)
        updates, state = update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), slopes)[1]


def _by_rates(make, rate, wrap=lambda rule: rule):
    """What multiplied steps must be: a rule of its own, of another rate, for each part."""
    times = lambda factor: lambda count: factor * (rate(count) if callable(rate) else rate)
    rules = {"third": wrap(make(times(1 / 3))), "twice": wrap(make(times(2.0)))}
    return optax.partition(rules, LABELS)


def _both(pairs, **options):
    """Each pair of optimizers, all in one program."""
    with jax.enable_x64(True):
        walks = jax.jit(lambda: {k: [_walk(x, **options) for x in v] for k, v in pairs.items()})()
        for name, (got, want) in walks.items():
            close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12, err_msg=name)
            jax.tree.map(close, got, want)


COSINE = lo.schedules.cosine(0.3, 5)
MADE = {
    "optax.adamw, of a schedule": (partial(optax.adamw, weight_decay=0.1), COSINE),
    "momentum": (partial(momentum, nesterov=True, **DECAYS), 0.1),
    "sgd, lasso, of a schedule": (partial(sgd, **DECAYS, **LASSO), COSINE),
    "rmsprop, lasso": (partial(T.rmsprop, momentum=0.5, **DECAYS, **LASSO), 0.1),
    "adam, groups by path": (
        partial(adam, regularizer=R.by_path({"w": R.GroupLasso(1.0, 1)})),
        0.1,
    ),
    "adagrad, a constraint": (partial(T.adagrad, regularizer=R.NonNegative()), 0.1),
    "proximal": (lambda rate: T.proximal(R.L1(0.3), rate, optax.ema(0.9)), 0.1),
}


def test_steps_are_those_of_multiplied_rates():
    pair = lambda make, rate: (scale_by_path(make(rate), FACTORS), _by_rates(make, rate))
    _both({name: pair(*made) for name, made in MADE.items()})


def _mapped(rule):
    """A rule that knows one row of each leaf, in a map over the rows."""
    update = jax.vmap(lambda *args: rule.update(*args))
    return optax.GradientTransformation(jax.vmap(rule.init), update)


def _jitted(rule):
    update = jax.jit(lambda updates, state, params: rule.update(updates, state, params))
    return optax.GradientTransformation(rule.init, update)


def _injected(rate):
    static = {"static_args": ("regularizer", "weight_decay", "weight_decay_where")}
    return optax.inject_hyperparams(sgd, **static)(rate, **DECAYS, **LASSO)


WRAPS = {
    "chain": lambda rule: optax.chain(optax.clip(0.5), optax.named_chain(("rule", rule))),
    "masked": lambda rule: optax.masked(rule, {"a": {"w": True, "b": False}, "c": True}),
    "guards": lambda rule: T.skip_spikes(optax.apply_if_finite(rule, 3), warmup=10),
    "accumulate": lambda rule: T.accumulate(rule, 2),
    "MultiSteps": lambda rule: optax.MultiSteps(rule, 2).gradient_transformation(),
    "in a jit": _jitted,
}


def test_a_proximal_step_is_reached_through_what_stands_around_it():
    make = partial(sgd, **DECAYS, **LASSO)
    scaled = lambda rule: scale_by_path(rule, FACTORS)
    pairs = {k: (scaled(wrap(make(0.1))), _by_rates(make, 0.1, wrap)) for k, wrap in WRAPS.items()}
    # The gradients of what is hidden go on as they are, and are multiplied, too.
    rules = {"third": make(0.1 / 3), "twice": make(0.2), "hidden": optax.scale(1 / 3)}
    wanted = optax.partition(rules, {"a": {"w": "third", "b": "hidden"}, "c": "twice"})
    pairs["masked"] = pairs["masked"][0], wanted
    each = {"x": make(0.1), "y": momentum(0.1)}
    parts = optax.partition(each, {"a": {"w": "x", "b": "y"}, "c": "y"})
    rules = {"x": make(0.1 / 3), "slow": momentum(0.1 / 3), "fast": momentum(0.2)}
    wanted = optax.partition(rules, {"a": {"w": "x", "b": "slow"}, "c": "fast"})
    pairs["partition"] = scaled(parts), wanted
    pairs["inject_hyperparams"] = scaled(_injected(0.1)), _by_rates(make, 0.1)
    twice = scale_by_path(scale_by_path(make(0.1), {"c": 4.0}), {"a/": 1 / 3, "c": 0.5})
    pairs["itself"] = twice, _by_rates(make, 0.1)
    within = optax.partition({"x": scaled(make(0.1))}, {"a": "x", "c": "x"})
    pairs["in a partition"] = within, _by_rates(make, 0.1)
    _both(pairs)


def test_a_map_over_rules_and_codes_pass_it_on():
    make = partial(adam, **LASSO)
    stacked = jax.tree.map(lambda x: np.stack([x, 2 * x]), PARAMS)
    slopes = jax.tree.map(lambda x: np.stack([x, -x], 1), SLOPES)
    coded = partial(make, moments="bfloat16")
    pairs = {
        "a map": (scale_by_path(_mapped(make(0.1)), FACTORS), _by_rates(make, 0.1)),
        "codes": (scale_by_path(coded(0.1), {"": 2.0}), coded(0.2)),
        "quantized": (scale_by_path(T.quantized(make(0.1)), {"": 2.0}), make(0.2)),
    }
    _both(pairs, slopes=slopes, params=stacked)


def test_decay_leaves_the_root_of_a_factor_and_behind_it_nothing():
    """Among steps of noise: their size by that of the weights, at a factor of 1/8 and at 1."""
    rate, decay = 0.05, 1.0
    noise = np.random.default_rng(1).normal(size=(1200, 256))

    def within(factor):
        return scale_by_path(adam(rate, weight_decay=decay, weight_decay_where=EVERY), {"": factor})

    def behind(factor):
        rule = scale_by_path(adam(rate), {"": factor})
        return optax.chain(rule, optax.add_decayed_weights(-rate * decay))

    def size(make, factor):
        given = make(factor), jnp.float32, {"w": noise}, {"w": np.ones(256)}
        points = jnp.asarray(_walk(*given)["w"])[-300:]
        moved = jnp.linalg.norm(jnp.diff(points, axis=0), axis=1)
        return jnp.mean(moved / jnp.linalg.norm(points[1:], axis=1))

    sizes = jax.jit(lambda f: [jax.vmap(partial(size, make))(f) for make in (within, behind)])
    (small, whole), (undone, same) = sizes(jnp.array([1 / 8, 1.0]))
    np.testing.assert_allclose(small / whole, (1 / 8) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(undone / same, 1.0, rtol=1e-3)
    np.testing.assert_allclose(whole, same, rtol=1e-3)


def test_a_factor_is_a_schedule_of_the_count():
    factor = lambda count: jnp.where(count < 2, 0.0, 1.0 / count)
    rate = lambda count: 0.1 * factor(count)
    scaled = scale_by_path(sgd(0.1, **LASSO), {"a": factor})
    want = {"third": sgd(rate, **LASSO), "twice": sgd(0.1, **LASSO)}
    _both({"a schedule": (scaled, optax.partition(want, LABELS))})


def test_factors_of_a_sweep_are_traced():
    def last(factor):
        path = _walk(scale_by_path(adam(0.1, **LASSO), {"c": factor}), jnp.float32)
        return jax.tree.map(lambda x: x[-1], path)

    factors = np.float32([0.0, 0.5, 2.0])
    got, want = jax.jit(lambda: (jax.vmap(last)(factors), jax.lax.map(last, factors)))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    np.testing.assert_array_equal(got["c"][0], np.float32(PARAMS["c"]))
    assert len(np.unique(got["c"][:, 0])) == 3
    np.testing.assert_allclose(got["a"]["w"][0], got["a"]["w"][2], rtol=1e-6)


def test_the_prox_takes_the_factor_by_hand():
    rate, decay, strength, factor = 0.1, 0.2, 0.3, 2.5
    rule = sgd(rate, weight_decay=decay, weight_decay_where="", regularizer=R.L1(strength))
    with jax.enable_x64(True):
        got = jax.jit(lambda: _walk(scale_by_path(rule, {"^c$": factor})))()
    for name, times in (("c", factor), ("b", 1.0)):
        x, slopes = (tree[name] if name == "c" else tree["a"][name] for tree in (PARAMS, SLOPES))
        for i, slope in enumerate(slopes):
            step = times * rate
            x = x - step * (slope + decay * x)
            x = np.sign(x) * np.maximum(np.abs(x) - step * strength, 0)
            path = np.asarray(got["c"] if name == "c" else got["a"]["b"])
            np.testing.assert_allclose(path[i], x, rtol=1e-12)
            np.testing.assert_array_equal(path[i] == 0, x == 0)


TARGET = np.array([2.0, 0.05, -0.05, -2.0])
OPTIMUM = np.array([1.5, 0.0, 0.0, -1.5])  # of the lasso of strength 0.5


@pytest.mark.usefixtures("optimized")
def test_it_rests_where_the_rule_rests_with_exact_zeros():
    rate = lambda count: 0.02 / (1 + count / 500)
    start = {"x": jnp.ones(4), "y": jnp.ones(4), "z": jnp.ones(4)}
    slope = lambda params: jax.tree.map(lambda x: x - TARGET.astype(np.float32), params)
    optimizer = scale_by_path(adam(rate, regularizer=R.L1(0.5)), {"x": 0.5, "y": 3.0})

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(slope(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    begin = start, optimizer.init(start)
    params = jax.jit(lambda: jax.lax.scan(step, begin, length=4000)[0][0])()
    for x in params.values():
        np.testing.assert_allclose(x, OPTIMUM, atol=1e-3)
        np.testing.assert_array_equal(x == 0, OPTIMUM == 0)


def test_a_constraint_is_kept_by_a_factor_above_one():
    """Multiplied afterwards, the step would lead to -2."""
    rule = scale_by_path(sgd(1.0, regularizer=R.NonNegative()), {"": 3.0})
    params = jnp.ones(2)
    updates, _ = rule.update(jnp.array([5.0, 0.1]), rule.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates), [0.0, 0.7], rtol=1e-6)


def test_a_constraint_on_all_leaves_spares_the_frozen_one():
    rule = sgd(1.0, regularizer=R.L2Ball(1.0, axis="tree"))
    params = {"x": jnp.array([0.6, 0.0]), "y": jnp.array([0.0])}
    slopes = {"x": jnp.array([jnp.nan, 0.0]), "y": jnp.array([-9.0])}
    rule = scale_by_path(rule, {"x": 0.0})
    updates, _ = rule.update(slopes, rule.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["x"], np.float32([0.6, 0.0]))
    np.testing.assert_allclose(params["y"], 0.8, rtol=1e-6)


ODD = np.float32([-0.0, 0.0, 1.0, -3.3e38, np.inf, -np.inf, 1.2e-38, 0.1])
SLOPE = np.float32([np.nan, np.inf, -np.inf, 1.0, 0.0, 2.0, -1.0, 3.0])
NAMED = partial(scale_by_path, sgd(0.1, **DECAYS, **LASSO))
FROZEN = {
    jnp.float32: {
        "adamw": partial(scale_by_path, optax.adamw(0.1, weight_decay=0.1)),
        "a prox": NAMED,
        "a constraint": partial(scale_by_path, momentum(0.1, regularizer=R.Box(-0.5, 0.5))),
        "bfloat16": partial(scale_by_path, adam(0.1, moments="bfloat16", **LASSO)),
    },
    jnp.bfloat16: {
        "adam": partial(scale_by_path, adam(0.1, **DECAYS)),
        "kahan": lambda factors: T.kahan(NAMED(factors)),
        "rounding": lambda factors: T.stochastic_rounding(NAMED(factors), jax.random.key(0)),
        "average": lambda factors: T.average(NAMED(factors), decay=0.9),
    },
}


@pytest.mark.parametrize("dtype", FROZEN)
def test_a_factor_of_zero_leaves_all_bits(dtype):
    params = {"frozen": jnp.asarray(ODD, dtype), "free": jnp.ones(8, dtype)}
    slopes = {name: np.tile(SLOPE, (2, 1)) for name in params}
    walk = lambda make, zero: _walk(make({"frozen": zero}), dtype, slopes, params)
    # An argument: a compiler may delete the addition of a zero that it knows, of either sign.
    walks = jax.jit(lambda zero: {name: walk(make, zero) for name, make in FROZEN[dtype].items()})
    last = lambda x: np.asarray(x).reshape(-1, 8)[-1].view(f"u{x.dtype.itemsize}")
    for name, path in walks(jnp.zeros(())).items():
        wanted = last(params["frozen"])
        np.testing.assert_array_equal(last(path["frozen"]), wanted, err_msg=name)
        assert (last(path["free"]) != last(params["free"])).any()


def test_slices_on_devices_take_the_factor_of_their_leaf():
    params = {"free": jnp.full((64, 128), 0.5), "frozen": jnp.full((64, 128), -0.0)}

    def objective(params, batch):
        values = batch * (jnp.sum(params["free"]) + jnp.sum(params["frozen"]))
        penalty = LASSO["regularizer"](params)
        return {"fit": lo.mean(values), "penalty": lo.constant(penalty, gradient=False)}

    rule = scale_by_path(adam(0.1, **DECAYS, **LASSO), {"free": 0.5, "frozen": 0.0})
    place = {"mesh": lo.parallel.mesh(), "partition": "zero1", "lowering": "shard_map"}
    init, step = lo.train_step(objective, rule, **place)
    state, _ = step(init(params), jnp.ones(64))
    assert not state.opt_state.inner.inner.mu["free"].sharding.is_fully_replicated
    assert np.signbit(state.params["frozen"]).all()
    wanted = 0.5 - 0.05 * (1 + 0.1 * 0.5) - 0.05 * 0.3
    np.testing.assert_allclose(state.params["free"], wanted, rtol=1e-6)


def test_leaves_that_nobody_names_keep_every_bit_of_their_steps():
    rule = adam(0.1, **DECAYS, **LASSO)
    pair = jax.jit(lambda: [_walk(x, jnp.float32) for x in (rule, scale_by_path(rule, {"c": 7}))])
    want, got = pair()
    jax.tree.map(np.testing.assert_array_equal, got["a"], want["a"])
    assert not np.allclose(got["c"], want["c"])


def test_the_first_pattern_that_matches_counts():
    params = {"encoder": {"w": jnp.ones(2), "b": jnp.ones(2)}, "head": jnp.ones(2)}
    rule = scale_by_path(optax.sgd(1.0), {"encoder/w": 0.5, "encoder": 0.25})
    updates, state = rule.update(params, rule.init(params))
    got = jax.tree.map(lambda x: float(x[0]), updates)
    assert got == {"encoder": {"w": -0.5, "b": -0.25}, "head": -1.0}
    assert state.count == 1
    same = scale_by_path(optax.sgd(1.0), {})
    assert same.update(params, same.init(params))[0]["head"][0] == -1


PLAIN = optax.sgd(0.1)
REFUSED = {
    "negative": (lambda: scale_by_path(PLAIN, {"w": -1.0}), "the factor of 'w' >= 0, got -1"),
    "infinite": (lambda: scale_by_path(PLAIN, {"w": np.inf}), "the factor of 'w' < inf"),
    "no number": (lambda: scale_by_path(PLAIN, {"w": "slow"}), "of 'w' as a number"),
    "several": (lambda: scale_by_path(PLAIN, {"w": jnp.ones(2)}), "of 'w' as one number"),
    "a list": (lambda: scale_by_path(PLAIN, [("w", 1.0)]), "factors as a dict"),
    "no rule": (lambda: scale_by_path(optax.sgd, {"w": 1.0}), "Call what makes one"),
    "no pattern": (lambda: scale_by_path(PLAIN, {"*": 1.0}), "regular expression"),
    "no leaf": (
        lambda: scale_by_path(PLAIN, {"kernel": 1.0}),
        r"'kernel' takes no leaf of \['b', 'w'\]",
    ),
    "hidden by another": (lambda: scale_by_path(PLAIN, {"w": 1.0, "^w$": 2.0}), "takes no leaf"),
    "whole numbers": (lambda: scale_by_path(PLAIN, {"n": 1.0}), "'n', got n of int32"),
    "average": (lambda: scale_by_path(T.average(PLAIN, decay=0.9), {"w": 1.0}), "AverageState"),
    "kahan": (lambda: scale_by_path(T.kahan(PLAIN), {"w": 1.0}), "KahanState.*inside of it"),
    "schedule_free": (
        lambda: scale_by_path(optax.contrib.schedule_free(PLAIN, 0.1), {"w": 1.0}),
        "ScheduleFreeState",
    ),
    "another tree": (
        lambda: scale_by_path(optax.flatten(sgd(0.1, **LASSO)), {"w": 1.0}),
        r"cannot reach the proximal step.*\['b', 'w'\], and the rule is given \[''\]",
    ),
}


def _update(make, params):
    rule = make()
    return rule.update(params, rule.init(params), params)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused(name):
    make, message = REFUSED[name]
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    if name == "whole numbers":
        params["n"] = jnp.arange(2)
    with pytest.raises((TypeError, ValueError), match=message):
        _update(make, params)


def test_a_rule_without_a_prox_may_be_given_another_tree():
    rule = scale_by_path(optax.flatten(adam(0.1)), {"x": 0.5})
    params = {"x": jnp.ones(2), "y": jnp.ones(2)}
    updates, _ = rule.update(params, rule.init(params), params)
    np.testing.assert_allclose(updates["x"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["y"], -0.1, rtol=1e-6)
