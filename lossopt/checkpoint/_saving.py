"""A step on its way to the disk, in the background."""

import atexit
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from lossopt._jax import undisturbed
from lossopt._typing import PyTree
from lossopt.checkpoint import _digest, _directory, _leaves, _manifest
from lossopt.checkpoint._kept import Kept
from lossopt.checkpoint._processes import of_first
from lossopt.checkpoint._store import Store


class Saving:
    """A step on its way to the disk: begun by the caller, landed by a thread, concluded once."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        step: int,
        note: dict[str, Any],
        kept: Kept,
    ):
        self._store, self._directory, self._step, self._note = store, directory, step, note
        self._kept = kept
        self._folder = _directory.folder(directory, step)
        self._entries: list[dict[str, Any]] = []
        self._error: RuntimeError | None = None
        self._ended = threading.Event()

    def begin(self, state: PyTree) -> None:
        """Copies the state out of the caller's reach, and starts the thread that lands it.

        With several processes the digests are taken and Orbax is started before it returns, because
        collective operations of all processes must have one order.
        """
        arrays = self._copied(state)
        for other in list(_unheard):
            if other._directory == self._directory:  # of another object
                other.join()
        try:
            begin = lambda: str(_directory.begin(self._directory, self._step))
            self._folder = Path(of_first(begin))
        except (OSError, RuntimeError) as error:  # the latter from the first of many processes
            raise self._failure(error) from error
        finish = lambda: self._write(arrays)()
        if jax.process_count() > 1:
            finish = self._write(arrays)
        thread = threading.Thread(target=self._land, args=(finish,), name=f"save {self._step}")
        _unheard.add(self)
        try:
            _wait_at_exit()
            thread.start()
        except BaseException as error:
            if thread.ident is None:  # it never began, and never ends
                _unheard.discard(self)
                _directory.give_up(self._folder)
            if isinstance(error, RuntimeError):
                raise self._failure(error) from error
            raise

    def join(self) -> None:
        """Returns when the save has ended, well or not.

        No thread is joined: one whose `join` is interrupted by Ctrl-C counts as ended.
        """
        self._ended.wait()

    def conclude(self) -> None:
        """Raises if the step did not land, to be called once, by all processes."""
        _unheard.discard(self)
        of_first(self._raise)
        self._raise()

    def _copied(self, state):
        """The arrays to write, by name; of each leaf the manifest has an entry."""
        items, _ = _leaves.flatten(state)
        self._entries = [{**leaf._asdict(), **_leaves.facts(leaf, value)} for leaf, value in items]
        names = {str(i): item for i, item in enumerate(items) if item[0].stored}
        with undisturbed():
            return {
                name: _leaves.to_store(self._store, name, *item) for name, item in names.items()
            }

    def _land(self, finish):
        """What the thread does: the step is written, read again, sealed, and seen by one rename."""
        first = jax.process_index() == 0
        try:
            with undisturbed(), self._store.alone():
                finish()
            if first:
                self._seal()
                _directory.land(self._folder, self._directory, self._step)
        except Exception as error:
            self._error = self._failure(error)
            if first:
                _directory.give_up(self._folder)
        else:
            try:
                if first:
                    _directory.collect(self._directory, self._kept)
            except (OSError, ValueError) as error:  # the latter where a newer version has saved
                self._error = RuntimeError(
                    f"Step {self._step} has landed in {self._directory}, but an older step could "
                    f"not be deleted: {error}. Delete it by hand."
                )
        finally:
            if self._error is None:
                _unheard.discard(self)
            self._ended.set()

    def _write(self, arrays):
        """Starts Orbax and takes the digests meanwhile; what it returns waits for Orbax."""
        wait = self._store.write(self._folder, arrays) if arrays else lambda: None
        for name, sums in zip(arrays, _digest.of_arrays(list(arrays.values()))):
            entry = self._entries[int(name)]
            entry["digest"] = sums[:2].tolist()
            if sums[2]:
                wait()
                raise ValueError(
                    f"{entry['path']} is replicated, but its copies differ between devices. Find "
                    "the step that makes them differ, as an average that was not taken over all."
                )
        return wait

    def _seal(self):
        """Hashes and flushes the files while the leaves are read again, and writes the manifest."""
        with ThreadPoolExecutor(1) as beside:
            files = beside.submit(_manifest.hashes, self._folder)
            _manifest.check_leaves(self._store, self._folder, self._entries)
            _manifest.write(self._folder, self._step, self._note, files.result(), self._entries)

    def _raise(self):
        if self._error is not None:
            raise self._error

    def _failure(self, error):
        failure = RuntimeError(
            f"Step {self._step} was not saved as {self._folder}: {error}\nThe steps that had "
            "landed are untouched. Remove the cause that is named here, then save again."
        )
        failure.__cause__ = error
        return failure


@functools.cache
def _wait_at_exit():
    """Waits for saves when the main thread ends: soon after, no thread can be started any more.

    `atexit` comes too late for that. The last to be registered is the first to run, so the threads
    of `concurrent.futures`, which Orbax needs, end after this.
    """
    getattr(threading, "_register_atexit", atexit.register)(_conclude_all)


def _conclude_all():
    errors = []
    for saving in list(_unheard):
        try:
            saving.join()
            saving.conclude()
        except RuntimeError as error:
            errors.append(str(error))
    if errors:
        raise RuntimeError("\n".join(errors))


def _forked():
    """In a child of this process, which has none of its threads: the parent lands its saves."""
    for saving in _unheard:
        saving._ended.set()
    _unheard.clear()


_unheard: set[Saving] = set()  # saves that have not landed, and nobody was told
os.register_at_fork(after_in_child=_forked)
