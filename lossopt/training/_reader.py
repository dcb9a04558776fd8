"""Batches of an iterable: checked, and read in passes that can be taken up again."""

import copy
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from lossopt import _pieces
from lossopt._processes import alike, gathered, told
from lossopt._typing import Batch
from lossopt.training._form import Form, leading
from lossopt.training._inputs import numbers
from lossopt.training._layout import Layout, joint, own_rows
from lossopt.training._packed import packed, stateful, unpacked
from lossopt.training._stream import owned

END = object()
CAPTURE = 32  # batches between two states of a stream
PARTS = "processes"


def reading(layout: Layout | None, stream: Iterable, name: str) -> "Reader":
    """A reader, for each process of a mesh one of its own part; raises where it can have none."""
    if together := joint(layout):
        own_rows(layout)
    return Reader(stream, name, together)


class Reader:
    """Reads passes over a stream, and knows one batch ahead.

    Attributes:
      first: the first batch of all, which the others must be like.
      next: the batch that comes; None where the pass has ended.
      epoch: the number of the pass.
      number: of `next` within it.
      parts: rows of `next` on each process that reads a part of it; none where it has none.
      joint: whether each process reads its own part of every batch; one whose pass has ended has a
        part without rows.
      mark: the last state that the stream told, `(epoch, number, state)`; or None.
    """

    def __init__(self, stream: Iterable, name: str, joint: bool = False):
        self.stream, self.name, self.joint = stream, name, joint
        self.epoch = self.number = 0
        self.first: Any = None
        self._form: Form | None = None
        self.mark: tuple[int, int, Any] | None = None
        self._open()
        self._together(self._begin)
        self._sizes = {self.rows}
        self._given = self.mark

    @property
    def rows(self) -> int:
        """Of the next batch, on all processes."""
        return sum(self.parts)

    @property
    def stateful(self) -> bool:
        """Whether the stream tells where it is."""
        return self.mark is not None

    def take(self, keep: Callable[[Batch], Any]) -> Any:
        """What `keep` makes of the next batch, before the loader makes the one behind it.

        Raises where the batch is not like the first.
        """
        batch = self.next
        if self._unlike:
            self._together(self._judge)
        self._sizes.add(self.rows)
        if len(self._sizes) == 3:
            self._sizes.add(0)
            warnings.warn(
                f"{self.name} has batches of {sorted(self._sizes)[1:]} rows: each number of rows "
                "is a program of its own. Let the loader fill its batches, and drop or pad none "
                "but the last.",
                stacklevel=2,
            )
        kept = keep(batch)
        self.skip()
        return kept

    def skip(self) -> None:
        """Passes by the next batch."""
        self.number += 1
        self._pull()

    def again(self) -> bool:
        """Begins another pass; whether it has a batch."""
        self.epoch, self.number = self.epoch + 1, 0
        self._open()
        return self.next is not None

    def go_to(self, steps: int, place: Any) -> None:
        """Goes to where a run had come after these steps.

        Args:
          steps: how many were taken.
          place: `[epoch, number, marked number, state]`, as JSON has it; None where there was no
            state, so that all batches are read again.
        """
        place = self._own(place)
        if place is not None and self._told:
            self.epoch, number, self.number, state = place
            self._open(state)
            for _ in range(number - self.number):
                self.skip()
        elif steps:
            warnings.warn(
                f"{self.name} has no state() and restore(): its first {steps} batches are read "
                "again, and passed by.",
                stacklevel=2,
            )
            for _ in range(steps):
                if self.next is None and not self.again():
                    return
                self.skip()

    def put_back(self) -> None:
        """Gives a stream that tells its state the one in which it was given."""
        if (told := stateful(self.stream)) and self._given:
            told.restore(self._given[2])

    def place(self, mark: tuple[int, int, Any] | None, epoch: int, number: int) -> Any:
        """What `go_to` needs to go on before a batch, JSON; None where there is no state."""
        own = None if mark is None else [epoch, number, *mark[1:]]
        return {PARTS: list(map(unpacked, told(packed(own))))} if self.joint else own

    def _own(self, place):
        """The place of this process."""
        places = place[PARTS] if isinstance(place, dict) else [place]
        wanted = jax.process_count() if self.joint else 1
        if place is not None and len(places) != wanted:
            raise ValueError(
                f"Expected as many processes as the run had that goes on, {len(places)}, because "
                f"each reads its own part of {self.name}, got {wanted}. Start {len(places)} again; "
                "or begin in another directory with params=run.params."
            )
        return places[jax.process_index() if self.joint else 0]

    def _open(self, state=None):
        self._ended = False
        self._together(partial(self._iterate, state))
        self._pull()

    def _iterate(self, state):
        told = stateful(self.stream)
        if state is not None and told:
            told.restore(state)
        self._batches = iter(self.stream)
        self._told = told or stateful(self._batches)
        if state is not None and self._told and not told:
            self._told.restore(state)

    def _together(self, do):
        return alike(do) if self.joint else do()

    def _begin(self):
        """Remembers the first batch."""
        if self.next is None:
            raise ValueError(
                f"Expected batches in {self.name}, got an iterable that gives none. It may have "
                "been read before: give a loader, a collections.deque, or a generator that is new."
            )
        numbers(self.name, self.next)
        _pieces.rows(self.next, self.name)
        self.first = owned(self.next)
        self._form = Form(self.first)

    def _strange(self):
        """What is not like in the first batch; None where all is."""
        form, batch = self._form, self.next
        if form is None or batch is None or self._ended or form.fits(batch):
            return None
        return form.differs(batch)

    def _judge(self):
        if differs := self._strange():
            where = f"{self.name}, batch {self.number} of pass {self.epoch}"
            raise ValueError(f"{where}: {differs}")

    def _pull(self):
        """Reads the next batch; processes tell each other of theirs in one go."""
        error = None
        try:
            self._read()
        except Exception as raised:
            if not self.joint:
                raise
            error, self.next = raised, None
        found = error is not None, self._strange() is not None, leading(self.next)
        failed, others, rows = (gathered(found) if self.joint else np.array([found])).T
        if failed.any():
            alike(partial(_raised, error))
        self._unlike, self.parts = others.any(), tuple(rows.tolist())
        if self.next is None and self.rows and self.first is not None:
            self.next = jax.tree.map(lambda x: np.asarray(x)[:0], self.first)

    def _read(self):
        """The next batch of this process."""
        if self._ended:
            self.next = None
            return
        if self._told and self.number % CAPTURE == 0:
            self.mark = self.epoch, self.number, copy.deepcopy(self._told.state())
        self.next = next(self._batches, END)
        if self.next is None:  # it would end the pass, and nobody would know
            raise TypeError(
                f"{self.name}, batch {self.number} of pass {self.epoch} is None. A loader whose "
                "function leaves a batch out has to pass it by."
            )
        self._ended = self.next is END
        self.next = None if self._ended else self.next


def _raised(error):
    if error is not None:
        raise error
