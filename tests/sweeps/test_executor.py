"""Executors: calls that are lost, pools that break, programs that travel, tables of equal bits."""

import pickle
import queue
import sys
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor as Threads
from multiprocessing import get_context
from unittest import mock

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt.sweeps import _executor, _sending
from lossopt.sweeps._executor import Job, Workers
from tests.sweeps import far


class Fragile(Executor):
    """One thread, and what a pool does where its process dies: all that is under way is lost."""

    def __init__(self, made):
        self.calls, self.broken, self.ended = queue.Queue(), False, False
        self.others = {}  # calls that wait beside one, by its argument
        made.append(self)
        self.together = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def submit(self, work, /, *given):
        if self.broken:
            raise BrokenExecutor("broken before")
        future = Future()
        self.calls.put((future, work, given))
        return future

    def work(self):
        while call := self.calls.get():
            future, work, given = call
            self.together.wait(0.05)  # others come in meanwhile
            if future.cancelled():
                continue
            self.others[given[0]] = self.calls.qsize()
            try:
                future.set_result(work(*given))
            except SystemExit:
                self.broken = True
                future.set_exception(BrokenExecutor("a worker died"))
                while not self.calls.empty():
                    self.calls.get()[0].set_exception(BrokenExecutor("a worker died"))
            except BaseException as error:
                future.set_exception(error)

    def shutdown(self, wait=True, **options):
        self.ended = True
        self.calls.put(None)


def call(work, name, came):
    return Job(work, (name,), lambda: f"trial {name}", came.append)


def collected(workers, seconds=2.0):
    """Takes until nothing is under way."""
    while workers.busy:
        for job, result in workers.came(seconds):
            job.took(result)


def dies(times):
    """A function that ends its worker so often."""
    left = dict(times)

    def work(name):
        if left.get(name, 0):
            left[name] -= 1
            raise SystemExit
        return name

    return work


@pytest.mark.parametrize("times", [{}, {"b": 1}, {"b": 2}, {"a": 1, "d": 1}])
def test_a_pool_that_breaks_is_made_again(times):
    made, came, work = [], [], dies(times)
    workers = Workers(lambda: Fragile(made))
    for name in "abcd":
        workers.send(call(work, name, came))
    collected(workers)
    workers.end(now=False)
    assert sorted(came) == list("abcd")
    assert len(made) == 1 + sum(times.values())
    for name, count in times.items():
        if count == 2:  # the pool may have broken by another's fault twice
            assert made[2].others[name] == 0
    assert all(one.ended for one in made)


def test_a_call_that_two_pools_broke_with_has_the_third_for_itself():
    room, workers = [], Workers(lambda: Fragile([]))
    workers.send(call(dies({"a": 2}), "a", room))
    while workers.busy:
        room.append(workers.room)
        list(workers.came(2.0))
    assert room == [True, True, False]


def test_calls_that_broke_pools_less_often_come_first_and_for_themselves():
    made, came, work = [], [], dies({"b": 9})
    workers = Workers(lambda: Fragile(made))
    workers.send(call(work, "b", came))
    assert not list(workers.came(2.0))
    workers.send(call(work, "c", came))
    with pytest.raises(RuntimeError, match="that met trial b ended"):
        collected(workers)
    assert came == ["c"]
    assert made[2].others == {"c": 0, "b": 0}


def test_a_pool_that_breaks_call_by_call_is_made_again_once():
    made, came = [], []

    class Late(Executor):
        def __init__(self):
            made.append(self)

        def submit(self, work, /, *given):
            future = Future()
            if len(made) > 1:
                future.set_result(work(*given))
            else:
                error = BrokenExecutor("a worker died")
                wait = 0.3 if given == ("b",) else 0
                threading.Timer(wait, future.set_exception, (error,)).start()
            return future

    workers = Workers(Late)
    for name in "ab":
        workers.send(call(str, name, came))
    collected(workers)
    assert (sorted(came), len(made)) == (["a", "b"], 2)


def test_a_call_that_ends_every_worker_is_named():
    made, came, work = [], [], dies({"b": 9})
    workers = Workers(lambda: Fragile(made))
    for name in "abcd":
        workers.send(call(work, name, came))
    with pytest.raises(RuntimeError, match=r"that met trial b ended, 3 times") as caught:
        collected(workers)
    assert isinstance(caught.value.__cause__, BrokenExecutor)
    assert "perhaps none can start" not in str(caught.value)  # for something came
    assert len(made) == 3
    assert "a" in came


def test_workers_that_cannot_start():
    made = []
    workers = Workers(lambda: Fragile(made))
    workers.send(call(dies({"a": 9}), "a", []))
    with pytest.raises(RuntimeError, match=r"perhaps none can start"):
        collected(workers)


def test_an_executor_that_breaks_cannot_be_made_again():
    workers = Workers(Fragile([]))
    workers.send(call(dies({"a": 1}), "a", []))
    with pytest.raises(RuntimeError, match=r"trial a under way.*Pass a function that makes one"):
        collected(workers)


def test_what_else_an_executor_raises_is_its_own():
    def work(name):
        raise OSError("no scheduler")

    workers = Workers(Fragile([]))
    workers.send(call(work, "a", []))
    with pytest.raises(RuntimeError, match=r"lost trial a.*none of run's.*no scheduler") as caught:
        collected(workers)
    assert isinstance(caught.value.__cause__, OSError)


