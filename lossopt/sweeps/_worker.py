"""What runs on a worker of an executor: a program that is unpickled, traced and compiled once."""

import contextlib
import pickle
import threading
import traceback
from collections import OrderedDict
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lossopt.sweeps._calls import Calls, Result, Within, state_of
from lossopt.sweeps._compiled import compiled, remember
from lossopt.sweeps._form import Form, Mode
from lossopt.sweeps._identity import program
from lossopt.sweeps._resting import Leaves, keyed, raw
from lossopt.sweeps._sending import Kind, Sent, packed, traced, versions
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._surroundings import under, uninterrupted
from lossopt.sweeps._trial import Trial

ANOTHER = (
    "Expected the program that the caller traced, got another on this worker. Where a module that "
    "run needs was edited, or is here in another version, start workers and caller anew. Where "
    "something that run closes over was changed after it was traced, make run anew. Where key or "
    "arrays lie on a mesh, jax.device_put them on one device. It may also read other data here, "
    "compare options of Static by `is`, or depend on the order of a set or on a setting of jax "
    "that does not travel."
)
_KEPT = 4  # programs, which may hold data


class _Program(NamedTuple):
    """A program that was read, and the trials that were made of it so far."""

    run: Any
    kinds: list[Kind]
    trials: OrderedDict[Any, tuple[Trial, str]]  # and the digests of their programs


_programs: OrderedDict[str, _Program] = OrderedDict()
_lock = threading.RLock()


class Best(NamedTuple):
    """Which states are asked for.

    Attributes:
      score: what ranks.
      maximize: whether the highest is the best.
      settings: of the trials, `[rows]`; of equal scores the lower one is better, then the lower id.
      groups: pairs of places, and of how many of the best of them; None asks for all, also for
        such as are not finite.
    """

    score: str
    maximize: bool
    settings: np.ndarray
    groups: list[tuple[np.ndarray, int | None]]


class Chunk(NamedTuple):
    """Trials that run on a worker; arrays of numpy alone.

    Attributes:
      kind: the number of their group.
      ids: of the trials, `[rows]`.
      values: raw leaves of their values, each `[rows, ...]`.
      done: steps that they have taken.
      until: steps that they have taken at its end.
      state: raw leaves of their states, each `[rows, ...]`; None where they have not begun.
      best: the states that are asked for.
    """

    kind: int
    ids: np.ndarray
    values: Leaves
    done: int
    until: int
    state: Leaves | None
    best: Best


class Came(NamedTuple):
    """What came of a chunk.

    Attributes:
      scores: by name, `[rows]`.
      seconds: of each trial, `[rows]`.
      states: raw leaves of the states that were asked for, by place in the chunk.
    """

    scores: dict[str, np.ndarray]
    seconds: np.ndarray
    states: dict[int, Leaves]


class Failed(NamedTuple):
    """What a worker could not do.

    Attributes:
      at: what it was about to do: to read the program, to run it, or it had traced another.
      told: the traceback there.
      said: the exception in a line.
      error: itself as bytes; None where it does not travel.
    """

    at: Literal["read", "traced", "run"]
    told: str
    said: str
    error: bytes | None


def ran(sent: Sent, mode: Mode, width: int, chunk: Chunk) -> Came | Failed:
    """Runs a chunk.

    Args:
      sent: the program.
      mode: of its trials.
      width: trials of a call.
      chunk: what is to run; it may take several calls.
    """
    return _guarded(sent, chunk.kind, lambda: _ran(sent, Form(mode, width), chunk))


def settles(
    sent: Sent, mode: Any, width: Any, memory: int | None, chunk: Chunk, count: int
) -> tuple[Mode, int] | Failed:
    """Mode and width of a group of trials, as `settled` finds them here.

    Args:
      sent: the program.
      mode: that the caller asks for.
      width: likewise.
      memory: bytes of a device that a call may take.
      chunk: the first trials, which are tried.
      count: trials that are to run on one worker.
    """
    wanted = Wanted(mode, width, memory, None)
    return _guarded(sent, chunk.kind, lambda: _settles(sent, wanted, chunk, count))


def _guarded(sent, kind, do):
    """What it gives; an exception of the program is told as one."""
    at = "read"
    try:
        with uninterrupted(), jax.transfer_guard("allow"), under(sent.settings):
            _read(sent)
            at = "run"
            if _is_another(sent, kind):
                return Failed("traced", ANOTHER, ANOTHER, None)
            return do()
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        return Failed(at, traceback.format_exc(), said, _bytes(error))


