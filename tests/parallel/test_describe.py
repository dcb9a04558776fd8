"""A table of what lies where, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt.parallel._describe import in_words

TREE = {
    "dense": {"kernel": jnp.zeros((64, 512)), "bias": jnp.zeros(512)},
    "head": jax.ShapeDtypeStruct((512, 8), jnp.bfloat16),
    "scale": np.float32(1),
}


def test_table():
    mesh = lo.parallel.mesh(data=2, fsdp=4)
    assert lo.parallel.describe(TREE, mesh).splitlines() == [
        "dense/bias         512  float32   P()               2.0 KiB",
        "dense/kernel  64 x 512  float32   P(None, 'fsdp')  32.0 KiB",
        "head           512 x 8  bfloat16  P('fsdp',)        2.0 KiB",
        "scale               ()  float32   P()                   4 B",
        "",
        "one device alone   138.0 KiB",
        "each of 8 at rest   36.0 KiB",
        "at peak, gathered  172.0 KiB",
    ]


def test_what_a_model_cuts_is_not_gathered():
    mesh = jax.make_mesh((2, 4), ("fsdp", "model"), (jax.sharding.AxisType.Auto,) * 2)
    rules = [("kernel", jax.P("fsdp", "model")), ("head", jax.P(None, "model"))]
    *_, alone, rest, peak = lo.parallel.describe(TREE, mesh, rules).splitlines()
    kernel, head, others = 64 * 512 * 4, 512 * 8 * 2, 512 * 4 + 4
    assert alone.endswith(in_words(kernel + head + others))
    assert rest.endswith(in_words(kernel // 8 + head // 4 + others))
    assert peak.endswith(in_words(kernel // 8 + head // 4 + others + kernel // 4))


def test_other_names_and_none():
    mesh = jax.make_mesh((8,), ("all",), (jax.sharding.AxisType.Auto,))
    assert "P(None, 'all')" in lo.parallel.describe(TREE, mesh, axes={"fsdp": "all"})
    assert "P(None, 'all')" not in lo.parallel.describe(TREE, mesh, axes={"data": "all"})
    assert "0 B" in lo.parallel.describe({}, mesh)


def test_many_leaves_stand_below_each_other():
    tree = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((i + 1, 64), "int8")} for i in range(200)}
    table = lo.parallel.describe(tree, lo.parallel.mesh(data=1, fsdp=8)).split("\n\n")[0]
    lines = table.splitlines()
    assert len(lines) == 200
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_in_words(size, words):
    assert in_words(size) == words
