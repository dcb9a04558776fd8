"""What one writes without `lossopt.sweep`: loops over trials, and libraries that drive them.

Each takes a model, trials and a number of them, and returns a call that runs so many and returns
their scores, losses on the rows held out.
"""

import importlib
import importlib.util
import logging
import warnings

import jax
import numpy as np
import optax

from benchmarks._sweep_tasks import ROWS, SPACE, digits, mean_loss, optimizer
from lossopt.sweeps import Linear


def rebuilt(model, trials, count):
    """An optimizer and a jitted step made anew for each trial, so that each compiles."""
    train, measure, scored = digits()[0], *_measured(model)

    def call():
        return [
            scored(_trained(model, *_step(measure, numbers), train, at)) for at, numbers in rows
        ]

    rows = [(row, trials[row]) for row in range(count)]
    return call


def jitted(model, trials, count):
    """One jitted step for all trials, hyperparameters among its arguments, state donated."""
    one = _driven(model)
    rows = [(trials[row], row) for row in range(count)]
    return lambda: [one(*row) for row in rows]


def optuna(model, trials, count):
    """Optuna with its own sampler, each trial by the jitted step."""
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(logging.WARNING)
    one = _driven(model)

    def objective(trial):
        draw = lambda name, x: trial.suggest_float(name, x.low, x.high, log=type(x) is not Linear)
        return one({name: draw(name, space) for name, space in SPACE.items()}, trial.number)

    def call():
        sampler = optuna.samplers.TPESampler(seed=0)
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=count)
        return [trial.value for trial in study.trials]

    return call


def hyperoptax(model, trials, count):
    """Random search of hyperoptax, 8 at once, each a whole run in one program."""
    hyperoptax = importlib.import_module("hyperoptax")
    task = model.task()
    of = lambda x: hyperoptax.LinearSpace if type(x) is Linear else hyperoptax.LogSpace
    space = {name: of(x)(x.low, x.high) for name, x in SPACE.items()}

    def run(key, numbers):
        return task.score(task.advance(task.init(numbers, key), task.steps))["loss"]

    def call():
        state, search = hyperoptax.RandomSearch.init(space, n_parallel=8)
        keys = {"n_iterations": max(1, count // 8)}
        _, (_, scores) = search.optimize(state, jax.random.key(0), run, **keys)
        return np.concatenate([np.ravel(x) for x in scores])

    return call


def halving(model, trials, count):
    """scikit-learn's network, epochs halved among as many candidates: few train to their end."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_halving_search_cv
    from sklearn.model_selection import HalvingRandomSearchCV, PredefinedSplit
    from sklearn.neural_network import MLPClassifier

    assert enable_halving_search_cv is not None  # importing it is what it is for
    pairs = zip(*digits())
    x, y = (np.concatenate(pair) for pair in pairs)
    width = model.params[1].size
    draws = {
        "learning_rate_init": trials["rate"].tolist(),
        "beta_1": trials["momentum"].tolist(),
        "alpha": trials["decay"].tolist(),
    }
    network = MLPClassifier((width,), batch_size=model.batch_size, random_state=0)
    options = {
        "n_candidates": count,
        "resource": "max_iter",
        "max_resources": model.epochs,
        "min_resources": 1,
        "cv": PredefinedSplit(np.where(np.arange(len(x)) < ROWS, -1, 0)),
        "scoring": "neg_log_loss",
        "refit": False,
        "random_state": 0,
    }
    search = HalvingRandomSearchCV(network, draws, **options)

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return -search.fit(x, y).cv_results_["mean_test_score"]

    return call


JITTED, REBUILT = "one jitted step", "optimizer rebuilt each trial"
OPTUNA, HYPEROPTAX, HALVING = "Optuna, one jitted step", "hyperoptax", "HalvingRandomSearchCV"
RIVALS = {
    REBUILT: rebuilt,
    JITTED: jitted,
    OPTUNA: optuna,
    HYPEROPTAX: hyperoptax,
    HALVING: halving,
}
PACKAGES = {OPTUNA: "optuna", HYPEROPTAX: "hyperoptax"}
ABSENT = [name for name, package in PACKAGES.items() if not importlib.util.find_spec(package)]


def _driven(model):
    """One trial by the jitted step, whose hyperparameters are arguments."""
    train, measure, scored = digits()[0], *_measured(model)

    def step(carry, numbers, x, y):
        return _moved(measure, optimizer(numbers), carry, x, y)

    compiled = jax.jit(step, donate_argnums=0)
    begun = jax.jit(lambda params: (params, optimizer(dict.fromkeys(SPACE, 0.1)).init(params)))

    def one(numbers, seed):
        numbers = {name: np.float32(x) for name, x in numbers.items()}
        step = lambda carry, x, y: compiled(carry, numbers, x, y)
        return scored(_trained(model, begun, step, train, seed))

    return one


def _step(measure, numbers):
    """What begins, and the step of one trial alone."""
    rule = optimizer(numbers)
    step = jax.jit(lambda carry, x, y: _moved(measure, rule, carry, x, y), donate_argnums=0)
    return lambda params: (jax.tree.map(jax.numpy.array, params), rule.init(params)), step


def _measured(model):
    """The loss of a batch, and a compiled one of the rows held out."""
    held = digits()[1]
    measure = lambda params, x, y: mean_loss(model, params, x, y)
    judge = jax.jit(measure)
    return measure, lambda params: float(judge(params, *held))


def _moved(measure, rule, carry, x, y):
    params, state = carry
    updates, state = rule.update(jax.grad(measure)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def _trained(model, begun, step, train, seed):
    """The parameters after all epochs, rows shuffled anew in each."""
    random, carry = np.random.default_rng(seed), begun(model.params)
    for _ in range(model.epochs):
        order = random.permutation(ROWS)
        for at in range(0, ROWS, model.batch_size):
            rows = order[at : at + model.batch_size]
            carry = step(carry, *(x[rows] for x in train))
    return carry[0]
