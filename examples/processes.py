"""Two processes train one model; one is killed, both start again, and end in the same bits."""

import argparse
import hashlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo

WIDTH, ROWS, BATCH = 256, 1792, 64
STEPS = ROWS // BATCH  # of an epoch
# What an exit code says. XLA may abort a process before Python can tell why it ends.
LOST = {75: "gave up: another process was gone"}
LOST |= {-signal.SIGABRT: "was aborted by XLA: another process was gone"}
SENTENCES = {0: "came to its end", -signal.SIGKILL: "was killed"} | LOST


def objective(params, batch, key):
    """Cross entropy of a multilayer perceptron with dropout."""
    x = jax.nn.relu(batch["x"] @ params["hidden"])
    if key is not None:
        x *= jax.random.bernoulli(key, 0.9, x.shape)
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(x @ params["head"], batch["y"]))}


def train(epochs, directory=None, tell=None):
    """FSDP over all devices, of however many processes; it goes on from the directory."""
    x, y = load_digits(return_X_y=True)
    data, random = {"x": np.float32(x[:ROWS]) / 16, "y": y[:ROWS]}, np.random.default_rng(0)
    shapes = {"hidden": (64, WIDTH), "head": (WIDTH, 10)}
    params = {k: np.float32(random.normal(size=s) * (2 / s[0]) ** 0.5) for k, s in shapes.items()}
    place = {"mesh": lo.parallel.mesh(1, -1), "partition": "fsdp", "batch_size": BATCH}
    saved = {"checkpoint": directory, "checkpoint_every": 0, "on_epoch": tell}
    options = place | saved | {"epochs": epochs, "key": jax.random.key(0), "progress": False}
    return lo.fit(objective, params, data, optax.adam(1e-3), **options)


def bits(run, device):
    """A digest of what one device holds of parameters and optimizer."""
    parts = (
        part for x in jax.tree.leaves((run.params, run.opt_state)) for part in x.addressable_shards
    )
    held = [np.asarray(part.data).tobytes() for part in parts if part.device == device]
    return hashlib.sha256(b"".join(held)).hexdigest()[:16]


def start(directory):
    """Two processes of this file."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, *sys.argv, "--directory", directory, "--port", port, "--rank"]
    return [subprocess.Popen([*command, r], stdout=subprocess.PIPE, text=True) for r in "01"]


def child(epochs, options):
    """One of the two processes: it tells each row of history, and at last its bits."""
    lo.parallel.initialize(f"localhost:{options.port}", 2, int(options.rank))
    tell = lambda row, state: print("row", row["step"], flush=True)
    run = train(epochs, options.directory, tell)
    print("bits", bits(run, jax.local_devices()[0]))


def heard(process, count=None):
    """The steps that a process tells, until there are so many of them, and its bits."""
    rows, found = [], None
    while len(rows) != count and (line := process.stdout.readline()):
        word, *others = line.split() or [""]
        rows += map(int, others) if word == "row" else []
        found = others[0] if word == "bits" else found
    return rows, found


def main():
    """Trains, kills, trains on; fails where one stays, all begins anew, or a bit differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--victim", type=int, default=1, choices=[0, 1], help="who is killed")
    for name in ("--directory", "--port", "--rank"):
        parser.add_argument(name, help="of a process that this one starts")
    options = parser.parse_args()
    epochs, victim = 5 if options.quick else 30, options.victim
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if options.rank else 2)
    if options.rank:
        child(epochs, options)
        return 0

    with tempfile.TemporaryDirectory() as directory:
        killed = start(directory)
        *_, last = heard(killed[victim], 3)[0]
        killed[victim].kill()
        begun = time.monotonic()
        codes = [process.wait() for process in killed]
        seconds = time.monotonic() - begun
        again = start(directory)
        undisturbed = train(epochs)
        told = [heard(process) for process in again]
        codes += [process.wait() for process in again]
    table = Table("start", "process", "exit code", "which says", title="two processes")
    for i, code in enumerate(codes):
        table.add_row(f"{i // 2 + 1}", f"{i % 2}", f"{code}", SENTENCES.get(code, "had an error"))
    Console().print(table)
    first = told[0][0][0] - STEPS
    print(f"told to step {last}, then killed; the other left after {seconds:.1f} s (wanted: 15)")
    equal = [found for _, found in told] == [bits(undisturbed, x) for x in jax.devices()]
    print(f"went on from step {first}; bits of one process that nobody touched: {equal}")
    gone = codes[1 - victim] in LOST and codes[victim] == -signal.SIGKILL
    return int(not (gone and codes[2:] == [0, 0] and 0 < first <= last and equal and seconds < 15))


if __name__ == "__main__":
    sys.exit(main())
