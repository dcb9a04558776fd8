"""Compiled training runs: pure functions from data and hyperparameters to trained parameters."""

from lossopt import _missing as _missing
from lossopt.training._evaluation import evaluate as evaluate
from lossopt.training._run import Run as Run
from lossopt.training._run import run as run
from lossopt.training._stop import Patience as Patience
from lossopt.training._stop import Stopped as Stopped
from lossopt.training._stop import Target as Target

__getattr__ = _missing.Missing(__name__)
