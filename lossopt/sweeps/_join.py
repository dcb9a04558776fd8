"""Trials of unequal spaces, one after the other."""

import jax.numpy as jnp
import numpy as np

from lossopt._keys import is_key
from lossopt.sweeps._columns import is_flat, place
from lossopt.sweeps._trials import Trials, as_ids, as_trials, lacks


def join(*trials: Trials) -> Trials:
    """Puts trials of unequal spaces one after the other.

    What a row lacks is NaN in its column and never passed to its run.

    Args:
      *trials: at least one.

    Returns:
      All of them. The first keep their ids and settings, those of the others count on from there.

    Raises:
      ValueError: if a name has another dtype or shape in some, or is `Static` only in some.
      TypeError: if the values of one are no dict of arrays.

    Examples:
      >>> adam = lo.sweeps.grid({"b2": lo.sweeps.Linear(0.5, 1)}, 2)
      >>> sgd = lo.sweeps.grid({"momentum": lo.sweeps.Linear(0, 1)}, 2)
      >>> both = lo.sweeps.join(adam, sgd)
      >>> print(both["b2"], both.id, both[3])
      [0.5 1.  nan nan] [0 1 2 3] {'momentum': 1.0}
    """
    if not trials:
        raise ValueError("Expected trials to join, got none.")
    parts = [as_trials(part) for part in trials]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    for part in parts:
        if not is_flat(part.values):
            raise TypeError(
                f"Expected trials of a dict of arrays, got a tree of {list(part.names)}. Name its "
                "arrays; trials in a list are given as join(*trials)."
            )
    options = _merged(parts)
    holds = {name: np.concatenate([~lacks(part, name) for part in parts]) for name in names}
    return Trials(
        values={name: _column(parts, name, options.get(name)) for name in names},
        id=_counted([part.id for part in parts]),
        setting=_counted([part.setting for part in parts]),
        present={name: held for name, held in holds.items() if not held.all()},
        options=tuple((name, tuple(some)) for name, some in options.items()),
        scales=tuple({name: x for part in parts for name, x in part.scales}.items()),
    )


def _merged(parts):
    """The options of all, by name, in the order in which they appear."""
    options = {}
    for name, some in (pair for part in parts for pair in part.options):
        known = options.setdefault(name, [])
        known.extend(option for option in some if place(known, option) == len(known))
    for name in options:
        if any(name in part and name not in dict(part.options) for part in parts):
            raise ValueError(
                f"Expected {name!r} as Static in all trials or in none, got both. Rename one."
            )
    return options


def _column(parts, name, options):
    """The values of a name in all trials, with a filler where some lack it."""
    if options is not None:
        return np.concatenate([_codes(part, name, options) for part in parts])
    found = [part.values[name] for part in parts if name in part]
    kinds = list(dict.fromkeys((x.dtype, x.shape[1:]) for x in found))
    if len(kinds) > 1:
        got = " and ".join(f"{dtype} {shape}" for dtype, shape in kinds)
        raise ValueError(f"Expected {name!r} of one dtype and shape, got {got}. Convert one.")
    pieces = [part.values[name] if name in part else _filler(found[0], len(part)) for part in parts]
    return jnp.concatenate(pieces) if is_key(found[0]) else np.concatenate(pieces)


def _filler(like, count):
    """Rows that nobody reads."""
    return like[np.zeros(count, int)] if is_key(like) else np.zeros_like(like[:1]).repeat(count, 0)


def _codes(part, name, options):
    if name not in part:
        return np.full(len(part), -1, np.int32)
    places = [place(options, option) for option in dict(part.options)[name]]
    return np.asarray([*places, -1], np.int32)[part.values[name]]


def _counted(ids):
    """Numbers of the later ones moved behind those of the former."""
    moved, start = [], 0
    for some in ids:
        moved.append(as_ids(some, start))
        start = int(moved[-1].max()) + 1
    return np.concatenate(moved)
