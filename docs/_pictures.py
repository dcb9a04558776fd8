"""The pictures of the docs, drawn by `lossopt.plots` while the site is built.

A name of `PICTURES` is that of a file: a page shows it by `pictures/<name>.svg`.
"""

import io
from functools import cache, partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import lossopt as lo

jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running

SIZE = 4.2, 3.1  # inches: text stays readable on the screen of a phone
PIECES = 16
L, R, S = lo.losses, lo.regularizers, lo.schedules


def svg(draw) -> bytes:
    """A picture, the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "lossopt", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(left=0.18, right=0.97, bottom=0.16, top=0.93)
        draw(axis=figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def losses(fns, target, unit, low=-3.0, high=3.0, *, draw, axis):
    """Losses of a family, or their slopes."""
    lo.plots.losses(fns, target, low=low, high=high, draw=draw, axis=axis)
    axis.set_xlabel(unit)


def lead(loss):
    """A loss of two items, the first of which is to be above the second by the prediction."""
    return lambda x, relevance: loss(jnp.stack([x, 0.0]), jnp.stack([relevance, 0.0]))


def apart(label):
    """A loss of two vectors that lie apart by the prediction."""
    return lambda x, _: L.contrastive(x[None], jnp.zeros(1), label)


FAMILIES = {
    "regression": (
        {
            "squared_error": L.squared_error,
            "absolute_error": L.absolute_error,
            "huber": L.huber,
            "log_cosh": L.log_cosh,
            "quantile, level 0.9": partial(L.quantile, level=0.9),
            "expectile, level 0.9": partial(L.expectile, level=0.9),
        },
        0.0,
        "prediction minus target",
    ),
    "distributions": (
        {
            "gaussian_nll": lambda x, t: L.gaussian_nll(jnp.exp(x), t, 0.0),
            "gaussian_crps": lambda x, t: L.gaussian_crps(jnp.exp(x), t, 0.0),
            "poisson_nll": L.poisson_nll,
            "gamma_nll, shape 1": partial(L.gamma_nll, shape=1.0),
            "tweedie_deviance, power 1.5": partial(L.tweedie_deviance, power=1.5),
        },
        1.0,
        "log of the predicted mean, where the target is 1",
        -2.0,
        1.2,
    ),
    "classification": (
        {
            "sigmoid_cross_entropy": L.sigmoid_cross_entropy,
            "sigmoid_focal": L.sigmoid_focal,
            "sigmoid_poly, epsilon 1": partial(L.sigmoid_poly, epsilon=1.0),
            "hinge": L.hinge,
            "squared_hinge": L.squared_hinge,
        },
        1.0,
        "logit or score, where the label is 1",
    ),
    "ranking": (
        {
            "pairwise_logistic": lead(L.pairwise_logistic),
            "pairwise_hinge": lead(L.pairwise_hinge),
            "pairwise_squared_hinge": lead(L.pairwise_squared_hinge),
            "list_softmax": lead(L.list_softmax),
            "margin_ranking, margin 2": lambda x, _: L.margin_ranking(x, 0.0, margin=2.0),
        },
        1.0,
        "lead of the relevant item over the other",
    ),
    "contrastive": (
        {
            "contrastive, belong together": apart(1.0),
            "contrastive, do not": apart(0.0),
            "triplet": lambda x, _: L.triplet(jnp.zeros(1), x[None], jnp.ones(1)),
        },
        0.0,
        "distance (triplet: of the positive; of the negative 1)",
        0.01,
        2.0,
    ),
    "policy": (
        {
            "policy_gradient, advantage 1": lambda x, _: L.policy_gradient(x, 1.0),
            "clipped_surrogate, advantage 1": lambda x, _: L.clipped_surrogate(x, 0.0, 1.0),
            "clipped_surrogate, advantage -1": lambda x, _: L.clipped_surrogate(x, 0.0, -1.0),
            "direct_preference, strength 1": lambda x, _: L.direct_preference(
                x, 0.0, 0.0, 0.0, strength=1.0
            ),
        },
        0.0,
        "log-probability above that of the reference",
        -1.0,
        1.0,
    ),
}

SCHEDULES = {
    "constant": S.constant(1.0),
    "linear": S.linear(1.0, 0.0, 100),
    "polynomial": S.polynomial(1.0, 0.0, 100, power=2),
    "exponential": S.exponential(1.0, 0.05),
    "step": S.step(1.0, 30, factor=0.1),
    "cosine": S.cosine(1.0, 100),
    "cosine_restarts": S.cosine_restarts(1.0, 15, factor=2),
    "inverse_sqrt": S.inverse_sqrt(1.0, 10),
    "one_cycle": S.one_cycle(0.1, 1.0, 100, warmup=40, decay=40),
    "triangular": S.triangular(0.1, 1.0, 25),
    "trapezoid": S.trapezoid(1.0, 100, warmup=10, decay=30),
    "warmup": S.warmup(S.cosine(1.0, 80), 20),
    "join": S.join([S.constant(1.0), S.linear(0.5, 0.0, 50)], [50]),
    "scale": {
        "cosine(1, 100)": S.cosine(1.0, 100),
        "scale(cosine(1, 100), 0.5)": S.scale(S.cosine(1.0, 100), 0.5),
    },
    "per_epoch": S.per_epoch(S.step(1.0, 2, factor=0.5), 20),
}


class Diagonal:
    """A regularizer of matrices, on those that hold two weights on their diagonal."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, weights):
        """The penalty."""
        return self.inner(jnp.diag(weights))

    def prox(self, weights, step_size):
        """The proximal point."""
        return jnp.diag(self.inner.prox(jnp.diag(weights), step_size))


