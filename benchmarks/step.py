"""A step of Adam with decay: its time against optax, the memory's own speed and torch; its memory.

Parameters and moments are donated, so that a step overwrites them; the gradients are not. The copy
moves as many bytes as a step has to, 28 for each parameter: it reads parameters, gradients and two
moments and writes all but the gradients. No compiler can be faster than that.
"""

import argparse
import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks import THREADS
from benchmarks._measure import Stepper, compare_steps, donated, header, spread

RATE, DECAY, NORM = 1e-3, 1e-2, 1.0
MOMENTS = ("float32", "bfloat16", "int8")
OURS, THEIRS = "lossopt adam", "optax.adamw"
OURS_CLIPPED, THEIRS_CLIPPED = "lossopt clip, adam", "optax.chain(clip, adamw)"
COPY = "copy of the same bytes"
TARGETS = {"step": 1.05, "clipped step": 0.7, "temporary memory": 0.01}


@dataclasses.dataclass(frozen=True)
class Problem:
    """The shapes of the parameters, and what is judged on them."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    judged: tuple[str, ...] = tuple(TARGETS)

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(map(np.prod, self.shapes))


def transformer(layers=12, width=768, words=50257, context=1024):
    """The shapes of a decoder; with the numbers of GPT-2 small, 124 M parameters."""
    norm = ((width,), (width,))
    dense = lambda a, b: ((a, b), (b,))
    attention = norm + dense(width, 3 * width) + dense(width, width)
    layer = attention + norm + dense(width, 4 * width) + dense(4 * width, width)
    return ((words, width), (context, width), *layers * layer, *norm)


def problems(quick):
    """What is measured: all of it, or the memory of a small tree."""
    if quick:
        shapes = transformer(layers=2, width=128, words=2048, context=64)
        return [Problem("a small transformer", shapes, judged=("temporary memory",))]
    return [
        Problem("one leaf", ((4000, 5000),)),
        Problem("a transformer", transformer()),
    ]


def optimizers():
    """The rivals that are compiled; all decay the same leaves."""
    matrices = functools.partial(jax.tree.map, lambda x: x.ndim >= 2)
    ours = lo.transforms.adam(RATE, weight_decay=DECAY)
    theirs = optax.adamw(RATE, weight_decay=DECAY, mask=matrices)
    return {
        THEIRS: theirs,
        OURS: ours,
        THEIRS_CLIPPED: optax.chain(optax.clip_by_global_norm(NORM), theirs),
        OURS_CLIPPED: optax.chain(lo.transforms.clip_by_global_norm(NORM), ours),
    }


def stepper(optimizer, gradients):
    """A donated step."""

    def start():
        params = jax.tree.map(jnp.ones_like, gradients)
        return params, optimizer.init(params)

    def step(carry, gradients):
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return donated(start, step, gradients)


def copy(size):
    """A plain copy that moves what a step has to move."""

    def ready():
        source, target = np.ones(14 * size, np.uint8), np.empty(14 * size, np.uint8)
        return lambda: np.copyto(target, source)

    return Stepper(ready)


def torch_adamw(gradients):
    """The fused step of torch."""
    import torch

    torch.set_num_threads(THREADS)

    def ready():
        params = [torch.ones(g.shape, requires_grad=True) for g in gradients]
        for param, gradient in zip(params, gradients):
            param.grad = torch.from_numpy(np.array(gradient))
        optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, fused=True)
        return optimizer.step

    return Stepper(ready)


def state_bytes(problem):
    """Bytes of the state for each parameter, for each way to store the moments."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in problem.shapes]
    for moments in MOMENTS:
        state = jax.eval_shape(lo.transforms.adam(RATE, moments=moments).init, params)
        total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        yield moments, total / problem.size


def table(problem, measured):
    """One row per rival."""
    title = f"{problem.name}: {problem.size / 1e6:.1f} M parameters, {len(problem.shapes)} leaves"
    out = Table(box=box.MARKDOWN, title=title)
    for column in ("", "time / optax.adamw", "time / copy", "ms", "temporary MiB", "compile s"):
        out.add_column(column, justify="right" if column else "left")
    for name, m in measured.items():
        out.add_row(
            name,
            spread(m.ratios),
            f"{np.median(m.ratios / measured[COPY].ratios):.2f}",
            f"{1e3 * m.seconds:.1f}",
            f"{m.memory / 2**20:.2f}",
            f"{m.compilation:.1f}",
        )
    return out


def verdicts(problem, measured):
    """Whether each target is missed where it is judged, and the sentence that says how it went."""
    clipped, theirs = measured[OURS_CLIPPED], measured[THEIRS_CLIPPED]
    got = {
        "step": np.median(measured[OURS].ratios),
        "clipped step": np.median(clipped.ratios / theirs.ratios),
        "temporary memory": clipped.memory / (4 * problem.size),
    }
    for name, most in TARGETS.items():
        judged, missed = name in problem.judged, not got[name] <= most
        verdict = ("MISSED" if missed else "met") + ("" if judged else ", not judged")
        yield judged and missed, f"{verdict}: {name} {got[name]:.3g}, target at most {most:g}"


def measure(problem, rounds):
    """All rivals on one problem, the same gradients for all."""
    random = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(random.standard_normal(shape, np.float32))
    gradients = [draw(shape) for shape in problem.shapes]
    rivals = {name: stepper(rule, gradients) for name, rule in optimizers().items()}
    rivals[COPY] = copy(problem.size)
    if importlib.util.find_spec("torch"):
        rivals["torch AdamW, fused"] = torch_adamw(gradients)
    return compare_steps(rivals, rounds=rounds)


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one small tree, only its memory judged"
    )
    parser.add_argument("--rounds", type=int, default=None, help="timed turns of every rival")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 9)
    console, missed = Console(width=120), 0
    console.print(header(), highlight=False)
    if not importlib.util.find_spec("torch"):
        console.print("torch is not installed: its fused AdamW is left out", highlight=False)
    for problem in problems(options.quick):
        measured = measure(problem, rounds)
        console.print(table(problem, measured))
        bytes_each = (f"{name} {number:.2f}" for name, number in state_bytes(problem))
        console.print("state, bytes a parameter: " + ", ".join(bytes_each), highlight=False)
        for miss, sentence in verdicts(problem, measured):
            console.print(sentence, highlight=False)
            missed += miss
    return missed


if __name__ == "__main__":
    sys.exit(main())
