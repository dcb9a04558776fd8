"""Pictures of runs, sweeps, losses, schedules, regularizers and decisions, by matplotlib.

Each function draws on an axis of matplotlib and returns it: the one that is given, or one of a new
figure of pyplot. Curves differ in color, dashes and markers, so that they are told apart in grey
and by people who are color blind. A vertical axis is logarithmic where all numbers on it are above
0 and the highest is more than 10 times the lowest.
"""

from lossopt import _missing as _missing
from lossopt.plots._curves import history as history
from lossopt.plots._curves import loss_curves as loss_curves
from lossopt.plots._decisions import decision as decision
from lossopt.plots._rates import learning_rates as learning_rates
from lossopt.plots._regularizers import regularizers as regularizers
from lossopt.plots._report import report as report
from lossopt.plots._sweep import sweep as sweep
from lossopt.plots._teaching import losses as losses
from lossopt.plots._teaching import schedules as schedules

__getattr__ = _missing.Missing(__name__)
