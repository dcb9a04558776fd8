"""How a run ends before its time: signals, errors, `on_epoch`, the clock, a disk, a kill."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from unittest import mock

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.checkpoint import Checkpoints
from lossopt.training import STOP, Stopped, _fit, _host, _saves
from lossopt.training._feed import Memory, horizon
from lossopt.training._loop import start
from lossopt.training._plan import Data
from lossopt.training._run import plan_of
from lossopt.training._saves import Saves
from lossopt.training._source import source
from tests.training.resumed import KEY, leaves, same

DESCENT = optax.sgd(0.1)
BOTH = signal.SIGINT, signal.SIGTERM


def _squares(w, x):
    return {"fit": lo.mean((w - x) ** 2)}


def _trained(train=None, **options):
    given = {"epochs": 6, "key": KEY, "progress": False}
    data = jnp.arange(6.0) if train is None else train
    return lo.fit(_squares, 0.0, data, DESCENT, **given | options)


def _at(row, *numbers):
    """An `on_epoch` that gets these signals at a row."""

    def act(now, state):
        if now["step"] == row:
            for number in numbers:
                signal.raise_signal(number)

    return act


@pytest.fixture(scope="module")
def whole():
    return _trained()


@pytest.fixture(params=["default", "own"])
def handlers(request):
    """Those of the caller, which must be there again."""
    called, before = [], {number: signal.getsignal(number) for number in BOTH}
    if request.param == "own":
        for number in BOTH:
            signal.signal(number, lambda number, frame: called.append(number))
    now = {number: signal.getsignal(number) for number in BOTH}
    yield called
    found = {number: signal.getsignal(number) for number in BOTH}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == now


# Signals


def test_one_ctrl_c_ends_a_run_and_saves_it(handlers, whole, tmp_path):
    for given in ({}, {"checkpoint": tmp_path}):
        run = _trained(on_epoch=_at(2, signal.SIGINT), **given)
        assert (run.stopped, run.steps) == (Stopped.INTERRUPTED, 2)
    assert handlers == []
    assert Checkpoints(tmp_path).verify().verified == (2,)
    same(leaves(_trained(checkpoint=tmp_path)), leaves(whole))


def test_ctrl_c_is_no_other_reason(handlers):
    stop = lo.training.Target(99.0)
    run = _trained(on_epoch=_at(1, signal.SIGINT), stop=stop, best="train")
    assert run.stopped is Stopped.TARGET


@pytest.mark.parametrize("handlers", ["default"], indirect=True)
def test_a_second_ctrl_c_raises_at_once(handlers):
    seen = []

    def act(row, state):
        seen.append(int(row["step"]))
        _at(2, signal.SIGINT, signal.SIGINT)(row, state)
        seen.append("on")

    with mock.patch.object(Saves, "wait") as wait, pytest.raises(KeyboardInterrupt):
        _trained(on_epoch=act)
    assert seen == [1, "on", 2]
    wait.assert_not_called()


@pytest.mark.parametrize("handlers", ["own"], indirect=True)
def test_sigterm_saves_and_goes_to_its_handler_once(handlers, whole, tmp_path):
    run = _trained(on_epoch=_at(2, signal.SIGTERM), checkpoint=tmp_path)
    assert run.stopped is Stopped.INTERRUPTED
    assert handlers == [signal.SIGTERM]
    assert Checkpoints(tmp_path).verify().verified == (2,)


@pytest.mark.parametrize("numbers", list(itertools.product(BOTH, BOTH)))
@pytest.mark.parametrize("handlers", ["own"], indirect=True)
def test_a_second_signal_has_its_own_handler(handlers, numbers):
    run = _trained(on_epoch=_at(2, *numbers))
    assert handlers[0] == numbers[1]
    assert run.stopped is Stopped.INTERRUPTED


def test_handlers_are_put_back_after_errors_too(handlers):
    def act(row, state):
        raise OSError("of mine")

    with pytest.raises(OSError, match="of mine"):
        _trained(on_epoch=act)
    with pytest.raises(ValueError, match="batch_size"):
        _trained(batch_size=0)


def test_a_signal_that_is_ignored_stays_ignored():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in BOTH}
    try:
        run = _trained(on_epoch=_at(2, *BOTH))
    finally:
        found = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(found.values()) == {signal.SIG_IGN}
    assert run.stopped is Stopped.FINISHED


def test_a_handler_that_is_not_of_python_is_left():
    with mock.patch.object(signal, "getsignal", return_value=None):
        run = _trained(on_epoch=lambda row, state: signal.signal)
    assert run.stopped is Stopped.FINISHED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_touch_no_handler(whole):
    runs, seen = [], set()

    def act(row, state):
        seen.add(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: runs.append(_trained(on_epoch=act)))
    thread.start()
    thread.join()
    assert seen == {signal.getsignal(signal.SIGINT)}
    same(leaves(runs[0]), leaves(whole))


def test_nobody_needs_to_listen(handlers):
    closed = OSError(9, "Bad file descriptor")
    with mock.patch.object(os, "write", side_effect=closed):
        run = _trained(on_epoch=_at(2, signal.SIGINT))
    assert (run.stopped, run.steps) == (Stopped.INTERRUPTED, 2)


def test_ctrl_c_while_the_last_save_lands(tmp_path):
    real, calls = Saves.wait, itertools.count()

    def wait(self):
        if next(calls) == 0:
            signal.raise_signal(signal.SIGINT)
        real(self)

    with mock.patch.object(Saves, "wait", wait):
        run = _trained(checkpoint=tmp_path)
    assert run.stopped is Stopped.INTERRUPTED, "it is not lost"
    assert _trained(checkpoint=tmp_path).stopped is Stopped.FINISHED


def test_an_error_that_is_an_answer_to_ctrl_c_is_none(whole, tmp_path):
    def act(row, state):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            raise ConnectionError("the workers of the loader are gone")

    with pytest.warns(UserWarning, match="interrupted; then came ConnectionError"):
        run = _trained(on_epoch=act, checkpoint=tmp_path)
    assert (run.stopped, run.steps) == (Stopped.INTERRUPTED, 2)
    same(leaves(_trained(checkpoint=tmp_path)), leaves(whole))


def test_a_handler_that_is_set_meanwhile_stays():
    mine = lambda number, frame: None

    def act(row, state):
        signal.signal(signal.SIGINT, mine)

    before = signal.getsignal(signal.SIGINT)
    try:
        _trained(on_epoch=act)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


TERMINATED = """
import os, signal, sys
import jax.numpy as jnp, jax, optax, lossopt as lo
act = lambda row, state: os.kill(os.getpid(), signal.SIGTERM) if row["step"] == 2 else None
objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
lo.fit(objective, 0.0, jnp.arange(6.0), optax.sgd(0.1), epochs=6, key=jax.random.key(0),
       on_epoch=act, checkpoint=sys.argv[1])
