"""Each law of a loss is broken by a loss that breaks no other."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.testing import _losses

check_loss = lo.testing.check_loss

RNG = np.random.default_rng(0)
PREDICTIONS = RNG.normal(size=7).astype(np.float32)
TARGETS = RNG.uniform(0.1, 0.9, size=7).astype(np.float32)
LOGITS, LABELS = RNG.normal(size=(7, 3)).astype(np.float32), np.arange(7) % 3


def _checked(predictions, targets):
    if jnp.shape(predictions) != jnp.shape(targets):
        raise ValueError("Expected equal shapes.")
    wide = jnp.promote_types(jnp.result_type(predictions), jnp.float32)
    return jnp.asarray(predictions, wide), jnp.asarray(targets, wide)


def _good(predictions, targets):
    predictions, targets = _checked(predictions, targets)
    return jnp.square(predictions - targets)


def _broadcasts(predictions, targets):
    wide = jnp.promote_types(jnp.result_type(predictions), jnp.float32)
    return jnp.square(jnp.asarray(predictions, wide) - targets)


def _averages(predictions, targets):
    return jnp.mean(_good(predictions, targets))


def _narrows(predictions, targets):
    narrow = {jnp.dtype("float32"): jnp.float16}.get(jnp.result_type(predictions))
    errors = jnp.abs(jnp.subtract(*_checked(predictions, targets)))
    return errors if narrow is None else errors.astype(narrow)


def _differs_when_traced(predictions, targets):
    traced = isinstance(predictions, jax.core.Tracer) and not jax.config.jax_enable_x64
    return (1.001 if traced else 1.0) * _good(predictions, targets)


@jax.custom_vjp
def _halves_the_slope(predictions, targets):
    return _good(predictions, targets)


def _halves_forward(predictions, targets):
    return _good(predictions, targets), (predictions, targets)


def _halves_backward(residuals, cotangent):
    predictions, targets = residuals
    slope = (predictions - targets) * cotangent
    return slope.astype(predictions.dtype), jnp.zeros_like(targets)


_halves_the_slope.defvjp(_halves_forward, _halves_backward)


def _stays_narrow(predictions, targets):
    return _good(predictions, targets).astype(jnp.result_type(predictions))


def _reads_other_rows(predictions, targets):
    return _good(predictions, targets) + 0 * jnp.sum(targets)


def _knows_its_length(predictions, targets):
    share = 2.0 if jnp.shape(predictions) in [(1,), (2,), (3,)] else 1.0
    return share * _good(predictions, targets)


def _overflows_to_nan(predictions, targets):
    predictions, targets = _checked(predictions, targets)
    return jnp.log(1 + jnp.exp(predictions)) - targets * predictions


def _falls_to_minus_infinity(predictions, targets):
    predictions, targets = _checked(predictions, targets)
    slope = jnp.maximum(-predictions, 0)
    return -jnp.exp(jnp.where(slope > 100, slope, 0))


def _has_a_nan_slope(predictions, targets):
    predictions, targets = _checked(predictions, targets)
    far = jnp.abs(predictions) > 100
    return jnp.where(far, 1.0, jnp.square(predictions - targets) + jnp.exp(jnp.abs(predictions)))


BREAKS = {
    "mismatched_shapes_are_refused": [(_broadcasts, r"input 0 of shape \(7, 1\) was taken")],
    "one_number_per_example": [(_narrows, "in float32 or wider; got float16")],
    "jit_and_vmap_agree": [(_differs_when_traced, "jit must agree")],
    "gradient_is_right": [(_halves_the_slope, None)],
    "low_precision_is_widened": [(_stays_narrow, "must give a float32 loss; got bfloat16")],
    "padding_is_never_read": [(_reads_other_rows, "padding must not be read")],
    "pooled_parts_are_the_whole": [(_knows_its_length, "pooled must be the whole")],
    "large_predictions_are_survived": [
        (_overflows_to_nan, "gradients at ±10000 must not be NaN"),
        (_falls_to_minus_infinity, "must not give NaN"),
        (_has_a_nan_slope, "gradients at ±10000 must not be NaN"),
    ],
}
CASES = [(law, *case) for law, cases in BREAKS.items() for case in cases]


LAWS = {law.__name__: law for law in _losses.LAWS}
LAWS["large_predictions_are_survived"] = partial(_losses.large_predictions_are_survived, size=1e4)


def _broken(fn, *inputs):
    """The names of the laws that do not hold."""
    names = []
    for name, law in LAWS.items():
        try:
            law(fn, *inputs)
        except AssertionError:
            names.append(name)
    return names


def test_every_law_is_broken_here():
    assert LAWS.keys() == BREAKS.keys()


def test_a_good_loss_passes():
    check_loss(_good, PREDICTIONS, TARGETS)
    assert _broken(_good, PREDICTIONS, TARGETS) == []


@pytest.mark.parametrize(("law", "loss", "message"), CASES)
def test_a_law_catches_what_breaks_only_it(law, loss, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(loss, PREDICTIONS, TARGETS)
    assert _broken(loss, PREDICTIONS, TARGETS) == [law]


@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (lo.losses.squared_error, (PREDICTIONS, TARGETS)),
        (partial(lo.losses.huber, delta=0.5), (PREDICTIONS, TARGETS)),
        (lambda x, y: _good(x, jnp.asarray(y, x.dtype)), (PREDICTIONS, LABELS == 1)),
        (lambda x: jnp.square(jnp.asarray(x, jnp.promote_types(x.dtype, "float32"))), (LOGITS,)),
    ],
)
def test_losses_of_several_kinds_pass(fn, inputs):
    check_loss(fn, *inputs)


def test_refusing_by_assertion_is_refusing():
    def loss(predictions, targets):
        chex.assert_equal_shape([predictions, targets])
        return _good(predictions, targets)

    check_loss(loss, PREDICTIONS, TARGETS)


@pytest.mark.parametrize("narrow", [0, 1])
def test_every_input_is_tried_in_a_wrong_shape(narrow):
    def loss(predictions, targets):
        inputs = [predictions, targets]
        if jnp.ndim(inputs[narrow]) == 2:
            raise ValueError("Expected one axis.")
        return _broadcasts(predictions, targets)

    with pytest.raises(AssertionError, match=rf"input {1 - narrow} of shape \(7, 1\) was taken"):
        check_loss(loss, PREDICTIONS, TARGETS)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (_averages, r"one number per example.* got shape \(\) for .*lossopt.mean"),
        (lambda p, t: jnp.mean((p - t) ** 2), r"got shape \(\) for .*lossopt.mean"),
        (lambda p, t: jnp.sum((p - t) ** 2, axis=-1), r"got shape \(\)"),
        (lambda p, t: _good(p, t)[:-1], r"got shape \(6,\) for inputs of \(7,\)"),
        (lambda p, t: _good(p, t)[:, None], r"got shape \(7, 1\)"),
        (lambda p, t: jnp.where(p > 0, jnp.nan, _good(p, t)), "finite"),
    ],
)
def test_one_number_per_example_is_asked(fn, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(fn, PREDICTIONS, TARGETS)


def test_coupled_rows_are_caught_by_vmap():
    coupled = lambda p, t: _good(p, t) + jnp.mean(jnp.asarray(p, jnp.float32))
    with pytest.raises(AssertionError, match="vmap must agree"):
        _losses.jit_and_vmap_agree(coupled, PREDICTIONS, TARGETS)
    with pytest.raises(AssertionError, match="padding must not be read"):
        _losses.padding_is_never_read(coupled, PREDICTIONS, TARGETS)
    with pytest.raises(AssertionError, match="pooled must be the whole"):
        _losses.pooled_parts_are_the_whole(coupled, PREDICTIONS, TARGETS)


def test_other_rows_gradients_are_read():
    @jax.custom_vjp
    def coupled(predictions, targets):
        return _good(predictions, targets)

    def backward(residuals, g):
        slope = 2 * (residuals[0] - residuals[1]) * g
        return slope + 0 * jnp.sum(residuals[0]), jnp.zeros_like(residuals[1])

    coupled.defvjp(lambda p, t: (_good(p, t), (p, t)), backward)
    assert "padding_is_never_read" in _broken(coupled, PREDICTIONS, TARGETS)
    with pytest.raises(AssertionError, match="must not reach other rows' gradients"):
        _losses.padding_is_never_read(coupled, PREDICTIONS, TARGETS)


def test_labels_out_of_range_are_padding():
    _losses.padding_is_never_read(lambda x, y: x[np.arange(len(y)), y], LOGITS, LABELS)

    def refuses(logits, labels):
        return logits[:, 0] + jnp.where(jnp.min(labels) < 0, 1.0, 0.0)

    with pytest.raises(AssertionError, match="padding must not be read"):
        _losses.padding_is_never_read(refuses, LOGITS, LABELS)


def test_any_size_of_predictions_is_tried():
    sharp = lambda p, t: _good(p, t) + 0 * jnp.log(jnp.exp(_checked(p, t)[0]))
    check_loss(sharp, PREDICTIONS, TARGETS, size=50)
    with pytest.raises(AssertionError, match="±100 must not"):
        check_loss(sharp, PREDICTIONS, TARGETS, size=100)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("alone", [True, False])
def test_large_predictions_have_all_signs(sign, alone):
    """NaN where all, or where only some, predictions are large and of one sign."""
    found = jnp.all if alone else lambda x: jnp.any(x) & ~jnp.all(x)
    loss = lambda p, t: jnp.where(found(sign * p > 1e3), jnp.nan, p)
    with pytest.raises(AssertionError, match="must not give NaN"):
        LAWS["large_predictions_are_survived"](loss, PREDICTIONS, TARGETS)


def test_the_overflow_to_infinity_is_allowed():
    check_loss(lambda p, t: jnp.exp(_checked(p, t)[0]) - _checked(p, t)[1], PREDICTIONS, TARGETS)


@pytest.mark.parametrize(
    "untraceable",
    [
        lambda p, t: np.square(np.asarray(p, np.float32) - np.asarray(t, np.float32)),
        lambda p, t: _good(p, t) * float(jnp.max(t)),
    ],
)
def test_what_cannot_be_traced_is_told_so(untraceable):
    with pytest.raises(AssertionError, match="jit"):
        _losses.jit_and_vmap_agree(untraceable, PREDICTIONS, TARGETS)


def test_too_few_rows_to_pad_are_refused():
    with pytest.raises((AssertionError, ValueError), match="4 rows"):
        check_loss(_good, PREDICTIONS[:2], TARGETS[:2])
