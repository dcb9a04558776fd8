"""What others call the names of `lossopt.sweeps`."""

SWEEPS = {
    "results, trials dataframe, leaderboard, cv_results_": "lossopt.sweeps.Table",
    "hyperparameter importance, permutation importance, feature importance": "lossopt.sweeps."
    "Table.importance",
    "robustness, sensitivity": "lossopt.sweeps.Table.interval",
    "log uniform, loguniform, suggest float, geomspace, logspace": "lossopt.sweeps.Log",
    "uniform, linspace": "lossopt.sweeps.Linear",
    "int uniform, randint, suggest int, quniform": "lossopt.sweeps.Integer, traced, or "
    "lossopt.sweeps.Static where it sets a shape",
    "categorical, suggest categorical": "lossopt.sweeps.Choice of numbers, or "
    "lossopt.sweeps.Static of what changes the program",
    "parameter grid, grid search, grid sampler": "lossopt.sweeps.grid",
    "random search, parameter sampler, random sampler": "lossopt.sweeps.random",
    "quasi-random, quasi Monte Carlo, QMC sampler, Latin hypercube, Halton": (
        "lossopt.sweeps.sobol"
    ),
    "ask and tell, Bayesian optimization, TPE, CMA-ES, study, search algorithm": (
        "lossopt.sweeps.suggest, with a sampler of your own"
    ),
    "early stopping of trials, pruner, ASHA, successive halving, "
    "HalvingRandomSearchCV": "lossopt.sweeps.halving",
    "multi-fidelity, bandit": "lossopt.sweeps.hyperband",
    "fidelity, budget, resource": "the steps of lossopt.sweeps.Rungs",
    "replicates, seeds, random restarts": "lossopt.sweeps.Trials.repeat",
    "conditional, nested space, concatenate": "lossopt.sweeps.join of trials of unequal spaces",
    "PBT, population based training, exploit, explore": "lossopt.sweeps.population",
    "objective, trainable, estimator": "lossopt.sweeps.task, of what lossopt.fit takes",
    "cross-validation, KFold, k-fold": "lossopt.sweeps.folds, as values of "
    "lossopt.sweeps.Trials.repeat",
}
