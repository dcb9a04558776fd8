"""The part of a state that is asked for: the leaves whose paths a pattern takes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lossopt.checkpoint import _leaves
from lossopt.checkpoint._leaves import Leaf

SHOWN = 10  # lines of a message


def checked(only: str | None) -> str | None:
    """A pattern, which may take anything; None is the whole state, its containers too."""
    if not isinstance(only, str | None):
        raise TypeError(
            f"Expected only as a regular expression of paths, such as '^params/', got {only!r}. "
            "Write several as one: 'this|that'."
        )
    try:
        re.compile(only or "")
    except re.error as error:
        raise ValueError(
            f"Expected only as a regular expression of paths, got {only!r}: {error}. Put a "
            "backslash before what is meant as it stands."
        ) from None
    return only


def entries(
    folder: Path, saved: list[dict[str, Any]], only: str | None
) -> dict[str, dict[str, Any]]:
    """The entries of leaves by path, with the names of their arrays.

    With a pattern those that it takes: a part has no nodes without children, which are containers,
    and those are as in `like`.
    """
    named = {entry["path"]: {**entry, "name": str(i)} for i, entry in enumerate(saved)}
    if only is None:
        return named
    leaves = {path: entry for path, entry in named.items() if entry["kind"] != "empty"}
    part = {path: entry for path, entry in leaves.items() if re.search(only, path)}
    if not part:
        raise ValueError(
            f"only={only!r} takes no leaf of {folder}, which has {few(leaves, ', ')}. It is a "
            "regular expression, searched for in each path: correct it."
        )
    return part


def check(folder: Path, saved: Iterable[Leaf], wanted: Iterable[Leaf], only: str | None) -> None:
    """Raises where `like` is not what was saved, or not the part of it that is asked for."""
    remedy = "Restore into the state that was saved, then convert it."
    if only is not None:
        saved, wanted = ([leaf._replace(within="") for leaf in each] for each in (saved, wanted))
        strays = [repr(leaf.path) for leaf in wanted if not re.search(only, leaf.path)]
        if strays:
            raise ValueError(
                f"only={only!r} does not take {few(strays, ', ')} of `like`, which would stay as "
                "they are. Leave them out of `like`, or widen the pattern."
            )
        remedy = f"`like` must have the leaves that only={only!r} takes, and no others."
    differences = _leaves.compare(list(saved), list(wanted))
    if differences:
        raise ValueError(
            f"{folder} holds another state than `like`:\n{few(differences, chr(10))}\n{remedy}"
        )


def few(lines: Iterable[str], between: str) -> str:
    """The first of them, and how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return between.join(lines[:SHOWN] + more)
