"""The textbook's rules, step by step; the family's laws are in `tests/contract`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo

adagrad, adam, sgd = lo.transforms.adagrad, lo.transforms.adam, lo.transforms.sgd
momentum, rmsprop = lo.transforms.momentum, lo.transforms.rmsprop

STEPS = 100
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 4)), "b": RNG.normal(size=4)}
SCALES = {"w": np.geomspace(0.1, 10, 12).reshape(3, 4), "b": np.geomspace(3, 0.3, 4)}
NOISE = {k: 0.3 * RNG.normal(size=(STEPS, *x.shape)) for k, x in PARAMS.items()}
EVERY = lambda params: jax.tree.map(lambda x: True, params)

OPTAX = {
    "sgd": (sgd(0.05), optax.sgd(0.05)),
    "momentum": (momentum(0.02, 0.9), optax.sgd(0.02, 0.9)),
    "nesterov": (momentum(0.02, 0.9, nesterov=True), optax.sgd(0.02, 0.9, nesterov=True)),
    "adagrad": (adagrad(0.3), optax.adagrad(0.3)),
    "rmsprop": (rmsprop(0.01), optax.rmsprop(0.01)),
    "rmsprop, eps outside, from 1": (
        rmsprop(0.01, 0.95, 1e-3, initial_accumulator=1.0, eps_in_sqrt=False),
        optax.rmsprop(0.01, 0.95, 1e-3, initial_scale=1.0, eps_in_sqrt=False),
    ),
    "rmsprop, momentum": (rmsprop(0.003, momentum=0.9), optax.rmsprop(0.003, momentum=0.9)),
    "rmsprop, centered": (rmsprop(0.01, centered=True), optax.rmsprop(0.01, centered=True)),
    "rmsprop, centered, momentum, eps outside, from 1": (
        rmsprop(
            0.003,
            0.95,
            1e-3,
            momentum=0.8,
            centered=True,
            initial_accumulator=1.0,
            eps_in_sqrt=False,
        ),
        optax.rmsprop(0.003, 0.95, 1e-3, 1.0, False, centered=True, momentum=0.8),
    ),
    "nadam": (adam(0.02, nesterov=True), optax.nadam(0.02)),
    "nadam, other numbers, decay": (
        adam(0.02, 0.8, 0.95, 1e-3, nesterov=True, weight_decay=0.1, weight_decay_where=EVERY),
        optax.nadamw(0.02, 0.8, 0.95, 1e-3, weight_decay=0.1),
    ),
    "adam": (adam(0.02), optax.adam(0.02)),
    "adam, other numbers": (adam(0.02, 0.8, 0.95, 1e-3), optax.adam(0.02, 0.8, 0.95, 1e-3)),
    "adam without a first moment": (adam(0.02, b1=0.0), optax.adam(0.02, b1=0.0)),
    "adam, decay": (
        adam(0.02, weight_decay=0.1, weight_decay_where=EVERY),
        optax.adamw(0.02, weight_decay=0.1),
    ),
    "adam, decay of matrices": (
        adam(0.02, weight_decay=0.1),
        optax.adamw(0.02, weight_decay=0.1, mask={"w": True, "b": False}),
    ),
    "adam, cosine": (
        adam(lo.schedules.cosine(0.05, 80)),
        optax.adam(optax.cosine_decay_schedule(0.05, 80)),
    ),
}


def _walk(optimizer, dtype=jnp.float32):
    """Parameters along noisy steps on a quadratic, a row per step."""
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)

    def step(carry, noise):
        params, state = carry
        slopes = jax.tree.map(lambda s, x, n: (s * x + n).astype(dtype), SCALES, params, noise)
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    walk = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), NOISE)[1])
    return walk(params)


def _assert_same_path(got, want):
    for name in PARAMS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), OPTAX.values(), ids=OPTAX)
def test_every_step_is_that_of_optax(ours, theirs):
    with jax.enable_x64(True):
        _assert_same_path(_walk(ours, jnp.float64), _walk(theirs, jnp.float64))


@pytest.mark.parametrize("name", ["momentum", "adagrad", "rmsprop", "adam, decay"])
def test_in_float32_every_step_is_as_near_to_float64_as_that_of_optax(name):
    ours, theirs = OPTAX[name]
    with jax.enable_x64(True):
        truth = _walk(theirs, jnp.float64)
    far = lambda path: max(float(abs(path[k] - np.asarray(truth[k])).max()) for k in PARAMS)
    assert far(_walk(ours)) <= max(far(_walk(theirs)), 1e-6)


TORCH = {
    "sgd": (sgd(0.05), "SGD", {"lr": 0.05}),
    "momentum": (momentum(0.02, 0.9), "SGD", {"lr": 0.02, "momentum": 0.9}),
    "nesterov": (
        momentum(0.02, 0.9, nesterov=True),
        "SGD",
        {"lr": 0.02, "momentum": 0.9, "nesterov": True},
    ),
    "adagrad": (
        adagrad(0.3, 1e-10, initial_accumulator=0.0, eps_in_sqrt=False),
        "Adagrad",
        {"lr": 0.3},
    ),
    "rmsprop": (rmsprop(0.01, 0.99, eps_in_sqrt=False), "RMSprop", {"lr": 0.01}),
    "adam": (adam(0.02), "Adam", {"lr": 0.02}),
    "adamw": (
        adam(0.02, weight_decay=0.1, weight_decay_where=EVERY),
        "AdamW",
        {"lr": 0.02, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize(("ours", "name", "settings"), TORCH.values(), ids=TORCH)
def test_every_step_is_that_of_torch(ours, name, settings):
    torch = pytest.importorskip("torch")
    params = {k: torch.tensor(x, requires_grad=True) for k, x in PARAMS.items()}
    optimizer = getattr(torch.optim, name)(list(params.values()), **settings)
    path = []
    for i in range(STEPS):
        for k, x in params.items():
            x.grad = torch.tensor(SCALES[k]) * x.detach() + torch.tensor(NOISE[k][i])
        optimizer.step()
        path.append({k: x.detach().numpy().copy() for k, x in params.items()})
    with jax.enable_x64(True):
        _assert_same_path(_walk(ours, jnp.float64), jax.tree.map(lambda *xs: np.stack(xs), *path))


def _adam_by_hand(gradients, rates, b1, b2, eps=1e-8):
    """Adam in float64 with scheduled rates of forgetting, its averages weighed out in full."""
    change = []
    for t in range(len(gradients)):
        keep1, keep2 = np.cumprod(b1[t::-1])[::-1], np.cumprod(b2[t::-1])[::-1]
        ages1 = (1 - b1[: t + 1]) * np.append(keep1[1:], 1)
        ages2 = (1 - b2[: t + 1]) * np.append(keep2[1:], 1)
        mu = (ages1 @ gradients[: t + 1]) / ages1.sum()
        nu = (ages2 @ gradients[: t + 1] ** 2) / ages2.sum()
        change.append(-rates[t] * mu / (np.sqrt(nu) + eps))
    return np.stack(change)


def _changes(optimizer, gradients):
    step = lambda state, g: optimizer.update(g, state)[::-1]
    return jax.lax.scan(step, optimizer.init(gradients[0]), gradients)[1]


def test_scheduled_averages_are_weighed_by_what_they_have_seen():
    gradients = np.random.default_rng(1).normal(size=(60, 5)) + 0.5
    t = np.arange(60)
    b1, b2, rates = 0.5 + 0.4 * t / 60, 0.9 + 0.0999 * (t > 20), 0.1 / (1 + t)
    got = _changes(
        adam(
            lambda t: 0.1 / (1 + t), lambda t: 0.5 + 0.4 * t / 60, lambda t: 0.9 + 0.0999 * (t > 20)
        ),
        jnp.float32(gradients),
    )
    want = _adam_by_hand(gradients, rates, b1, b2)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("b2", [0.999, 0.9999, 0.99999])
def test_a_traced_b2_near_1_is_debiased_exactly(b2):
    gradients = np.random.default_rng(2).normal(size=(50, 4))
    kept = np.float64(np.float32(b2))  # what the tracer holds
    want = _adam_by_hand(gradients, np.ones(50), np.full(50, 0.9), np.full(50, kept))
    walk = lambda b2: _changes(adam(1.0, b2=b2), jnp.float32(gradients))
    np.testing.assert_allclose(jax.jit(walk)(jnp.float32(b2)), want, rtol=3e-6, atol=1e-6)


def test_a_second_moment_of_bfloat16_parameters_decays():
    params = jnp.ones(3, jnp.bfloat16)
    optimizer = adam(1e-3)
    state = optimizer.update(params, optimizer.init(params))[1]
    assert (state.inner.nu == 1).all()
    for _ in range(5):
        _, state = optimizer.update(0 * params, state)
    assert state.inner.nu.dtype == jnp.float32
    np.testing.assert_allclose(state.inner.nu, 0.001 * 0.999**5 / (1 - 0.999**6), rtol=1e-6)


MAKERS = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@EACH
def test_bfloat16_parameters_get_the_float32_step_rounded_once(make):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    optimizer = make(0.1, weight_decay=0.1)
    got, want = (optimizer.update(x, optimizer.init(x), x)[0] for x in (params, wide))
    for name in PARAMS:
        assert got[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(got[name], want[name].astype(jnp.bfloat16))


@EACH
def test_updates_have_the_dtypes_of_the_parameters_not_of_the_gradients(make):
    params, gradients = jnp.ones(3, jnp.bfloat16), jnp.ones(3)
    optimizer = make(0.1)
    state = optimizer.init(params)
    assert optimizer.update(gradients, state, params)[0].dtype == jnp.bfloat16
    assert optimizer.update(gradients, state)[0].dtype == jnp.float32


FORMS = MAKERS | {
    "nesterov": partial(momentum, nesterov=True),
    "nadam": partial(adam, nesterov=True),
    "rmsprop, momentum": partial(rmsprop, momentum=0.9),
    "rmsprop, centered": partial(rmsprop, centered=True),
    "rmsprop, both": partial(rmsprop, momentum=0.9, centered=True, initial_accumulator=0.5),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_the_gain_of_a_steady_gradient_is_the_metric(make):
    """The prox of `L1` at 0 thresholds at step times strength: the largest kept gradient is 1."""
    gradients = jnp.array([-3.0, -1.001, -0.999, 0.2, 0.999, 1.001, 4.0])
    optimizer = make(0.01, regularizer=lo.regularizers.L1(1.0))
    params = jnp.zeros(7)
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(gradients, state, params)
        assert ((updates != 0) == (abs(gradients) > 1)).all()
        assert (jnp.sign(updates) == -jnp.sign(gradients) * (abs(gradients) > 1)).all()


@EACH
def test_decay_is_decoupled_and_only_where_it_is_named(make):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3), "c": jnp.ones((2, 3, 1))}
    still = jax.tree.map(jnp.zeros_like, params)

    def shrunk(where):
        optimizer = make(0.5, weight_decay=0.1, weight_decay_where=where)
        updates, _ = optimizer.update(still, optimizer.init(params), params)
        return {k for k, u in updates.items() if jnp.allclose(u, -0.05, rtol=1e-6)} | {
            f"{k}?" for k, u in updates.items() if jnp.any((u != 0) & (u != u.ravel()[0]))
        }

    assert shrunk(None) == {"a", "c"}
    assert shrunk("^[ab]$") == {"a", "b"}
    assert shrunk(lambda params: {"a": False, "b": False, "c": True}) == {"c"}
    with pytest.raises(ValueError, match="takes no leaf"):
        shrunk("kernel")


@EACH
def test_in_a_partition_a_group_without_a_match_does_not_decay(make):
    params = {"in": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "table": jnp.ones((3, 2))}
    still = jax.tree.map(jnp.zeros_like, params)

    def shrunk(where, labels):
        rule = make(0.5, weight_decay=0.1, weight_decay_where=where)
        optimizer = optax.partition({"a": rule, "b": rule, "c": optax.set_to_zero()}, labels)
        updates, _ = optimizer.update(still, optimizer.init(params), params)
        leaves = jax.tree.leaves(updates)  # bias, kernel, table
        assert all(jnp.all((u == 0) | jnp.isclose(u, -0.05, rtol=1e-6)) for u in leaves)
        return [bool(u.any()) for u in leaves]

    each = {"in": {"kernel": "a", "bias": "b"}, "table": "c"}
    assert shrunk("kernel$", each) == [False, True, False]
    assert shrunk("kernel$", {"in": "a", "table": "b"}) == [False, True, False]
    assert shrunk("table|bias", {"in": "a", "table": "b"}) == [True, False, True]


def test_l2_is_decay_for_sgd_and_not_for_adam():
    params = jnp.array([[1.0, -2.0, 0.5]])
    gradients = jnp.array([[0.1, 3.0, -1.0]])

    def steps(make):
        penalized = gradients + jax.grad(lo.regularizers.L2(0.05))(params)
        plain, decayed = make(0.1), make(0.1, weight_decay=0.1)
        first = plain.update(penalized, plain.init(params), params)[0]
        return first, decayed.update(gradients, decayed.init(params), params)[0]

    np.testing.assert_allclose(*steps(sgd), rtol=1e-6)
    assert not np.allclose(*steps(adam), rtol=1e-2)


def test_the_two_conventions_of_momentum_take_the_same_steps():
    average = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(0.2))
    _assert_same_path(_walk(momentum(0.02, 0.9)), _walk(average))


def test_every_number_may_be_a_tracer_at_once():
    def run(numbers):
        return _walk(adam(**numbers))["w"][-1]

    numbers = {"learning_rate": 0.02, "b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.1}
    pairs = {k: jnp.array([x, 0.9 * x]) for k, x in numbers.items()}
    got = jax.jit(jax.vmap(run))(pairs)
    for i, want in enumerate([run(numbers), run({k: 0.9 * x for k, x in numbers.items()})]):
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)


@EACH
def test_float64_numbers_leave_float32_states_as_they_are(make):
    with jax.enable_x64(True):

        def walk(numbers):
            optimizer, params = make(*numbers), jnp.ones((2, 3), jnp.float32)
            step = lambda state, _: (optimizer.update(params, state, params)[1], None)
            return jax.lax.scan(step, optimizer.init(params), length=2)[0]

        state = jax.jit(walk)([jnp.float64(0.1)] * (1 + (make is not sgd)))
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state) if x.ndim == 2)


@EACH
@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_float64_gradients_leave_the_states_of_narrow_parameters_as_they_are(make, moments):
    extra = {} if make is sgd else {"moments": moments}
    with jax.enable_x64(True):
        params, gradients = jnp.ones((64, 64), jnp.bfloat16), jnp.ones((64, 64), jnp.float64)
        optimizer = make(0.1, **extra)

        def step(state, _):
            updates, state = optimizer.update(gradients, state, params)
            return state, updates

        updates = jax.lax.scan(step, optimizer.init(params), length=2)[1]
        assert updates.dtype == jnp.bfloat16


@EACH
def test_a_step_has_a_derivative_where_a_gradient_is_zero(make):
    def after(start):
        optimizer, params = make(0.1), start
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params * jnp.array([1.0, 0.0]), state, params)
            params = params + updates
        return jnp.sum(params**2)

    assert jnp.isfinite(jax.grad(after)(jnp.array([1.0, 2.0]))).all()


@pytest.mark.parametrize("jit", [False, True])
def test_a_nan_gradient_stays_where_it_is(jit):
    optimizer = adam(0.1, regularizer=lo.regularizers.L1(0.1))
    params = jnp.ones(3)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    updates, _ = update(jnp.array([1.0, jnp.nan, 1.0]), optimizer.init(params), params)
    assert jnp.isnan(updates).tolist() == [False, True, False]


@pytest.mark.parametrize("make", [adam, rmsprop])
def test_a_coordinate_whose_square_overflows_is_nan_and_does_not_stand_still(make):
    optimizer, gradients = make(0.1), jnp.array([1.0, 1e20])
    state = optimizer.update(jnp.ones(2), optimizer.init(gradients))[1]
    for _ in range(5):
        updates, state = optimizer.update(gradients, state)
        gradients = jnp.ones(2)
    assert jnp.isnan(updates).tolist() == [False, True]


@EACH
def test_the_first_state_may_be_donated(make):
    optimizer, params = make(0.1), jnp.ones((2, 3))
    step = jax.jit(lambda g, state: optimizer.update(g, state), donate_argnums=1)
    assert step(params, optimizer.init(params))[1].count == 1


def test_states_say_where_they_are():
    optimizer = adam(0.1)
    state = optimizer.init(jnp.ones(2))
    assert isinstance(state, lo.transforms.RuleState)
    assert isinstance(state.inner, lo.transforms.AdamState)
    assert optimizer.update(jnp.ones(2), state)[1].count == 1
    assert optax.tree.get(state, "nu").shape == (2,)


REFUSED = {
    "a regularizer for a rate": (
        lambda: adam(lo.regularizers.L1(0.1)),
        "learning_rate as a number.*regularizer=",
    ),
    "a number for a regularizer": (
        lambda: adam(0.1, regularizer=0.1),
        "regularizer as a lossopt regularizer.*static_args",
    ),
    "b2 of 1": (lambda: adam(0.1, b2=1.0), "b2 < 1"),
    "b1 below 0": (lambda: adam(0.1, b1=-0.1), "b1 >= 0"),
    "a decay of 1": (lambda: momentum(0.1, 1.0), "decay < 1"),
    "no eps": (lambda: rmsprop(0.1, eps=0.0), "eps >= 1.1"),
    "an eps that is 0 in float32": (lambda: adam(0.1, eps=1e-50), "eps >= 1.1"),
    "two rates": (lambda: adam(jnp.array([0.1, 0.2])), r"learning_rate as one number.*jax\.vmap"),
    "a schedule of two rates": (
        lambda: _changes(adam(lambda count: jnp.ones(2)), jnp.ones((3, 2))),
        "the value of a schedule of shape",
    ),
    "no rate": (lambda: adam(None), "learning_rate as a number, a tracer or a schedule, got None"),
    "a class": (lambda: adam(0.1, regularizer=lo.regularizers.L1), "regularizer as a lossopt"),
    "a mask": (
        lambda: adam(0.1, weight_decay=0.1, weight_decay_where={"w": True}),
        "weight_decay_where as a pattern.*lambda params",
    ),
    "a decision by values": (
        lambda: adam(0.1, weight_decay=0.1, weight_decay_where=lambda x: x > 0).update(
            jnp.ones(()), adam(0.1).init(jnp.ones(())), jnp.ones(())
        ),
        "Expected booleans from weight_decay_where",
    ),
    "a regularizer taken for a schedule": (
        lambda: optax.inject_hyperparams(adam)(0.1, regularizer=lo.regularizers.L1(0.1)).init(
            jnp.ones(2)
        ),
        "static_args",
    ),
    "a negative rate": (lambda: sgd(-0.1), "learning_rate >= 0"),
    "a negative decay": (lambda: sgd(0.1, weight_decay=-1.0), "weight_decay >= 0"),
    "a negative beginning": (
        lambda: adagrad(0.1, initial_accumulator=-1.0),
        "initial_accumulator >= 0",
    ),
    "b2 in bfloat16": (
        lambda: adam(0.1, b2=jnp.bfloat16(0.9)),
        "b2 in float32 or wider.*hyperparam_dtype",
    ),
    "unknown moments": (lambda: adam(0.1, moments="float16"), "moments"),
    "no params for a prox": (
        lambda: adam(0.1, regularizer=lo.regularizers.L1(0.1)).update(
            jnp.ones(2), adam(0.1).init(jnp.ones(2))
        ),
        "regularizer=.*update\\(grads, state, params\\)",
    ),
    "no params for a decay": (
        lambda: sgd(0.1, weight_decay=0.1).update(jnp.ones(2), sgd(0.1).init(jnp.ones(2))),
        "weight_decay=.*update\\(grads, state, params\\)",
    ),
    "integers": (lambda: adam(0.1).init({"n": jnp.arange(3)}), "int32.*optax.masked"),
}


@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
