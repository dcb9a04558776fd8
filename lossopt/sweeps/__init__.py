"""Many runs at once: hyperparameters drawn from spaces, compiled once, in one table."""

from lossopt import _missing as _missing
from lossopt.sweeps._task import Task as Task
from lossopt.sweeps._training import task as task

__getattr__ = _missing.Missing(__name__)
