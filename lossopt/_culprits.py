"""Which transformation of an optimizer it was."""

import pathlib
import sys
from typing import Any

import optax

from lossopt import _jax

_UPDATES = "update", "update_fn", "prox"
_WRAPPERS = {"with_extra_args_support", "elementwise"}


def culprit(caller: str, *sources: Any) -> str:
    """The innermost transformation whose update ran, or the regularizer whose prox did.

    Args:
      caller: qualified name of the function that called the update of the optimizer.
      *sources: an exception; or an equation and those within it, which may come from a function
        that was traced before, and elsewhere.
    """
    best = []
    for codes in map(_jax.codes, sources):
        starts = [i for i, code in enumerate(codes, 1) if code.co_qualname == caller]
        names = [name for name in map(_name, codes[starts[-1] if starts else 0 :]) if name]
        best = names if names[: len(best)] == best else best
    return best[-1] if best else "a function of your own"


def _name(code):
    """The public name of what made a function that updates or is a prox; empty for others."""
    *makers, last = code.co_qualname.replace("<locals>.", "").split(".")
    if not last.endswith(_UPDATES) or set(makers) & _WRAPPERS:
        return ""
    path = pathlib.Path(code.co_filename)
    for package in (optax, sys.modules["lossopt"]):
        root = pathlib.Path(str(package.__file__)).parent
        if path.is_relative_to(root):
            return _public([package.__name__, *path.relative_to(root).parts], makers)
    return ".".join(makers or [last])


def _public(path, makers):
    """The name of a maker in a package, or that of its module; empty for a part of one."""
    if not makers:
        return ""
    *rooms, file = (part for part in path if not part.startswith("_") or part == path[-1])
    homes = [".".join(rooms[: i + 1]) for i in range(len(rooms))]
    words = makers[0], file.removesuffix(".py").lstrip("_")
    known = [f"{home}.{word}" for word in words for home in homes if _holds(home, word)]
    return known[0] if known else f"{homes[-1]}.{makers[0]}"


def _holds(home, word):
    return word in vars(sys.modules[home])
