"""Which steps stay when the others are deleted."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Best = tuple[str, Callable[..., Any]]  # the second is `max` or `min`


class Kept(NamedTuple):
    """What stays.

    Attributes:
      newest: how many of the newest steps.
      every: the multiples of this number as well.
      best: and the step whose note has the best number under this name.
    """

    newest: int
    every: int | None
    best: Best | None


def checked(best: Best | None) -> Best | None:
    """Raises unless it is a name and a direction."""
    match best:
        case None:
            return None
        case (str(name), direction) if direction is max or direction is min:
            return name, direction
    raise ValueError(
        "Expected keep_best as None, or a number of the notes by its name and its direction, such "
        f"as ('validation/value', min), got {best!r}."
    )


def others(
    kept: Kept, steps: Sequence[int], note_of: Callable[[int], Mapping[str, Any]]
) -> list[int]:
    """The steps to delete, of these, oldest first."""
    stay = {*steps[-kept.newest :], *_best(kept.best, steps, note_of)}
    if kept.every is not None:
        stay |= {step for step in steps if step % kept.every == 0}
    return [step for step in steps if step not in stay]


def _best(best, steps, note_of):
    """The first of equals; none where no note has the number."""
    if best is None:
        return []
    name, direction = best
    values = {step: note_of(step).get(name) for step in steps}
    numbers = [step for step, value in values.items() if _is_number(value)]
    return [direction(numbers, key=values.__getitem__)] if numbers else []


def _is_number(value):
    return type(value) in (int, float) and -math.inf < value < math.inf
