"""The message of a name that a room does not have: what to take instead."""

import dataclasses
import sys
from typing import NoReturn

import optax

from lossopt._glossary import TABLE


@dataclasses.dataclass(frozen=True)
class Missing:
    """The `__getattr__` of a room: says what a name that it does not have is called here.

    An object, because type checkers take a function for a promise that every name exists.
    """

    room: str

    def __call__(self, name: str) -> NoReturn:
        text = f"module {self.room!r} has no attribute {name!r}"
        found = None if name.startswith("_") else advice(self.room, name)
        if found:
            raise AttributeError(f"{text}: take {found}.")
        raise AttributeError(text, name=name, obj=sys.modules[self.room])


def advice(room: str, name: str) -> str | None:
    """What to take for a name that the room does not have; None where nobody knows it."""
    wanted = _plain(name)
    rooms = [sys.modules[room] for room in TABLE if room in sys.modules]
    others = [words[wanted] for words in WORDS.values() if wanted in words]
    found = _members(rooms, wanted) or others[:1] or _members([optax, optax.losses], wanted)[:1]
    return WORDS[room].get(wanted) or " or ".join(found) or None


def _plain(name):
    """Letters and digits, without the name of a family: `MSELoss` and `mse_loss` are `mse`."""
    text = "".join(c for c in name.lower() if c.isalnum())
    return text.removesuffix("loss").removesuffix("schedule").removesuffix("lr") or text


def _members(modules, wanted):
    """The paths of all public members with this plain name."""
    return [
        f"{module.__name__}.{member}"
        for module in modules
        for member in vars(module)
        if not member.startswith("_") and _plain(member) == wanted
    ]


WORDS = {
    room: {_plain(word): what for words, what in rows.items() for word in words.split(", ")}
    for room, rows in TABLE.items()
}
