"""Trains from a file that is many times larger than the memory that the training takes."""

import argparse
import pathlib
import resource
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lossopt as lo

FEATURES, BATCH, BUDGET = 31, 4096, 96  # MB
OPTIMIZER = optax.adam(0.01)
WEIGHTS = np.linspace(-1, 1, FEATURES, dtype=np.float32)


def write(path, megabytes):
    """Rows of features and a noisy target, written in pieces; returns how many."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(megabytes // 8):
            rows = rng.standard_normal((2**16, FEATURES + 1), np.float32)
            rows[:, -1] = rows[:, :-1] @ WEIGHTS + 0.1 * rows[:, -1]
            rows.tofile(file)
    return megabytes // 8 * 2**16


class File:
    """Batches of neighboring rows, in another order in each pass."""

    def __init__(self, path, rows):
        self.path, self.rows, self.passes = path, rows, 0

    def __iter__(self):
        order = np.random.default_rng(self.passes).permutation(self.rows // BATCH)
        self.passes += 1
        with self.path.open("rb") as file:
            for number in order:
                file.seek(int(number) * BATCH * (FEATURES + 1) * 4)
                rows = np.fromfile(file, np.float32, BATCH * (FEATURES + 1)).reshape(BATCH, -1)
                yield {"x": rows[:, :-1], "y": rows[:, -1]}


def objective(weights, batch):
    """The squared error."""
    return {"fit": lo.mean(lo.losses.squared_error(batch["x"] @ weights, batch["y"]))}


def peak():
    """The most that this process has ever had in memory, in MB; Linux counts in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main():
    """Fails where memory grows by more than a budget, or the weights are not found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small file")
    megabytes = 256 if parser.parse_args().quick else 2048
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as directory:
        rows = write(path := pathlib.Path(directory) / "rows", megabytes)
        given = {"epochs": 2, "key": jax.random.key(0), "progress": False}
        fit = lambda rows: lo.fit(objective, jnp.zeros(31), File(path, rows), OPTIMIZER, **given)
        fit(2 * BATCH)  # compiles
        before = peak()
        run = fit(rows)
        grown = peak() - before
    error = float(np.abs(run.params - WEIGHTS).max())
    print(f"{megabytes} MB, read twice: {run.steps} steps")
    print(f"memory grew by {grown:.0f} MB (wanted: at most {BUDGET})")
    print(f"weights are wrong by {error:.4f} (wanted: at most 0.02)")
    return int(grown > BUDGET or error > 0.02)


if __name__ == "__main__":
    sys.exit(main())
