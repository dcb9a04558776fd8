"""Compiled training runs: pure functions from data and hyperparameters to trained parameters."""

from lossopt.training._evaluation import evaluate as evaluate
from lossopt.training._run import Run as Run
from lossopt.training._run import run as run