REGULARIZERS = {
    "L1": R.L1(1.0),
    "L2": R.L2(0.5),
    "ElasticNet": R.ElasticNet(1.0, mix=0.5),
    "GroupLasso": R.GroupLasso(1.0, axis=None),
    "SparseGroupLasso": R.SparseGroupLasso(1.0, mix=0.5, axis=None),
    "Nuclear": Diagonal(R.Nuclear(1.0)),
    "TotalVariation": R.TotalVariation(0.5),
    "NonNegative": R.NonNegative(),
    "Box": R.Box(-1.0, 2.0),
    "Simplex": R.Simplex(),
    "L1Ball": R.L1Ball(2.0),
    "L2Ball": R.L2Ball(2.0),
}


@cache
def microbatches():
    """Three runs on a batch of ragged rows that differ in how its microbatches are averaged."""
    random = np.random.default_rng(0)
    piece = np.arange(64) % PIECES  # rows of a microbatch stand a stride apart
    x = random.normal(size=(64, 4)).astype(np.float32)
    few = np.where(piece < 8, 1.0, -1.0)[:, None]  # thin microbatches hold rows of another kind
    y = np.sum(few * x, axis=1) + random.normal(size=64)
    mask = np.arange(64) // PIECES < np.where(piece < 8, 4, 1)
    batch = {"x": x, "y": y.astype(np.float32), "mask": mask}

    def measured(w, batch):
        return lo.mean(L.squared_error(batch["x"] @ w, batch["y"]), batch["mask"])

    def pooled(w, batch):
        return {"fit": measured(w, batch)}, {"metrics": {"loss": measured(w, batch)}}

    def averaged(w, batch):
        mean = measured(w, batch)
        return {"fit": lo.constant(mean.value)}, {"metrics": {"loss": mean}}

    def run(objective, pieces):
        given = objective, jnp.zeros(4), batch, optax.sgd(0.05)
        options = {"epochs": 40, "validation": batch, "has_aux": True, "microbatches": pieces}
        return lo.training.run(*given, **options, key=jax.random.key(0))

    runs = {
        "whole batch": (pooled, 1),
        f"{PIECES} microbatches, lossopt": (pooled, PIECES),
        f"{PIECES} microbatches, mean of means": (averaged, PIECES),
    }
    return dict(zip(runs, jax.jit(lambda: [run(*how) for how in runs.values()])()))


def averages(axis):
    """The loss of the whole batch, over the steps of each run."""
    lo.plots.history(microbatches(), "validation/loss", axis=axis)
    axis.set(ylabel="squared error of the whole batch", xlabel="step")


def _objective(params, batch, hyperparameters):
    """A polynomial of degree 9, whose weights are penalized."""
    errors = L.squared_error(batch["x"] @ params, batch["y"])
    penalty = R.L2(hyperparameters["strength"])(params)
    return {"fit": lo.mean(errors), "penalty": lo.constant(penalty)}


