"""What the fused losses make of lists, and of whole numbers that jax would wrap."""

from functools import partial

import numpy as np
import pytest

import lossopt as lo

X, KERNEL, LABELS = np.eye(4, 3), np.eye(3, 5), np.array([0, 1, 2, 1])
linear = partial(lo.fused.linear_softmax_cross_entropy, X, KERNEL)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("labels", lambda x: linear(x * LABELS)),
        ("weights", lambda x: linear(LABELS, x * np.ones(4, int))),
        ("ignore_index", lambda x: linear(LABELS, ignore_index=x)),
        ("soft_cap", lambda x: linear(LABELS, soft_cap=x)),
        ("tokens", lambda x: lo.fused.sequence_log_probs(X, KERNEL, x * LABELS)),
        ("labels", lambda x: lo.fused.supervised_contrastive(X, x * LABELS, temperature=1.0)),
        ("weights", lambda x: lo.fused.clip(X, X, 1.0, x * np.ones(4, int))),
        ("weights", lambda x: lo.fused.pairwise_hinge(X[:, 0], LABELS, x * np.ones(4, int))),
    ],
)
def test_a_whole_number_that_no_int32_holds_is_refused_by_its_name(name, call):
    with pytest.raises(ValueError, match=f"Expected {name} within 32 bits, got 4294967296"):
        call(np.int64(2**32))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("features", lambda: lo.fused.linear_softmax_cross_entropy(X.tolist(), KERNEL, LABELS)),
        ("kernel", lambda: lo.fused.linear_softmax_cross_entropy(X, KERNEL.tolist(), LABELS)),
        ("labels", lambda: linear(LABELS.tolist())),
        ("weights", lambda: linear(LABELS, [1, 1, 1, 1])),
        ("tokens", lambda: lo.fused.sequence_log_probs(X, KERNEL, LABELS.tolist())),
        ("labels", lambda: lo.fused.linear_sigmoid_cross_entropy(X, KERNEL, [[0] * 5] * 4)),
    ],
)
def test_a_list_is_refused_by_its_name(name, call):
    with pytest.raises(TypeError, match=f"Expected {name} as an array .* got list"):
        call()


def test_labels_are_integers():
    floats = LABELS.astype(np.float32)
    with pytest.raises(TypeError, match="Expected integer labels, got float32"):
        linear(floats)
    with pytest.raises(TypeError, match="Expected integer tokens, got float32"):
        lo.fused.sequence_log_probs(X, KERNEL, floats)
