"""The checkpoint of a sweep: what came of its trials, and those that are under way."""

import os
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._typing import PyTree
from lossopt.checkpoint import Checkpoints
from lossopt.sweeps._calls import Within
from lossopt.sweeps._form import Form, Mode
from lossopt.sweeps._identity import known, places, rows_of, same_facts, same_trials
from lossopt.sweeps._ledger import Kept, Ledger
from lossopt.sweeps._resting import raw_like
from lossopt.training._saves import opened

Shapes = Callable[[int], PyTree]


class Saves:
    """The checkpoint of a sweep; without a place there is none.

    Args:
      place: a directory, or `Checkpoints`, which stay open; or None.
      ledger: what has come of the trials.
      facts: what makes it the same sweep, by name.
      asked: what a sampler suggested, by name, `[trials]`; grows with the trials.

    Attributes:
      facts: as given.
      settled: of each group its mode and chunk, by label.
      within: trials under way, from an earlier call, and their form.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Checkpoints | None,
        ledger: Ledger,
        facts: Mapping[str, str],
        asked: Mapping[str, np.ndarray],
    ):
        self._all, self._own = opened(place)
        self._ledger, self.facts, self._step = ledger, dict(facts), 0
        self._asked = asked
        self.settled: dict[str, tuple[Mode, int]] = {}
        self.within: tuple[Form, Within] | None = None

    def __str__(self) -> str:
        return f"The checkpoint in {self._all.directory}" if self._all else "no checkpoint"

    def take_up(self, state: Shapes, form: Callable[[int, Mode, int], Form]) -> None:
        """Reads what was saved, if something was; raises where it is another sweep.

        Args:
          state: the shapes of the state of one trial, by row.
          form: that of a call, by row, mode and chunk.
        """
        try:
            self._take_up(state, form)
        except BaseException:
            self._close()
            raise

    def _take_up(self, state, form):
        if self._all is None or self._all.latest() is None:
            return
        found = self._all.restore(lambda note: self._like(note, state, form))
        told, saved = found.note["sweep"], found.state
        ledger, trials = self._ledger, self._ledger.trials
        same_trials(saved["trials"], saved["ids"], trials, str(self))
        rows = places(saved["ids"][: told["count"]], trials)  # behind them those under way
        self._put(rows, saved)
        ledger.executed = told["executed"]
        kept = places(told["kept"], trials)
        settings = np.asarray(trials.setting)[kept]
        ledger.kept = {
            int(setting): Kept(int(row), state)
            for setting, row, state in zip(settings, kept, saved["kept"])
        }
        for ids, leaves in zip(told["resting"], saved["resting"]):
            ledger.resting.take_up(places(ids, trials), leaves)
        self.settled = {name: (mode, chunk) for name, (mode, chunk) in told["settled"].items()}
        self._step = found.step
        if told["within"]:
            at = places(told["within"]["ids"], trials)
            shape = form(int(at[0]), *told["within"]["form"])
            if told["within"]["devices"] == _devices(shape):  # otherwise they begin anew
                self.within = shape, Within(at, told["within"]["done"], saved["within"])

    def now(self, under: tuple[Form, Within] | None = None) -> None:
        """Saves in the background, with the trials under way, by row, in their form."""
        if (checkpoints := self._all) is None:
            return
        ledger, trials = self._ledger, self._ledger.trials
        rows = np.flatnonzero(ledger.ran | (ledger.steps > 0))
        ids = np.asarray(trials.id)
        begun = np.concatenate([rows, [] if under is None else under[1].rows]).astype(int)
        table = {name: x[begun] for name, x in rows_of(trials).items()}
        kept, resting = list(ledger.kept.values()), ledger.resting.groups()
        state = {
            "ids": ids[begun],
            **{name: x[..., rows] for name, x in self._columns().items()},
            "trials": table,
            "asked": dict(self._asked),
            "kept": [one.state for one in kept],
            "resting": [leaves for _, leaves in resting],
            "within": under and under[1].state,
        }
        told = {
            "facts": self.facts,
            "settled": {name: list(how) for name, how in self.settled.items()},
            "count": len(rows),
            "columns": {n: [list(x.shape[:-1]), str(x.dtype)] for n, x in self._columns().items()},
            "executed": ledger.executed,
            "trials": {name: [list(x.shape[1:]), str(x.dtype)] for name, x in table.items()},
            "asked": {name: [len(x), str(x.dtype)] for name, x in self._asked.items()},
            "kept": [int(ids[one.row]) for one in kept],
            "resting": [ids[rows].tolist() for rows, _ in resting],
            "within": under and _told(*under, ids),
        }
        self._said(lambda: checkpoints.save(self._step + 1, state, note={"sweep": told}))
        self._step += 1

    def wait(self) -> None:
        """Returns when the last save is on the disk."""
        if self._all is not None:
            self._said(self._all.wait)

    def _columns(self):
        """What the ledger holds of each trial, by name, `[..., trials]`."""
        ledger = self._ledger
        scores = {f"scores/{name}": x for name, x in ledger.scores.items()}
        rungs = {f"rungs/{name}": x for name, x in ledger.at.items() if len(x)}
        rungs |= {f"lineage/{name}": x for name, x in ledger.lineage.items()}
        taken = {"steps": ledger.steps, "seconds": ledger.seconds, "ran": ledger.ran}
        return scores | rungs | taken

    def _put(self, rows, saved):
        """The same taken up; who was stopped is found again."""
        for name, x in self._columns().items():
            x[..., rows] = saved[name]

    def __enter__(self) -> "Saves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self._close()

    def _close(self):
        if self._all is not None:
            self._said(self._all.close if self._own else self._all.wait)

    def _like(self, note, state, form):
        told, trials = told_of(note, str(self)), self._ledger.trials
        same_facts(told["facts"], self.facts, str(self))
        rows = lambda ids: [int(row) for row in known(ids, trials, str(self))]
        under, count = told["within"], told["count"]
        begun = count + (len(under["ids"]) if under else 0)
        empty = lambda shape, dtype, rows: np.zeros((rows, *shape), dtype)
        return {
            "ids": empty((), np.int32, begun),
            **{
                n: np.zeros((*ahead, count), dtype) for n, (ahead, dtype) in told["columns"].items()
            },
            "trials": {name: empty(*of, rows=begun) for name, of in told["trials"].items()},
            "asked": asked_like(told),
            "kept": [jax.tree.map(_on_host, state(row)) for row in rows(told["kept"])],
            "resting": [_of_group(state(rows(ids)[0]), len(ids)) for ids in told["resting"]],
            "within": under and _of_call(rows(under["ids"])[0], under, state, form),
        }

    def _said(self, do):
        """Does it; a save that fails is said, and ends nothing."""
        try:
            do()
        except RuntimeError as error:
            warnings.warn(f"{error}\nThe sweep itself goes on.", stacklevel=4)


def told_of(note: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a sweep noted; raises where somebody else did."""
    if "sweep" not in note:
        raise ValueError(f"{where} holds steps that sweep has not saved: name another directory.")
    return note["sweep"]


def asked_like(told: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays like those that were suggested."""
    return {name: np.zeros(count, dtype) for name, (count, dtype) in told["asked"].items()}


def _told(form, within, ids):
    rows = [int(ids[row]) for row in within.rows]
    how = {"form": [form.mode, form.chunk], "devices": _devices(form)}
    return {"ids": rows, "done": within.done} | how


def _devices(form):
    """On how many devices trials lie; 0 of a sweep without a mesh."""
    return 0 if form.mesh is None else form.mesh.size


def _of_call(row, under, state, form):
    """The state of trials under way, on the host where it was of other devices."""
    shape, one = form(row, *under["form"]), state(row)
    count = under["devices"]
    if count == _devices(shape):
        return shape.like(one)
    ahead = () if not count and shape.mode == "sequential" else (shape.chunk * max(1, count),)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(ahead + x.shape, x.dtype), one)


def _of_group(shapes, count):
    """Stacked raw leaves of the states of so many trials."""
    return [np.zeros((count, *x.shape), x.dtype) for x in raw_like(shapes)]


def _on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.zeros(x.shape, x.dtype)
