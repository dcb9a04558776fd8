"""What is particular to `proximal`, and to `regularizer=` of the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from tests import cases

pytestmark = pytest.mark.usefixtures("optimized")

L1, proximal = lo.regularizers.L1, lo.transforms.proximal
adam_metric, rms_metric = lo.transforms.adam_metric, lo.transforms.rms_metric

TARGET = jnp.array([2.0, 0.05, -0.05, -2.0])
LASSO = jnp.array([1.5, 0.0, 0.0, -1.5])  # of the strength 0.5
FADING = lambda count: 0.02 / (1 + count / 500)
DIRECTIONS = {
    "gradient": (0.02, None, None),
    "momentum": (0.02, optax.ema(0.9), None),
    "momentum, no debias": (0.02, optax.ema(0.9, debias=False), None),
    "adam": (FADING, optax.scale_by_adam(), adam_metric()),
    "adam, eps": (FADING, optax.scale_by_adam(0.8, 0.9, 0.1), adam_metric(0.9, 0.1)),
    "nadam": (FADING, optax.scale_by_adam(nesterov=True), adam_metric()),
    "rms": (FADING, optax.scale_by_rms(), rms_metric()),
    "rms, eps": (
        FADING,
        optax.scale_by_rms(0.9, 0.1, eps_in_sqrt=False),
        rms_metric(0.1, eps_in_sqrt=False),
    ),
}


def _descend(optimizer, params, gradient, steps):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[0][0])(start)


@pytest.mark.parametrize("case", DIRECTIONS.values(), ids=DIRECTIONS)
def test_settles_on_the_lasso_with_exact_zeros(case):
    rate, direction, metric = case
    optimizer = proximal(L1(0.5), rate, direction, metric=metric)
    params = _descend(optimizer, jnp.ones(4), lambda x: x - TARGET, 4000)
    np.testing.assert_allclose(params, LASSO, atol=1e-3)
    assert ((params == 0) == (LASSO == 0)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda rate, r: lo.transforms.rmsprop(rate, momentum=0.8, regularizer=r),
        lambda rate, r: lo.transforms.adam(rate, nesterov=True, regularizer=r),
    ],
)
def test_rules_with_momentum_and_a_look_ahead_settle_on_it_too(make):
    params = _descend(make(FADING, L1(0.5)), jnp.ones(4), lambda x: x - TARGET, 4000)
    np.testing.assert_allclose(params, LASSO, atol=1e-3)
    assert ((params == 0) == (LASSO == 0)).all()


def test_a_constraint_is_never_left():
    simplex = lo.regularizers.Simplex()
    optimizer = lo.transforms.adam(0.05, regularizer=simplex)
    params, state = jnp.full(4, 0.25), optimizer.init(jnp.ones(4))
    update = jax.jit(optimizer.update)
    for _ in range(200):
        updates, state = update(params - TARGET, state, params)
        params = optax.apply_updates(params, updates)
        assert params.min() >= 0
        np.testing.assert_allclose(params.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(params, [1, 0, 0, 0], atol=1e-5)


REFUSED = {
    "heavy ball": optax.trace(0.9),
    "a learning rate": optax.sgd(0.1),
    "adam without a metric": optax.scale_by_adam(),
    "sign": optax.scale_by_sign(),
    "lion": optax.scale_by_lion(),
    "clipping": optax.clip(1.0),
    "clipping far away": optax.clip_by_global_norm(1e4),
    "muon": optax.contrib.scale_by_muon(),
    "adafactor": optax.scale_by_factored_rms(),
    "weight decay": optax.add_decayed_weights(0.1),
    "accumulation by 2": optax.MultiSteps(optax.identity(), 2),
    "accumulation by 3": optax.MultiSteps(optax.ema(0.9), 3).gradient_transformation(),
    "noise": optax.add_noise(0.1, 0.5, 0),
}


@pytest.mark.parametrize("direction", REFUSED.values(), ids=REFUSED)
def test_a_direction_without_the_metric_is_found_out(direction):
    with pytest.raises(ValueError, match=r"settles on D g.*optax\.ema"):
        proximal(L1(0.5), 0.1, direction)


@pytest.mark.parametrize(
    ("direction", "metric"),
    [
        (optax.scale_by_adam(eps=1e-2), adam_metric()),
        (optax.scale_by_adam(), adam_metric(eps_root=1e-2)),
        (optax.scale_by_rms(), rms_metric(eps=1e-2)),
        (optax.scale_by_factored_rms(), lambda state: 1.0),
        (optax.scale_by_amsgrad(), adam_metric()),
    ],
)
def test_a_wrong_metric_is_found_out(direction, metric):
    with pytest.raises(ValueError, match="off by a factor"):
        proximal(L1(0.5), 0.1, direction, metric=metric)


def test_a_metric_of_your_own_is_taken():
    metric = lambda state: 1 / (jnp.sqrt(state.nu_max) + 1e-8)
    optimizer = proximal(L1(0.5), FADING, optax.scale_by_amsgrad(), metric=metric)
    params = _descend(optimizer, jnp.ones(4), lambda x: x - TARGET, 12000)
    np.testing.assert_allclose(params, LASSO, atol=1e-3)


@pytest.mark.parametrize("nothing", [None, L1, 0.1])
def test_no_regularizer_is_refused(nothing):
    with pytest.raises(ValueError, match="regularizer as a lossopt regularizer"):
        proximal(nothing, 0.1)


def test_a_slow_average_is_given_the_time_to_settle():
    optimizer = proximal(L1(0.5), 0.1, optax.ema(0.999, debias=False))
    assert optimizer.init(TARGET).count == 0


def test_it_is_built_inside_jit_and_vmap():
    def first(b2, strength):
        rule = optax.scale_by_adam(b2=b2)
        optimizer = proximal(L1(strength), 0.1, rule, metric=adam_metric(b2))
        return optimizer.update(TARGET, optimizer.init(TARGET), TARGET)[0]

    b2, strengths = jnp.array([0.9, 0.99]), jnp.array([0.01, 0.02])
    got = jax.jit(jax.vmap(first))(b2, strengths)
    want = jnp.stack([first(0.9, 0.01), first(0.99, 0.02)])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_heavy_ball_is_refused_inside_jit():
    def build(x):
        return proximal(L1(0.5), 0.1, optax.trace(0.9)).init(x).count

    with pytest.raises(ValueError, match=r"optax\.ema"):
        jax.jit(build)(TARGET)


def test_multi_steps_around_it_works():
    inner = proximal(L1(0.5), 0.05, optax.ema(0.9))
    optimizer = optax.MultiSteps(inner, 3)
    params = _descend(optimizer, jnp.ones(4), lambda x: x - TARGET, 3000)
    np.testing.assert_allclose(params, LASSO, atol=1e-4)
    assert ((params == 0) == (LASSO == 0)).all()


def test_params_are_required():
    optimizer = proximal(L1(1.0), 0.1)
    with pytest.raises(ValueError, match="update\\(grads, state, params\\)"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_a_metric_that_a_prox_cannot_take_is_refused():
    optimizer = lo.transforms.adam(0.1, regularizer=lo.regularizers.Nuclear(0.1))
    params = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="Nuclear"):
        optimizer.update(params, optimizer.init(params), params)
    plain = lo.transforms.momentum(0.1, regularizer=lo.regularizers.Nuclear(0.1))
    assert plain.update(params, plain.init(params), params)[0].shape == (2, 3)


def test_adam_takes_all_regularizers_but_two():
    def fits(member, params):
        optimizer = lo.transforms.adam(0.1, regularizer=member)
        try:
            jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), params)
        except ValueError:
            return False
        return True

    rows = cases.REGULARIZERS | {"a sum": (L1(0.1) + lo.regularizers.L2(0.1), jnp.ones(3), None)}
    assert {k for k, (r, x, _) in rows.items() if not fits(r, x)} == {"Nuclear", "TotalVariation"}


def test_further_arguments_reach_the_direction():
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: g * value, updates), state

    needy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ValueError, match=r"can be tried on one matrix.*'value'"):
        proximal(L1(0.1), 0.1, needy)

    def lenient(updates, state, params=None, value=1.0, **extra):
        return update(updates, state, params, value=value)

    optimizer = proximal(
        L1(0.0), 0.1, optax.GradientTransformationExtraArgs(lambda params: (), lenient)
    )
    updates, _ = optimizer.update(TARGET, optimizer.init(TARGET), TARGET, value=3.0)
    np.testing.assert_allclose(updates, -0.3 * TARGET, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exact_zeros_survive_apply_updates(dtype):
    params = jnp.asarray(np.random.default_rng(0).normal(size=4096), dtype)
    optimizer = lo.transforms.adam(1e-3, regularizer=L1(1e6))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not optax.apply_updates(params, updates).any()
