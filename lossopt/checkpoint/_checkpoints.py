"""`Checkpoints`: save in the background, restore the newest step that verifies."""

import operator
import os
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from lossopt import _checks
from lossopt._typing import PyTree
from lossopt.checkpoint import _directory, _state
from lossopt.checkpoint._manifest import Damaged
from lossopt.checkpoint._processes import of_first
from lossopt.checkpoint._saving import Saving
from lossopt.checkpoint._store import Store


class Restored(NamedTuple):
    """A state that verified.

    Attributes:
      step: the number that it was saved under.
      state: the state, on the devices of `like`.
      skipped: the newer steps that did not verify, with the reason of each.
    """

    step: int
    state: Any
    skipped: Mapping[int, str]


class Report(NamedTuple):
    """What `Checkpoints.verify` found.

    Attributes:
      verified: the steps that are what was saved, oldest first.
      damaged: the steps that are not, with the reason of each.
    """

    verified: tuple[int, ...]
    damaged: Mapping[int, str]


class Checkpoints:
    r"""A directory of training states that verify themselves.

    A step lands whole or not at all: its files are written by Orbax under another name, flushed,
    hashed, read again and compared with the digest of every leaf in memory; then they are renamed.
    `restore` checks all of it again, before Orbax opens a file and after the state is back on the
    devices, and walks back to the newest step that verifies.

    With several processes, each calls every method, in the same order; the directory must be one
    that all of them see, and only the first process changes it.

    Args:
      directory: where the steps lie, on a local or mounted file system; `save` creates it. `~` at
        its beginning is your home.
      keep: how many of the newest steps are kept, at least 1. Damaged steps do not count.
      every: keeps the multiples of this number of steps for good as well, at least 1.

    Raises:
      NotADirectoryError: `directory` is a file.
      ValueError: a number is out of its range, or Orbax cannot write to such a path: a URL, or one
        with any of `*[]\`.

    Examples:
      >>> import tempfile
      >>> with lo.checkpoint.Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     checkpoints.save(10, {"w": jnp.arange(3.0)})
      ...     print(checkpoints.restore({"w": jnp.zeros(3)}).state["w"])
      [0. 1. 2.]
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep: int = 3, every: int | None = None
    ):
        self.keep = _checks.count("keep", keep, 1)
        self.every = None if every is None else _checks.count("every", every, 1)
        self.directory = _directory.root(directory)
        self._store = Store()
        self._saving: Saving | None = None
        self._lock = threading.RLock()  # of what was saved last

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.directory)!r}, keep={self.keep}, every={self.every})"

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state and writes it in the background.

        It blocks for the copy only, unless the last save has not landed yet: then it waits for
        it. Donate or change the state as soon as it returns.

        Args:
          step: a number, at least 0, above those of all good steps of the directory.
          state: a tree of arrays (of jax or numpy), typed PRNG keys, Python numbers and None. Of
            replicas the first is stored; with several processes, replicas that differ are an error.

        Raises:
          RuntimeError: the last save did not land; this one was not begun.
          TypeError: a leaf is of another kind. The message has its path.
          ValueError: a good step has this number or one above it, or a leaf was donated.
        """
        step = _checks.count("step", step, 0)
        with self._lock:
            self.wait()
            for text in of_first(lambda: _directory.make_room(self._store, self.directory, step)):
                warnings.warn(text, stacklevel=2)
            saving = Saving(self._store, self.directory, step, self.keep, self.every)
            saving.begin(state)
            self._saving = saving

    def wait(self) -> None:
        """Returns when the last `save` has landed.

        Raises:
          RuntimeError: it did not land. It is said once, by whichever method comes next.
        """
        with self._lock:
            if self._saving is None:
                return
            self._saving.join()
            saving, self._saving = self._saving, None
            try:
                saving.conclude()
            except RuntimeError:
                self._store.close()  # Orbax would raise the same error at the next save again
                raise

    def close(self) -> None:
        """Waits, and gives threads and memory back. The end of a `with` block does it, too."""
        try:
            self.wait()
        finally:
            self._store.close()

    def latest(self) -> int | None:
        """The newest step, verified or not; None where the directory holds none.

        Raises:
          RuntimeError: the last save did not land.
        """
        self.wait()
        return of_first(lambda: max(_directory.steps(self.directory), default=None))

    def restore(self, like: PyTree) -> Restored:
        """The newest step that verifies.

        Newer steps that do not are set aside, as `00000030.damaged`, with a warning. If no step
        verifies, all of them stay where they are.

        Args:
          like: a state of the same structure, shapes and dtypes, such as the one that training
            starts from (donated ones will do), or what `jax.eval_shape` says of it, where it has
            no Python numbers. Each leaf comes back on its devices and with its sharding, whatever
            those were when it was saved; leaves of numpy come back as such.

        Returns:
          The step, its state, and the newer steps that were skipped, with reasons.

        Raises:
          FileNotFoundError: the directory holds no step.
          RuntimeError: no step verifies, or the last save did not land.
          ValueError: the state has another structure, shape or dtype. The message has the paths.
        """
        self.wait()
        damaged = []
        for step in reversed(self._steps("restore")):
            identity = partial(_directory.identity, self.directory, step)
            before = of_first(identity)
            try:
                state = _state.read(self._store, _directory.folder(self.directory, step), like)
            except Damaged as damage:
                now = of_first(identity)
                if now is None or now != before:
                    return self.restore(like)  # another program has replaced or collected it
                damaged.append((step, str(damage), before))
                continue
            for text in of_first(partial(_directory.set_aside, self.directory, damaged)):
                warnings.warn(text, stacklevel=2)
            return Restored(step, state, {skipped: reason for skipped, reason, _ in damaged})
        reasons = "\n".join(f"step {step}: {reason}" for step, reason, _ in damaged)
        raise RuntimeError(
            f"No step in {self.directory} verifies:\n{reasons}\nNothing was moved. Bring a copy of "
            "a step back, or start anew in another directory."
        )

    def verify(self, step: int | None = None) -> Report:
        """Reads steps from disk and compares each file and each leaf with what was saved.

        Nothing is moved or changed, and no device is used but a CPU, if jax has one.

        Args:
          step: the step to read; None reads all of them.

        Returns:
          The steps that verified, and those that are damaged, with reasons.

        Raises:
          FileNotFoundError: there is no such step.
          RuntimeError: the last save did not land.
        """
        self.wait()
        steps = self._steps("verify")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"No step {step} in {self.directory}, which has {steps}.")
        chosen = steps if step is None else [operator.index(step)]
        find = lambda: list(_directory.findings(self._store, self.directory, chosen))
        findings = of_first(find)
        verified = tuple(step for step, reason, _ in findings if reason is None)
        return Report(verified, {step: reason for step, reason, _ in findings if reason})

    def _steps(self, verb):
        steps = of_first(lambda: _directory.steps(self.directory))
        if not steps:
            raise FileNotFoundError(
                f"No step to {verb} in {self.directory}. Ask `latest()` first: it is None then."
            )
        return steps
