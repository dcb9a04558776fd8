"""Optuna proposes each next chunk of trials, `lo.sweep` runs it; beside them, random search."""

import argparse
import logging
import sys
import tempfile

import jax
import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_digits

import lossopt as lo

SPACE = {"rate": lo.sweeps.Log(1e-4, 10), "friction": lo.sweeps.Log(1e-3, 1)}
SAME = {name: FloatDistribution(x.low, x.high, log=True) for name, x in SPACE.items()}


def objective(params, batch):
    """Cross entropy of a perceptron with one hidden layer."""
    logits = jax.nn.relu(batch["x"] @ params["in"]) @ params["out"]
    return {"fit": lo.mean(lo.losses.softmax_cross_entropy(logits, batch["y"]))}


class Bridge:
    """A study whose running trials are those of the chunk.

    All of a chunk are proposed before one has ended. A constant liar counts those that run as bad
    ones meanwhile; without it TPE would propose much the same point for all of them.
    """

    def __init__(self, seed):
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True)
        self.study, self.running = optuna.create_study(sampler=sampler), []

    def ask(self, count):
        """The next trials."""
        self.running = [self.study.ask(SAME) for _ in range(count)]
        return [trial.params for trial in self.running]

    def tell(self, rows):
        """What came of them, or, before the first `ask`, of trials of an earlier process."""
        losses = [row["loss"] if row["status"] == "finished" else np.inf for row in rows]
        for trial, loss in zip(self.running, losses):
            self.study.tell(trial, loss)  # infinity is bad, a failed trial would tell it nothing
        for row, loss in zip(rows, losses) if not self.running else ():
            given = {"params": {name: row[name] for name in SPACE}, "distributions": SAME}
            self.study.add_trial(optuna.trial.create_trial(value=loss, **given))


def main():
    """Searches, goes on in a new study, prints; fails where rows are not those of plain trials."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials, steps and seeds")
    n, steps, seeds = (32, 40, 2) if parser.parse_args().quick else (64, 200, 10)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    optuna.logging.set_verbosity(logging.WARNING)
    x, y = load_digits(return_X_y=True)
    parts = np.split(np.random.default_rng(0).permutation(len(y)), [1088])
    train, validation = ({"x": np.float32(x[rows] / 16), "y": y[rows]} for rows in parts)
    draw = jax.nn.initializers.he_normal()
    begin = lambda key: {"in": draw(key, (64, 32)), "out": 0.1 * draw(key, (32, 10))}
    rule = lambda numbers: lo.transforms.momentum(numbers["rate"], 1 - numbers["friction"])
    given = {"steps": steps, "batch_size": 64, "validation": validation}
    task = lo.sweeps.task(objective, begin, train, rule, **given)
    run = lambda trials, **more: lo.sweep(
        task, trials, jax.random.key(1), score="loss", mode="sequential", **more
    )

    def search(seed, count, **more):
        bridge = Bridge(seed)
        trials = lo.sweeps.suggest(SPACE, bridge.ask, bridge.tell, count, chunk=8)
        return run(trials, **more), bridge.study

    folder = tempfile.mkdtemp()
    search(0, n // 2, checkpoint=folder)
    table, study = search(0, n, checkpoint=folder)  # as after a kill: the study is a new one
    print(table)
    plain = run({name: table[name] for name in SPACE})
    same = (plain["loss"] == table["loss"]).all() and len(study.trials) == n
    print(f"rows of the same trials drawn beforehand, all of them known to the study: {same}")

    drawn = (lo.sweeps.random(SPACE, n, jax.random.key(seed)) for seed in range(seeds))
    found = {"TPE": [search(seed, n)[0] for seed in range(seeds)], "random": [*map(run, drawn)]}
    for name, tables in found.items():
        losses = np.sort([table.best["loss"] for table in tables])
        print(f"{name}: best of {n} trials, {seeds} seeds, sorted: {np.round(losses, 4)}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
