"""What `fit` does with each rule of optax: nothing may be wrong in silence.

Each function of `optax` and `optax.contrib` that makes a transformation is run through `fit` on a
matrix, a vector and a number, in float64, and is to take the steps of a loop written by hand. What
does not is to be refused by a sentence, or to fail by itself and to be passed on with its name.
What takes them is to move the parameters.
"""

import argparse
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks._measure import header
from benchmarks._optax import rules

STEPS, CLOSE = 6, 1e-6
STILL = {"set_to_zero"}
QUICK = [
    *("MultiSteps", "adam", "apply_every", "contrib.dpsgd", "contrib.sam", "contrib.scale_by_muon"),
    *("contrib.sophia", "lbfgs", "lookahead", "monitor", "partition", "polyak_sgd"),
]
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))
START = {"matrix": RNG.normal(size=(3, 2)), "vector": RNG.normal(size=2), "number": np.ones(())}


def loss(params, batch):
    """Squares of a linear model whose parts may be missing, a number per row."""
    x, y = batch
    errors = x @ params.get("matrix", jnp.ones((3, 2))) + params.get("vector", jnp.zeros(2)) - y
    return jnp.sum(errors**2, 1) + (params.get("number", 0) - 3) ** 2


def objective(params, batch):
    """The mean over rows."""
    return {"fit": lo.mean(loss(params, batch))}


def by_fit(rule, params):
    """The parameters after some steps on the whole batch."""
    settings = {"steps": STEPS, "key": jax.random.key(0), "progress": False}
    return lo.fit(objective, params, DATA, rule, **settings).params


def by_hand(rule, params):
    """The same in a loop of optax."""
    update, state = optax.with_extra_args_support(rule).update, rule.init(params)
    whole = lambda params: jnp.mean(loss(params, DATA))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(whole)(params)
        updates, state = update(grad, state, params, value=value, grad=grad, value_fn=whole)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def verdict(name, rule, params):
    """What became of it, whether that is fine, and what was said."""
    try:
        got = by_fit(rule, params)
    except Exception as error:
        notes = [note for note in getattr(error, "__notes__", ()) if "of the optimizer" in note]
        refused = str(error).startswith(("The optimizer", "optax."))
        said = f"{error} {' '.join(notes)}".replace("\n", " ")
        return "refused" if refused else "fails, named" if notes else "fails", said
    want = by_hand(rule, params)
    off = max(float(jnp.max(jnp.abs(got[k] - want[k]))) for k in params)
    moved = max(float(jnp.max(jnp.abs(got[k] - params[k]))) for k in params)
    if not off <= CLOSE:
        return "other steps", f"off by {off:.1e}"
    if not moved and name not in STILL:
        return "stands still", ""
    return "runs", f"off by {off:.1e}"


def main():
    """Prints what does not run on all three, and how many are wrong in silence; returns these."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="twelve of them")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    logging.getLogger("absl").setLevel(logging.ERROR)
    console = Console(width=120)
    console.print(header(), highlight=False)
    params = jax.tree.map(jnp.asarray, START)
    names = QUICK if quick else sorted(rules(params))
    table, counts, silent = Table("rule", "on", "", "said", box=box.MARKDOWN), {}, []
    for name in names:
        became, said = verdict(name, rules(params)[name], params)
        parts = {"all": (became, said)}
        if became.startswith("fails"):
            alone = {part: {part: x} for part, x in params.items()}
            parts = {part: verdict(name, rules(x)[name], x) for part, x in alone.items()}
        for part, (alone, said) in parts.items():
            if alone != "runs":
                table.add_row(name, part, alone, said)
            silent += [name] * (alone in ("fails", "other steps", "stands still"))
        counts[became] = counts.get(became, 0) + 1
    console.print(table)
    print(f"{len(names)} rules:", ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)))
    print(f"{'missed' if silent else 'met'}: {len(silent)} wrong in silence, target 0 {silent}")
    return len(silent)


if __name__ == "__main__":
    sys.exit(main())
