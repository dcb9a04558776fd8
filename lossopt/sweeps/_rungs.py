"""Rungs: after how many steps how many settings go on."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from lossopt import _checks

Bracket = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Rungs:
    """Brackets of successive halving, for `sweep(..., rungs=)`.

    `halving` and `hyperband` make the usual ones. The settings of the trials are dealt to the
    brackets in their order. In a bracket all of its settings run up to the steps of its first rung;
    as many of the best as the next rung takes go on to the steps of that one. Brackets run abreast,
    so that they fill calls together; what runs past a rung of others is scored there, too.

    Attributes:
      brackets: at least one, each a sequence of rungs, pairs `(settings, steps)`: how many settings
        run there, at least 1 and no more than at the rung before; and up to how many steps, counted
        from the first, at least 1 and more than at the rung before. All brackets end at the same
        steps, those of the task.

    Raises:
      ValueError: where steps do not increase, settings do, or brackets end at unequal steps.
      TypeError: where a rung is no pair of whole numbers.

    Examples:
      >>> rungs = lo.sweeps.Rungs([[(64, 100), (8, 1000)]])
      >>> rungs.settings, rungs.steps, rungs.work
      (64, 1000, 13600)
    """

    brackets: Any

    def __post_init__(self):
        object.__setattr__(self, "brackets", tuple(map(_bracket, _some(self.brackets, "brackets"))))
        if len(ends := {bracket[-1][1] for bracket in self.brackets}) > 1:
            raise ValueError(
                f"Expected brackets that end at the same steps, got ends at {sorted(ends)}. Scores "
                "after unequal steps do not compare: let all last rungs be at the task's steps."
            )

    @property
    def settings(self) -> int:
        """How many settings there are to be, in all brackets."""
        return sum(bracket[0][0] for bracket in self.brackets)

    @property
    def steps(self) -> int:
        """Of the last rung."""
        return self.brackets[0][-1][1]

    @property
    def levels(self) -> tuple[int, ...]:
        """The steps of all rungs, in their order."""
        return tuple(sorted({steps for bracket in self.brackets for _, steps in bracket}))

    @property
    def work(self) -> int:
        """Steps of all settings together, where none diverges."""
        return sum(size * steps for size, steps in _parts(self))

    def at_most(self, repeats: int, groups: int = 1) -> int:
        """The most trials of a call with which, copies and all, it is no more than twice the work.

        Args:
          repeats: of each setting.
          groups: of trials that share no program, at least 1, whoever of them goes on.
        """

        def calls(trials, width):  # the most, where each group fills up its last one
            some = min(groups, trials)
            return (trials - some) // width + some

        def executed(width):
            return width * sum(calls(size * repeats, width) * n for size, n in _parts(self))

        widths = range(1, self.settings * repeats + 1)
        return max(width for width in widths if executed(width) <= 2 * repeats * self.work)


class Stretch(NamedTuple):
    """Trials that run up to some steps.

    Attributes:
      rows: of the trials.
      steps: up to which they run.
      brackets: pairs of the rows of a bracket among them, and of how many of their settings go on
        then, at most; None where it has no rung there. Empty at the end of all trials.
    """

    rows: np.ndarray
    steps: int
    brackets: tuple[tuple[np.ndarray, int | None], ...]

    @property
    def ends(self) -> bool:
        """Whether no trial goes on."""
        return not self.brackets

    def on(self, ledger: Any) -> list[np.ndarray]:
        """By bracket the rows that go on, or that may, as long as others have not run.

        Args:
          ledger: what came of the trials so far.
        """
        of = lambda rows, count: ledger.best_rows(rows, self.steps, count)
        return [rows if count is None else of(rows, count) for rows, count in self.brackets]


def halving(n: int, steps: int, eta: int = 3, *, least: int = 1) -> Rungs:
    """Successive halving: at each rung the best 1/eta of the settings go on, the others stop.

    Rungs are after `steps`, `steps / eta`, `steps / eta**2`, ... steps, rounded down, as many as
    `n` and `least` allow. (Jamieson and Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", 2016)

    Args:
      n: number of settings, at least 1.
      steps: of the task, at least 1.
      eta: the share that goes on is 1/eta, at least 2.
      least: the fewest steps after which a setting may be judged, from 1 to `steps`.

    Returns:
      Its one bracket.

    Raises:
      ValueError: if a number is out of its range.
      TypeError: if it is no whole number.

    Examples:
      >>> lo.sweeps.halving(64, 300, eta=4).brackets
      (((64, 4), (16, 18), (4, 75), (1, 300)),)
    """
    n, (steps, eta, least) = _checks.count("n", n, 1), _counts(steps, eta, least)
    last = min(_power(eta, n), _power(eta, steps // least))
    return Rungs([[(n // eta**k, steps // eta ** (last - k)) for k in range(last + 1)]])


def hyperband(steps: int, eta: int = 3, *, least: int = 1) -> Rungs:
    """Hyperband: brackets of successive halving, from many settings judged early to few run whole.

    None has to know after how many steps a score tells something: each bracket takes about as many
    steps in all. Its `settings` says how many to draw: at random, since brackets take them in their
    order; of a grid, or of parts that were joined, each would get another region. (Li, Jamieson,
    DeSalvo, Rostamizadeh and Talwalkar, "Hyperband: a novel bandit-based approach to hyperparameter
    optimization", 2018)

    Args:
      steps: of the task, at least 1.
      eta: the share that goes on at a rung is 1/eta, at least 2.
      least: the fewest steps after which a setting may be judged, from 1 to `steps`.

    Returns:
      Its brackets, the one of most settings first.

    Raises:
      ValueError: if a number is out of its range.
      TypeError: if it is no whole number.

    Examples:
      >>> rungs = lo.sweeps.hyperband(81, least=9)
      >>> rungs.settings, rungs.brackets
      (17, (((9, 9), (3, 27), (1, 81)), ((5, 27), (1, 81)), ((3, 81),)))
    """
    steps, eta, least = _counts(steps, eta, least)
    last = _power(eta, steps // least)
    return Rungs([_of_hyperband(steps, eta, last, cuts) for cuts in range(last, -1, -1)])


def stretches(rungs: Rungs | None, ledger: Any, steps: int) -> Iterator[Stretch]:
    """What is to run, one after the other; asks the ledger who goes on, and tells it who stops.

    Args:
      rungs: of the sweep; None lets all trials run to their end.
      ledger: what came of the trials so far.
      steps: of a trial.
    """
    if rungs is None:
        yield Stretch(np.arange(len(ledger.ran)), steps, ())
        return
    alive = _dealt(rungs, ledger)
    for level in rungs.levels[:-1]:
        counts = [_following(bracket, level) for bracket in rungs.brackets]
        stretch = Stretch(np.concatenate(alive), level, tuple(zip(alive, counts)))
        yield stretch
        alive = stretch.on(ledger)
        ledger.stop(np.setdiff1d(stretch.rows, np.concatenate(alive)))
    yield Stretch(np.concatenate(alive), rungs.steps, ())


def dealt(rungs: Rungs, ledger: Any) -> dict[str, str]:
    """Which trials compete, as facts: others among them would change who went on.

    Args:
      rungs: of the sweep.
      ledger: what came of the trials so far.
    """
    brackets = [np.sort(np.asarray(ledger.trials.id)[rows]) for rows in _dealt(rungs, ledger)]
    text = hashlib.sha256(b"|".join(ids.astype(np.int64).tobytes() for ids in brackets))
    return {"trials": str(len(ledger.ran)), "trials of brackets": text.hexdigest()[:16]}


def _dealt(rungs, ledger):
    """The rows of the brackets."""
    sizes = [bracket[0][0] for bracket in rungs.brackets]
    return [ledger.rows_of(end - size, end) for size, end in zip(sizes, accumulate(sizes))]


def _bracket(rungs):
    pairs = [tuple(map(_whole, _some(rung, "rung"))) for rung in _some(rungs, "rungs")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise TypeError(f"Expected rungs as pairs (settings, steps), got {wrong[0]}.")
    sizes, steps = zip(*pairs)
    if steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(
            f"Expected rungs whose steps increase from at least 1, got {list(steps)}. They count "
            "from the first step of a trial."
        )
    if sizes[-1] < 1 or any(a < b for a, b in pairwise(sizes)):
        raise ValueError(
            f"Expected rungs of at least 1 setting each, and of no more than the rung before, got "
            f"{list(sizes)}. A setting that has stopped does not come back."
        )
    return tuple(pairs)


def _some(x, name):
    if isinstance(x, str) or not isinstance(x, Sequence | np.ndarray) or not len(x):
        raise TypeError(
            f"Expected {name} as a sequence that is not empty, got {x!r}. Rungs takes a list of "
            "brackets, each a list of pairs (settings, steps): [[(64, 100), (8, 1000)]]."
        )
    return x


def _whole(x):
    return _checks.count("rungs", x, 0)


def _counts(steps, eta, least):
    steps = _checks.count("steps", steps, 1)
    eta, least = _checks.count("eta", eta, 2), _checks.count("least", least, 1)
    if least > steps:
        raise ValueError(f"Expected least of at most {steps}, the steps, got {least}.")
    return steps, eta, least


def _power(eta, number):
    """The highest power of eta up to a number."""
    power = 0
    while eta ** (power + 1) <= number:
        power += 1
    return power


def _of_hyperband(steps, eta, last, cuts):
    n = -(-(last + 1) * eta**cuts // (cuts + 1))
    return [(n // eta**k, steps // eta ** (cuts - k)) for k in range(cuts + 1)]


def _following(bracket, level):
    """How many settings go on at some steps, None where there is no rung."""
    after = {steps: size for (_, steps), (size, _) in pairwise(bracket)}
    return after.get(level)


def _parts(rungs):
    """How many settings take how many steps, from one rung of any bracket to the next."""
    for low, high in pairwise([0, *rungs.levels]):
        sizes = [next(size for size, end in bracket if end >= high) for bracket in rungs.brackets]
        yield sum(sizes), high - low
