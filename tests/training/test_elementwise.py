"""What goes element by element is known without running it; what it is, running it tells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt._elementwise import only_elementwise

pytestmark = pytest.mark.usefixtures("uncached")

SHAPE = 4, 8
MESH = AbstractMesh((2,), ("i",))
T, C = lo.transforms, optax.contrib
L1 = lo.regularizers.L1(0.1)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
SLOPES = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
STEPS = [
    SLOPES.at[:, :4].multiply(100.0),  # one device has all that is large
    -SLOPES.at[0, 0].set(jnp.nan),  # and one alone has a NaN
]
HALVES = slice(0, 4), slice(4, 8)


def tree_rule(fn):
    """A rule of a test's own, which is stateless."""

    def update(updates, state, params=None):
        return jax.tree.map(fn, updates), state

    return optax.GradientTransformation(lambda params: (), update)


def jitted(rule):
    """A rule whose update is compiled by itself."""
    update = jax.jit(lambda updates, state, params: rule.update(updates, state, params))
    return optax.GradientTransformation(rule.init, update)


def smooth(x):
    same = jax.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, ()), lambda _, slope: (slope,))
    return same(jax.nn.gelu(jax.checkpoint(jax.nn.relu)(x))) + jnp.where(
        x > 0, jnp.log1p(jnp.abs(x)), jnp.tanh(x)
    )


def branch(x):
    return jax.lax.cond(jnp.float32(x.ndim) > 1, jnp.negative, jnp.exp, x)


def with_size(rate):
    return tree_rule(lambda x: rate * x / x.size)


def by_size(rate):
    return tree_rule(lambda x: rate * x if x.size > 16 else x * rate)


