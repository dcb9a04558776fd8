"""Many runs at once: spaces of hyperparameters, trials, and the table of what came of them."""

from lossopt import _missing as _missing
from lossopt.sweeps._interval import Interval as Interval
from lossopt.sweeps._table import Table as Table

__getattr__ = _missing.Missing(__name__)
