"""Gradients in 16 microbatches of ragged masks: error, time and temporary memory of five ways.

Truth is the gradient of the plain formula on the whole batch in float64. All ways are given the
same whole batch and cut it alike, into pieces that hold from 1 to all of their rows valid.
`optax.MultiSteps` wraps an optimizer that does nothing and runs inside one program, which is
kinder than its usual loop. Smaller pieces make worse matrix products: the model with thin pieces
shows it, and only its error is judged.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.microbatching import AccumulationType, microbatch, reshape_batch_axis
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks._measure import compare, header, spread

PIECES = 16
CLASSES = 10
TARGETS = {"error": 1e-6, "time": 1.15, "memory": 0.25}
OURS = "lossopt.value_and_grad"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One objective, as lossopt and as plain optax write it, and the size of its model."""

    name: str
    objective: Callable
    plain: Callable
    rows: int
    width: int
    judged: tuple[str, ...] = tuple(TARGETS)
    features: int = 64
    depth: int = 4


def model(params, x):
    """A multilayer perceptron: class logits and one further output."""
    for layer in params[:-1]:
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"])
    out = x @ params[-1]["kernel"] + params[-1]["bias"]
    return out[:, :-1], out[:, -1]


def fit(params, batch):
    """One term."""
    logits, _ = model(params, batch["x"])
    return lo.mean(lo.losses.softmax_cross_entropy(logits, batch["label"]), batch["mask"])


def plain_fit(params, batch):
    """The formula of `fit`."""
    logits, _ = model(params, batch["x"])
    return _cross_entropy(logits, batch)


def composed(params, batch):
    """Two terms with weights of their own, and a penalty."""
    logits, output = model(params, batch["x"])
    losses = lo.losses.softmax_cross_entropy(logits, batch["label"])
    errors = lo.losses.squared_error(output, batch["target"])
    return {
        "fit": lo.mean(losses, batch["mask"]),
        "auxiliary": 0.5 * lo.mean(errors, batch["weight"]),
        "penalty": lo.constant(1e-3 * _squares(params)),
    }


def plain_composed(params, batch):
    """The formula of `composed`."""
    logits, output = model(params, batch["x"])
    errors, weight = (output - batch["target"]) ** 2, batch["weight"]
    auxiliary = jnp.sum(weight * errors) / jnp.sum(weight)
    return _cross_entropy(logits, batch) + 0.5 * auxiliary + 1e-3 * _squares(params)


def full_batch(problem):
    """No microbatches."""
    return jax.grad(problem.plain)


def ours(problem):
    """Exact, with one gradient tree."""
    fn = lo.value_and_grad(problem.objective, microbatches=PIECES)
    return lambda params, batch: fn(params, batch)[1]


