"""What a row of the tables of losses holds."""

from collections.abc import Callable
from typing import NamedTuple


class Loss(NamedTuple):
    """A loss bound to its numbers, inputs that share their leading axis, and a reference.

    Predictions come first; the reference is written by someone who has not read the loss.
    """

    name: str
    fn: Callable
    inputs: tuple
    reference: Callable