def test_as_many_calls_are_sent_as_keep_workers_busy():
    came, workers = [], Workers(Threads(3))
    begun, go = threading.Semaphore(0), threading.Event()

    def work(name):
        begun.release()
        go.wait(5)
        return name

    for name in range(_executor.AHEAD * 3):
        assert workers.room
        workers.send(call(work, name, came))
    assert not workers.room
    assert all(begun.acquire(timeout=5) for _ in range(3))
    workers.withdraw()  # the others have not begun
    go.set()
    collected(workers)
    assert sorted(came) == [0, 1, 2]


def test_calls_of_which_nobody_says_whether_they_began_are_waited_for():
    came, workers = [], Workers(Fragile([]))
    workers.send(call(str, "a", came))
    workers.withdraw()
    collected(workers)
    assert came == ["a"]


def test_calls_that_were_to_be_sent_again_are_taken_back():
    made, work = [], dies({"b": 9})
    workers = Workers(lambda: Fragile(made))
    for name in "bc":
        workers.send(call(work, name, []))
        assert not list(workers.came(2.0))
    made[2].num_workers = 0
    workers.withdraw()
    assert not workers.busy


def test_calls_for_which_there_are_no_workers_are_taken_back():
    class Empty(Executor):
        num_workers = 0

        def submit(self, work, /, *given):
            return Future()

    workers = Workers(Empty())
    workers.send(call(str, "a", []))
    workers.withdraw()
    assert not workers.busy


def test_an_executor_without_workers_is_told_of(monkeypatch):
    class Empty(Executor):
        num_workers = 0

    workers = Workers(Empty())
    clock = iter([0.0, 5.0, 20.0, 40.0, 80.0])
    monkeypatch.setattr(_executor.time, "monotonic", lambda: next(clock))
    workers._looked = workers._seen = 0.0
    for _ in range(3):  # up to 20 s
        list(workers.came(0))
    with pytest.warns(UserWarning, match="no workers for 30 s"):
        list(workers.came(0))
    list(workers.came(0))  # once


def test_without_workers_is_since_there_was_one_or_a_call_came(monkeypatch):
    class Few(Executor):
        num_workers = 0

        def submit(self, work, /, *given):
            future = Future()
            future.set_result("done")
            return future

    few = Few()
    workers = Workers(few)
    clock = iter([5.0, 10.0, 10.5, 40.2, 40.6, 41.3])
    monkeypatch.setattr(_executor.time, "monotonic", lambda: next(clock))
    workers._looked = workers._seen = -21.0
    for count in (1, 0):
        few.num_workers = count
        assert not list(workers.came(0))
    workers.send(call(str, "a", []))
    assert len(list(workers.came(0))) == 1
    for count in (0, 1):  # the second time it does not look, as it has just done so
        few.num_workers = count
        assert not list(workers.came(0))
    few.num_workers = 0
    with pytest.warns(UserWarning, match="no workers for 30 s"):
        list(workers.came(0))


REFUSED = {
    "a number": (TypeError, r"Expected executor as an Executor .* got 3", lambda: 3),
    "makes a number": (TypeError, r"Expected the function given as executor .* got 0", lambda: int),
    "forks": (
        ValueError,
        r'one that forks.*mp_context=get_context\("spawn"\)',
        lambda: ProcessPoolExecutor(1, mp_context=get_context("fork")),
    ),
    "makes one that forks": (
        ValueError,
        r"one that forks",
        lambda: lambda: ProcessPoolExecutor(1, mp_context=get_context("fork")),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    error, said, make = REFUSED[case]
    with pytest.raises(error, match=said):
        Workers(make()).send(call(str, "a", []))


def test_functions_with_a_name_travel_by_name():
    data = _sending.packed((np.mean, [np.arange(3)]))
    assert len(data) < 400
    assert pickle.loads(data)[0] is np.mean


def test_closures_travel_with_arrays_and_keys():
    held, key, times = jnp.arange(3.0), jax.random.key(3, impl="rbg"), jax.jit(jnp.multiply)
    run = lambda x: (times(held, x), key)
    data = _sending.packed(run)
    assert data == _sending.packed(run)  # a worker knows it again
    product, found = pickle.loads(data)(2.0)
    assert product.tolist() == [0.0, 2.0, 4.0]
    assert found == key
    assert jax.random.key_impl(found) == "rbg"


def test_functions_of_a_script_travel_with_what_they_do():
    main = sys.modules["__main__"]
    run = lambda x: 2 * x
    run.__module__, run.__qualname__ = main.__name__, "of_a_script"
    with mock.patch.object(main, "of_a_script", run, create=True):
        data = _sending.packed(run)
    assert pickle.loads(data)(3) == 6  # where there is no such name


def test_modules_of_the_user_travel_where_they_are_to():
    cloudpickle.register_pickle_by_value(far)
    try:
        data = _sending.packed(far.run)
    finally:
        cloudpickle.unregister_pickle_by_value(far)
    assert pickle.loads(data) is not far.run
    assert pickle.loads(_sending.packed(far.run)) is far.run


def test_without_cloudpickle(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    made = _sending.sent(np.mean, [], jax.random.key(0))
    assert pickle.loads(made.program)[0] is np.mean
    with pytest.raises(ImportError, match=r"no name that workers can import.*Install cloudpickle"):
        _sending.sent(lambda x: x, [], jax.random.key(0))


def test_a_run_that_cannot_be_sent():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"a run that can be sent.*cannot pickle '_thread.lock'"):
        _sending.sent(lambda x: lock, [], jax.random.key(0))
