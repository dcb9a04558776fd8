"""A step on its way to the disk, in the background."""

import atexit
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from lossopt._jax import undisturbed
from lossopt._typing import PyTree
from lossopt.checkpoint import _digest, _leaves, _manifest, _step, _steps
from lossopt.checkpoint._copies import Copies
from lossopt.checkpoint._processes import of_first


class Saving:
    """A step on its way to the disk, out of the caller's reach as soon as this is built.

    With several processes the digests are taken and Orbax is started before it returns, because
    collective operations of all processes must have one order.
    """

    def __init__(
        self,
        store: Callable[[], Any],
        directory: Path,
        step: int,
        state: PyTree,
        copies: Copies,
        landed: Callable[[], None],
    ):
        self._store, self._directory, self._step, self._landed = store, directory, step, landed
        self._error: RuntimeError | None = None
        items, _ = _leaves.flatten(state)
        self._rows = [{**leaf._asdict(), **_leaves.facts(leaf, value)} for leaf, value in items]
        names = {str(i): item for i, item in enumerate(items) if item[0].stored}
        with undisturbed():
            arrays = {name: _leaves.to_store(name, *item, copies) for name, item in names.items()}
        self._folder = _steps.path(directory, step)
        self._ended = threading.Event()
        for other in list(_unheard):
            if other._directory == directory:  # of another object
                other.join()
        try:
            self._folder = Path(of_first(lambda: str(_steps.begin(directory, step))))
        except (OSError, RuntimeError) as error:  # the latter from the first of many processes
            raise self._failure(error) from error
        write = lambda: self._write(arrays)
        if jax.process_count() > 1:
            write = self._begin(arrays)
        thread = threading.Thread(target=self._run, args=(write,), name=f"save {step}")
        _unheard.add(self)
        try:
            _land_at_exit()
            thread.start()
        except BaseException as error:
            if thread.ident is None:  # it never began, and never ends
                _unheard.discard(self)
                _steps.give_up(self._folder)
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

    def _run(self, write):
        try:
            with undisturbed():
                write()
            if jax.process_index() == 0:
                self._seal()
                _steps.land(self._folder, self._directory, self._step)
        except Exception as error:
            self._error = self._failure(error)
            if jax.process_index() == 0:
                _steps.give_up(self._folder)
        else:
            self._collect()
        finally:
            if self._error is None:
                _unheard.discard(self)
            self._ended.set()

    def _seal(self):
        with ThreadPoolExecutor(1) as beside:
            files = beside.submit(_manifest.hashes, self._folder)
            _step.compare_leaves(self._store(), self._folder, self._rows)
            _manifest.write(self._folder, self._step, files.result(), self._rows)

    def _collect(self):
        try:
            if jax.process_index() == 0:
                self._landed()
        except OSError as error:
            self._error = RuntimeError(
                f"Step {self._step} has landed in {self._directory}, but an older step could not "
                f"be deleted: {error}. Delete it by hand."
            )

    def _write(self, arrays):
        with self._store().alone():
            self._begin(arrays)()

    def _begin(self, arrays):
        """Starts Orbax and takes the digests meanwhile; what it returns waits for Orbax."""
        wait = self._store().write(self._folder / _step.STATE, arrays) if arrays else lambda: None
        for name, sums in zip(arrays, _digest.table(list(arrays.values()))):
            row = self._rows[int(name)]
            row["digest"] = sums[:2].tolist()
            if sums[2]:
                wait()
                raise ValueError(
                    f"{row['path']} is replicated, but its copies differ between devices. Find "
                    "the step that makes them differ, as an average that was not taken over all."
                )
        return wait

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
def _land_at_exit():
    """Waits for saves when the main thread ends: soon after, no thread can be started any more.

    `atexit` comes too late for that. The last to be registered is the first to run, so the threads
    of `concurrent.futures`, which Orbax needs, end after this.
    """
    getattr(threading, "_register_atexit", atexit.register)(_land)


def _land():
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
