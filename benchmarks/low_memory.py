"""Adam in fewer bytes: what each option stores, what its step costs, what the final loss loses.

All options start alike and see the same batches, and the rate falls to 0, so the losses compare.
The models compute in float32, whatever their parameters are stored in. Bytes of the state and the
parameters are counted, temporary ones are those of the compiled step. Steps are donated and timed
in turns.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo
from benchmarks._measure import clock, header, spread

SEEDS = 3
SIZE = 4_194_304  # parameters of the timed step
QUICK = ("float32", 'moments="int8"', "... stochastic_rounding", "... kahan")
CONTEXT, CHANNELS = 12, 48  # letters that the character model reads, numbers for each


@dataclasses.dataclass(frozen=True)
class Option:
    """A way to store Adam: from a learning rate and a key to a rule, and the parameters' dtype."""

    make: Callable
    dtype: jnp.dtype = jnp.float32
    bytes: float | None = None  # of the state, at most
    loss: float | None = None  # away from the first option's, at most


adam = lo.transforms.adam
stochastic, kahan = lo.transforms.stochastic_rounding, lo.transforms.kahan
LOW = jnp.bfloat16
OPTIONS = {
    "float32": Option(lambda rate, key: adam(rate)),
    'moments="bfloat16"': Option(lambda rate, key: adam(rate, moments="bfloat16"), loss=0.005),
    'moments="int8"': Option(lambda rate, key: adam(rate, moments="int8"), bytes=2.05, loss=0.005),
    "quantized(optax.adam)": Option(
        lambda rate, key: lo.transforms.quantized(optax.adam(rate)), bytes=2.05, loss=0.005
    ),
    "bf16 parameters, optax.adam": Option(lambda rate, key: optax.adam(rate), LOW),
    "bf16 parameters, adam": Option(lambda rate, key: adam(rate), LOW),
    "... stochastic_rounding": Option(
        lambda rate, key: stochastic(adam(rate), key), LOW, loss=0.005
    ),
    "... kahan": Option(lambda rate, key: kahan(adam(rate)), LOW, loss=0.005),
    '... stochastic_rounding, "int8"': Option(
        lambda rate, key: stochastic(adam(rate, moments="int8"), key), LOW, bytes=2.05, loss=0.005
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A classifier that is trained: its rows, the sizes of its layers, and for how long."""

    name: str
    rows: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    sizes: tuple[int, ...]
    steps: int
    rate: float
    letters: int = 0  # kinds of letters, where rows are letters
    batch: int = 64


def digits(steps):
    """8 x 8 pixels, 10 classes."""
    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[400:], order[:400]
    return Task("digits", (x[train], y[train]), (x[test], y[test]), (64, 512, 10), steps, 1e-3)


def characters(steps):
    """The next letter of Python's own manual, which comes with it."""
    text = np.frombuffer("".join(topics.topics.values()).encode("ascii", "ignore"), np.uint8)
    kinds, text = np.unique(text[:400_000], return_inverse=True)
    text = np.lib.stride_tricks.sliding_window_view(text.astype(np.int32), CONTEXT + 1)
    train, test = text[:360_000], text[360_000::2]
    split = lambda rows: (rows[:, :-1], rows[:, -1])
    sizes = (CONTEXT * CHANNELS, 128, len(kinds))
    return Task("characters", split(train), split(test), sizes, steps, 2e-3, len(kinds))


def start(task, seed):
    """Parameters, a table of letters where there are any and kernels, and the rows of each step."""
    random = np.random.default_rng(seed)
    shapes = [*itertools.pairwise(task.sizes)]
    kernels = [random.normal(size=shape) / shape[0] ** 0.5 for shape in shapes]
    tables = [random.normal(size=(task.letters, CHANNELS))] if task.letters else []
    rows = random.integers(len(task.rows[1]), size=(task.steps, task.batch))
    return [x.astype(np.float32) for x in tables + kernels], rows.astype(np.int32)


def loss(task, params, x, y):
    """Mean cross entropy of a multilayer perceptron, in float32."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    if task.letters:
        x, params = params[0][x].reshape(len(x), -1), params[1:]
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return lo.value(lo.mean(lo.losses.softmax_cross_entropy(x @ params[-1], y)))


def final_loss(task, option, train, held_out, params, rows, seed):
    """On held-out rows, after a run."""
    rule = option.make(lo.schedules.cosine(task.rate, task.steps), jax.random.key(seed))
    params = jax.tree.map(lambda p: p.astype(option.dtype), params)
    x, y = train

    def step(carry, rows):
        params, state = carry
        gradients = jax.grad(partial(loss, task))(params, x[rows], y[rows])
        updates, state = rule.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), rows)
    return loss(task, params, *held_out)


def differences(task, options):
    """For each option the final losses of all seeds less those of the first, and its mean."""
    starts = [start(task, seed) for seed in range(SEEDS)]
    params, rows = jax.tree.map(lambda *xs: np.stack(xs), *starts)
    runs = {}
    for name, option in options.items():
        fn = partial(final_loss, task, option)
        run = jax.jit(jax.vmap(fn, (None, None, 0, 0, 0)))
        results = run(task.rows, task.held_out, params, rows, jnp.arange(SEEDS))
        runs[name] = np.asarray(results, np.float64)
    first = next(iter(runs.values()))
    return {name: run - first for name, run in runs.items()}, first.mean()


def stored(option):
    """Bytes of the state for each parameter, and of the parameter."""
    params = jax.ShapeDtypeStruct((SIZE // 2048, 2048), option.dtype)
    rule = option.make(1e-3, jax.random.key(0))
    count = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / SIZE
    return count(jax.eval_shape(rule.init, params)), count(params)


def times(options, rounds, size):
    """For each option the seconds of its step, one number per round."""
    draw = np.random.default_rng(0).normal(size=(2, size // 2048, 2048)).astype(np.float32)
    carries, gradients, steps, taken = {}, {}, {}, {name: [] for name in options}
    for name, option in options.items():
        rule = option.make(1e-3, jax.random.key(0))
        params, gradients[name] = (jnp.asarray(x, option.dtype) for x in draw)
        carries[name] = jax.tree.map(jnp.copy, (params, rule.init(params)))  # each its own buffer

        def step(carry, gradients, rule=rule):
            updates, state = rule.update(gradients, carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        donated = jax.jit(step, donate_argnums=0)
        steps[name] = donated.lower(carries[name], gradients[name]).compile()
    for turn in range(rounds + 2):
        for name in list(options)[:: 1 if turn % 2 else -1]:
            begin = clock()
            carries[name] = jax.block_until_ready(steps[name](carries[name], gradients[name]))
            taken[name].append(clock() - begin)
    memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    return {name: np.array(seconds[2:]) for name, seconds in taken.items()}, memory


def table(sizes, timed, memory, losses):
    """One row per option."""
    out = Table(
        box=box.MARKDOWN,
        title="Adam: bytes for each parameter, time of a step, change of the final loss",
    )
    for column in ("", "state", "parameters", "temporary", "step / float32", "ms", *losses):
        out.add_column(column, justify="right" if column else "left")
    for name, seconds in timed.items():
        changes = [differences[name] for differences, _ in losses.values()]
        out.add_row(
            name,
            *(f"{x:.2f}" for x in (*sizes[name], memory[name])),
            spread(seconds / timed["float32"]),
            f"{1e3 * np.median(seconds):.1f}",
            *(f"{x.mean():+.4f} ({x.min():+.4f}..{x.max():+.4f})" for x in changes),
        )
    return out


def verdicts(options, sizes, losses):
    """Whether each target is missed, and the sentence that says how it went."""
    for name, option in options.items():
        got = [("bytes of the state", sizes[name][0], option.bytes)]
        for task, (changes, _) in losses.items():
            got.append((f"loss of {task}", abs(changes[name].mean()), option.loss))
        for what, number, most in got:
            if most is not None:
                missed = not number <= most
                verdict = "MISSED" if missed else "met"
                yield missed, f"{verdict}: {name}: {what} {number:.4f}, target at most {most:g}"


def main():
    """Prints the table; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few options, 60 steps on digits")
    parser.add_argument("--rounds", type=int, default=None, help="timed steps of every option")
    arguments = parser.parse_args()
    quick = arguments.quick
    options = {name: OPTIONS[name] for name in QUICK} if quick else OPTIONS
    tasks = [digits(60)] if quick else [digits(500), characters(2000)]
    console, size = Console(width=160), SIZE // 16 if quick else SIZE
    console.print(header(), highlight=False)
    sizes = {name: stored(option) for name, option in options.items()}
    timed, memory = times(options, arguments.rounds or (3 if quick else 40), size)
    losses = {task.name: differences(task, options) for task in tasks}
    memory = {name: number / size for name, number in memory.items()}
    console.print(table(sizes, timed, memory, losses))
    for name, (_, first) in losses.items():
        console.print(f"final loss of {name} with float32: {first:.4f}", highlight=False)
    missed = 0
    for miss, sentence in verdicts(options, sizes, losses):
        console.print(sentence, highlight=False)
        missed += miss
    if not quick:
        noisy, plain = timed["... stochastic_rounding"], timed["bf16 parameters, adam"]
        console.print(f"rounding by chance / to nearest: {spread(noisy / plain)}", highlight=False)
    return missed


if __name__ == "__main__":
    sys.exit(main())
