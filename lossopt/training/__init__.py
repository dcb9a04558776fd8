"""Compiled training runs: pure functions from data and hyperparameters to trained parameters."""

from lossopt import _missing as _missing
from lossopt.training._evaluation import evaluate as evaluate
from lossopt.training._run import Run as Run
from lossopt.training._run import run as run

__getattr__ = _missing.Missing(__name__)
