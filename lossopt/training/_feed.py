"""What the host gives to the program: rows in memory, or stacks of batches, one read ahead."""

import time
import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np

from lossopt import _checks
from lossopt._processes import gathered
from lossopt._typing import Batch, PyTree
from lossopt.training._pile import Pile, Stack, capacity
from lossopt.training._plan import Data, Plan
from lossopt.training._reader import Reader
from lossopt.training._stream import NEVER, is_once, length

PATIENCE = 0.25  # seconds of reading


class Piece(NamedTuple):
    """What a call may read.

    Attributes:
      plan: for which a program is made.
      train: what it reads.
      end: the step before which it has to end.
      every: steps between two rows of history.
      last: the step after which there is a row in any case, if it comes so far.
    """

    plan: Plan
    train: PyTree
    end: int
    every: int
    last: int

    def row(self, step: int) -> int:
        """The step after which the next row stands, at or beyond `end` where none does."""
        return min((step // self.every + 1) * self.every, self.last)


class Horizon(NamedTuple):
    """How far a run goes.

    Attributes:
      unit: what is counted, `"epochs"` or `"steps"`, from the very beginning.
      number: how many of them there are to be.
      every: steps between two rows of history; None is an epoch.
    """

    unit: str
    number: int
    every: int | None


def horizon(epochs: int | None, steps: int | None, every: int | None) -> Horizon:
    """From what the user gave, of which one counts."""
    if (epochs is None) == (steps is None):
        raise ValueError(f"Expected either epochs or steps, got epochs={epochs} and steps={steps}.")
    unit, given = ("epochs", epochs) if steps is None else ("steps", steps)
    every = None if every is None else _checks.count("evaluate_every", every, 1)
    number = _checks.count(unit, given or 0, 1)
    _checks.at_most(NEVER, **{unit: number})
    return Horizon(unit, number, every)


class Feed(Protocol):
    """Where the host takes pieces from.

    Attributes:
      unit: what is counted, `"epochs"` or `"steps"`.
      total: how many of them there are to be.
      exhausted: whether there are no batches any more, though there should be.
    """

    unit: str
    total: int
    exhausted: bool

    def piece(self, step: int) -> Piece | None:
        """What the steps from here on may read; None after the last."""
        ...

    def read_ahead(self) -> None:
        """Reads what the next piece will need, while the device is at work."""
        ...

    def over(self, step: int, epochs: float | None) -> bool:
        """Whether a run is at its end that has taken so many steps, or so many epochs."""
        ...

    def go_to(self, step: int, place: Any) -> None:
        """Goes on from this step, and from where a stream had come."""
        ...

    def epoch(self, step: int) -> int:
        """The epoch of a step, which the last piece holds or begins."""
        ...

    def epochs(self, step: int) -> float:
        """How many epochs are done, as far as it is known."""
        ...

    def place(self, step: int) -> Any:
        """What a stream needs to go on here, JSON; None where nothing is needed."""
        ...


class Memory:
    """Rows in memory, in one piece."""

    def __init__(self, plan: Plan, train: Batch, horizon: Horizon):
        self.unit, self.total, self._per_epoch = horizon.unit, horizon.number, plan.source.steps
        steps = horizon.number * (self._per_epoch if horizon.unit == "epochs" else 1)
        every = min(horizon.every or self._per_epoch, steps)
        self._piece = Piece(plan, train, steps, every, steps)
        self.exhausted = False

    def piece(self, step: int) -> Piece | None:
        """What the steps from here on may read; None after the last."""
        return self._piece if step < self._piece.end else None

    def read_ahead(self) -> None:
        """All is there."""

    def over(self, step: int, epochs: float | None) -> bool:
        """Whether a run is at its end that has taken so many steps."""
        return self.piece(step) is None

    def go_to(self, step: int, place: Any) -> None:
        """All is there."""

    def epoch(self, step: int) -> int:
        """The epoch of a step."""
        return step // self._per_epoch

    def epochs(self, step: int) -> float:
        """How many epochs are done."""
        return step / self._per_epoch

    def place(self, step: int) -> None:
        """Nothing is needed."""


class Streamed:
    """Stacks of batches, of which one is read while the device works on the one before."""

    def __init__(self, plan: Plan, reader: Reader, horizon: Horizon):
        self.unit = horizon.unit
        self.total = horizon.number
        self._plan, self._reader, self._every = plan, reader, horizon.every
        self._epochs = horizon.number if horizon.unit == "epochs" else NEVER
        self._steps = horizon.number if horizon.unit == "steps" else NEVER
        self._known, self._once = length(reader.stream), is_once(reader.stream)
        self._most = int(_common(reader, capacity(reader.first, self._known)).min())
        self._pace = 1
        self._read, self.exhausted = 0, False
        self._now: _Held | None = None
        self._ahead: _Held | None = None
        self._begun = reader.mark, reader.epoch, reader.number

    def piece(self, step: int) -> Piece | None:
        """What the steps from here on may read; None after the last."""
        if self._now is None or step >= self._now.piece.end:
            self.read_ahead()
            if self._ahead is None:
                return None
            self._now, self._ahead = self._ahead, None
        return self._now.piece

    def read_ahead(self) -> None:
        """Reads what the next piece will need, while the device is at work."""
        if self._ahead is None and self._goes_on():
            self._ahead = self._stacked()

    def over(self, step: int, epochs: float | None) -> bool:
        """Whether a run is at its end that has taken so many steps, or so many epochs."""
        return (step if self.unit == "steps" else epochs or 0) >= self.total

    def go_to(self, step: int, place: Any) -> None:
        """Goes on from this step, and from where a stream had come."""
        reader = self._reader
        reader.go_to(step, place)
        self._read, self._begun = step, (reader.mark, reader.epoch, reader.number)

    def epoch(self, step: int) -> int:
        """The epoch of a step, which the last piece holds."""
        return self._now.epoch if self._now else self._begun[1]

    def epochs(self, step: int) -> float:
        """How many epochs are done, as far as it is known."""
        now = self._now
        if now is None:
            return self._begun[1]
        if now.ends and step == now.piece.end:
            return now.epoch + 1
        taken, known = now.number + step - now.step, max(self._known or NEVER, 1)
        return now.epoch + min(taken, known - 1) / known  # a length that is wrong ends no pass

    def place(self, step: int) -> Any:
        """What a stream needs to go on here, JSON; None where it has no state."""
        now = self._now
        if now is None:  # the reader may be further: the first piece is read, and has failed
            return self._reader.place(*self._begun)
        return self._reader.place(now.mark, now.epoch, now.number + step - now.step)

    def _goes_on(self):
        reader = self._reader
        if self._read >= self._steps:
            return False
        if reader.next is not None:
            return True
        if reader.epoch + 1 >= self._epochs:  # beyond, where a run is taken up that has done more
            return False
        if not self.exhausted and not reader.again():
            self.exhausted = True
            if self.unit == "epochs":
                warnings.warn(
                    f"epochs={self._epochs}, and {reader.name} gave no batch in pass "
                    f"{reader.epoch}, counted from 0: the run ends. Give an object whose __iter__ "
                    "begins anew.",
                    stacklevel=2,
                )
        return not self.exhausted

    def _stacked(self):
        reader, begun, step = self._reader, time.perf_counter(), self._read
        mark, epoch, number, parts = reader.mark, reader.epoch, reader.number, reader.parts
        most = min(self._most, self._steps - step, self._pace if reader.joint else self._most)
        pile = Pile(self._most)
        reader.take(pile.put)
        while reader.next is not None and reader.parts == parts and pile.count < most:
            if not reader.joint and time.perf_counter() - begun > PATIENCE:
                break
            reader.take(pile.put)
        self._paced(pile.count, time.perf_counter() - begun)
        self._read = end = step + pile.count
        ends = reader.next is None
        final = end == self._steps or (ends and (epoch + 1 == self._epochs or self._once))
        last = end if final or (ends and self._every is None) else NEVER
        where = np.int32(epoch), np.int32(number), np.int32(step)
        try:
            train = Stack(pile.laid(self._plan.layout), *where)
        except ValueError as error:
            what = f"{reader.name}, batches from {number} of pass {epoch}"
            raise ValueError(f"{what}: {error}") from None
        piece = Piece(self._plan.of_rows(sum(parts)), train, end, self._every or NEVER, last)
        return _Held(piece, epoch, number, step, ends, mark)

    def _paced(self, count, seconds):
        """How many batches the next stack has; processes agree, for each has a clock of its own."""
        if self._reader.joint:
            fast = max(1, min(2 * count, int(count * PATIENCE / max(seconds, 1e-9))))
            self._pace = int(_common(self._reader, fast)[0])


def _common(reader, number):
    """The number of each process that reads a part of the stream."""
    return gathered([number])[:, 0] if reader.joint else np.array([number])


def feed_of(plan: Plan, data: Data, reader: Reader | None, horizon: Horizon) -> Feed:
    """Of rows in memory, or of a stream."""
    return Streamed(plan, reader, horizon) if reader else Memory(plan, data.train, horizon)


class _Held(NamedTuple):
    """A piece, where it begins, whether its pass ends with it, and a state that is not later."""

    piece: Piece
    epoch: int
    number: int
    step: int
    ends: bool
    mark: tuple[int, int, Any] | None
