"""Losses without the big intermediate: time and memory of value and gradient, against the dense.

The dense losses are optax's on the whole matrix of logits, or the formula where optax has none.
Memory is what XLA plans for temporaries, `memory_analysis`, and by how much a call raises the peak
of the process. Where torch is installed, its chunked `linear_cross_entropy` runs beside ours.
"""

import argparse
import dataclasses
import gc
import importlib.util
import pathlib
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks import THREADS
from benchmarks._measure import Stepper, compare_steps, header, spread

OURS, TORCH = "lossopt.fused", "torch, in chunks"


@dataclasses.dataclass(frozen=True)
class Work:
    """Inputs, losses of them that return one number, and what ours may take of the first's.

    Attributes:
      name: its sizes.
      inputs: made of a key; the floating ones are differentiated.
      rivals: functions of the inputs, the dense one first.
      time: at most, as a ratio, or None.
      memory: at most, as a ratio of temporaries, or None.
      seconds: at most, absolutely.
      bytes: at most, absolutely.
    """

    name: str
    inputs: Callable[[Any], tuple]
    rivals: dict[str, Callable]
    time: float | None = None
    memory: float | None = None
    seconds: float | None = None
    bytes: int | None = None


def linear(name, tokens, depth, classes, dtype="float32", **options):
    """Cross entropy of a vocabulary."""

    def inputs(key):
        keys = jax.random.split(key, 3)
        features = jax.random.normal(keys[0], (tokens, depth)).astype(dtype)
        kernel = (jax.random.normal(keys[1], (depth, classes)) / depth**0.5).astype(dtype)
        return features, kernel, jax.random.randint(keys[2], (tokens,), 0, classes)

    def dense(features, kernel, labels):
        logits = jnp.matmul(features, kernel, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def ours(features, kernel, labels):
        return lo.fused.linear_softmax_cross_entropy(features, kernel, labels, **options).value

    title = f"{name}: {tokens} tokens, depth {depth}, {classes} classes, {dtype}"
    return partial(Work, title, inputs, {"optax, full logits": dense, OURS: ours})


def embeddings(count, depth):
    """Pairs of normalized embeddings, and a scale."""

    def inputs(key):
        a, b = jax.random.normal(key, (2, count, depth))
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return unit(a), unit(b), jnp.float32(20.0)

    return inputs


def dense_clip(a, b, scale):
    """Cross entropy of rows and of columns."""
    logits, labels = scale * a @ b.T, jnp.arange(len(a))
    both = [optax.softmax_cross_entropy_with_integer_labels(x, labels) for x in (logits, logits.T)]
    return sum(both).mean() / 2


def dense_sigmoid_pairs(a, b, scale):
    """Sigmoid cross entropy of all pairs."""
    logits = scale * a @ b.T - 10.0
    return optax.sigmoid_binary_cross_entropy(logits, jnp.eye(len(a))).sum(axis=1).mean()


def ranked(count, graded):
    """Scores and their relevance."""

    def inputs(key):
        keys = jax.random.split(key)
        relevance = jax.random.randint(keys[1], (count,), 0, 5 if graded else 2)
        return jax.random.normal(keys[0], (count,)), relevance

    return inputs


def dense_pairwise(scores, relevance):
    """Logistic loss of all pairs."""
    pairs = relevance[:, None] > relevance[None, :]
    losses = jax.nn.softplus(scores[None, :] - scores[:, None])
    return jnp.sum(losses, where=pairs) / jnp.sum(pairs)


def works(quick):
    """The table of targets, or small ones of its kinds."""
    fused = lo.fused
    clip = lambda a, b, scale: fused.clip(a, b, scale).value
    sigmoid = lambda a, b, scale: fused.sigmoid_pairs(a, b, scale, -10.0).value
    logistic = lambda scores, relevance: fused.pairwise_logistic(scores, relevance).value
    hinge = lambda scores, relevance: fused.pairwise_hinge(scores, relevance).value
    softmax, formula = "optax, all pairs", "formula, all pairs"
    if quick:
        small = {"memory": fused.Chunks(rows=64)}
        yield linear("tokens", 256, 32, 2048, **small)(memory=0.6)
        yield linear("vocabulary", 256, 32, 2048, memory=fused.Chunks(columns=128))(memory=0.3)
        return
    yield linear("default policy", 2048, 512, 32768)(time=1.05, memory=0.55)
    yield linear("default policy", 2048, 512, 32768, "bfloat16")(time=1.05, memory=0.55)
    yield linear("default policy", 8192, 512, 32768)(time=1.10, memory=0.15)
    chunks = fused.Chunks(columns=4008)
    yield linear("vocabulary chunks", 2048, 768, 128256, memory=chunks)(time=1.30, memory=0.05)
    pairs = embeddings(4096, 512)
    yield Work("clip: 4096 pairs, depth 512", pairs, {softmax: dense_clip, OURS: clip}, 1.0, 0.07)
    rivals = {softmax: dense_sigmoid_pairs, OURS: sigmoid}
    yield Work("sigmoid_pairs: 4096 pairs, depth 512", pairs, rivals, 0.9, 0.15)
    rivals = {formula: dense_pairwise, OURS: logistic}
    yield Work("pairwise_logistic: 8192 scores", ranked(8192, True), rivals, 0.35, 0.01)
    many = ranked(100_000, False)
    yield Work("pairwise_hinge: 100000 scores", many, {OURS: hinge}, seconds=0.5, bytes=16 << 20)


def measure(work, rounds):
    """The table, and what each target compares: `(measured, at most)`."""
    args = jax.jit(work.inputs)(jax.random.key(0))
    floating = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]
    rivals = {
        name: compiled(jax.value_and_grad(rival, floating), args)
        for name, rival in work.rivals.items()
    }
    if torch_runs(work, args):
        rivals[TORCH] = torch_chunked(*map(np.asarray, args))
    peaks = {name: peak(rival.ready()) for name, rival in rivals.items()}
    results = compare_steps(rivals, rounds=rounds, calls=1)
    dense, ours = next(iter(results.values())), results[OURS]
    memory = ours.memory / dense.memory
    values = [float(jax.jit(rival)(*args)) for rival in work.rivals.values()]
    table = Table(box=box.MARKDOWN, title=work.name)
    for column in ("", "time", "temporaries", "MiB", "peak, MiB", "seconds", "compilation, s"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in results.items():
        planned = f"{one.memory / dense.memory:.3f}", f"{one.memory / 2**20:.1f}"
        planned = ("-", "-") if name == TORCH else planned
        times = f"{one.seconds:.3f}", f"{one.compilation:.1f}"
        table.add_row(name, spread(one.ratios), *planned, peaks[name], *times)
    targets = {
        "time": (float(np.median(ours.ratios)), work.time),
        "temporary memory": (memory, work.memory),
        "seconds": (ours.seconds, work.seconds),
        "temporary bytes": (ours.memory, work.bytes),
        "relative difference of values": (np.ptp(values) / abs(values[0]), 1e-5),
    }
    return table, {name: pair for name, pair in targets.items() if pair[1] is not None}


def compiled(fn, args):
    """A rival that is called on the same arguments again and again."""
    start = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - start
    call = lambda: jax.block_until_ready(program(*args))
    return Stepper(lambda: call, seconds, program.memory_analysis().temp_size_in_bytes)


def torch_runs(work, args):
    """Whether torch has this loss, and is here."""
    wanted = work.name.startswith("default policy") and args[0].dtype == jnp.float32
    return wanted and importlib.util.find_spec("torch") is not None


def torch_chunked(features, kernel, labels):
    """Torch's own, in chunks of its choice."""
    import torch

    torch.set_num_threads(THREADS)
    features, kernel = (torch.tensor(x, requires_grad=True) for x in (features, kernel.T.copy()))
    labels, options = torch.tensor(labels).long(), torch.nn.LinearCrossEntropyOptions()
    loss = torch.nn.functional.linear_cross_entropy

    def call():
        value = loss(features, kernel, labels, options=options)
        return torch.autograd.grad(value, (features, kernel))

    return Stepper(lambda: call)


def peak(call):
    """By how many MiB a warm call raises the most memory that the process ever held, on Linux."""
    status, reset = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not status.exists():
        return "-"
    call()
    gc.collect()
    field = lambda name: int(re.search(rf"{name}:\s*(\d+)", status.read_text())[1]) / 2**10
    reset.write_text("5")
    before = field("VmRSS")
    call()
    return f"{max(0.0, field('VmHWM') - before):.0f}"


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; times are not judged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the first letters of the works to run")
    options = parser.parse_args()
    console, missed = Console(width=120), 0
    console.print(header(), highlight=False)
    for work in works(options.quick):
        if not work.name.startswith(options.only):
            continue
        table, targets = measure(work, 2 if options.quick else options.rounds)
        console.print(table)
        for name, (got, most) in targets.items():
            verdict = "met" if got <= most else "missed"
            console.print(f"{verdict}: {name} {got:.3g}, at most {most:.3g}", highlight=False)
            missed += verdict == "missed"
    return missed


if __name__ == "__main__":
    sys.exit(main())