print("not here")
"""


def test_sigterm_ends_a_process_after_its_step_has_landed(tmp_path):
    command = [sys.executable, "-c", TERMINATED, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (-signal.SIGTERM, ""), process.stderr
    assert Checkpoints(tmp_path).verify().verified == (2,)


# Errors


def test_an_error_of_on_epoch_leaves_what_was_before_it(whole, tmp_path):
    def act(row, state):
        if row["step"] == 3:
            raise LookupError("of mine")

    with pytest.raises(LookupError, match="of mine"):
        _trained(on_epoch=act, checkpoint=tmp_path)
    assert Checkpoints(tmp_path).verify().verified == (2,), "it has landed"
    seen = []
    run = _trained(checkpoint=tmp_path, on_epoch=lambda row, state: seen.append(int(row["step"])))
    assert seen == [3, 4, 5, 6]
    same(leaves(run), leaves(whole))


class Loader:
    """Batches, of which one fails."""

    def __init__(self, fails=None):
        self.fails = fails

    def __iter__(self):
        for number in range(9):
            if number == self.fails:
                raise ConnectionError("the disk is away")
            yield np.full(2, number, np.float32)


@pytest.mark.filterwarnings("ignore:train has no state")
def test_an_error_of_the_loader_leaves_the_last_state(tmp_path):
    once = partial(_trained, epochs=None, steps=9, evaluate_every=1, checkpoint=tmp_path)
    with mock.patch("lossopt.training._pile.MOST", 2), pytest.raises(ConnectionError, match="away"):
        once(Loader(6))
    reached = Checkpoints(tmp_path).latest().step
    assert 2 <= reached <= 6
    want = _trained(Loader(), epochs=None, steps=9, evaluate_every=1)
    same(leaves(once(Loader())), leaves(want))


def test_what_fails_before_the_first_step_saves_nothing(tmp_path):
    def act(row, state):
        raise LookupError("of mine")

    with pytest.raises(LookupError):
        _trained(on_epoch=act, checkpoint=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert _trained(batch_size=2, checkpoint=tmp_path).stopped is Stopped.FINISHED


# Saves that fail


@pytest.mark.parametrize("step", [1, 6])
def test_a_save_that_fails_is_a_warning_and_the_next_is_tried(step, whole, tmp_path):
    real, left = os.rename, [f"{step:08d}"]

    def rename(source, target, **given):
        if os.path.basename(target) in left:
            left.pop()
            raise OSError(28, "No space left on device")
        return real(source, target, **given)

    names = {"on_epoch": lambda row, state: None, "checkpoint_every": 0.0}
    with (
        mock.patch.object(os, "rename", rename),
        pytest.warns(UserWarning, match=r"No space left on device(.|\n)*The run itself goes on."),
    ):
        run = _trained(checkpoint=tmp_path, **names)
    same(leaves(run), leaves(whole))
    assert Checkpoints(tmp_path).latest().step == 6


def test_where_nothing_can_be_written_the_run_ends_all_the_same(whole, tmp_path):
    (tmp_path / "run").write_text("")
    disk = mock.patch.object(Checkpoints, "save", side_effect=OSError(30, "Read-only file system"))
    with disk, pytest.warns(UserWarning, match="Read-only file system"):
        run = _trained(checkpoint=tmp_path / "there")
    same(leaves(run), leaves(whole))
    with pytest.raises(NotADirectoryError, match="is a file"):
        _trained(checkpoint=tmp_path / "run")


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path):
    with (
        mock.patch("os.access", return_value=False),
        pytest.raises(PermissionError, match=f"{tmp_path} cannot be written to"),
    ):
        _trained(checkpoint=tmp_path / "not" / "there")


def test_two_runs_in_one_directory_hurt_no_run(whole, tmp_path):
    def act(row, state):
        if row["step"] == 3:
            _trained(checkpoint=tmp_path)

    with pytest.warns(UserWarning, match="which holds step 6"):
        run = _trained(on_epoch=act, checkpoint=tmp_path)
    same(leaves(run), leaves(whole))
    same(leaves(_trained(checkpoint=tmp_path)), leaves(whole))


def test_checkpoints_that_were_given_stay_open(whole, tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints, mock.patch.object(checkpoints, "close"):
        _trained(checkpoint=checkpoints, checkpoint_every=0.0, on_epoch=lambda row, state: None)
        assert checkpoints.verify().verified == (1, 2, 3, 4, 5, 6)
        same(leaves(_trained(checkpoint=checkpoints)), leaves(whole))
        checkpoints.close.assert_not_called()
        note = checkpoints.latest().note
    assert note["train/value"] == whole.history["train/value"][-1]
    assert note["step"] == 6
    with mock.patch.object(Checkpoints, "close") as close:
        _trained(checkpoint=tmp_path)
        with pytest.raises(ValueError, match="batch_size"):
            _trained(checkpoint=tmp_path, batch_size=2)
    assert close.call_count >= 2


def test_a_note_is_small_whatever_is_watched(tmp_path):
    many = {f"leaf {number}": jnp.ones(1) for number in range(300)}
    fit = partial(lo.fit, lambda w, x: {"fit": lo.mean(x["0"] * w)}, 0.0, optimizer=DESCENT)
    data = {str(number): jnp.arange(6.0) for number in range(300)}
    run = fit(data, epochs=1, key=KEY, progress=False, checkpoint=tmp_path)
    facts = run.origin["identity"]
    assert facts["train"].startswith("300 leaves, ")
    with pytest.raises(ValueError, match="train: was 300 leaves"):
        fit(data | {"7": -data["7"]}, epochs=1, key=KEY, progress=False, checkpoint=tmp_path)
    watched = {f"{name}/{x}": np.ones(1) for name in _saves.OF_LEAVES for x in many}
    run = _trained()
    run.history.update(watched)
    with Saves(tmp_path / "watched", 60.0) as saves:
        saves.now(lambda: run)
    assert not any("leaf" in name for name in Checkpoints(tmp_path / "watched").latest().note)


# Seconds


class Clock:
    """A clock that goes by itself so much at each look."""

    def __init__(self, step):
        self.step, self.now = step, 0.0

    def __call__(self):
        self.now += self.step
        return self.now


def _hosted(clock, limit=np.inf, saves=None, on_epoch=None, epochs=2000):
    """A run of one step an epoch, by this clock."""
    data = Data(jnp.arange(6.0), None, KEY, None, None)
    plan = plan_of(_squares, DESCENT, source(data.train, None, False), data, None, 1, False)
    plan = plan._replace(window=_fit.WINDOW)
    begun = start(plan, data, 0.0, None)
    feed = Memory(plan, data.train, horizon(epochs, None, None))
    given = {"on_epoch": on_epoch, "limit": limit, "clock": clock}
    host = _host.Host(plan, data, feed, saves or Saves(None, 60.0), {}, **given)
    return _host.hosted(host, _host.Reached(begun, [], Stopped.FINISHED, begun.pool))


@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
def test_a_run_ends_before_its_limit(step):
    clock = Clock(step)
    run = _hosted(clock, limit=20.0)
    assert run.stopped is Stopped.TIME
    assert 20.0 - 3 * step < clock.now <= 20.0
    assert run.history["seconds"][-1] <= 20.0


def test_a_first_call_that_takes_too_long_ends_it():
    run = _hosted(Clock(30.0), limit=70.0)
    assert (run.stopped, run.steps) == (Stopped.TIME, 1)


def test_a_slow_on_epoch_is_within_the_limit_too():
    clock = Clock(0.01)

    def slow(row, state):
        clock.now += 6.0

    run = _hosted(clock, limit=20.0, on_epoch=slow)
    assert (run.stopped, run.steps) == (Stopped.TIME, 2)
    assert clock.now < 20.0


def test_a_save_must_fit_into_the_limit_too(tmp_path):
    clock = Clock(0.1)

    class Slow(Checkpoints):
        flying = False

        def save(self, *args, **given):
            super().save(*args, **given)
            self.flying = True

        def wait(self):
            super().wait()
            clock.now, self.flying = clock.now + 4.0 * self.flying, False

    with Slow(tmp_path) as slow:
        saves = Saves(slow, 1000.0, clock)
        run = _hosted(clock, limit=40.0, saves=saves, on_epoch=lambda row, state: None)
    assert saves.took > 4.0
    assert run.stopped is Stopped.TIME
    assert run.history["seconds"][-1] < 40.0 - 4.0
    assert saves._at == run.steps


def test_it_goes_on_when_it_is_called_again(whole, tmp_path):
    long = {"epochs": 10**6, "checkpoint": tmp_path}
    run = _trained(seconds=0.3, **long)
    assert run.stopped is Stopped.TIME
    again = _trained(seconds=0.3, **long)
    assert again.steps > run.steps
    assert again.history["seconds"][-1] > run.history["seconds"][-1]
    want = _trained(epochs=int(again.steps))
    np.testing.assert_array_equal(again.params, want.params)
    np.testing.assert_array_equal(again.history["train/value"], want.history["train/value"])


def test_the_time_of_saves_does_not_shorten_calls():
    clock = Clock(0.0)

    class Slow(Saves):
        times = 0

        def due(self, run, timed):
            clock.now, self.times = clock.now + 2.0, self.times + 1

    saves = Slow(None, 0.0, clock)
    _hosted(clock, saves=saves, epochs=200)
    assert saves.times < 20


@pytest.mark.parametrize(("every", "wanted"), [(0.0, 10), (2.5, 4), (1e9, 1)])
def test_saves_come_by_the_clock_and_at_the_end(every, wanted, tmp_path):
    clock, landed = Clock(0.0), []
    with Checkpoints(tmp_path) as checkpoints:
        saves = Saves(checkpoints, every, clock)
        save = mock.patch.object(checkpoints, "save", lambda step, *_, **__: landed.append(step))
        with save:

            def act(row, state):
                clock.now += 1.0

            _hosted(clock, saves=saves, on_epoch=act, epochs=10)
    assert len(landed) == wanted
    assert landed[-1] == 10
    assert len(set(landed)) == len(landed)


# on_epoch


def test_on_epoch_sees_each_row_once_and_in_order(whole):
    rows, params = [], []

    def act(row, state):
        rows.append(row)
        params.append(float(jnp.sum(state.params)))  # on the device, and valid
        assert int(state.count) == row["step"]
        row["step"] = -1  # a copy of its own
        return [0, 1, True, Stopped.TIME, "stop", None][len(rows) - 1]

    run = _trained(on_epoch=act)
    same(leaves(run), leaves(whole))
    assert [row["train/value"] for row in rows] == list(whole.history["train/value"])
    assert all(row.keys() == run.history.keys() for row in rows)
    assert params[-1] == run.params


def test_on_epoch_changes_nothing_of_what_it_is_given():
    def changes(row, state):
        row.clear()
        state.params["w"] = state.params["w"] * 0

    squares = lambda params, x: {"fit": lo.mean((params["w"] - x) ** 2)}
    given = squares, {"w": 0.0}, jnp.arange(6.0), optax.sgd(0.1)
    run = lo.fit(*given, key=KEY, epochs=3, on_epoch=changes)
    assert run.params["w"] == lo.fit(*given, key=KEY, epochs=3).params["w"] > 0


def test_on_epoch_ends_a_run():
    run = _trained(on_epoch=lambda row, state: STOP if row["step"] == 3 else None)
    assert (run.stopped, run.steps, len(run.history["step"])) == (Stopped.ASKED, 3, 3)


def test_on_epoch_after_the_last_row_before_a_cut_epoch():
    seen = []
    options = {"epochs": None, "steps": 7, "batch_size": 2, "evaluate_every": 5}
    run = _trained(**options, on_epoch=lambda row, state: seen.append(int(row["step"])))
    assert seen == list(run.history["step"]) == [5, 7]
    same(leaves(run), leaves(_trained(**options)))
