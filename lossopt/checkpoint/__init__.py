"""States on disk that verify themselves."""

from lossopt import _missing as _missing
from lossopt.checkpoint._checkpoints import Checkpoints as Checkpoints
from lossopt.checkpoint._checkpoints import Latest as Latest
from lossopt.checkpoint._checkpoints import Report as Report
from lossopt.checkpoint._checkpoints import Restored as Restored

__getattr__ = _missing.Missing(__name__)