def with_gain(rate):
    """A state that is no parameter's, of which one element is read."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda x: rate * x * state[0], updates), 2.0 * state

    return optax.GradientTransformation(lambda params: jnp.ones(2), update)


def closed_over(rate):
    weights = jnp.linspace(0.0, 1.0, W.size).reshape(SHAPE)
    return tree_rule(lambda x: rate * x * weights)


def size_of_a_loop(rate):
    def update(updates, state, params=None):
        loop = jax.lax.fori_loop(0, 2, lambda *_: jnp.float32(updates["w"].size), jnp.float32(0))
        return jax.tree.map(lambda x: rate * x * loop, updates), state

    return optax.GradientTransformation(lambda params: (), update)


def counted(rate):
    return tree_rule(lambda x: rate * x / jnp.sum(jnp.ones(x.shape)))


def mixed(rate):
    """One cut in other places, whatever the values."""
    return tree_rule(lambda x: rate * jnp.flip(x, 1))


OF_OPTAX = """
adabelief adadelta adafactor adagrad adam adamax adamw adan amsgrad fromage lamb lars lion nadam
novograd optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd sign_sgd sm3 yogi
"""
OF_CONTRIB = """
acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo momo_adam muon prodigy
schedule_free_adamw
"""
WITH_A_RATE = {name: getattr(optax, name) for name in OF_OPTAX.split()}
WITH_A_RATE |= {f"contrib.{name}": getattr(C, name) for name in OF_CONTRIB.split()}
MAKERS = {name: partial(maker, 0.1) for name, maker in WITH_A_RATE.items()} | {
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=KEY),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam of a schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "line search": lambda: optax.scale_by_backtracking_linesearch(3),
    "clip": lambda: optax.clip(0.5),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.5),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "centralize": optax.centralize,
    "add_noise": lambda: optax.add_noise(0.1, 0.5, KEY),
    "ema": lambda: optax.ema(0.9),
    "trace": lambda: optax.trace(0.9),
    "identity": optax.identity,
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "zero_nans": optax.zero_nans,
    "keep_params_nonnegative": optax.keep_params_nonnegative,
    "weight decay": lambda: optax.add_decayed_weights(0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True}),
    "masked norm": lambda: optax.masked(optax.normalize_by_update_norm(), {"w": True}),
    "partition": lambda: optax.partition({"a": optax.adam(0.1)}, {"w": "a"}),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "normalize": C.normalize,
    "contrib.reduce_on_plateau": lambda: C.reduce_on_plateau(patience=1, cooldown=1),
    "ours.sgd": lambda: T.sgd(0.1, weight_decay=0.1),
    "ours.momentum": lambda: T.momentum(0.1, 0.9, nesterov=True),
    "ours.adagrad": lambda: T.adagrad(0.1),
    "ours.rmsprop": lambda: T.rmsprop(0.1, centered=True, momentum=0.5),
    "ours.adam": lambda: T.adam(0.1, nesterov=True, regularizer=L1),
    "ours.proximal": lambda: T.proximal(L1, 0.1, direction=optax.ema(0.9)),
    "ours.clip_by_global_norm": lambda: T.clip_by_global_norm(1.0),
    "ours.average": lambda: T.average(T.adam(0.1), decay=0.9),
    "ours.reduce_on_plateau": lambda: T.reduce_on_plateau(patience=1),
    "ours.skip_spikes": lambda: T.skip_spikes(optax.sgd(0.1), warmup=1),
    "ours.scale_by_path": lambda: T.scale_by_path(T.adam(0.1, regularizer=L1), {"w": 0.5}),
    "ours.kahan": lambda: T.kahan(T.adam(0.1)),
    "ours.stochastic_rounding": lambda: T.stochastic_rounding(T.adam(0.1), KEY),
    "smooth": lambda: tree_rule(smooth),
    "branch": lambda: tree_rule(branch),
    "state of its own": lambda: with_gain(0.1),
    "in a jit": lambda: tree_rule(jax.jit(lambda x: jnp.clip(x, -1, 1))),
    "with_size": lambda: with_size(0.1),
    "by_size": lambda: by_size(0.1),
    "closed_over": lambda: closed_over(0.1),
    "size_of_a_loop": lambda: size_of_a_loop(0.1),
    "first": lambda: tree_rule(lambda x: x - x[0, 0]),
    "cumulative": lambda: tree_rule(lambda x: jnp.cumsum(x, 1)),
    "places": lambda: tree_rule(lambda x: x * jnp.arange(x.shape[1])[None]),
    "counted": lambda: counted(0.1),
    "mixed": lambda: mixed(0.1),
    "reshaped": lambda: tree_rule(lambda x: x.ravel().reshape(x.shape)),
    "in a loop": lambda: tree_rule(lambda x: jax.lax.fori_loop(0, 2, lambda _, y: 2 * y, x)),
}
REFUSED_ALTHOUGH_RIGHT = {
    "adaptive_grad_clip": "has a norm for each column, and here columns are whole",
    "by_size": "another program for another size, which gives the same",
    "in a loop": "loops are not looked into where slices go in",
    "reshaped": "and back again",
}


def cut(tree, part):
    """A device's part of what has the parameter's shape; all of the rest."""
    return jax.tree.map(lambda x: x[:, part] if jnp.shape(x) == SHAPE else x, tree)


def steps(rule, state, part=slice(None)):
    """The updates and states of a run, whole or on a part."""
    update, params = optax.with_extra_args_support(rule).update, cut({"w": W}, part)
    value_fn = lambda params: jnp.sum(params["w"] ** 2)
    for i, grads in enumerate(STEPS):
        grads = cut({"w": grads}, part)
        extra = {"value": jnp.float32(1.0 + i % 2), "grad": grads, "value_fn": value_fn}
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        yield updates, state


def goes_by_elements(rule):
    """Measured: whether the run of each half is the half of the run."""
    state = rule.init({"w": W})
    halves = [steps(rule, cut(state, part), part) for part in HALVES]
    for whole in steps(rule, state):
        try:
            for part, half in zip(HALVES, halves):
                own = next(half)
                jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), own, cut(whole, part))
        except (AssertionError, TypeError, ValueError):
            return False
    return True


def laid(tree, shape=SHAPE):
    def shaped(x):
        lies = NamedSharding(MESH, P(None, "i") if jnp.shape(x) == shape else P())
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=lies)

    return jax.tree.map(shaped, tree)


def check(rule, params=None, shape=SHAPE):
    params = {"w": W} if params is None else params
    state = jax.eval_shape(rule.init, params)
    update = optax.with_extra_args_support(rule).update
    only_elementwise(update, laid(params, shape), laid(state, shape))


def refusal(rule, *inputs):
    """Whom it names; None where there is none."""
    try:
        check(rule, *inputs)
    except ValueError as error:
        return str(error).split("got ")[1].split(": it may read")[0]


@pytest.mark.filterwarnings("ignore:.*adam.*:DeprecationWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_taken_goes_by_elements_and_what_is_refused_does_not(name):
    rule = MAKERS[name]()
    taken, right = refusal(rule) is None, goes_by_elements(rule)
    assert right or not taken  # the law
    assert taken == (right and name not in REFUSED_ALTHOUGH_RIGHT)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
            "optax.clip_by_global_norm",
        ),
        (optax.lamb(0.1), "optax.scale_by_trust_ratio"),
        (
            optax.chain(
                optax.clip_by_block_rms(1.0),
                optax.scale_by_adam(),
                optax.normalize_by_update_norm(),
                optax.clip_by_block_rms(2.0),
            ),
            "optax.clip_by_block_rms, optax.normalize_by_update_norm",
        ),
        (C.muon(0.1), "optax.contrib.scale_by_muon, optax.contrib.muon"),
        (T.clip_by_global_norm(1.0), "lossopt.transforms.clip_by_global_norm"),
        (
            T.adam(0.1, regularizer=lo.regularizers.GroupLasso(0.1, axis=1)),
            "lossopt.regularizers.GroupLasso",
        ),
        (optax.scale_by_backtracking_linesearch(3), "optax.scale_by_backtracking_linesearch"),
        (optax.masked(optax.chain(with_size(0.1)), {"w": True}), "tree_rule"),
        (closed_over(0.1), "tree_rule"),  # which fails on slices
        (
            optax.GradientTransformation(lambda _: (), lambda g, s, _: (g["w"].T @ g["w"], s)),
            "a function of your own",
        ),
    ],
)
def test_whoever_reads_wholes_is_named_once(rule, named):
    assert refusal(rule) == named


def test_a_function_that_was_traced_elsewhere_does_not_name_who_called_it_there():
    norm = jax.jit(lambda x: x / jnp.linalg.norm(x))
    assert refusal(optax.stateless_with_tree_map(lambda g, p: norm(g))) == (
        "optax.stateless_with_tree_map"
    )
    assert refusal(tree_rule(norm)) == "tree_rule"


def test_leaves_that_are_whole_on_each_device_may_be_read():
    rule = optax.clip_by_block_rms(1.0)
    labels = {"w": "cut", "b": "whole"}
    both = {"w": W, "b": jnp.ones(3)}
    check(rule, {"b": jnp.ones(3)})
    check(optax.partition({"whole": rule, "cut": optax.adam(0.1)}, labels), both)
    assert refusal(optax.partition({"whole": optax.adam(0.1), "cut": rule}, labels), both)
    assert refusal(optax.clip_by_global_norm(1.0), both)


def test_leaves_that_are_cut_in_several_ways_do_not_mix():
    mesh = AbstractMesh((2, 2), ("i", "j"))
    lies = lambda *spec: NamedSharding(mesh, P(*spec))
    shaped = lambda *spec: jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=lies(*spec))
    alike = {"v": shaped("i", "j"), "w": shaped(("i",), ("j",))}  # one way, written in two
    apart = {"v": shaped("i", "j"), "w": shaped("j", "i")}  # slices of one shape
    keep = lambda updates, state, params, **_: (updates, state)
    swap = lambda updates, *_, **__: ({"v": updates["w"], "w": updates["v"]}, ())
    add = lambda updates, *_, **__: ({"v": updates["v"] + updates["w"], "w": updates["w"]}, ())
    for update in (keep, swap, add):
        only_elementwise(update, alike, ())
    only_elementwise(keep, apart, ())
    for update in (swap, add):
        with pytest.raises(ValueError, match="element by element"):
            only_elementwise(update, apart, ())


def test_codes_of_eight_bits_are_no_slices():
    shape = 64, 128
    params = {"w": jnp.zeros(shape)}
    assert refusal(T.adam(0.1), params, shape) is None
    assert refusal(T.adam(0.1, moments="int8"), params, shape) == "lossopt.transforms.quantized"
    assert refusal(optax.adafactor(0.1, min_dim_size_to_factor=64), params, shape)


# A transformation that is taken at its word


def test_a_word_is_taken_for_what_it_is_about_alone():
    norm, trusted = optax.normalize_by_update_norm(), lo.parallel.elementwise
    check(trusted(norm))
    check(trusted(with_size(0.1)))
    check(optax.chain(trusted(optax.chain(norm, optax.adam(0.1))), optax.adamw(0.1)))
    check(jitted(trusted(norm)))
    assert refusal(jitted(norm)) == "optax.normalize_by_update_norm"
    for rule in (
        optax.chain(trusted(norm), optax.lamb(0.1)),
        optax.chain(optax.lamb(0.1), trusted(norm)),
    ):
        assert refusal(rule) == "optax.scale_by_trust_ratio"


def test_whose_word_is_taken_may_sum_over_the_devices():
    """As in a norm of all slices, which nobody could trace outside of them."""
    whole = lambda x: x / jnp.sqrt(jax.lax.psum(jnp.sum(x**2), "i"))
    assert refusal(tree_rule(whole)) == "tree_rule"
    check(lo.parallel.elementwise(tree_rule(whole)))
    assert refusal(tree_rule(lambda x: x * jax.lax.axis_index("i"))) == "tree_rule"


def test_a_trusted_rule_is_the_rule():
    inner = T.average(optax.adam(0.1), decay=0.9)
    rule = optax.chain(lo.parallel.elementwise(inner), optax.scale_by_backtracking_linesearch(3))
    plain = optax.chain(inner, optax.scale_by_backtracking_linesearch(3))
    one, two = (list(steps(x, x.init({"w": W}))) for x in (rule, plain))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


# In a step on devices

BIG = {"w": jnp.asarray(RNG.normal(size=(64, 32)), jnp.float32), "b": jnp.zeros(32)}
ROWS = jnp.asarray(RNG.normal(size=(16, 64)), jnp.float32)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1))


def objective(params, batch):
    return lo.mean(jnp.sum((batch @ params["w"] + params["b"][None]) ** 2, 1))


def in_layers(params, batch):
    return objective(lo.parallel.gathered(params), batch)


def shapes_of_a_step(optimizer, hyperparameters=None, objective=objective, **options):
    mesh = lo.parallel.mesh(data=2, fsdp=4)
    options = {"partition": "fsdp", "lowering": "shard_map"} | options
    init, step = lo.train_step(objective, optimizer, mesh=mesh, **options)
    given = {"hyperparameters": hyperparameters}
    return jax.eval_shape(lambda: step(init(BIG, **given), ROWS, **given))


@pytest.mark.parametrize(
    "options", [{}, {"partition": "zero1"}, {"gather": False, "objective": in_layers}]
)
def test_a_step_refuses_on_slices_and_says_what_to_do(options):
    message = r"got optax\.clip_by_global_norm: .*lowering='auto'.*parallel\.elementwise\(rule\)"
    with pytest.raises(ValueError, match=message):
        shapes_of_a_step(CLIPPED, **options)
    shapes_of_a_step(optax.adamw(0.1), **options)
    shapes_of_a_step(CLIPPED, lowering="auto", **options)


def test_hyperparameters_are_numbers_like_others():
    clipped = lambda clip: lambda rate: optax.chain(clip, optax.adamw(rate))
    rate = jnp.float32(0.1)
    shapes_of_a_step(clipped(optax.clip(1.0)), rate)
    with pytest.raises(ValueError, match=r"got optax\.clip_by_global_norm:"):
        shapes_of_a_step(clipped(optax.clip_by_global_norm(1.0)), rate)


def test_where_nothing_is_cut_the_norm_is_that_of_all():
    options = {"mesh": lo.parallel.mesh(), "lowering": "shard_map", "partition": "data"}
    init, step = lo.train_step(objective, CLIPPED, **options)
    start, plain = lo.train_step(objective, CLIPPED)
    one, two = init(BIG), start(BIG)
    plain = jax.jit(plain)
    for _ in range(2):
        (one, _), (two, _) = step(one, ROWS), plain(two, ROWS)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, one.params, two.params)


def test_what_is_no_rule():
    with pytest.raises(TypeError, match=r"optax.GradientTransformation, got .*Call what makes one"):
        lo.parallel.elementwise(optax.adam)
