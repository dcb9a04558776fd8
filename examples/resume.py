"""Killed at random moments, a training ends in the bits of one that nobody touched."""

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

import lossopt as lo

ROWS, BATCH, WIDTH = 1000, 128, 256  # 800 of them train, in 7 batches, the last of 32
optimizer = lo.transforms.adam(lo.schedules.cosine(1e-3, 400))


def objective(params, batch, key):
    """The squared error of a hidden layer, with dropout where there is a key."""
    hidden = jnp.tanh(batch["x"] @ params["in"])
    if key is not None:
        hidden *= jax.random.bernoulli(key, 0.9, hidden.shape)
    return {"fit": lo.mean(lo.losses.squared_error(hidden @ params["out"], batch["y"]))}


def train(epochs, directory=None, on_epoch=None):
    """The run; it goes on from the newest good step of the directory, and saves what it can."""
    draw, start, key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(draw, (ROWS, 2))
    params = {"in": jax.random.normal(start, (2, WIDTH)), "out": jnp.zeros(WIDTH)}
    data = {"x": x, "y": x.prod(axis=1)}
    options = {"batch_size": BATCH, "validation": 0.2, "key": key, "epochs": epochs}
    options |= {"stop": lo.training.Patience(20), "on_epoch": on_epoch}
    return lo.fit(
        objective, params, data, optimizer, checkpoint=directory, checkpoint_every=0, **options
    )


def bits(run):
    """The bytes of all numbers of a run, but for the seconds that it took."""
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    kept = run.params, run.opt_state, run.best_params, run.best_epoch, history
    return [array.tobytes() for array in jax.tree.leaves(jax.device_get(kept))]


def main():
    """Trains untouched, then killed; fails where a bit differs or more than an epoch is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one kill, fewer epochs")
    parser.add_argument("--seed", type=int, default=random.randrange(1000), help="of the kills")
    parser.add_argument("--train", metavar="DIRECTORY", help="what the parent starts and kills")
    options = parser.parse_args()
    kills, epochs = (1, 8) if options.quick else (5, 60)
    if options.train:
        train(epochs, options.train, lambda row, state: print(row["step"], flush=True))
        return 0
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}, seed {options.seed}")
    chance, last, epoch = random.Random(options.seed), 0, -(-800 // BATCH)
    untouched = train(epochs)
    with tempfile.TemporaryDirectory() as folder:
        for count in [chance.randint(2, epochs // (kills + 1)) for _ in range(kills)]:
            command = [sys.executable, *sys.argv, "--train", folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                first, *_, told = map(int, itertools.islice(child.stdout, count))
                time.sleep(chance.uniform(0, 0.1))
                child.kill()
            print(f"from step {first - epoch} to step {told}, then killed")
            assert (first > last - epoch, child.returncode) == (True, -9)
            last = told
        equal = bits(train(epochs, folder)) == bits(untouched)
    print(f"bits equal to those of the untouched run: {equal} (wanted: True)")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
