"""How much each hyperparameter matters."""

import importlib
from typing import Any

import numpy as np

from lossopt import _checks
from lossopt.sweeps._cells import standing
from lossopt.sweeps._rulers import numbered, ruler

LEAST = 8  # trials that finished
FOLDS = 5
TREES = 64
ABSENT = -1.0  # beyond all positions, so that a tree can split it off


def importance(
    table: Any, score: str | None, repeats: int, key: int
) -> dict[str, tuple[float, float]]:
    """See `Table.importance`."""
    explained: str = table.score if score is None else score
    if explained not in table.scores:
        known = ", ".join(map(repr, table.scores))
        raise ValueError(f"Expected score as one of {known}, got {explained!r}. Choose one.")
    repeats = _checks.count("repeats", repeats, 1)
    ensemble, selection = map(_sklearn, ("ensemble", "model_selection"))
    table = table.mean() if table.repeated else table
    table = table[table["status"] != "waiting"]
    finite = int(np.sum(np.isfinite(np.asarray(table[explained], float))))
    if finite < LEAST:
        raise ValueError(
            f"Expected at least {LEAST} trials with a finite {explained}, got {finite}. Run more "
            "of them: a model of fewer says nothing."
        )
    places, names = ranks(table, explained), numbered(table)
    if not names:
        raise ValueError(
            "Expected a hyperparameter that differs among the trials, and none does: there is "
            "nothing to weigh."
        )
    if np.ptp(places) == 0:
        return dict.fromkeys(names, (0.0, 0.0))
    features = [ruler(table[name], table.scales[name]).at(table[name]) for name in names]
    features = np.nan_to_num(np.stack(features, 1), nan=ABSENT)
    draws = np.random.default_rng(key)
    drops = np.zeros((len(names), repeats))
    for seen, held in selection.KFold(FOLDS, shuffle=True, random_state=key).split(places):
        forest = ensemble.RandomForestRegressor(TREES, random_state=key)
        forest.fit(features[seen], places[seen])
        shuffled = _shuffled(features[held], repeats, draws)
        whole = np.concatenate([features[None, held], shuffled.reshape(-1, *shuffled.shape[2:])])
        guessed = forest.predict(whole.reshape(-1, len(names))).reshape(len(whole), -1)
        errors = np.sum((guessed - places[held]) ** 2, axis=1)
        drops += (errors[1:] - errors[0]).reshape(drops.shape) / (len(places) * np.var(places))
    told = {name: (float(np.mean(x)), float(np.std(x))) for name, x in zip(names, drops)}
    return dict(sorted(told.items(), key=lambda item: -item[1][0]))


def _sklearn(name):
    """A module of scikit-learn; says which extra has it."""
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ImportError(
            "importance() needs scikit-learn, which is not installed. Install it with "
            "pip install 'lossopt[sweeps]'."
        ) from error


def _shuffled(features, repeats, draws):
    """Copies `[names, repeats, rows, names]`, of which each has one column out of order."""
    names = features.shape[1]
    copies = np.tile(features, (names, repeats, 1, 1))
    for name in range(names):
        copies[name, :, :, name] = draws.permuted(copies[name, :, :, name], axis=1)
    return copies


def ranks(table: Any, score: str) -> np.ndarray:
    """The rank of each trial by its score, which no single huge value rules; equals share one.

    By the score that ranks it is that of `Table.rank`, by another one that of its values.
    """
    if score == table.score:
        values = np.stack(standing(table)[::-1], 1)
    else:
        values = np.asarray(table[score], float)[:, None]
        values = np.where(np.isfinite(values), values, np.inf)
    _, which, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which.ravel()]
