"""The whole library in one file: a language model in FSDP, killed, resumed, equal to the bit."""

import argparse
import functools
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from language_model import LENGTH, bigram, read  # the same text, the same judge
from rich.console import Console
from rich.table import Table

import lossopt as lo

HEADS, SHARD = 4, 512  # rows of a file
MESH = functools.partial(lo.parallel.mesh, data=1, fsdp=-1)
FSDP = {"partition": "fsdp", "gather": "^layers/"}


class Size(NamedTuple):
    """Of a run; `share` of what pairs of words gain over single ones is what it has to gain."""

    least: int
    layers: int
    width: int
    batch: int
    steps: int
    rows: int
    held: int | None
    share: float


QUICK, FULL = Size(30, 2, 64, 8, 48, 4, 128, 0.4), Size(2, 4, 128, 16, 400, 10, None, 1.0)


class Tokens:
    """Batches from files on disk, in another order in each pass; it tells where it is."""

    def __init__(self, folder, batch):
        self.batch, self.epoch, self.number = batch, 0, 0
        self.files = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("train*.npy"))]

    def state(self):
        """Where it is."""
        return {"epoch": self.epoch, "number": self.number}

    def restore(self, state):
        """Goes there."""
        self.epoch, self.number = state["epoch"], state["number"]

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(sum(map(len, self.files)))
        while len(rows := order[self.number * self.batch :][: self.batch]) == self.batch:
            self.number += 1
            yield fields(np.stack([self.files[row // SHARD][row % SHARD] for row in rows]))
        self.epoch, self.number = self.epoch + 1, 0


def fields(rows):
    """Tokens, those that follow, and the bytes that these spell."""
    return dict(zip(("x", "y", "bytes"), rows.swapaxes(0, 1)))


def write(folder, train, held, single):
    """Files of rows of tokens, and how rare each word is."""
    train, held = (np.stack([*x.values()], axis=1).astype(np.int32) for x in (train, held))
    for number, first in enumerate(range(0, len(train), SHARD)):
        np.save(folder / f"train{number:03}.npy", train[first : first + SHARD])
    np.save(folder / "held.npy", held)
    np.save(folder / "single.npy", single)


def parameters(size, single):
    """The kernels of all layers stacked, for what scans over them; at first they add nothing."""
    wide, zeros, keys = size.width, jnp.zeros, jax.random.split(jax.random.key(0))
    drawn = jax.random.normal(keys[0], (size.layers, wide, 7 * wide)) * wide**-0.5
    layers = {"in": drawn[..., : 3 * wide], "up": drawn[..., 3 * wide :]}
    layers |= {
        "out": zeros((size.layers, wide, wide)),
        "down": zeros((size.layers, 4 * wide, wide)),
    }
    embed = jax.random.normal(keys[1], (len(single), wide)) * wide**-0.5
    places, bias = zeros((LENGTH, wide)), jnp.asarray(single, jnp.float32)
    return {"layers": layers, "embed": embed, "places": places, "bias": bias}


@jax.checkpoint
def layer(x, kernels):
    """Attention to what came before, then a perceptron; it holds the kernels of one layer."""
    kernels = lo.parallel.gathered(kernels)
    parts = (normed(x) @ kernels["in"]).reshape(*x.shape[:2], HEADS, -1)
    heads = jax.nn.dot_product_attention(*jnp.split(parts, 3, axis=-1), is_causal=True)
    x += heads.reshape(x.shape) @ kernels["out"]
    return x + jax.nn.gelu(normed(x) @ kernels["up"]) @ kernels["down"], None


def normed(x):
    """Features of mean square 1."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def objective(params, batch):
    """Cross entropy by tiles of logits, and bits per byte."""
    x = params["embed"][batch["x"]] + params["places"][None]
    x, _ = jax.lax.scan(layer, x, params["layers"])
    inputs = normed(x), params["embed"], batch["y"], batch["bytes"] > 0
    loss = lo.fused.linear_softmax_cross_entropy(
        *inputs, bias=params["bias"], transposed=True, memory="1MiB"
    )
    bits = lo.Mean(loss.total / jnp.log(2.0), jnp.sum(batch["bytes"]).astype(jnp.float32))
    return {"nats": loss}, {"metrics": {"bits": bits}}


@functools.cache  # the same functions again compile nothing again
def recipe(size, folder):
    """What makes the parameters, and what moves them: clipped, warmed up, averaged."""
    make = functools.partial(parameters, size, np.load(folder / "single.npy"))
    rate = lo.schedules.warmup(lo.schedules.cosine(0.006, size.steps * 9 // 10), size.steps // 10)
    rule = lo.transforms.adam(rate, b2=0.99, weight_decay=0.1)
    clipped = optax.chain(lo.transforms.clip_by_global_norm(1.0), rule)
    return make, lo.transforms.average(clipped, decay=0.9)


def train(size, folder, checkpoint=None, on_epoch=None):
    """The run; where it is saved, it goes on from there."""
    make, optimizer = recipe(size, folder)
    options = {"steps": size.steps, "evaluate_every": size.steps // size.rows, "has_aux": True}
    options |= {"validation": fields(np.load(folder / "held.npy")), "key": jax.random.key(0)}
    options |= {"checkpoint": checkpoint, "checkpoint_every": 2, "on_epoch": on_epoch}
    options |= {"evaluate_at": lo.transforms.averaged}
    stream = Tokens(folder, size.batch)
    return lo.fit(objective, make, stream, optimizer, mesh=MESH(), **FSDP, **options)


def tell(saved, row, state):
    """Prints a step, when what is being saved has landed."""
    saved.wait()
    print(row["step"], flush=True)


def killed(child, row):
    """After which step a training was killed: at a row of history, when something is saved."""
    told = enumerate(child.stdout, 1)
    with lo.checkpoint.Checkpoints(child.args[-1] + "/run") as checkpoints:
        late = (int(step) for number, step in told if number >= row and checkpoints.steps())
        step = next(late, None)  # None where it ended before
        child.kill()
        assert child.wait() == -9
        return step, checkpoints.steps()[-1]


def planned(size, folder):
    """Temporary memory of a step that gathers layer by layer, in that of one that gathers all."""
    make, optimizer = recipe(size, folder)
    given = objective, optimizer, jax.eval_shape(make), next(iter(Tokens(folder, size.batch)))
    plan = lambda options: lo.parallel.plan(*given, MESH(), **options, has_aux=True).temporaries
    return plan(FSDP) / plan(FSDP | {"gather": True})


def bits(run):
    """The bytes of all numbers of a run, but for the seconds that it took."""
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    kept = run.params, run.opt_state, run.best_params, run.best_epoch, history
    return [array.tobytes() for array in jax.tree.leaves(jax.device_get(kept))]


def report(run, step, pairs, single):
    """A table, and a picture of the averaged copy."""
    found = run.history["validation/bits"]
    table = Table("held-out text", "bits per byte")
    table.add_row("words, counted", f"{single:.3f}")
    table.add_row("pairs of words, counted", f"{pairs:.3f}")
    table.add_row("transformer, the averaged copy", f"{found[-1]:.3f}")
    Console().print(table)
    figure, axes = plt.subplots(layout="constrained")
    axes.plot(run.history["step"], found, marker=".", label="averaged copy")
    axes.axhline(pairs, color="gray", linestyle=":", label="pairs of words, counted")
    axes.axvline(step, color="black", linestyle="--", label="killed, and resumed")
    title = f"{found[-1]:.2f} bits a byte on 8 devices"
    axes.set(xlabel="step", ylabel="bits per byte of held-out text", title=title)
    axes.legend()
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/pretrain.png", dpi=150)
    return found[-1]


def main():
    """Trains, is killed, goes on; fails where bits, gain, or memory are not as wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer words, layers and steps")
    parser.add_argument("--train", metavar="FOLDER", type=pathlib.Path, help="what is killed")
    options = parser.parse_args()
    size, rows = QUICK if options.quick else FULL, []
    jax.config.update("jax_num_cpu_devices", 8)
    if options.train:
        with lo.checkpoint.Checkpoints(options.train / "run") as saved:
            train(size, options.train, saved, functools.partial(tell, saved))
        return 0
    print(f"platform: {jax.device_count()} x {jax.devices()[0].platform}, jax {jax.__version__}")
    words, text, held = read(size.least)
    held = {name: x[: size.held] for name, x in held.items()}
    pairs, single = bigram(words, text, held)
    with tempfile.TemporaryDirectory() as name:
        write(folder := pathlib.Path(name), text, held, single)
        command = [sys.executable, *sys.argv, "--train", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            step, kept = killed(child, size.rows // 2)
        temporary = planned(size, folder)
        run = train(size, folder, folder / "run", lambda row, state: rows.append(row["step"]))
        equal = bits(run) == bits(train(size, folder))
    resumed = kept <= rows[0] <= kept + size.steps // size.rows
    ones = -(single[held["y"]] * (held["bytes"] > 0)).sum() / held["bytes"].sum() / np.log(2)
    found, wanted = report(run, step, pairs, ones), ones + size.share * (pairs - ones)
    arrays = jax.tree.leaves(run.params)
    share = sum(x.addressable_shards[0].data.nbytes for x in arrays) / sum(x.nbytes for x in arrays)
    print(f"{found:.3f} bits per byte (wanted: {wanted:.3f})")
    print(f"killed after step {step}, resumed from step {kept}: {resumed} (wanted: True)")
    print(f"bits equal to those of the untouched run: {equal} (wanted: True)")
    print(f"{share:.3f} of the parameters on each device (wanted: 0.14)")
    print(f"{temporary:.2f} of the temporary memory of gathering all at once (wanted: 0.9)")
    print("curve in figures/pretrain.png")
    return int(not (equal and resumed) or found > wanted or share > 0.14 or temporary > 0.9)


if __name__ == "__main__":
    sys.exit(main())
