"""Penalties and constraints on parameters. Each is a value and a proximal operator."""

from lossopt import _missing as _missing
from lossopt.regularizers._balls import L1Ball as L1Ball
from lossopt.regularizers._balls import L2Ball as L2Ball
from lossopt.regularizers._balls import Simplex as Simplex
from lossopt.regularizers._base import Quadratic as Quadratic
from lossopt.regularizers._base import Regularizer as Regularizer
from lossopt.regularizers._base import Summand as Summand
from lossopt.regularizers._constraints import Box as Box
from lossopt.regularizers._constraints import NonNegative as NonNegative
from lossopt.regularizers._groups import GroupLasso as GroupLasso
from lossopt.regularizers._groups import SparseGroupLasso as SparseGroupLasso
from lossopt.regularizers._matrices import Nuclear as Nuclear
from lossopt.regularizers._norms import L1 as L1
from lossopt.regularizers._norms import L2 as L2
from lossopt.regularizers._norms import ElasticNet as ElasticNet
from lossopt.regularizers._paths import by_path as by_path
from lossopt.regularizers._sums import add as add
from lossopt.regularizers._variation import TotalVariation as TotalVariation

__getattr__ = _missing.Missing(__name__)