def _setting():
    random = np.random.default_rng(1)
    x = random.uniform(-1, 1, 60)
    y = np.sin(4 * x) + 0.3 * random.normal(size=60)
    data = {"x": np.polynomial.legendre.legvander(x, 9), "y": y}
    data = {name: x.astype(np.float32) for name, x in data.items()}
    return ({name: x[rows] for name, x in data.items()} for rows in (slice(15), slice(15, None)))


@cache
def _run():
    """Fifteen points, which ten weights soon know too well."""
    train, validation = _setting()
    run = partial(
        lo.training.run,
        _objective,
        jnp.zeros(10),
        train,
        optax.adam(0.03),
        epochs=500,
        batch_size=5,
        validation=validation,
        hyperparameters={"strength": 0.0},
        stop=lo.training.Patience(40),
    )
    return jax.jit(lambda key: run(key=key))(jax.random.key(0))


def rates(axis):
    """Short runs at each rate of a grid, and the pick."""
    train, _ = _setting()
    given = _objective, jnp.zeros(10), train, optax.adam
    options = {"key": jax.random.key(0), "batch_size": 5, "steps": 100, "seeds": 3}
    grid = lo.training.find_learning_rate(*given, **options, hyperparameters={"strength": 0.0})
    lo.plots.learning_rates(grid, axis=axis)


@cache
def swept():
    """Rates, strengths of a penalty and two rules, by the validation error after 40 epochs."""
    train, validation = _setting()
    rules = {"adam": optax.adam, "momentum": partial(optax.sgd, momentum=0.9)}

    def trial(hyperparameters, key):
        rate, rule = hyperparameters["rate"], rules[hyperparameters["rule"]]
        options = {"epochs": 40, "batch_size": 5, "validation": validation, "key": key}
        numbers = {"strength": hyperparameters["strength"]}
        given = _objective, jnp.zeros(10), train, rule(rate)
        run = lo.training.run(*given, **options, hyperparameters=numbers)
        return run.history["validation/fit"][-1]

    space = {
        "rate": lo.sweeps.Log(1e-3, 1.0),
        "strength": lo.sweeps.Log(1e-5, 1.0),
        "rule": lo.sweeps.Static(["adam", "momentum"]),
    }
    key = jax.random.key(0)
    return lo.sweep(trial, lo.sweeps.sobol(space, 64, key), key, mode="sequential")


def trials(axis):
    """A line for each trial through its hyperparameters, to its score."""
    axis.figure.set_size_inches(7.0, 3.6)
    axis.figure.subplots_adjust(left=0.05, right=0.99, bottom=0.13, top=0.9)
    lo.plots.sweep(swept(), axis=axis)


def good_rates(axis):
    """The score over the rates of one rule, and which are good."""
    axis.figure.subplots_adjust(top=0.86)
    table = swept()
    lo.plots.sweep(table[table["rule"] == "adam"], "rate", axis=axis)


def score_map(axis):
    """The score over two hyperparameters of one rule."""
    axis.figure.subplots_adjust(right=0.9, top=0.9)
    table = swept()
    lo.plots.sweep(table[table["rule"] == "adam"], ["rate", "strength"], axis=axis)


def decision(axis):
    """What a missed fraud costs, what a false alarm, and what a question to the customer."""
    logits = np.random.default_rng(0).normal([1.5, -1.5], 1.0, (60, 2))
    lo.plots.decision(logits, np.array([[0.0, 10.0, 3.0], [100.0, 0.0, 30.0]]), axis=axis)


PICTURES = {
    "averages": averages,
    "run": lambda axis: lo.plots.loss_curves(_run(), axis=axis).set_ylim(top=2),  # room for words
    "norms": lambda axis: lo.plots.history(
        _run(), ["train/gradient_norm", "train/update_ratio"], axis=axis
    ),
    "rates": rates,
    "trials": trials,
    "good_rates": good_rates,
    "score_map": score_map,
    "decision": decision,
}
for name, family in FAMILIES.items():
    PICTURES[name] = partial(losses, *family, draw="loss")
    PICTURES[f"{name}_slope"] = partial(losses, *family, draw="slope")
for name, schedule in SCHEDULES.items():
    PICTURES[name] = partial(lo.plots.schedules, schedule, 100)
for name, member in REGULARIZERS.items():
    PICTURES[name] = partial(lo.plots.regularizers, member)
    PICTURES[f"{name}_levels"] = partial(lo.plots.regularizers, member, draw="levels")
