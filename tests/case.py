"""What a row of the tables of losses holds."""

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import numpy as np


class Loss(NamedTuple):
    """A loss bound to its numbers, inputs that share their leading axis, and a reference.

    Predictions come first; the reference is written by someone who has not read the loss.
    """

    name: str
    fn: Callable
    inputs: tuple
    reference: Callable


def drawn(name, *inputs):
    """Inputs; those that are functions draw in turn from the generator of the row of that name."""
    rng = np.random.default_rng(crc32(name.encode()))
    return tuple(x(rng) if callable(x) else x for x in inputs)


def normal(*shape, scale=1.0):
    return lambda rng: (scale * rng.normal(size=shape)).astype(np.float32)


def unit(*shape):
    def draw(rng):
        x = normal(*shape)(rng)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return draw