def _ran(sent, form, chunk):
    trial, values = _trial(sent, chunk.kind), _values(sent, chunk)
    _compile(trial, form, values)
    calls, count = Calls(trial, values, chunk.ids), len(chunk.ids)
    results: list[Result] = []
    states: dict[int, Leaves] = {}
    for rows in np.split(np.arange(count), range(form.width, count, form.width)):
        within = _within(trial, form, values, rows, chunk)
        result = calls.run(form, rows, within, chunk.until, lambda within: True)
        if result is not None:  # nothing asks it to end
            results.append(result)
            states = _states(states, form, rows, results, chunk)
    scores = {name: _joined(results, name) for name in results[0].scores}
    widths = [len(result.scores[chunk.best.score]) for result in results]
    return Came(scores, np.repeat([result.seconds for result in results], widths), states)


def _settles(sent, wanted, chunk, count):
    trial, values = _trial(sent, chunk.kind), _values(sent, chunk)
    calls, rows = Calls(trial, values, chunk.ids), np.arange(len(chunk.ids))
    with _lock:
        found = settled(wanted, trial, _first(values), count, partial(calls.tried, rows=rows))
    return found.mode, found.chunk


def _read(sent):
    """The program, read once."""
    with _lock:
        if sent.versions != versions():
            raise RuntimeError(
                f"Expected workers of the versions of who calls, {sent.versions}, got "
                f"{versions()}: programs and bits might differ. Install the same ones."
            )
        if sent.digest not in _programs:
            run, kinds = pickle.loads(sent.program)
            _programs[sent.digest] = _Program(run, kinds, OrderedDict())
        _programs.move_to_end(sent.digest)
        while len(_programs) > _KEPT:
            _programs.popitem(last=False)
        return _programs[sent.digest]


def _is_another(sent, kind):
    """Whether the program is another here, where it is traced for the same as by the caller."""
    return sent.traced == traced() and _known(sent, kind)[1] != _read(sent).kinds[kind].program


def _trial(sent, kind):
    return _known(sent, kind)[0]


def _known(sent, kind):
    """The trial of a group, made once, so that its programs are found again; and their digest."""
    with _lock:
        read, name = _read(sent), (kind, sent.impl, sent.key.tobytes())
        if name not in read.trials:
            key = jax.random.wrap_key_data(sent.key, impl=sent.impl)
            trial = Trial(read.run, read.kinds[kind].statics, key)
            remember(read.trials, name, (trial, program(trial, read.kinds[kind].values)))
        return read.trials[name]


def _values(sent, chunk):
    return keyed(chunk.values, _read(sent).kinds[chunk.kind].values)


def _first(values):
    return jax.tree.map(lambda x: x[0], values)


def _compile(trial, form, values):
    """Compiles its programs, once for all threads of a worker."""
    with _lock:
        compiled(trial, form, _first(values))


def _within(trial, form, values, rows, chunk):
    """Where the trials of a call go on; None of such as have not begun."""
    if chunk.state is None:
        return None
    filled = np.concatenate([rows, np.repeat(rows[:1], form.width - len(rows))])
    own = [x[rows[0] if form.alone else filled] for x in chunk.state]
    return Within(rows, chunk.done, keyed(own, trial.shapes(_first(values))[0]))


def _states(had, form, rows, results, chunk):
    """The states that are asked for, of the trials that ran so far."""
    if results[-1].state is None:
        return {}
    best, first = chunk.best, rows[0]
    places = best_places(best, chunk.ids, _joined(results, best.score))
    new = lambda place: raw(state_of(form, results[-1], place - first))
    states = {place: had[place] if place in had else new(place) for place in places}
    results[-1] = results[-1]._replace(state=())  # what is not asked for goes
    return states


def best_places(best: Best, ids: np.ndarray, scores: np.ndarray) -> list[int]:
    """The places whose states are asked for, among the first trials, which have these scores."""
    values = np.asarray(scores, float)
    values = np.where(np.isfinite(values), -values if best.maximize else values, np.inf)
    order = np.lexsort((ids[: len(values)], best.settings[: len(values)], values))
    found = []
    for places, count in best.groups:
        if count is None:
            found += places[places < len(values)].tolist()
        else:
            mine = order[np.isin(order, places) & np.isfinite(values[order])]
            found += mine[:count].tolist()
    return found


def _joined(results, name):
    return np.concatenate([result.scores[name] for result in results])


def _bytes(error):
    """An exception as bytes, if it is read again from them."""
    with contextlib.suppress(Exception):
        found = packed(error)
        pickle.loads(found)
        return found
    return None
