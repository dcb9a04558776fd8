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
import optax
from rich.progress import track

import lossopt as lo

CHUNK, BATCH, WIDTH = 100, 128, 256
optimizer = lo.transforms.adam(1e-3)


def start():
    """All that the next step depends on."""
    params = {"in": jax.random.normal(jax.random.key(0), (2, WIDTH)), "out": jnp.zeros(WIDTH)}
    return params, optimizer.init(params), jax.random.key(1)


def step(state, _):
    """One step, on the points and with the dropout that the key of the state draws."""
    params, inner, key = state
    key, draw, drop = jax.random.split(key, 3)
    x, kept = jax.random.normal(draw, (BATCH, 2)), jax.random.bernoulli(drop, 0.9, (BATCH, WIDTH))
    model = lambda params: (kept * jnp.tanh(x @ params["in"])) @ params["out"]
    loss = lambda params: lo.mean(lo.losses.squared_error(model(params), x.prod(axis=1))).value
    updates, inner = optimizer.update(jax.grad(loss)(params), inner, params)
    return (optax.apply_updates(params, updates), inner, key), None


def train(directory, steps):
    """Goes on from the newest good step of the directory; yields each step that it reaches."""
    chunk = jax.jit(lambda state: jax.lax.scan(step, state, length=CHUNK)[0], donate_argnums=0)
    with lo.checkpoint.Checkpoints(directory) as checkpoints:
        reached, state = 0, start()
        if checkpoints.latest() is not None:
            reached, state, *_ = checkpoints.restore(state)
        yield reached
        while reached < steps:
            reached, state = reached + CHUNK, chunk(state)  # `save` has copied what this overwrites
            checkpoints.save(reached, state)
            yield reached


def bits(directory):
    """The bytes of each leaf of the newest state."""
    params, inner, key = lo.checkpoint.Checkpoints(directory).restore(start()).state
    arrays = jax.device_get((params, inner, jax.random.key_data(key)))
    return [array.tobytes() for array in jax.tree.leaves(arrays)]


def main():
    """Trains untouched, then killed; fails where a bit differs or more than a chunk is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one kill, fewer steps")
    parser.add_argument("--seed", type=int, default=random.randrange(1000), help="of the kills")
    parser.add_argument("--train", metavar="DIRECTORY", help="what the parent starts and kills")
    options = parser.parse_args()
    kills, chunks = (1, 8) if options.quick else (5, 60)
    if options.train:
        for reached in train(options.train, chunks * CHUNK):
            print(reached, flush=True)
        return 0
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}, seed {options.seed}")
    chance, last = random.Random(options.seed), 0
    lines = [*(chance.randint(3, chunks // (kills + 1)) for _ in range(kills)), None]
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as killed:
        list(track(train(whole, chunks * CHUNK), "untouched", chunks + 1, disable=options.quick))
        for count in track(lines, "killed", disable=options.quick):
            command = [sys.executable, *sys.argv, "--train", killed]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                before = last
                first, *_, last = map(int, itertools.islice(child.stdout, count))
                if count:
                    time.sleep(chance.uniform(0, 0.1))
                    child.kill()
            print(f"from step {first} to step {last}, then {'killed' if count else 'done'}")
            assert first >= before - CHUNK
            assert child.returncode == (-9 if count else 0)
        equal = bits(whole) == bits(killed)
    print(f"bits equal to those of the untouched run: {equal} (wanted: True)")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
