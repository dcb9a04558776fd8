"""How much a sweep computed."""

from typing import NamedTuple


class Work(NamedTuple):
    """Steps of a sweep, those of all trials together.

    Attributes:
      full: if all trials took all steps.
      nominal: that trials took.
      executed: with the copies that filled up calls; what an interruption threw away not counted.
    """

    full: int
    nominal: int
    executed: int
