"""States on disk that verify themselves."""

from lossopt.checkpoint._checkpoints import Checkpoints as Checkpoints
from lossopt.checkpoint._checkpoints import Report as Report
from lossopt.checkpoint._checkpoints import Restored as Restored
