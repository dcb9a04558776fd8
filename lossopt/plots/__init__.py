"""Figures of what training leaves behind, and one page for a run; matplotlib comes with use."""

from lossopt import _missing as _missing
from lossopt.plots._report import report as report

__getattr__ = _missing.Missing(__name__)
