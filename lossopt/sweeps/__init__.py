"""Many runs at once: hyperparameters drawn from spaces, compiled once, in one table."""

from lossopt import _missing as _missing
from lossopt.sweeps._interval import Interval as Interval
from lossopt.sweeps._table import Table as Table
from lossopt.sweeps._task import Task as Task

__getattr__ = _missing.Missing(__name__)
