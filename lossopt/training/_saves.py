"""The checkpoints of a run: when they are due, and what they hold."""

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from lossopt import _checks, _processes
from lossopt._guard import lost
from lossopt.checkpoint import Checkpoints
from lossopt.training._packed import packed, unpacked
from lossopt.training._resume import Identity, padded, rows_of, same_run
from lossopt.training._run import Run

OF_LEAVES = "train/gradient_norm/", "train/update_ratio/"  # too many columns for a note
LONGEST = 2**15  # of the 2**16 bytes of a note


class Saves:
    """The checkpoints of a run; without a place there are none.

    Args:
      place: a directory, or `Checkpoints`, which stay open; or None.
      every: seconds between two saves.
      clock: gives seconds.
      together: whether several processes save one run, by the clock of the first.

    Attributes:
      took: seconds of a save, where one was timed.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Checkpoints | None,
        every: float,
        clock: Callable[[], float] = time.perf_counter,
        together: bool = False,
    ):
        _checks.at_least(0, checkpoint_every=every)
        self._all, self._own = opened(place)
        self._every, self._clock, self._last, self._at = every, clock, clock(), 0
        self._timed, self.took, self._together = False, 0.0, together

    def __enter__(self) -> "Saves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        alone = self._together and error is not None and not _processes.agreed(error)
        if kind is None or (issubclass(kind, Exception) and not alone):  # Ctrl-C waits for nothing
            self.wait()

    def __str__(self) -> str:
        return f"The checkpoint in {self._all.directory}" if self._all else "no checkpoint"

    def newest(self, like: Callable[[int], Run], now: Identity) -> Run | None:
        """The run that was saved last, if there is one; raises where it is another.

        Args:
          like: makes a run with so many rows of history, for the structure.
          now: what makes it the same run.
        """
        if self._all is None or self._all.latest() is None:
            return None

        def wanted(note: Mapping[str, Any]) -> Run:
            if "run" not in note:
                raise ValueError(
                    f"{self} holds steps that fit has not saved: name another directory."
                )
            same_run(note["run"]["origin"]["identity"], now, str(self))
            return like(note["run"]["rows"])

        try:
            restored = self._all.restore(wanted)
        except ValueError as error:
            error.add_note(
                "fit goes on with the run that checkpoint= holds: call it with the model, the "
                "optimizer and the data of that run, or name another directory for a new one."
            )
            raise
        self._at = restored.step
        saved = restored.note["run"]
        cut = {name: column[: saved["rows"]] for name, column in restored.state.history.items()}
        return dataclasses.replace(restored.state, history=cut, origin=unpacked(saved["origin"]))

    def shards(self) -> int | None:
        """Those of the run that was saved last, as far as its note tells them."""
        newest = self._all and self._all.latest()
        run = ((newest and newest.note) or {}).get("run")
        return run and run["origin"]["identity"].get("source.shards")

    def check(self, state: Any) -> None:
        """Raises where nothing can be written, or a stream has a state that cannot be saved."""
        if self._all is None:
            return
        folder = self._all.directory
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"Cannot save in {folder}: {there} cannot be written to.")
        if (size := len(json.dumps(packed(state), allow_nan=False))) > LONGEST:
            raise ValueError(
                f"The state() of train takes {size} bytes of JSON, of at most {LONGEST} in a "
                "checkpoint's note. Give the stream a state() that tells its place alone."
            )

    def due(self, run: Callable[[], Run], timed: bool) -> None:
        """Saves, if the last one is long ago; if it is to be timed, the first one comes at once."""
        if self._all is None:
            return
        begun, first = self._clock(), timed and not self._timed
        due = first or begun - self._last >= self._every
        if _processes.gathered([due])[0, 0] if self._together else due:
            self.now(run)
        if first:
            self._settle()
            self._timed, self.took = True, self._clock() - begun

    def now(self, run: Callable[[], Run]) -> None:
        """Saves, if there is something new."""
        if self._all is None:
            return
        self._settle()
        made = run()
        if (step := int(made.steps)) > self._at:
            if self._told(partial(_save, self._all, step, made)):
                self._at = step
            self._last = self._clock()

    def wait(self) -> None:
        """Returns when the last save is on the disk; what was opened here is closed."""
        if self._all is not None:
            self._told(self._all.close if self._own else self._all.wait)

    def _settle(self):
        """Waits for the last save; one that did not land is no reason against the next."""
        if self._all is not None and not self._told(self._all.wait):
            self._at = 0

    def _told(self, do: Callable[[], None]) -> bool:
        """Whether it went well; a save that fails is said, and ends nothing."""
        try:
            do()
        except Exception as error:
            if self._together and lost(error):
                raise
            warnings.warn(f"{error}\nThe run itself goes on.", stacklevel=4)
            return False
        return True


def opened(
    place: str | os.PathLike[str] | Checkpoints | None,
) -> tuple[Checkpoints | None, bool]:
    """The checkpoints at a place, if there is one, and whether they were opened here."""
    if isinstance(place, str | os.PathLike):
        return Checkpoints(place), True
    if not isinstance(place, Checkpoints | None):
        raise TypeError(
            f"Expected checkpoint as a directory or a lossopt.checkpoint.Checkpoints, got "
            f"{place!r}."
        )
    return place, False


def _save(checkpoints, step, run):
    columns = rows_of(run)
    rows = len(columns["step"])
    told = [name for name in columns if rows and not name.startswith(OF_LEAVES)]
    note = {name: _number(columns[name][-1]) for name in told}
    note |= {"run": {"origin": packed(run.origin), "rows": rows}}
    checkpoints.save(step, dataclasses.replace(run, history=padded(columns, rows)), note=note)


def _number(x):
    return x.item() if np.isfinite(x) else None
