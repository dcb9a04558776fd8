"""Trials from a space: all points of a grid, or points drawn at random or evenly."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks
from lossopt._typing import Array, Key
from lossopt.sweeps._folds import key_words
from lossopt.sweeps._spaces import Choice, Dimension, Log, Space, Static
from lossopt.sweeps._trials import Trials, as_trials

_BLOCK = 256


def grid(space: Space, points: int | Mapping[str, int]) -> Trials:
    """All combinations of a few values of each hyperparameter, the last one varying fastest.

    Args:
      space: dict from names to `Log`, `Linear`, `Integer`, `Choice` or `Static`.
      points: how many values of each range, at least 1, or a dict from names to how many. Of
        `Choice` and `Static` it is always all options, and of `Integer` at most all numbers.

    Returns:
      The trials, with ids 0, 1, ...

    Raises:
      ValueError: if the space is empty, or `points` lacks a range, is below 1, names what the space
        lacks, or is not the number of all options.
      TypeError: if the space holds something else.

    Examples:
      >>> space = {"rate": lo.sweeps.Log(0.01, 1), "k": lo.sweeps.Choice([2, 4])}
      >>> trials = lo.sweeps.grid(space, points=3)
      >>> print(trials["rate"], trials["k"])
      [0.01 0.01 0.1  0.1  1.   1.  ] [2 4 2 4 2 4]
    """
    checked(space)
    ranges = [name for name, dimension in space.items() if not _has_options(dimension)]
    counts = points if isinstance(points, Mapping) else dict.fromkeys(ranges, points)
    if strays := [name for name in counts if name not in space]:
        raise ValueError(f"points names {strays}, which the space lacks: it has {list(space)}.")
    if lacking := [name for name in ranges if name not in counts]:
        raise ValueError(f"Expected points for each range, got none for {lacking}. Add them.")
    axes = {name: _points(x, counts.get(name)) for name, x in space.items()}
    places = np.indices([len(axis) for axis in axes.values()]).reshape(len(axes), -1)
    return made(space, {name: axis[rows] for (name, axis), rows in zip(axes.items(), places)})


def random(space: Space, n: int, key: Key[Array, ""]) -> Trials:
    """Independent draws, each hyperparameter from its own key.

    Of 2n trials the first n are those of n, and a hyperparameter more leaves the others as they
    are.

    Args:
      space: dict from names to `Log`, `Linear`, `Integer`, `Choice` or `Static`.
      n: number of trials, at least 1.
      key: a typed key. The numbers of a trial come from it, folded with the name and the id.

    Returns:
      The trials, with ids 0, 1, ..., n - 1.

    Raises:
      ValueError: if the space is empty, or `n` below 1.
      TypeError: if the space holds something else, `n` is no whole number, or the key not typed.

    Examples:
      >>> space = {"rate": lo.sweeps.Log(1e-4, 1.0), "width": lo.sweeps.Static([8, 32])}
      >>> trials = lo.sweeps.random(space, 100, jax.random.key(0))
      >>> len(trials), trials.names, sorted(set(trials["width"]))
      (100, ('rate', 'width'), [8, 32])
    """
    count = _drawn(space, n, key)
    return made(space, {name: x.at(_uniform(key, name, count)) for name, x in space.items()})


def sobol(space: Space, n: int, key: Key[Array, ""]) -> Trials:
    """Draws that fill the space evenly: a scrambled Sobol sequence.

    Of 2n trials the first n are those of n. They are most even where `n` is a power of 2.

    Args:
      space: dict from names to `Log`, `Linear`, `Integer`, `Choice` or `Static`.
      n: number of trials, at least 1.
      key: a typed key, the seed of the scrambling.

    Returns:
      The trials, with ids 0, 1, ..., n - 1.

    Raises:
      ValueError: if the space is empty, or `n` below 1.
      TypeError: if the space holds something else, `n` is no whole number, or the key not typed.

    Examples:
      >>> space = {"rate": lo.sweeps.Log(1e-4, 1.0)}
      >>> rates = lo.sweeps.sobol(space, 4, jax.random.key(0))["rate"]
      >>> print(np.sort(np.floor(np.log10(rates))))
      [-4. -3. -2. -1.]
    """
    count = _drawn(space, n, key)
    from scipy.stats import qmc

    engine = qmc.Sobol(len(space), rng=np.random.default_rng(key_words(key)))
    fractions = dict(zip(sorted(space), engine.random_base2((count - 1).bit_length())[:count].T))
    return made(space, {name: x.at(fractions[name]) for name, x in space.items()})


def checked(space: Space) -> Space:
    """A dict from names to what they may be."""
    if not isinstance(space, Mapping):
        raise TypeError(f"Expected a space as a dict, got {type(space).__name__}. Name its parts.")
    if not space:
        raise ValueError("Expected a space of at least one hyperparameter, got none. Add one.")
    for name, dimension in space.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"Expected the names of a space as texts, got {name!r}.")
        if isinstance(dimension, Mapping):
            raise TypeError(
                f"Expected a flat space, got a dict at {name!r}. Put its parts beside the others, "
                f"under names such as {name + '_' + str(next(iter(dimension), 'rate'))!r}."
            )
        if not isinstance(dimension, Dimension):
            raise TypeError(
                f"Expected Log, Linear, Integer, Choice or Static at {name!r}, got {dimension!r}. "
                "What is the same for all trials belongs into the function that runs them."
            )
    return space


def made(space: Space, values: Mapping[str, Any]) -> Trials:
    """Trials of the values of each hyperparameter, of what is `Static` the places."""
    options = tuple((name, x.options) for name, x in space.items() if isinstance(x, Static))
    count = len(next(iter(values.values())))
    scales = tuple((name, _scale(x)) for name, x in space.items() if not _has_options(x))
    return as_trials(Trials(values, np.arange(count), options=options, scales=scales))


def _scale(dimension):
    return "log" if isinstance(dimension, Log) or getattr(dimension, "log", False) else "linear"


def _has_options(dimension):
    return isinstance(dimension, Choice | Static)


def _points(dimension, count):
    return dimension.points(count)


def _drawn(space, n, key):
    checked(space)
    _checks.given_key(key)
    _checks.exact_shape((), key=key)
    return _checks.count("n", n, 1)


def _uniform(key, name, count):
    """Numbers below 1 of 53 bits, each from the key folded with the name and its place."""
    for word in np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4"):
        key = jax.random.fold_in(key, word)
    blocks = [_bits(key, jnp.int32(start)) for start in range(0, count, _BLOCK)]
    high, low = np.concatenate([np.asarray(x) for x in blocks])[:count].astype(np.uint64).T
    return ((high << np.uint64(21)) | (low >> np.uint64(11))) * 2.0**-53


@jax.jit
def _bits(key, start):
    """Two words for each of a block of ids; a loop, as some keys draw else under `vmap`."""
    draw = lambda id: jax.random.bits(jax.random.fold_in(key, id), (2,), jnp.uint32)
    return jax.lax.map(draw, start + jnp.arange(_BLOCK, dtype=jnp.int32))
