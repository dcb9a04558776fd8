"""Exact objectives for JAX, and everything around the update rule."""

from lossopt import _missing as _missing
from lossopt import checkpoint as checkpoint
from lossopt import fused as fused
from lossopt import losses as losses
from lossopt import parallel as parallel
from lossopt import plots as plots
from lossopt import regularizers as regularizers
from lossopt import schedules as schedules
from lossopt import sweeps as sweeps
from lossopt import testing as testing
from lossopt import training as training
from lossopt import transforms as transforms
from lossopt._grad import measure as measure
from lossopt._grad import value_and_grad as value_and_grad
from lossopt._mean import Mean as Mean
from lossopt._mean import constant as constant
from lossopt._mean import mean as mean
from lossopt._mean import pool as pool
from lossopt._mean import value as value
from lossopt.sweeps._sweep import sweep as sweep
from lossopt.training._fit import fit as fit
from lossopt.training._train_step import train_step as train_step

__getattr__ = _missing.Missing(__name__)
