"""The laws of lossopt's families, for losses and schedules of your own."""

from lossopt import _missing as _missing
from lossopt.testing._gradients import check_gradient as check_gradient
from lossopt.testing._losses import check_loss as check_loss
from lossopt.testing._objectives import check_objective as check_objective
from lossopt.testing._regularizers import check_regularizer as check_regularizer
from lossopt.testing._schedules import check_schedule as check_schedule
from lossopt.testing._transforms import check_transform as check_transform

__getattr__ = _missing.Missing(__name__)
