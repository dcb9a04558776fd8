"""Optuna proposes each next chunk of trials, `lo.sweep` runs it; beside them, random search."""

import argparse
import logging
import sys
import tempfile

import jax
import jax.numpy as jnp
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
    """A study. A constant liar takes trials that run for bad ones: those of a chunk keep apart."""

    def __init__(self, seed, liar=True):
        tpe = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=liar)
        self.study, self.running = optuna.create_study(sampler=tpe), []

    def ask(self, count):
        """The next trials."""
        self.running = [self.study.ask(SAME) for _ in range(count)]
        return [trial.params for trial in self.running]

    def tell(self, rows):
        """What came of them, or, before the first `ask`, of trials of an earlier process."""
        losses = [row["loss"] if row["status"] == "finished" else np.inf for row in rows]
        for trial, loss in zip(self.running, losses):
            self.study.tell(trial, loss)  # TPE leaves out what failed; infinity is bad
        for row, loss in zip(rows, losses) if not self.running else ():
            made = {"params": {name: row[name] for name in SPACE}, "distributions": SAME}
            self.study.add_trial(optuna.trial.create_trial(value=loss, **made))


def main():
    """Searches, goes on in a new study, prints; fails where rows are not those of plain trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials, steps and seeds")
    n, steps, seeds = (16, 40, 1) if parser.parse_args().quick else (64, 200, 10)
    optuna.logging.set_verbosity(logging.WARNING)
    x, y = load_digits(return_X_y=True)
    parts = np.split(np.random.default_rng(0).permutation(len(y)), [1088])
    train, valid = ({"x": np.float32(x[rows] / 16), "y": y[rows]} for rows in parts)
    begin = lambda key: {"in": jax.random.normal(key, (64, 32)) / 8, "out": jnp.zeros((32, 10))}
    rule = lambda numbers: lo.transforms.momentum(numbers["rate"], 1 - numbers["friction"])
    sizes = {"steps": steps, "batch_size": 64, "validation": valid}
    task, key = lo.sweeps.task(objective, begin, train, rule, **sizes), jax.random.key(1)
    options = {"score": "loss", "mode": "sequential"}
    run = lambda trials, **where: lo.sweep(task, trials, key, **options, **where)
    of = lambda bridge, n: lo.sweeps.suggest(SPACE, bridge.ask, bridge.tell, n)
    where, bridge = {"checkpoint": tempfile.mkdtemp()}, Bridge(seed=1)
    run(of(Bridge(seed=0), n // 2), **where)
    table = run(of(bridge, n), **where)  # as after a kill: a new study, which begins another draw
    plain = run({name: table[name] for name in SPACE})
    same = (plain["loss"] == table["loss"]).all() and len(bridge.study.trials) == n
    print(f"{table}\nrows of the same trials drawn beforehand, all of them in the study: {same}")
    found = {"TPE, a liar": (of(Bridge(seed), n) for seed in range(seeds))}
    found["TPE, no liar"] = (of(Bridge(seed, liar=False), n) for seed in range(seeds))
    found["random"] = (lo.sweeps.random(SPACE, n, jax.random.key(seed)) for seed in range(seeds))
    for kind, trials in found.items():
        print(f"{kind:>12}, best of {n}:", np.sort([run(one).best["loss"] for one in trials]))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
