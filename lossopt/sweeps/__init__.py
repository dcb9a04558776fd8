"""Many runs at once: hyperparameters drawn from spaces, compiled once, in one table."""

from lossopt import _missing as _missing
from lossopt.sweeps._draws import grid as grid
from lossopt.sweeps._draws import random as random
from lossopt.sweeps._draws import sobol as sobol
from lossopt.sweeps._folds import folds as folds
from lossopt.sweeps._interval import Interval as Interval
from lossopt.sweeps._join import join as join
from lossopt.sweeps._population import Population as Population
from lossopt.sweeps._population import population as population
from lossopt.sweeps._rungs import Rungs as Rungs
from lossopt.sweeps._rungs import halving as halving
from lossopt.sweeps._rungs import hyperband as hyperband
from lossopt.sweeps._spaces import Choice as Choice
from lossopt.sweeps._spaces import Integer as Integer
from lossopt.sweeps._spaces import Linear as Linear
from lossopt.sweeps._spaces import Log as Log
from lossopt.sweeps._spaces import Static as Static
from lossopt.sweeps._suggest import Suggest as Suggest
from lossopt.sweeps._suggest import suggest as suggest
from lossopt.sweeps._table import Table as Table
from lossopt.sweeps._task import Task as Task
from lossopt.sweeps._training import task as task
from lossopt.sweeps._trials import Trials as Trials

__getattr__ = _missing.Missing(__name__)
