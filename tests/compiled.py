"""Functions as one program each: an eager call compiles a dozen."""

from functools import lru_cache, partial, wraps

import jax
import numpy as np


def compiled(fn):
    """`fn` under `jit`; what comes out is numpy's, and numbers by keyword stay Python's own."""

    @wraps(fn)
    def call(*args, **kwargs):
        numbers = {name: x for name, x in kwargs.items() if isinstance(x, (int, float))}
        arrays = {name: x for name, x in kwargs.items() if name not in numbers}
        out = _program(fn, tuple(numbers.items()))(*args, **arrays)
        return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), out)

    return call


@lru_cache(maxsize=256)
def _program(fn, numbers):
    return jax.jit(partial(fn, **dict(numbers)))
