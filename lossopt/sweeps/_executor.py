"""An executor and the calls that are under way there, some of them lost and sent again."""

import dataclasses
import math
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from typing import Any

from lossopt.sweeps._engines import Given, anew, size, usable

LOOK = 1.0  # seconds between two looks at how many workers there are
AGAIN = 2  # times that a pool is made again for one call
AHEAD = 2  # calls that are sent for each worker, so that none waits for the next
ASSUMED = 8  # workers, where nobody says how many
LONELY = 30.0  # seconds without workers, after which it is said
LEFT = 60.0  # seconds for which calls of a pool that broke may come in
NONE = (
    " Nothing ever came of a worker: perhaps none can start, as where a script has no "
    'if __name__ == "__main__":, or is read from a pipe.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A call that a worker is to make.

    Attributes:
      work: a function of a module.
      given: its arguments.
      told: what it is about, in words.
      took: what its sender does with what came.
    """

    work: Callable[..., Any]
    given: tuple[Any, ...]
    told: Callable[[], str]
    took: Callable[[Any], None]


class Workers:
    """The workers of an executor, made again if a function makes it.

    Args:
      given: an executor, or a function that makes one.
    """

    def __init__(self, given: Given):
        if not isinstance(given, Executor) and not callable(given):
            raise TypeError(
                "Expected executor as an Executor of concurrent.futures, or a function that makes "
                f"one, got {given!r}. Of Dask it is client.get_executor."
            )
        self._make = None if isinstance(given, Executor) else given
        self._executor = usable(given) if isinstance(given, Executor) else None
        self._flight: dict[Future, Job] = {}
        self._lost: deque[Job] = deque()
        self._deaths: Counter[Job] = Counter()
        self._any = False
        self._looked = self._seen = time.monotonic()

    @property
    def count(self) -> int:
        """How many there are, or are taken to be."""
        return size(self._there()) or ASSUMED

    @property
    def room(self) -> bool:
        """Whether a further call may be sent."""
        return not self._lost and not self._alone and len(self._flight) < AHEAD * self.count

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._flight or self._lost)

    def send(self, job: Job) -> None:
        """Sends a call."""
        executor = self._there()
        try:
            future = executor.submit(job.work, *job.given, **anew(executor))
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._flight[future] = job

    def came(self, seconds: float) -> Iterator[tuple[Job, Any]]:
        """What came within some seconds; then raises where a call is lost for good."""
        done = wait(self._flight, seconds, FIRST_COMPLETED).done
        self._look(bool(done))
        if any(isinstance(_error(future), BrokenExecutor) for future in done):
            done = wait(self._flight, LEFT).done
        lost: dict[Job, BaseException] = {}
        for future in [future for future in self._flight if future in done]:
            job, error = self._flight.pop(future), _error(future)
            if error is None:
                self._any = True
                yield job, future.result()
            else:
                lost[job] = error
        for job, error in lost.items():
            if not isinstance(error, BrokenExecutor):
                raise _lost(job, error) from error
        if lost:
            self._again(lost)
        self._send_again()

    def finished(self) -> Iterator[tuple[Job, Any]]:
        """What is there already, of calls that were not lost."""
        for future in [future for future in self._flight if future.done()]:
            if _error(future) is None:
                yield self._flight.pop(future), future.result()

    def withdraw(self) -> None:
        """Takes back calls that have not begun, where it is known which these are."""
        known = any(future.running() for future in self._flight)
        if known or (self._flight and size(self._there()) == 0):
            self._lost.clear()
            for future in [future for future in self._flight if future.cancel()]:
                del self._flight[future]

    def end(self, now: bool) -> None:
        """Ends an executor that a function made; `now` does not wait for what is under way."""
        for future in self._flight:
            future.cancel()
        if self._make is None or self._executor is None:
            return
        processes = (getattr(self._executor, "_processes", None) or {}) if now else {}
        processes = list(processes.values())
        self._executor.shutdown(wait=not now)
        for process in processes:
            process.terminate()

    def _look(self, came):
        """Says it where for long there has been nobody who would make a call."""
        now = time.monotonic()
        if not came and now - self._looked < LOOK:
            return
        self._looked = now
        if came or size(self._there()) != 0:
            self._seen = now
        elif now - self._seen > LONELY:
            self._seen = math.inf  # once
            warnings.warn(
                f"The executor has had no workers for {LONELY:.0f} s, and the sweep waits for "
                "some. Start them, or press Ctrl-C, which returns the table so far.",
                stacklevel=2,
            )

    @property
    def _alone(self):
        """Whether a call is under way that two pools broke with: it has the third for itself."""
        return any(self._deaths[job] == AGAIN for job in self._flight.values())

    def _there(self) -> Executor:
        """The executor, made where there is none."""
        if self._executor is None:
            self._executor = usable(self._make() if self._make else None)
        return self._executor

    def _again(self, lost):
        """Counts, and lets go of a pool that broke."""
        self._deaths.update(lost.keys())
        for job, error in lost.items():
            if self._make is None:
                raise RuntimeError(
                    f"The executor broke with {job.told()} under way: {error} A pool that broke is "
                    "of no more use. Pass a function that makes one, such as executor=lambda: "
                    'ProcessPoolExecutor(8, mp_context=get_context("spawn")): it is called again '
                    "then. With checkpoint= a further call goes on here."
                ) from error
            if self._deaths[job] > AGAIN:
                raise _deadly(job, self._any) from error
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        self._executor = None
        self._lost.extend(sorted(lost, key=self._deaths.__getitem__))

    def _send_again(self):
        while self._lost and not self._alone:
            if self._flight and self._deaths[self._lost[0]] == AGAIN:
                return
            self.send(self._lost.popleft())


def _error(future):
    try:
        return future.exception(0)
    except CancelledError as error:
        return error


def _lost(job, error):
    """Of an executor that gave a call up."""
    killed = type(error).__name__ == "KilledWorker"  # of Dask, which sends a call again by itself
    why = "It ended every worker that it met. " if killed else ""
    return RuntimeError(
        f"The executor lost {job.told()}. {why}This is none of run's exceptions but one of the "
        f"executor: {error!r}"
    )


def _deadly(job, any):
    """Of a call with which every pool broke."""
    return RuntimeError(
        f"Every worker that met {job.told()} ended, {AGAIN + 1} times: such a chunk may take more "
        f"memory than there is.{'' if any else NONE}"
    )
