"""Eight bits do what float32 does: on average, on adversarial blocks, and in the end."""

from functools import partial
from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import lossopt as lo
from lossopt.transforms import _quantized
from lossopt.transforms._codes import Code, is_code
from lossopt.transforms._quantized import QuantizedState, decoded, quantized, with_moments

pytestmark = pytest.mark.usefixtures("optimized")
SIZE = 4096
adam = lo.transforms.adam


def _codes(state):
    return [x for x in jax.tree.leaves(state, is_leaf=is_code) if is_code(x)]


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("shape", [(1024, 256), (262_144,), (511, 513), (7, 64, 128)], ids=str)
@pytest.mark.parametrize(
    "make", [lambda: quantized(optax.adam(0.1)), lambda: adam(0.1, moments="int8")]
)
def test_two_bytes_a_parameter_for_both_moments(make, shape):
    params = jnp.zeros(shape)
    state = jax.eval_shape(make().init, params)
    assert _bytes(state) <= 2.05 * params.size
    assert {code.codes.shape for code in _codes(state)} == {shape}
    assert _bytes(jax.eval_shape(optax.adam(0.1).init, params)) > 7.99 * params.size


def _adversarial(step):
    """Gradients whose sizes spread over 2^80 within each block, a row for each kind."""
    key = jax.random.key(0)
    draw = lambda key: jnp.exp2(jax.random.uniform(key, (SIZE,), minval=-40.0, maxval=40.0))
    fixed, noise = draw(key), jax.random.normal(jax.random.fold_in(key, step), (SIZE,))
    spike = jax.random.bernoulli(jax.random.fold_in(key, -step), 1e-3, (SIZE,))
    kinds = [
        fixed,
        fixed * noise,
        draw(jax.random.fold_in(key, step // 100)),
        draw(jax.random.fold_in(key, step)) * jnp.sign(noise),
        jnp.where(spike, 1e6, 1.0) * noise,
        jnp.where((step >= 300) & (step < 310), 2.0**30, 1.0) * fixed,
        jnp.where(step % 200 < 100, 1.0, 2.0**-20) * fixed,
        noise,
    ]
    return jnp.stack(kinds)


def test_no_adversarial_block_makes_a_large_step():
    exact = optax.scale_by_adam(eps=1e-20)
    rules = exact, quantized(exact)

    def step(states, i):
        grads = _adversarial(i)
        pairs = [rule.update(grads, state) for rule, state in zip(rules, states)]
        updates, states = zip(*pairs)
        return states, [jnp.max(jnp.abs(x), axis=1) for x in updates]

    states = tuple(rule.init(jnp.zeros((8, SIZE))) for rule in rules)
    _, (want, got) = jax.jit(lambda: jax.lax.scan(step, states, jnp.arange(1, 1000)))()
    assert (np.max(got, axis=0) <= 1.5 * np.max(want, axis=0)).all()


def _tracked(*rules):
    """Mean size of the steps long after half of the gradients grew and half of them shrank."""
    random = np.random.default_rng(1)
    sizes = np.exp2(2 * random.normal(size=SIZE)).astype(np.float32)
    change = np.where(np.arange(SIZE) % 2, 0.25, 4.0).astype(np.float32)
    noise = random.standard_normal((4000, SIZE), np.float32)

    def step(carry, given):
        i, noise = given
        grads = sizes * noise * jnp.where(i < 500, 1.0, change)
        pairs = [(rule.update(grads, state), total) for rule, (state, total) in zip(rules, carry)]
        late = lambda x: jnp.where(i >= 3500, jnp.abs(x), 0)
        return tuple((state, total + late(x)) for (x, state), total in pairs), None

    carry = tuple((rule.init(jnp.zeros(SIZE)), jnp.zeros(SIZE)) for rule in rules)
    run = jax.jit(lambda carry, noise: jax.lax.scan(step, carry, (np.arange(4000), noise))[0])
    return [np.asarray(total) for _, total in run(carry, noise)]


def _ratios(total, exact):
    """Of grown and of shrunk gradients; the steps of optax are 1."""
    ratios = total / exact
    return [ratios[::2].mean(), ratios[1::2].mean()]


@pytest.fixture(scope="module")
def tracked():
    """Each way of storing moments with its noise, and as it would be if rounded to nearest."""
    ways = {
        "8": (quantized(optax.scale_by_adam()), 0x80000800),
        "16": (with_moments(optax.scale_by_adam(), "bfloat16"), 0x80000000),
    }

    def freezing(rule, half):
        nearest = lambda words, leaf, step, shape: jnp.full(shape, half, jnp.uint32)

        def update(*args):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_quantized, "noise", nearest)
                return rule.update(*args)

        return optax.GradientTransformation(rule.init, update)

    rules = [rule for rule, half in ways.values()]
    rules += [freezing(rule, half) for rule, half in ways.values()]
    exact, *totals = _tracked(optax.scale_by_adam(), *rules)
    ratios = [_ratios(total, exact) for total in totals]
    return dict(zip([(name, frozen) for frozen in (False, True) for name in ways], ratios))


@pytest.mark.parametrize("name", ["8", "16"])
def test_second_moments_track(name, tracked):
    grown, shrunk = tracked[name, False]
    assert 0.8 < grown < 1.25
    assert 0.8 < shrunk < 1.25


@pytest.mark.parametrize("name", ["8", "16"])
def test_rounded_to_nearest_they_would_freeze(name, tracked):
    assert tracked[name, True][1] < 0.5


def _perceptron(x, kernels):
    for kernel in kernels[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ kernels[-1]


def _digits():
    data = load_digits()
    shapes = [(64, 128), (128, 64), (64, 10)]
    return np.float32(data.data / 16), data.target, shapes, lambda p, x: _perceptron(x, p)


def _characters():
    """The next letter of Python's own manual."""
    text = np.frombuffer("".join(topics.topics.values()).encode("ascii", "ignore"), np.uint8)
    kinds, text = np.unique(text[:60_000], return_inverse=True)
    windows = np.lib.stride_tricks.sliding_window_view(np.int32(text), 9)
    shapes = [(len(kinds), 64), (512, 64), (64, len(kinds))]
    model = lambda p, x: _perceptron(p[0][x].reshape(len(x), -1), p[1:])
    return windows[:, :-1], windows[:, -1], shapes, model


@pytest.mark.parametrize("problem", [_digits, _characters])
def test_the_final_loss_is_that_of_float32(problem):
    x, y, shapes, model = problem()
    x, y, steps, seeds = jnp.asarray(x), jnp.asarray(y), 400, 3
    random = np.random.default_rng(0)
    start = [random.normal(size=(seeds, *s)).astype("f4") / s[0] ** 0.5 for s in shapes]
    rows = random.integers(len(y), size=(seeds, steps, 64))

    def loss(params, rows):
        logits = model(params, x[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    def run(rule, params, rows):
        def step(carry, rows):
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), rows)
        return loss(params, np.arange(0, len(y), 4))

    rate = optax.cosine_decay_schedule(2e-3, steps)
    rules = [optax.adam(rate), quantized(optax.adam(rate))]
    want, got = (jax.jit(jax.vmap(partial(run, rule)))(start, rows) for rule in rules)
    assert abs(float(jnp.mean(got - want))) < 0.005
    assert not np.array_equal(got, want)


SECONDS = [
    (optax.adam(0.1), ["nu"]),
    (optax.yogi(0.1), ["nu"]),
    (optax.adamax(0.1), ["nu"]),
    (optax.amsgrad(0.1), ["nu", "nu_max"]),
    (optax.adabelief(0.1), ["nu"]),
    (optax.rmsprop(0.1), ["nu"]),
    (optax.scale_by_rms(bias_correction=True), ["nu"]),
    (optax.adagrad(0.1), ["sum_of_squares"]),
    (optax.adadelta(0.1), ["e_g", "e_x"]),
    (optax.adan(0.1), ["n"]),
    (optax.rprop(0.1), ["step_sizes"]),
    (optax.contrib.ademamix(0.1), ["nu"]),
    (optax.contrib.adopt(0.1), ["nu"]),
    (optax.contrib.sophia(0.1), []),  # of a Hessian, which may be negative
    (optax.lion(0.1), []),
    (optax.sgd(0.1, momentum=0.9), []),
    (lo.transforms.adam(0.1), ["nu"]),
    (lo.transforms.rmsprop(0.1), ["nu"]),
    (lo.transforms.rmsprop(0.1, momentum=0.9, centered=True), ["nu", "metric"]),
    (lo.transforms.adagrad(0.1), ["sum_of_squares"]),
    (lo.transforms.momentum(0.1), []),
]


@pytest.mark.parametrize(("rule", "fields"), SECONDS)
def test_second_moments_are_known(rule, fields):
    params = {"w": jnp.full((64, 64), 0.5)}
    state = jax.eval_shape(quantized(rule).init, params)
    paths = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_code)
    found = {str(path[-2].name) for path, x in paths if is_code(x) and x.second}
    assert found == set(fields)
    moments = sum(x.shape == (64, 64) for x in jax.tree.leaves(jax.eval_shape(rule.init, params)))
    assert len(_codes(state)) == moments > 0


def _custom():
    """A rule with a state of its own."""
    init = lambda params: {"speed": params, "squares": params, "count": jnp.zeros(())}
    return optax.GradientTransformation(init, lambda g, state, p=None: (g, state))


def test_second_moments_may_be_named():
    params = {"a": {"kernel": jnp.ones((64, 64))}, "b": {"kernel": jnp.ones((64, 64))}}
    seconds = lambda rule: [code.second for code in _codes(rule.init(params))]
    assert seconds(quantized(_custom())) == [False] * 4
    assert seconds(quantized(_custom(), second="^squares/")) == [False, False, True, True]
    assert seconds(quantized(_custom(), second="squares/b")) == [False, False, False, True]
    with pytest.raises(ValueError, match=r"'square/' takes no leaf of \[.*'squares/a/kernel'"):
        quantized(_custom(), second="square/").init(params)


def test_in_a_partition_a_group_may_have_no_second_moment_of_that_name():
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    rule = quantized(_custom(), second="squares/a")
    state = optax.partition({"a": rule, "b": rule}, {"a": "a", "b": "b"}).init(params)
    assert [code.second for code in _codes(state)] == [False, True, False, False]


REFUSED = [
    (optax.scale_by_stddev(), "ScaleByRStdDevState.nu.*scale_by_rms"),
    (optax.rmsprop(0.1, centered=True), "ScaleByRStdDev.*scale_by_rms"),
    (optax.contrib.schedule_free(optax.sgd(0.1), 0.1), "ScheduleFreeState.z.*within"),
    (optax.contrib.prodigy(0.1), "ProdigyState.params0.*leave"),
    (lo.transforms.stochastic_rounding(optax.adam(0.1), jax.random.key(0)), "around quantized"),
    (lo.transforms.kahan(optax.adam(0.1)), "KahanState.inner.*around quantized"),
]


@pytest.mark.parametrize(("rule", "words"), REFUSED)
def test_what_eight_bits_cannot_hold_is_refused(rule, words):
    with pytest.raises(ValueError, match=words):
        quantized(rule).init(jnp.ones((64, 64)))


def test_small_whole_masked_and_missing_leaves_stay():
    params = {
        "large": jnp.ones((64, 64)),
        "small": jnp.ones(4095),
        "scalar": jnp.ones(()),
        "empty": jnp.ones((0, 3)),
        "none": None,
        "left": jnp.ones((64, 64)),
    }
    masked = optax.masked(optax.adam(0.1), {**dict.fromkeys(params, True), "left": False})
    rule, exact = quantized(masked), masked
    state, want = rule.init(params), exact.init(params)
    assert len(_codes(state)) == 2
    grads = jax.tree.map(lambda x: 0.5 * x, params)
    for _ in range(3):
        updates, state = rule.update(grads, state, params)
        wanted, want = exact.update(grads, want, params)
    assert isinstance(state.inner.inner_state[0].mu["left"], optax.MaskedNode)
    assert state.inner.inner_state[0].mu["none"] is None
    for name in ("small", "scalar", "empty", "left"):
        np.testing.assert_array_equal(updates[name], wanted[name])
    assert jax.tree.structure(decoded(state.inner)) == jax.tree.structure(want)
    np.testing.assert_allclose(updates["large"], wanted["large"], rtol=0.25)


def test_low_precision_computes_in_float32():
    """In optax on bfloat16 a second moment never decays."""
    params = jnp.ones((64, 64), jnp.bfloat16)
    rule = quantized(optax.scale_by_adam())
    state = rule.init(params)
    assert {code.dtype for code in _codes(state)} == {np.dtype("float32")}
    updates, state = rule.update(params, state, params)
    assert updates.dtype == jnp.bfloat16
    before = decoded(state.inner).nu.mean()
    decay = lambda state, _: (rule.update(jnp.zeros_like(params), state, params)[1], None)
    state, _ = jax.jit(lambda state: jax.lax.scan(decay, state, length=1000))(state)
    np.testing.assert_allclose(decoded(state.inner).nu.mean() / before, 0.999**1000, rtol=0.1)


def test_float64_comes_back():
    with jax.enable_x64(True):
        params = jnp.ones((64, 64), jnp.float64)
        rule = quantized(optax.adam(0.1))
        step = lambda params: rule.update(params, rule.init(params), params)
        updates, state = jax.eval_shape(step, params)
        assert updates.dtype == jnp.float64
        assert len(_codes(state)) == 2
        assert jax.eval_shape(decoded, state.inner)[0].mu.dtype == jnp.float64


def test_seeds_differ_and_may_be_vmapped():
    params = jnp.ones((64, 64))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)

    def run(seed):
        rule = quantized(optax.scale_by_adam(), seed=seed)
        return rule.update(grads, rule.init(params))[1].inner.mu.codes

    got = jax.jit(jax.vmap(run))(jnp.arange(3))
    np.testing.assert_array_equal(got[1], jax.jit(run)(1))
    assert np.mean(got[0] != got[1]) > 0.1


