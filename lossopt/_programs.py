"""Stub."""

from functools import partial

import jax

_P = {}


def call(fn, plan, *args):
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)):
        return _bound(fn, plan)(*args)
    key = fn, *(id(x) if callable(x) or hasattr(x, "init") else x for x in plan)
    if key not in _P:
        _P[key] = jax.jit(_bound(fn, plan)), plan
    return _P[key][0](*args)


def _bound(fn, plan):
    return partial(fn, *plan)
