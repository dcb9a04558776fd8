"""The budget: what it chooses, and that the compiled program keeps it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from tests.fused.test_laws import PLAIN
from tests.xla import emitters

TOKENS, DEPTH, CLASSES = 1024, 16, 2048
KINDS = {
    "plain": {},
    "all": {"soft_cap": 30.0, "label_smoothing": 0.1, "z_loss": 0.01, "bias": np.ones(CLASSES)},
    "padding": {"where": np.arange(CLASSES) < 2000, "label_smoothing": 0.1},
    "teacher": {"labels": (np.ones((TOKENS, 4), np.float32), np.ones((4, CLASSES), np.float32))},
    "forward": {"differentiable": "jvp"},
    "values": {"per_example": True},
}


@pytest.mark.parametrize("memory", ["1MiB", lo.fused.Chunks(columns=64)])
@pytest.mark.parametrize("kind", KINDS)
def test_temporaries_stay_within_the_budget(kind, memory):
    dtype = jnp.bfloat16 if kind == "all" else jnp.float32  # tiles in low precision come on top
    features, kernel = jnp.ones((TOKENS, DEPTH), dtype), jnp.ones((DEPTH, CLASSES), dtype)
    options = {"labels": np.zeros(TOKENS, np.int32), "memory": memory} | KINDS[kind]

    def total(features, kernel):
        out = lo.fused.linear_softmax_cross_entropy(features, kernel, **options)
        return jnp.sum(jax.tree.leaves(out)[0])

    compiled = (
        jax.jit(jax.grad(total, (0, 1))).lower(features, kernel).compile(PLAIN | emitters(True))
    )
    besides = 3 * 4 * DEPTH * (TOKENS + CLASSES) + 2**16  # gradients, accumulators, rows
    besides += 4 * DEPTH * CLASSES * ("where" in KINDS[kind])  # a copy of the kernel
    budget = 2**20 if memory == "1MiB" else 4 * 4 * TOKENS * 64
    assert compiled.memory_analysis().temp_size_in_bytes <= budget + besides


def shapes(tokens, classes, dtype=jnp.float32):
    shape = jax.ShapeDtypeStruct
    return shape((tokens, 8), dtype), shape((8, classes), dtype)


def test_tokens_are_cut_first_and_evenly():
    plan = lo.fused.plan(*shapes(3000, 50_000), memory="100MiB")
    assert (plan.rows, plan.columns, plan.tiles) == (250, 50_000, 12)
    assert plan.bytes == 2 * 4 * 250 * 50_000 <= 100 * 2**20
    assert (plan.arithmetic, plan.operations) == (1.0, 6 * 3000 * 8 * 50_000)
    assert plan.together == 1
    prime = lo.fused.plan(*shapes(3001, 50_000), memory="100MiB")
    assert (prime.rows, prime.tiles) == (251, 12)


def test_classes_are_cut_where_few_tokens_fit():
    plan = lo.fused.plan(*shapes(4096, 1_000_000), memory="64MiB")
    assert (plan.rows, plan.columns) == (4096, 2000)
    assert plan.arithmetic == 4 / 3
    assert lo.fused.plan(*shapes(64, 512), per_example=True).arithmetic == 4 / 3


def test_as_many_at_once_as_the_budget_holds():
    plan = lo.fused.plan(*shapes(100, 1000), memory="4MiB")
    assert (plan.tiles, plan.bytes) == (1, 2 * 4 * 100 * 1000)
    assert plan.together == 4 * 2**20 // plan.bytes == 5
    given = lo.fused.plan(*shapes(100, 1000), memory=lo.fused.Chunks(rows=100))
    assert given.together == 1


def test_accelerators_start_from_4096_tokens(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lo.fused.plan(*shapes(16384, 32_768)).rows == 4096
    assert lo.fused.plan(*shapes(16384, 262_144)).rows == 2048  # 4 GiB


def test_a_kernel_may_lie_the_other_way_and_sizes_may_be_given():
    features, kernel = shapes(100, 1000)
    turned = jax.ShapeDtypeStruct(kernel.shape[::-1], kernel.dtype)
    assert lo.fused.plan(features, turned, transposed=True) == lo.fused.plan(features, kernel)
    for given in (
        {"soft_cap": 30.0},
        {"loss": "teacher"},
        {"loss": "entropy"},
        {"differentiable": "jvp"},
    ):  # temporaries
        assert lo.fused.plan(*shapes(4096, 32_768), **given).tiles > 8
    plan = lo.fused.plan(features, kernel, memory=lo.fused.Chunks(rows=30), token_shards=2)
    assert (plan.rows, plan.tiles, plan.token_shards) == (30, 2, 2)
    assert str(plan).endswith("on each of 2 devices")


@pytest.mark.parametrize("memory", ["2GiB", 2**31, "2147483648", "2.0 GiB", "2147483.648kB"])
def test_a_budget_has_many_names(memory):
    assert lo.fused.plan(*shapes(5000, 32_768), memory=memory).rows == 5000


def test_the_least_budget_works():
    with pytest.raises(ValueError, match=r"The least that works is (\d+) bytes") as error:
        lo.fused.plan(*shapes(1000, 9000), memory="1kB")
    least = int(str(error.value).split("memory=")[1].split()[0])
    assert lo.fused.plan(*shapes(1000, 9000), memory=least).bytes <= least
    with pytest.raises(ValueError, match="The least that works"):
        lo.fused.plan(*shapes(1000, 9000), memory=least - 1)
