"""Compiled training runs: pure functions from data and hyperparameters to trained parameters."""

from lossopt import _missing as _missing
from lossopt.training._evaluation import evaluate as evaluate
from lossopt.training._host import STOP as STOP
from lossopt.training._learning_rate import RateGrid as RateGrid
from lossopt.training._learning_rate import find_learning_rate as find_learning_rate
from lossopt.training._prediction import predict as predict
from lossopt.training._range_test import range_test as range_test
from lossopt.training._run import Run as Run
from lossopt.training._run import run as run
from lossopt.training._split import split as split
from lossopt.training._step import Measured as Measured
from lossopt.training._step import State as State
from lossopt.training._stop import Patience as Patience
from lossopt.training._stop import Stopped as Stopped
from lossopt.training._stop import StopRule as StopRule
from lossopt.training._stop import Target as Target

__getattr__ = _missing.Missing(__name__)
