"""A small regression of three terms, its reference by hand, and what tests of objectives share."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo

ROWS, FEATURES = 24, 4
each_verb = pytest.mark.parametrize("verb", [lo.measure, lo.value_and_grad])
close = partial(np.testing.assert_allclose, rtol=1e-6, atol=5e-7)


def params():
    return {"w": np.array([0.3, -0.2, 0.5, 0.1], np.float32), "b": np.float32(0.1)}


def batch(mask="ragged", heavy="fractional", rows=ROWS):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(rows, FEATURES)), random.normal(size=rows)
    uniform = random.uniform(0.1, 1, rows)
    weights = {
        "ragged": uniform < np.linspace(0.1, 1, rows),
        "fractional": uniform * 0.1,
        "zero": uniform * 0,
        "huge": uniform * 1e30,
        "tiny": uniform * 1e-30,
        "mixed": uniform * np.resize([1e30, 1, 0, 1e-30], rows),
    }
    return jax.tree.map(
        np.float32, {"x": x, "y": y, "mask": weights[mask], "heavy": weights[heavy]}
    )


def objective(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    return {
        "fit": lo.mean(jnp.square(hidden - batch["y"]), batch["mask"]),
        "heads": (0.3 * lo.mean(jnp.square(hidden), batch["heavy"]),),
        "penalty": lo.constant(0.01 * jnp.sum(params["w"] ** 2)),
    }


def reference(params, batch):
    """The same by hand in numpy float64."""
    params, batch = jax.tree.map(np.float64, (params, batch))
    hidden = np.tanh(batch["x"] @ params["w"] + params["b"])
    fit, heads = [batch[name] / (batch[name].sum() or 1) for name in ("mask", "heavy")]
    value = fit @ (hidden - batch["y"]) ** 2 + 0.3 * heads @ hidden**2
    slope = (fit * 2 * (hidden - batch["y"]) + 0.3 * heads * 2 * hidden) * (1 - hidden**2)
    gradient = {"w": batch["x"].T @ slope + 0.02 * params["w"], "b": slope.sum()}
    return value + 0.01 * np.sum(params["w"] ** 2), gradient


@cache
def compiled(microbatches):
    return jax.jit(lo.value_and_grad(objective, microbatches=microbatches))


def plain(objective):
    return jax.value_and_grad(lambda *args, **kwargs: lo.value(objective(*args, **kwargs)))


def cut(tree, count):
    """Rows go round the full pieces; what is left over is a smaller last piece."""
    rows = len(jax.tree.leaves(tree)[0])
    size = -(-rows // count)
    full = rows // size
    cuts = [slice(i, full * size, full) for i in range(full)] + [slice(full * size, rows)]
    return [at(tree, cut) for cut in cuts if len(range(rows)[cut])]


def at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)
