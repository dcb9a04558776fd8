"""Losses of a linear layer: precision, labels, masks, and the life they lead in objectives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lossopt as lo
from tests.fused.test_laws import near, run, wide

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(23, 5)).astype(np.float32)
KERNEL = rng.normal(size=(5, 37)).astype(np.float32)
LABELS = rng.integers(0, 37, 23).astype(np.int32)
loss = lo.fused.linear_softmax_cross_entropy
CUTS = lo.fused.Chunks(rows=8), lo.fused.Chunks(columns=16)


def pair_gradient(fn):
    return jax.value_and_grad(lambda pair: fn(*pair).total)


@pytest.mark.parametrize("memory", CUTS)
def test_losses_near_zero_keep_their_digits(memory):
    features, labels = FEATURES, LABELS.copy()
    labels[:] = np.argmax(features @ KERNEL, axis=1)
    margin = 2.5 * KERNEL[:, labels].T  # moves each token towards its label
    features = (features + margin).astype(np.float32)
    logits = features.astype(np.float64) @ KERNEL.astype(np.float64)
    own = logits[np.arange(23), labels][:, None]
    rivals = np.where(np.arange(37)[None, :] == labels[:, None], -np.inf, logits)
    want = np.log1p(np.exp(rivals - own).sum(axis=1))
    assert (want < 2e-4).sum() >= 5
    got = loss(features, KERNEL, labels, memory=memory, per_example=True)
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("memory", CUTS)
def test_a_teacher_almost_equal_to_the_student_keeps_its_digits(memory):
    teacher = FEATURES, (KERNEL * (1 + 1e-3)).astype(np.float32)
    got = loss(FEATURES, KERNEL, teacher, memory=memory, per_example=True)
    logits = [FEATURES.astype(np.float64) @ np.float64(k) for k in (KERNEL, teacher[1])]
    student, teacher = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in logits)
    want = (np.exp(teacher) * (teacher - student)).sum(axis=1)
    assert np.median(want) < 1e-5
    np.testing.assert_allclose(got, want, rtol=1e-2)
    np.testing.assert_array_less(-1e-12, got)


def test_confident_tokens_have_second_derivatives():
    logits = np.float32([[50, 0, 1], [0, 200, 0], [0, 90, 90]])
    labels, kernel = np.array([0, 1, 2]), np.eye(3, dtype=np.float32)
    curve = lambda fn, x: jax.hessian(lambda x: jnp.sum(fn(x)))(x)
    with jax.enable_x64(True):
        dense = partial(lo.losses.softmax_cross_entropy, labels=labels)
        want = run(partial(curve, dense), wide(logits))
    for memory in (lo.fused.Chunks(rows=2), lo.fused.Chunks(columns=2)):
        fn = lambda x, memory=memory: (
            loss(x, kernel, labels, memory=memory, differentiable="jvp").total
        )
        near(run(partial(curve, fn), logits), want, 1e-6)


def test_classes_that_a_bias_excludes():
    bias = np.where(np.arange(37) < 20, 0, -np.inf).astype(np.float32)
    teacher = FEATURES, np.where(bias == 0, KERNEL[::-1], -1e30 * np.abs(KERNEL)).astype(np.float32)
    for labels in (LABELS % 20, (np.abs(FEATURES), teacher[1])):
        fn = lambda x, memory, labels=labels: (
            loss(x, KERNEL, labels, bias=bias, memory=memory).total
        )
        got, want = (run(jax.value_and_grad(partial(fn, memory=cut)), FEATURES) for cut in CUTS)
        assert np.isfinite(want[0])
        near(got, want, 2e-6)


@pytest.mark.parametrize("memory", CUTS)
def test_a_label_of_no_class_is_nan(memory):
    where, labels = np.arange(37) < 30, LABELS % 30
    labels[[2, 5]] = 30, 36

    def fn(features, weights=None, **options):
        return loss(features, KERNEL, labels, weights, where=where, memory=memory, **options)

    values = run(partial(fn, per_example=True), FEATURES)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), [2, 5])
    gradient = jax.value_and_grad(lambda *args: fn(*args).total)
    (whole, slope), (_, want) = (
        run(gradient, FEATURES),
        run(gradient, FEATURES, 1.0 * (labels < 30)),
    )
    assert np.isnan(whole)
    near(slope, want, 1e-6)


@pytest.mark.parametrize("cap", [np.inf, np.finfo(np.float32).max, 1e30])
def test_a_cap_without_end_is_none(cap):
    def both(features, cap):
        capped = lambda x, cap: loss(x, KERNEL, LABELS, soft_cap=cap).total
        return jax.value_and_grad(capped, (0, 1))(features, cap)

    features = 1e-3 * FEATURES
    value, (slope, to_cap) = run(both, features, np.float32(cap))
    want = run(jax.value_and_grad(lambda x: loss(x, KERNEL, LABELS).total), features)
    near((value, slope), want, 1e-6)
    assert to_cap == 0
    near(loss(features, KERNEL, LABELS, soft_cap=cap).total, value, 1e-6)


def test_small_integers_are_labels_too():
    kernel = np.tile(KERNEL, (1, 8))  # 296 classes, which int8 cannot count
    want = loss(FEATURES, kernel, LABELS)
    for dtype in (np.int8, np.uint8, np.uint16):
        got = loss(FEATURES, kernel, LABELS.astype(dtype), ignore_index=LABELS[0] - 256)
        near(got, want, 1e-6)


def test_float16_takes_weights_of_any_size():
    features, kernel = (jnp.asarray(x, jnp.float16) for x in (FEATURES, KERNEL))
    for memory in CUTS:
        fn = lambda kernel, size, memory=memory: (
            loss(features, kernel, LABELS, np.full(23, size, np.float32), memory=memory).value
        )
        got = [run(jax.grad(partial(fn, size=size)), kernel) for size in (1e6, 1e-9)]
        near(*got, 2e-3)
        assert np.max(np.abs(got[0])) > 1e-3


def test_one_wrong_label_leaves_the_gradient_of_the_others():
    wrong = np.where(np.arange(23) == 3, 99, LABELS)
    fn = lambda labels, weights=None: jax.grad(lambda x: loss(x, KERNEL, labels, weights).total)
    near(run(fn(wrong), FEATURES), run(fn(LABELS, 1.0 * (np.arange(23) != 3)), FEATURES), 2e-6)


def test_what_is_masked_may_be_huge():
    features = FEATURES.copy()
    features[3] = 3e38
    fn = lambda x: loss(x, KERNEL, LABELS, np.float32(np.arange(23) != 3)).total
    near(run(jax.grad(fn), features), run(jax.grad(fn), FEATURES), 2e-6)


def test_large_logits_are_survived():
    for cut in CUTS:
        fn = partial(pair_gradient(partial(loss, labels=LABELS, memory=cut)))
        value, gradient = run(fn, (1e4 * FEATURES, KERNEL))
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in gradient)


def test_bfloat16_is_summed_in_float32_however_it_is_cut():
    features, kernel = (rng.normal(size=shape) for shape in ((512, 16), (16, 101)))
    pair = jnp.asarray(features, jnp.bfloat16), jnp.asarray(kernel / 4, jnp.bfloat16)
    labels = rng.integers(0, 101, 512).astype(np.int32)
    with jax.enable_x64(True):
        fn = pair_gradient(partial(loss, labels=labels))
        want, slopes = jax.tree.map(np.asarray, run(fn, wide(pair)))
    errors = []
    for cut in (*(lo.fused.Chunks(rows=n) for n in (8, 512)), CUTS[1]):
        value, gradient = run(pair_gradient(partial(loss, labels=labels, memory=cut)), pair)
        assert {x.dtype for x in gradient} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_allclose(value, want, rtol=1e-6)
        off = np.asarray(gradient[1], np.float64) - slopes[1]
        errors.append(np.linalg.norm(off) / np.linalg.norm(slopes[1]))
    assert max(errors) < 2e-3, errors
    assert max(errors) < 1.02 * min(errors), errors


@pytest.mark.parametrize("memory", CUTS)
def test_labels_out_of_range(memory):
    labels = LABELS.copy()
    labels[[2, 5]] = 37, -1
    kept, weights = np.delete(np.arange(23), [2, 5]), (np.arange(23) != 2).astype(np.float32)

    def all_of_it(features):
        values = loss(features, KERNEL, labels, memory=memory, per_example=True)
        whole = loss(features, KERNEL, labels, memory=memory)
        some = loss(features, KERNEL, labels, weights, memory=memory, ignore_index=-1)
        return values, whole, some, loss(features[kept], KERNEL, LABELS[kept], memory=memory)

    values, whole, some, want = run(all_of_it, FEATURES)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), [2, 5])
    assert jnp.isnan(whole.total)
    near(some, want, 1e-6)


def test_labels_out_of_range_are_named():
    fn = lambda labels: loss(FEATURES, KERNEL, labels, memory=CUTS[0])
    labels = LABELS.copy()
    labels[[2, 5]] = 37, -1
    error, _ = run(checkify.checkify(fn), labels)
    assert "expected labels from 0 to 36, got -1 to 37" in error.get()


def test_probabilities_out_of_range():
    labels = rng.random((23, 37)).astype(np.float32)
    labels[3, 4] = 1.5
    values = lo.fused.linear_sigmoid_cross_entropy(FEATURES, KERNEL, labels, per_example=True)
    assert np.flatnonzero(np.isnan(values)).tolist() == [3]


def test_tokens_have_any_shape_and_weights_may_lead():
    weights = np.array([2.0, 0.5], np.float32)

    def all_of_it(features, labels):
        flat = loss(features, KERNEL, labels, np.repeat(weights, 11))
        features, labels = features.reshape(2, 11, 5), labels.reshape(2, 11)
        values = loss(features, KERNEL, labels, per_example=True)
        one = loss(features[0, 0], KERNEL, labels[0, 0], per_example=True)
        none = loss(features[:0], KERNEL, labels[:0])
        return flat, loss(features, KERNEL, labels, weights), values, one, none

    flat, led, values, one, none = run(all_of_it, FEATURES[:22], LABELS[:22])
    near(led, flat, 1e-6)
    assert values.shape == (2, 11)
    near(one, values[0, 0], 1e-6)
    assert (float(none.value), float(none.weight)) == (0.0, 0.0)


def test_a_tied_embedding_is_read_as_it_lies():
    known = {"bias": KERNEL[0], "where": np.isin(np.arange(37), LABELS)}
    fn = lambda kernel, **options: loss(FEATURES, kernel, LABELS, **known, **options).total
    for memory in CUTS:
        turned = partial(fn, memory=memory, transposed=True)
        value, gradient = run(jax.value_and_grad(turned), KERNEL.T)
        want = run(jax.value_and_grad(fn), KERNEL)
        near((value, gradient.T), want, 2e-6)
        text = jax.jit(turned).lower(KERNEL.T).as_text()
        assert "stablehlo.transpose" not in text


def test_dtypes_may_differ():
    kernel = jnp.asarray(KERNEL, jnp.bfloat16)
    value, gradient = pair_gradient(partial(loss, labels=LABELS))((FEATURES, kernel))
    near(value, loss(FEATURES, np.asarray(kernel, np.float32), LABELS).total, 1e-6)
    assert [x.dtype for x in gradient] == [jnp.float32, jnp.bfloat16]


def test_log_probs_are_those_of_the_dense_softmax():
    weights, cotangent = (
        (LABELS % 3 != 0).astype(np.float32),
        np.cos(np.arange(23, dtype=np.float32)),
    )
    spoiled = np.where(weights[:, None] == 0, np.nan, FEATURES).astype(np.float32)
    clean = np.where(weights[:, None] == 0, 0, FEATURES).astype(np.float32)

    def dense(x):
        log_probs = jax.nn.log_softmax(x @ KERNEL)
        return jnp.where(weights == 0, 0, log_probs[np.arange(23), LABELS])

    fused = lambda x: lo.fused.sequence_log_probs(x, KERNEL, LABELS, weights)
    both = lambda fn: lambda x: (fn(x), jax.grad(lambda x: jnp.vdot(cotangent, fn(x)))(x))
    near(run(both(fused), spoiled), run(both(dense), clean), 2e-6)


def test_entropies_come_with_log_probs():
    weights, where = LABELS % 3 != 0, np.arange(37) != 30
    inputs = {"bias": KERNEL[0], "soft_cap": np.float32(4), "temperature": np.float32(1.7)}
    inputs |= {"features": FEATURES, "kernel": KERNEL}
    labels, along = np.where(LABELS == 30, 0, LABELS), jax.tree.map(np.cos, inputs)

    def dense(inputs):
        z = inputs["features"] @ inputs["kernel"] + inputs["bias"][None, :]
        z = inputs["soft_cap"] * jnp.tanh(z / inputs["soft_cap"]) / inputs["temperature"]
        logs = jax.nn.log_softmax(jnp.where(where[None, :], z, -1e9))
        both = logs[np.arange(23), labels], -jnp.sum(jnp.exp(logs) * logs, axis=1)
        return [jnp.where(weights, x, 0) for x in both]

    def fused(memory, form):
        def fn(inputs):
            inputs = inputs | {"where": where, "memory": memory, "differentiable": form}
            pair = inputs.pop("features"), inputs.pop("kernel")
            return list(lo.fused.sequence_log_probs(*pair, labels, weights, entropy=True, **inputs))

        return fn

    def gradient(fn, inputs):
        def total(inputs):
            shown = fn(inputs)
            return sum(jnp.vdot(jnp.cos(jnp.arange(23) + i), x) for i, x in enumerate(shown)), shown

        return jax.grad(total, has_aux=True)(inputs)

    curve = lambda fn, *args: jax.jvp(partial(gradient, fn), args[:1], args[1:])

    with jax.enable_x64(True):
        args = wide((inputs, along))
        want = run(partial(curve, dense), *args)
        near(run(partial(curve, fused(CUTS[1], "vjp")), *args), want, 1e-10)
        for how in ((CUTS[0], "vjp"), (CUTS[1], "jvp")):
            near(run(partial(gradient, fused(*how)), args[0]), want[0], 1e-11)


@pytest.mark.parametrize("memory", CUTS)
def test_entropies_near_zero_keep_their_digits(memory):
    logits = np.zeros((4, 37), np.float32)
    logits[np.arange(4), 3] = 5, 20, 50, 20
    logits[3] += 1e6
    fn = lambda bias: lo.fused.sequence_log_probs(
        jnp.zeros(1), jnp.zeros((1, 37)), 3, bias=bias, memory=memory, entropy=True
    )[1]
    got, slope = run(jax.vmap(jax.value_and_grad(fn)), logits)
    others = 36 * np.exp(-np.float64([5, 20, 50, 20]))
    share = others / (1 + others)
    want = np.log1p(others) - share * np.log(others / 36)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    fall = -(np.log1p(-share) + want) / (1 + others)  # of the label's logit
    np.testing.assert_allclose(slope[:, 3], fall, rtol=1e-4)


@pytest.mark.parametrize("memory", CUTS)
def test_an_impossible_token_leaves_the_entropy_of_the_others(memory):
    bias = np.where(np.arange(37) == 3, -np.inf, KERNEL[0]).astype(np.float32)

    def both(bias):
        more = {"bias": bias, "memory": memory, "entropy": True}
        return lo.fused.sequence_log_probs(FEATURES[0], KERNEL, 3, **more)

    log_prob, entropy = run(both, bias)
    assert log_prob == -np.inf
    logits = np.delete(FEATURES[0].astype(np.float64) @ KERNEL + bias, 3)
    shares = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(entropy, -(shares * np.log(shares)).sum(), rtol=1e-6)
    assert np.isfinite(run(jax.grad(lambda bias: both(bias)[1]), bias)).all()


def test_objectives_microbatches_and_remat():
    batch = {"x": FEATURES, "y": LABELS, "w": (LABELS % 5).astype(np.float32)}

    def objective(kernel, batch):
        fn = jax.checkpoint(lambda x: loss(x, kernel, batch["y"], batch["w"]))
        return {"fit": fn(batch["x"]), "penalty": lo.constant(lo.regularizers.L2(0.1)(kernel))}

    (value, _), gradient = run(lo.value_and_grad(objective, microbatches=4), KERNEL, batch)
    (want, _), slope = run(lo.value_and_grad(objective), KERNEL, batch)
    near((value, gradient), (want, slope), 2e-6)


def test_sweeps_of_any_number():
    def total(smoothing, z_loss, cap):
        numbers = {"label_smoothing": smoothing, "z_loss": z_loss, "soft_cap": cap}
        return loss(FEATURES, KERNEL, LABELS, **numbers).total

    numbers = np.array([[0.0, 0.1], [0.0, 0.01], [4.0, 9.0]])
    with jax.enable_x64(True):
        both = run(jax.vmap(jax.value_and_grad(total, (0, 1, 2))), *numbers)
        single = run(jax.value_and_grad(total, (0, 1, 2)), *numbers[:, 1])
        near(jax.tree.map(lambda x: x[1], both), single, 1e-7)  # the logits are float32


def test_weights_have_a_slope_even_from_zero():
    weights = np.where(np.arange(23) % 2, 0.0, 1.0).astype(np.float32)
    fn = lambda weights, **options: loss(FEATURES, KERNEL, LABELS, weights, **options)
    slope = run(jax.grad(lambda weights: fn(weights).total), weights)
    near(slope, run(partial(fn, per_example=True), np.ones(23)), 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": KERNEL.T}, r"kernel of shape \[depth, classes\] with depth 5, got \(37, 5\)"),
        ({"kernel": KERNEL[0]}, "kernel of shape"),
        ({"kernel": KERNEL.astype(int)}, "floating kernel"),
        ({"labels": LABELS[:-1]}, r"labels of shape \(23,\), got \(22,\)"),
        ({"labels": LABELS[:, None]}, r"labels of shape \(23,\), got \(23, 1\)"),
        ({"labels": (FEATURES, KERNEL[:, :9])}, "a teacher of 37 classes, got 9"),
        ({"labels": (FEATURES[:9], KERNEL)}, "teacher_features of shape"),
        ({"labels": (FEATURES, KERNEL), "ignore_index": 0}, "class numbers with label_smoothing"),
        ({"weights": -np.ones(23)}, "weights >= 0, got -1.0"),
        ({"weights": np.ones((23, 1))}, "weights to match the leading axes"),
        ({"bias": np.ones(5)}, r"bias of shape \(37,\)"),
        ({"label_smoothing": 1.5}, "label_smoothing <= 1"),
        ({"z_loss": -1.0}, "z_loss >= 0"),
        ({"soft_cap": 0.0}, "soft_cap > 0"),
        ({"soft_cap": np.ones(1)}, r"soft_cap of shape \(\), got \(1,\)"),
        ({"label_smoothing": np.ones(23)}, "label_smoothing of shape"),
        ({"labels": (FEATURES,)}, "a teacher as"),
        ({"labels": (FEATURES, KERNEL, np.ones(5))}, r"teacher_bias of shape \(37,\)"),
        ({"labels": (FEATURES, KERNEL, None, 0.0)}, "teacher_soft_cap > 0"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"where": np.ones(5, bool)}, r"where of shape \(37,\), got \(5,\)"),
        ({"memory": 100}, "The least that works is 2368 bytes"),
        ({"memory": "1 elephant"}, "bytes such as"),
        ({"memory": lo.fused.Chunks()}, "Chunks of rows or of columns"),
        ({"memory": lo.fused.Chunks(rows=0)}, "rows >= 1, got 0"),
        ({"differentiable": "both"}, "'vjp' or 'jvp'"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"features": FEATURES, "kernel": KERNEL, "labels": LABELS} | change
    with pytest.raises(ValueError, match=message):
        loss(**arguments)
    if "2368" in message:
        loss(**arguments | {"memory": 2368})
