"""`Checkpoints`: save in the background, restore the newest step that verifies."""

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from lossopt import _checks
from lossopt._typing import PyTree
from lossopt.checkpoint import _directory, _kept, _look, _note, _part, _state
from lossopt.checkpoint._damaged import Damaged
from lossopt.checkpoint._kept import Kept
from lossopt.checkpoint._processes import of_first
from lossopt.checkpoint._saving import Saving
from lossopt.checkpoint._store import Store


class Latest(NamedTuple):
    """The newest step, which nobody has verified.

    Attributes:
      step: its number.
      note: what was noted beside it, `{}` if nothing was; None where its manifest is damaged.
    """

    step: int
    note: Mapping[str, Any] | None


class Restored(NamedTuple):
    """A state that verified.

    Attributes:
      step: the number that it was saved under.
      state: the state, on the devices of `like`.
      skipped: the newer steps that did not verify, with the reason of each.
      note: what was noted beside it.
    """

    step: int
    state: Any
    skipped: Mapping[int, str]
    note: Mapping[str, Any]


class Report(NamedTuple):
    """What `Checkpoints.verify` found.

    Attributes:
      verified: the steps that are what was saved, oldest first.
      damaged: the steps that are not, with the reason of each.
      notes: the note of each verified step.
    """

    verified: tuple[int, ...]
    damaged: Mapping[int, str]
    notes: Mapping[int, Mapping[str, Any]]


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
      keep_best: keeps besides them the step whose note has the best number under a name, as in
        `("validation/value", min)`, or `max`; of equals the first. A note without it is not best.

    Raises:
      NotADirectoryError: `directory` is a file.
      ValueError: a number is out of its range, `keep_best` is no name with a direction, or Orbax
        cannot write to such a path: a URL, or one with any of `*[]\`.

    Examples:
      >>> import tempfile
      >>> with lo.checkpoint.Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     checkpoints.save(10, {"w": jnp.arange(3.0)})
      ...     print(checkpoints.restore({"w": jnp.zeros(3)}).state["w"])
      [0. 1. 2.]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        every: int | None = None,
        keep_best: tuple[str, Callable[..., Any]] | None = None,
    ):
        self.keep = _checks.count("keep", keep, 1)
        self.every = None if every is None else _checks.count("every", every, 1)
        self.keep_best = _kept.checked(keep_best)
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
        name, direction = self.keep_best or (None, None)
        best = direction and f"({name!r}, {direction.__name__})"
        kept = f"keep={self.keep}, every={self.every}, keep_best={best}"
        return f"Checkpoints({str(self.directory)!r}, {kept})"

    def save(self, step: int, state: PyTree, note: Mapping[str, Any] | None = None) -> None:
        """Copies the state and writes it in the background.

        It blocks for the copy only, unless the last save has not landed yet: then it waits for
        it. Donate or change the state as soon as it returns.

        Args:
          step: a number, at least 0, above those of all good steps of the directory.
          state: a tree of arrays (of jax or numpy), typed PRNG keys, Python numbers and None. Of
            replicas the first is stored; with several processes, replicas that differ are an error.
          note: a dict of what JSON holds, 64 KiB at most, which comes back as it was: numbers of
            Python (finite ones), strings, booleans, None, lists, dicts of strings. None is `{}`.

        Raises:
          RuntimeError: the last save did not land; this one was not begun.
          TypeError: a leaf is of another kind, or something in the note. The message has its path.
          ValueError: a good step has this number or one above it, or a leaf was donated, or the
            note is too large, or JSON does not have one of its numbers.
        """
        step, note = _checks.count("step", step, 0), _note.checked(note)
        with self._lock:
            self.wait()
            for text in of_first(lambda: _directory.make_room(self._store, self.directory, step)):
                warnings.warn(text, stacklevel=2)
            kept = Kept(self.keep, self.every, self.keep_best)
            saving = Saving(self._store, self.directory, step, note, kept)
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

    def latest(self) -> Latest | None:
        """The newest step, verified or not, and its note; None where the directory holds none.

        Raises:
          RuntimeError: the last save did not land.
        """
        self.wait()
        found = of_first(lambda: _directory.newest(self.directory))
        return None if found is None else Latest(*found)

    def steps(self) -> list[int]:
        """The steps that have landed, verified or not, oldest first.

        Raises:
          RuntimeError: the last save did not land.
        """
        self.wait()
        return of_first(lambda: _directory.steps(self.directory))

    def restore(
        self,
        like: PyTree | Callable[[dict[str, Any]], PyTree],
        *,
        step: int | None = None,
        only: str | None = None,
    ) -> Restored:
        """The newest step that verifies, or the one that is named; the whole state or a part.

        Newer steps that do not verify are set aside, as `00000030.damaged`, with a warning. If no
        step verifies, or not the one that is named, all of them stay where they are.

        Args:
          like: a state of the same structure, shapes and dtypes, such as the one that training
            starts from (donated ones will do), or what `jax.eval_shape` says of it, where it has
            no Python numbers. Each leaf comes back on its devices and with its sharding, whatever
            those were when it was saved; leaves of numpy come back as such. Or a function that
            makes it of the note, where shapes depend on that; it is called for each step tried.
          step: this one and no other; None is the newest.
          only: a regular expression, searched for in the paths of leaves, such as `"^params/"`.
            The leaves that it takes are read, and `like` has those and no others. Its containers
            may be of other kinds.

        Returns:
          The step, its state, the newer steps that were skipped, with reasons, and the note.

        Raises:
          FileNotFoundError: the directory holds no step, or not this one.
          RuntimeError: no step verifies, or not the one that is named, or the last save did not
            land.
          TypeError: `only` is no text.
          ValueError: the state has another structure, shape or dtype, or `only` takes nothing, or
            not all leaves of `like`. The message has the paths.
        """
        only = _part.checked(only)
        self.wait()
        damaged = []
        for number in reversed(self._chosen("restore", step)):
            identity = partial(_directory.identity, self.directory, number)
            before = of_first(identity)
            folder = _directory.folder(self.directory, number)
            try:
                state, note = _state.read(self._store, folder, like, only)
            except Damaged as damage:
                now = of_first(identity)
                if now is None or now != before:  # another program has replaced or collected it
                    return self.restore(like, step=step, only=only)
                damaged.append((number, str(damage), before))
                continue
            for text in of_first(partial(_directory.set_aside, self.directory, damaged)):
                warnings.warn(text, stacklevel=2)
            return Restored(number, state, {number: why for number, why, _ in damaged}, note)
        if step is not None:
            raise self._damaged(step, damaged[0][1])
        reasons = "\n".join(f"step {number}: {reason}" for number, reason, _ in damaged)
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
        chosen = self._chosen("verify", step)
        find = partial(_directory.findings, self._store, self.directory, chosen)
        verified, damaged = of_first(find)
        notes = {number: note for number, note in verified}
        return Report(tuple(notes), {number: reason for number, reason, _ in damaged}, notes)

    def outline(self, step: int | None = None, only: str | None = None) -> dict[str, Any]:
        """What a step holds, by path, without a state like it; nothing else of it is read.

        Args:
          step: the step; None is the newest, verified or not.
          only: a regular expression, searched for in the paths of leaves; None takes all.

        Returns:
          Of each array and each key a `jax.ShapeDtypeStruct`, of a Python number the number. As
          `like` of `restore(like, only="")` it gives the leaves by path.

        Raises:
          FileNotFoundError: the directory holds no step, or not this one.
          RuntimeError: its manifest is damaged, or the last save did not land.
          ValueError: `only` takes nothing.
        """
        return self._look(_look.outline, step, only)

    def arrays(self, step: int | None = None, only: str | None = None) -> dict[str, Any]:
        """The leaves of a step on the host, by path, without a state like it; they verify.

        Args:
          step: the step; None is the newest, and no other where that is damaged.
          only: a regular expression, searched for in the paths of leaves; None takes all.

        Returns:
          Of each array an array of numpy, of a key its data, of a Python number the number.

        Raises:
          FileNotFoundError: the directory holds no step, or not this one.
          RuntimeError: it does not verify, or the last save did not land.
          ValueError: `only` takes nothing.
        """
        return self._look(partial(_look.arrays, self._store), step, only)

    def _look(self, into, step, only):
        only = _part.checked(only)
        self.wait()
        number = self._chosen("look at", step)[-1]
        identity = partial(_directory.identity, self.directory, number)
        before = of_first(identity)
        try:
            return into(_directory.folder(self.directory, number), only)
        except Damaged as damage:
            now = of_first(identity)
            if now is None or now != before:  # another program has replaced or collected it
                return self._look(into, step, only)
            raise self._damaged(number, damage) from damage

    def _damaged(self, step, reason):
        return RuntimeError(
            f"Step {step} in {self.directory} is damaged: {reason}. Nothing was moved. Ask for "
            "another, or restore without `step`: that finds the newest that verifies."
        )

    def _chosen(self, verb, step):
        """The steps that are meant, oldest first: one, or with None all of them."""
        step = None if step is None else _checks.count("step", step, 0)
        steps = of_first(lambda: _directory.steps(self.directory))
        if not steps:
            raise FileNotFoundError(
                f"No step to {verb} in {self.directory}. Ask `latest()` first: it is None then."
            )
        if step is not None and step not in steps:
            raise FileNotFoundError(f"No step {step} in {self.directory}, which has {steps}.")
        return steps if step is None else [step]
