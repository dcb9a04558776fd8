"""One step on many devices: data parallel, ZeRO-1, FSDP and pmap, with the losses of one device."""

import argparse
import sys

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import lossopt as lo

ROWS, WIDTH = 128, 256
SAME = {"fsdp", "zero1"}  # as data, to the bit
OPTIMIZER = optax.adamw(lo.schedules.cosine(3e-3, 140))


def objective(params, batch):
    """Cross entropy of a multilayer perceptron, and a penalty."""
    x = jax.nn.relu(batch["x"] @ params["hidden"])
    loss = lo.losses.softmax_cross_entropy(x @ params["head"], batch["y"])
    return {"fit": lo.mean(loss), "penalty": lo.constant(lo.regularizers.L2(1e-4)(params))}


def begun(params, **options):
    """A state and its step, on a mesh; or in pmap, where both have an axis of devices."""
    if options:
        init, step = lo.train_step(objective, OPTIMIZER, **options)
        return init(params), step
    init, step = lo.train_step(objective, OPTIMIZER, axis_name="devices")
    step = jax.pmap(step, axis_name="devices", donate_argnums=0)
    return lo.parallel.replicate(init(params)), lambda s, batch: step(s, lo.parallel.split(batch))


def main():
    """Trains in each way, prints what lies where; fails where losses are not those of one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and ways")
    quick = parser.parse_args().quick
    jax.config.update("jax_num_cpu_devices", 8)
    count, random = jax.device_count(), np.random.default_rng(0)
    print(f"platform: {count} x {jax.devices()[0].platform}, jax {jax.__version__}")
    x, y = load_digits(return_X_y=True)
    batches = [{"x": np.float32(x[i::14][:ROWS]) / 16, "y": y[i::14][:ROWS]} for i in range(14)]
    shapes = {"hidden": (64, WIDTH), "head": (WIDTH, 10)}
    params = {k: np.float32(random.normal(size=s) * (2 / s[0]) ** 0.5) for k, s in shapes.items()}
    mesh, fsdp = lo.parallel.mesh(), {"mesh": lo.parallel.mesh(1, -1), "partition": "fsdp"}
    ways = {
        "one device": {"mesh": lo.parallel.mesh(1)},
        "data": {"mesh": mesh},
        "fsdp": fsdp,
        "pmap": {},
        "zero1": {"mesh": mesh, "partition": "zero1"},
        "fsdp in shard_map": fsdp | {"lowering": "shard_map"},
    }

    table = Table("way", "last loss", "params", "optimizer", title="bytes on each device")
    stored = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    losses = {}
    for name in list(ways)[: 4 if quick else None]:
        (state, step), found = begun(params, **ways[name]), []
        for number in track(range(20 if quick else 140), f"{name:>17}"):
            state, measured = step(state, batches[number % 14])
            found.append(measured.value)
        losses[name] = np.array([np.ravel(x)[0] for x in found])
        sizes = f"{stored(state.params):,}", f"{stored(state.opt_state):,}"
        table.add_row(name, f"{losses[name][-1]:.6f}", *sizes)
    Console().print(table)
    print(lo.parallel.describe(params, fsdp["mesh"]))
    print(lo.parallel.plan(objective, OPTIMIZER, params, batches[0], **fsdp))
    far = max(np.max(abs(found / losses["one device"] - 1)) for found in losses.values())
    other = sum((losses[name] != losses["data"]).any() for name in losses if name in SAME)
    print(f"farthest from one device: {far:.1e} (wanted: 1e-4); other bits than data: {other} (0)")
    return int(far > 1e-4 or other > 0 or losses["data"][-1] > 0.5 * losses["data"][0])


if __name__ == "__main__":
    sys.exit(main())