def test_moments_in_bfloat16_are_those_of_any_size_and_nothing_else():
    for params in (jnp.ones(2), {"w": jnp.ones((64, 64)), "b": jnp.ones(2), "s": jnp.ones(())}):
        state = jax.eval_shape(adam(0.1, moments="bfloat16").init, params)
        assert isinstance(state, QuantizedState)
        kinds = jax.tree.map(lambda x: isinstance(x, Code), state.inner.inner, is_leaf=is_code)
        assert all(jax.tree.leaves((kinds.mu, kinds.nu)))
        assert state.inner.inner.mu_weight.dtype == jnp.float32
        assert not kinds.mu_weight
        assert {x.codes.dtype for x in _codes(state)} == {jnp.dtype(jnp.bfloat16)}


def test_float32_moments_are_the_rule_itself():
    rule = optax.with_extra_args_support(optax.adam(0.1))
    assert with_moments(rule, "float32") is rule


def test_codes_shard_like_their_parameters():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(64, 512)), jnp.float32)
    rule = quantized(optax.adam(0.1))
    update = jax.jit(rule.update)
    alone, state = update(grads, rule.init(grads))
    there = jax.tree.map(
        lambda x: jax.device_put(x, shards) if x.ndim == 2 else x, rule.init(grads)
    )
    spread, moved = update(jax.device_put(grads, shards), there)
    assert moved.inner[0].mu.codes.sharding.is_equivalent_to(shards, 2)
    np.testing.assert_array_equal(spread, alone)
    np.testing.assert_array_equal(moved.inner[0].mu.codes, state.inner[0].mu.codes)


def test_the_first_state_is_not_computed_while_compiling():
    optimizer = quantized(optax.adam(0.1))
    text = jax.jit(optimizer.init).lower(jnp.zeros((64, 1024))).compile().as_text()
    assert "reduce" in text  # of the maximum of blocks: it was not folded


@pytest.mark.parametrize("block", [0, -1, 2.5, "256"])
def test_blocks_are_checked(block):
    with pytest.raises(ValueError, match="Expected block as a whole number"):
        quantized(optax.adam(0.1), block)


def test_other_refusals():
    for seed, message in ((-1, "seed >= 0"), (2**33, "seed <="), (0.5, "seed as a whole number")):
        with pytest.raises(ValueError, match=message):
            quantized(optax.adam(0.1), seed=seed).init(jnp.ones(2))
    assert quantized(optax.adam(0.1), np.int64(64)).init(jnp.ones(2)).count == 0
    with pytest.raises(ValueError, match=r"moments.*'float32', 'bfloat16', 'int8', got 'int4'"):
        adam(0.1, moments="int4")