def multi_steps(problem):
    """Averages the gradients of the microbatches' means."""
    optimizer = optax.MultiSteps(optax.identity(), PIECES)

    def fn(params, batch):
        def step(carry, piece):
            gradient = jax.grad(problem.plain)(params, piece)
            return optimizer.update(gradient, carry[1], params), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, reshape_batch_axis(batch, problem.rows // PIECES))[0][0]

    return fn


def microbatch_mean(problem):
    """Averages the gradients of the microbatches' means, too."""
    gradient = jax.grad(problem.plain)
    return microbatch(gradient, 1, problem.rows // PIECES, AccumulationType.MEAN)


def microbatch_sum(problem):
    """Adds up every term's weight and gradient by itself, and divides in the end."""

    def totals(params, batch):
        terms = jax.tree.leaves(problem.objective(params, batch), is_leaf=_is_mean)
        return [term.total for term in terms], [term.weight for term in terms]

    def share(params, batch):
        _, pull, weights = jax.vjp(lambda p: totals(p, batch), params, has_aux=True)
        chosen = [[jnp.float32(i == k) for i in range(len(weights))] for k in range(len(weights))]
        return [pull(one)[0] for one in chosen], weights

    def fn(params, batch):
        size = problem.rows // PIECES
        gradients, weights = microbatch(share, 1, size, AccumulationType.SUM)(params, batch)
        return jax.tree.map(lambda *g: sum(x / w for x, w in zip(g, weights)), *gradients)

    return fn


RIVALS = {
    "full batch, jax.grad": full_batch,
    OURS: ours,
    "optax.MultiSteps": multi_steps,
    "optax.microbatching, MEAN": microbatch_mean,
    "optax.microbatching, SUM by term": microbatch_sum,
}


def inputs(problem):
    """Parameters and a batch whose labels depend on its rows, from a fixed seed."""
    random = np.random.default_rng(0)
    sizes = [problem.features, *[problem.width] * problem.depth, CLASSES + 1]
    params = [
        {"kernel": random.normal(size=(a, b)) / a**0.5, "bias": np.zeros(b)}
        for a, b in itertools.pairwise(sizes)
    ]
    x = random.normal(size=(problem.rows, problem.features))
    batch = {
        "x": x,
        "label": np.argmax(x[:, :CLASSES], axis=1),
        "mask": _ragged(problem.rows, random),
        "target": x[:, 0] + random.normal(size=problem.rows),
        "weight": _ragged(problem.rows, random) * random.random(problem.rows),
    }
    return jax.tree.map(lambda x: x.astype(f"{x.dtype.kind}4"), (params, batch))


def truth(problem, params, batch):
    """The gradient of the plain formula in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(f"{x.dtype.kind}8"), (params, batch))
        return jax.device_get(jax.jit(jax.grad(problem.plain))(*wide))


def relative_error(gradient, true):
    """The largest over the leaves, each in the Euclidean norm."""
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))
    return max(jax.tree.leaves(jax.tree.map(lambda g, t: norm(g - t) / norm(t), gradient, true)))


def problems(quick):
    """What is measured: all of it, or the errors of one small model."""
    several = Problem("three terms, two weights", composed, plain_composed, rows=4096, width=384)
    if quick:
        return [dataclasses.replace(several, rows=512, width=32, depth=2, judged=("error",))]
    return [
        Problem("one term, ragged mask", fit, plain_fit, rows=4096, width=384),
        several,
        Problem("thin pieces", fit, plain_fit, rows=1024, width=1024, judged=("error",)),
    ]


def table(problem, measured, errors):
    """One row per rival; ratios are to the full batch."""
    first = next(iter(measured.values()))
    size, pieces = f"{problem.rows} rows", f"{PIECES} pieces of {problem.rows // PIECES}"
    out = Table(
        box=box.MARKDOWN,
        title=f"{problem.name}: {size}, {problem.depth} x {problem.width}, {pieces}",
    )
    for column in ("", "gradient error", "time / full", "ms", "memory / full", "MiB", "compile s"):
        out.add_column(column, justify="right" if column else "left")
    for name, m in measured.items():
        out.add_row(
            name,
            f"{errors[name]:.1e}",
            spread(m.ratios),
            f"{1e3 * m.seconds:.1f}",
            f"{m.memory / first.memory:.3f}",
            f"{m.memory / 2**20:.1f}",
            f"{m.compilation:.2f}",
        )
    return out


def verdicts(problem, measured, errors):
    """Whether each target is missed where it is judged, and the sentence that says how it went."""
    first = next(iter(measured.values()))
    got = {
        "error": errors[OURS],
        "time": np.median(measured[OURS].ratios),
        "memory": measured[OURS].memory / first.memory,
    }
    for name, most in TARGETS.items():
        judged, missed = name in problem.judged, not got[name] <= most
        verdict = ("MISSED" if missed else "met") + ("" if judged else ", not judged")
        yield judged and missed, f"{verdict}: {name} {got[name]:.3g}, target at most {most:g}"


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one small model, only its error judged"
    )
    parser.add_argument("--rounds", type=int, default=None, help="timed calls of every rival")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")  # some devices round to fewer bits
    rounds = options.rounds or (3 if options.quick else 20)
    console, missed = Console(width=120), 0
    console.print(header(), highlight=False)
    for problem in problems(options.quick):
        params, batch = inputs(problem)
        rivals = {name: rival(problem) for name, rival in RIVALS.items()}
        measured = compare(rivals, params, batch, rounds=rounds)
        true = truth(problem, params, batch)
        errors = {name: relative_error(m.result, true) for name, m in measured.items()}
        console.print(table(problem, measured, errors))
        for miss, sentence in verdicts(problem, measured, errors):
            console.print(sentence, highlight=False)
            missed += miss
    return missed


def _ragged(rows, random):
    """Ones and zeros: the strided pieces hold from one to all of their rows valid."""
    size = rows // PIECES
    valid = random.permutation(np.geomspace(1, size, PIECES).round())
    return (np.arange(size)[:, None] < valid).astype(float).reshape(rows)


def _cross_entropy(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return jnp.sum(batch["mask"] * losses) / jnp.sum(batch["mask"])


def _squares(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def _is_mean(x):
    return isinstance(x, lo.Mean)


if __name__ == "__main__":
    sys.exit(main())
