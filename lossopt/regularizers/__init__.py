"""Penalties on parameters. Each is a value and a proximal operator."""

from lossopt.regularizers._base import Regularizer as Regularizer
from lossopt.regularizers._norms import L1 as L1
from lossopt.regularizers._norms import L2 as L2
from lossopt.regularizers._paths import by_path as by_path
