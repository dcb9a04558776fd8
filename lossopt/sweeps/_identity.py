"""What makes a sweep the same one: its programs, what they hold, its key, its trials."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from lossopt import _keys
from lossopt._paths import paths
from lossopt._programs import Program, unplaced
from lossopt._typing import PyTree
from lossopt.sweeps._form import Form
from lossopt.sweeps._trial import Statics, Trial
from lossopt.sweeps._trials import Trials
from lossopt.training._resume import differences


def general(key: Any) -> dict[str, str]:
    """Facts that all trials of a sweep share."""
    words = np.asarray(jax.random.key_data(key)).tolist()
    versions = {name: metadata.version(name) for name in ("jax", "lossopt")}
    return {"key": f"{jax.random.key_impl(key)} {words}", **versions}


def label(statics: Statics, names: tuple[str, ...]) -> str:
    """A group of trials in words."""
    said = [f"{name}={option_text(option)}" for name, option in statics]
    return f"trials of {', '.join([*names, *said])}"


def program(trial: Trial, values: PyTree) -> str:
    """A digest of what one trial runs, and one of the constants that it closes over."""
    return digest(trial.programs(Form("sequential", 1), values))


def digest(programs: Sequence[tuple[Program, Sequence[PyTree]]]) -> str:
    """The same of some programs, each with what it is called with."""
    text, held = hashlib.sha256(), hashlib.sha256()
    for program, args in programs:
        text.update(unplaced(program, args))
        for x in program.arrays:
            held.update(f"{x.dtype}{x.shape}".encode() + _host(x).tobytes())
    return f"program {text.hexdigest()[:16]}, constants {held.hexdigest()[:16]}"


def rows_of(trials: Trials) -> dict[str, np.ndarray]:
    """The trials as numbers, by name; arrays and options of `Static` as digests."""
    options = dict(trials.options)
    table = {"setting": np.asarray(trials.setting)}
    for name, x in zip(paths(trials.values), jax.tree.leaves(trials.values)):
        table[f"values/{name}"] = _digests(options[name], x) if name in options else _short(x)
    table |= {f"present/{name}": np.asarray(x) for name, x in trials.present.items()}
    return table


def same_trials(had: dict[str, np.ndarray], ids: Sequence[int], trials: Trials, where: str) -> None:
    """Raises where trials of these ids are not there, or are others."""
    rows = known(ids, trials, where)
    if not len(rows):
        return
    had, now = _held(had), _held({name: x[rows] for name, x in rows_of(trials).items()})
    if had.keys() != now.keys():
        named = lambda table: ", ".join(name.partition("/")[2] or name for name in table)
        raise _another(where, [f"hyperparameters: were {named(had)}, are {named(now)}"])
    for name, old in sorted(had.items()):  # what is present before values, fillers among them
        new = now[name]
        same = old.shape == new.shape and old.dtype == new.dtype
        differs = [i for i in range(len(ids)) if not same or old[i].tobytes() != new[i].tobytes()]
        if differs:
            at = differs[0]
            told = name.removeprefix("values/").replace("present/", "presence of ")
            values = f" was {old[at]}, is {new[at] if same else new.dtype}" if old.ndim == 1 else ""
            raise _another(where, [f"trial {ids[at]}: {told}{values or ' is another'}"])


def same_facts(had: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises where facts differ that both have, or the older alone."""
    now = {name: x for name, x in now.items() if name in had}
    if lines := differences(had, now):
        raise _another(where, lines)


def places(ids: Sequence[int], trials: Trials) -> np.ndarray:
    """The rows of trials by id, -1 where there is none."""
    rows = {int(id): row for row, id in enumerate(np.asarray(trials.id))}
    return np.array([rows.get(int(id), -1) for id in ids], int)


def known(ids: Sequence[int], trials: Trials, where: str) -> np.ndarray:
    """The rows of trials by id; raises where there is none."""
    rows = places(ids, trials)
    if (rows < 0).any():
        missing = np.asarray(ids)[rows < 0][0]
        raise _another(where, [f"trial {missing}: there is none of this id now"])
    return rows


def option_text(option: Any) -> str:
    """An option without the address at which it lies, of a set without the order of its hashes."""
    if type(option) in (tuple, frozenset):
        texts = map(option_text, option)
        inner = ", ".join(texts if isinstance(option, tuple) else sorted(texts))
        return f"({inner})" if isinstance(option, tuple) else f"{{{inner}}}"
    named = getattr(option, "__qualname__", None)
    if named:
        return f"{getattr(option, '__module__', '')}.{named}"
    return re.sub(" at 0x[0-9a-f]+", "", repr(option))


def _held(table):
    """Without names that none of these trials has, such as those of others joined to them."""
    for name in [name for name in table if name.startswith("present/")]:
        held = table[name]
        dropped = {name} if held.all() else set() if held.any() else {name, f"values{name[7:]}"}
        table = {column: x for column, x in table.items() if column not in dropped}
    return table


def _another(where, lines):
    return ValueError(
        f"{where} holds another sweep than this call asks for:\n" + "\n".join(lines) + "\nCall "
        "sweep as it was called then, perhaps with more trials, or name another directory. "
        "Nothing was overwritten."
    )


def _digests(options, codes):
    texts = [option_text(option).encode() for option in options]
    return _hashed([*texts, b""])[np.asarray(codes)]  # -1, a missing one, is the last


def _short(x):
    """Numbers as they are, of arrays digests: a mask may have a million rows."""
    rows = _host(x)
    if rows.ndim == 1:
        return rows
    about = f"{rows.dtype}{rows.shape[1:]}".encode()
    return _hashed([about + row.tobytes() for row in rows])


def _hashed(texts):
    """Eight bytes of each, uint8 `[texts, 8]`."""
    found = b"".join(hashlib.sha256(text).digest()[:8] for text in texts)
    return np.frombuffer(found, np.uint8).reshape(-1, 8)


def _host(x):
    return np.asarray(jax.random.key_data(x) if _keys.is_key(x) else x)
