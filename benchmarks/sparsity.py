"""Sparse linear models: steps and seconds to scikit-learn's optimum, and whether the zeros are its.

Whole batches, float64. The optimum is scikit-learn's at its tightest tolerance. A rule has arrived
when its objective is within 1e-6 of the optimum, relatively; its seconds are those of a warm run of
that many steps. scikit-learn's own seconds are those of its loosest tolerance that arrives. At the
end of all steps, coefficients and zeros are compared. The last row of each table puts the penalty
into the loss, as one does without a prox.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn import datasets, linear_model
from sklearn.preprocessing import StandardScaler

import lossopt as lo
from benchmarks._measure import clock, header

ARRIVED = 1e-6
TARGET = 1e-6  # of the coefficients, relative to the largest


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features, labels, a loss per example, a strength of L1, and scikit-learn's model."""

    name: str
    x: np.ndarray
    y: np.ndarray
    loss: Callable
    bend: float  # the largest second derivative of the loss
    strength: float
    model: Callable  # from a tolerance
    steps: int


def squared(x, y, w):
    """Half of the squared error."""
    return lo.losses.squared_error(x @ w, y) / 2


def logistic(x, y, w):
    """Cross entropy of two classes."""
    return lo.losses.sigmoid_cross_entropy(x @ w, y)


def softmax(x, y, w):
    """Cross entropy of many classes."""
    return lo.losses.softmax_cross_entropy(x @ w, y)


def lasso_model(strength):
    """From a tolerance to scikit-learn's Lasso."""
    return lambda tol: linear_model.Lasso(strength, fit_intercept=False, tol=tol, max_iter=10**6)


def saga_model(strength, rows):
    """From a tolerance to scikit-learn's logistic regression with L1 beside the mean loss."""
    numbers = {"C": 1 / (strength * rows), "l1_ratio": 1, "solver": "saga", "max_iter": 10**5}
    return lambda tol: linear_model.LogisticRegression(**numbers, tol=tol, fit_intercept=False)


def problems(quick):
    """Real data; the quick form leaves the large one away."""
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    yield Problem("Lasso, diabetes", x, y, squared, 1, 0.1, lasso_model(0.1), 5_000)
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), y.astype(float)
    model = saga_model(0.05, len(y))
    yield Problem("L1-logistic, breast_cancer", x, y, logistic, 1 / 4, 0.05, model, 20_000)
    if not quick:
        x, y = datasets.load_digits(return_X_y=True)
        x = x / 16 - 0.3
        model = saga_model(0.01, len(y))
        yield Problem("L1-softmax, digits", x, y, softmax, 1 / 2, 0.01, model, 20_000)


def rules(rate, steps, regularizer):
    """Name to rule; rates of adaptive rules decay to 0."""
    fading = lambda count: 0.1 * jnp.exp(-5 * count / steps)
    return {
        "sgd": lo.transforms.sgd(1.9 * rate, regularizer=regularizer),
        "momentum": lo.transforms.momentum(rate, 0.9, regularizer=regularizer),
        "adam": lo.transforms.adam(fading, regularizer=regularizer),
        "rmsprop": lo.transforms.rmsprop(fading, regularizer=regularizer),
        "optax.adam, L1 in the loss": optax.adam(fading),
    }


@dataclasses.dataclass(frozen=True)
class Walk:
    """Where a rule went.

    Attributes:
      coefficients: after all steps.
      gaps: of the objective to the optimum, relative, a number per step.
      seconds: of a warm run until it arrived, None if it did not or was not timed.
    """

    coefficients: np.ndarray
    gaps: np.ndarray
    seconds: float | None


def walk(loss, objective, optimizer, start, steps, optimum, timed):
    """All steps, and the seconds of those that it took to arrive, unless they are not `timed`."""

    def step(carry):
        w, state = carry
        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    @jax.jit
    def record(w):
        def one(carry, _):
            carry = step(carry)
            return carry, objective(carry[0])

        (w, _), values = jax.lax.scan(one, (w, optimizer.init(w)), length=steps)
        return w, values

    @jax.jit
    def run(w, count):
        return jax.lax.fori_loop(0, count, lambda i, carry: step(carry), (w, optimizer.init(w)))[0]

    w, values = record(start)
    gaps = np.asarray(values) / optimum - 1
    if gaps.min() > ARRIVED or not timed:
        return Walk(np.asarray(w), gaps, None)
    count = int(np.argmax(gaps <= ARRIVED)) + 1
    jax.block_until_ready(run(start, count))
    begin = clock()
    jax.block_until_ready(run(start, count))
    return Walk(np.asarray(w), gaps, clock() - begin)


def fitted(model, problem, tol):
    """scikit-learn's coefficients in our shape, and its seconds."""
    begin = clock()
    w = model(tol).fit(problem.x, problem.y).coef_
    seconds = clock() - begin
    return (w.T if problem.loss is softmax else w.reshape(-1)), seconds


def measure(problem, timed=True):
    """The table of one problem, and how many targets its rules missed."""
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    loss = lambda w: lo.mean(problem.loss(x, y, w)).value
    l1 = lo.regularizers.L1(problem.strength)
    objective = jax.jit(lambda w: loss(w) + l1(w))
    truth, _ = fitted(problem.model, problem, 1e-12)
    optimum = float(objective(truth))
    tries = (fitted(problem.model, problem, 10.0**-k) for k in range(13 if timed else 0))
    arrivals = (seconds for w, seconds in tries if float(objective(w)) / optimum - 1 <= ARRIVED)
    loosest = next((f"{seconds:.3f}" for seconds in arrivals), "")
    rate = 1 / (problem.bend * np.linalg.eigvalsh(problem.x.T @ problem.x / len(y)).max())
    zeros, missed = int((truth == 0).sum()), 0
    columns = "", "steps", "seconds", "gap at the end", "coefficients", "zeros", "false zeros"
    table = Table(*columns, box=box.MARKDOWN)
    table.title = f"{problem.name}: {len(y)} rows, {truth.size} coefficients, {zeros} of them 0"
    table.add_row("scikit-learn", "", loosest, "", "", str(zeros), "0")
    for name, optimizer in rules(rate, problem.steps, l1).items():
        ours = not name.startswith("optax")
        inside = loss if ours else objective
        start = jnp.zeros(truth.shape)
        got = walk(inside, objective, optimizer, start, problem.steps, optimum, timed)
        off = abs(got.coefficients - truth).max() / abs(truth).max()
        right = int(((got.coefficients == 0) & (truth == 0)).sum())
        false = int(((got.coefficients == 0) & (truth != 0)).sum())
        arrived = got.gaps.min() <= ARRIVED
        table.add_row(
            name,
            str(int(np.argmax(got.gaps <= ARRIVED)) + 1) if arrived else "never",
            f"{got.seconds:.3f}" if got.seconds is not None else "",
            f"{got.gaps[-1]:.1e}",
            f"{off:.1e}",
            str(right),
            str(false),
        )
        missed += ours and not (off <= TARGET and right == zeros and not false)
    return table, missed


def main():
    """Prints the tables; returns how many rules missed the coefficients or the zeros."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without the large problem and times")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    console, missed = Console(width=120), 0
    console.print(header(), highlight=False)
    for problem in problems(options.quick):
        table, misses = measure(problem, timed=not options.quick)
        console.print(table)
        verdict = "met" if not misses else f"missed by {misses} rules"
        console.print(f"{verdict}: coefficients within {TARGET}, the same zeros", highlight=False)
        missed += misses
    return missed


if __name__ == "__main__":
    sys.exit(main())
