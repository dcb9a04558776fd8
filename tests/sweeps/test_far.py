"""Sweeps whose chunks run elsewhere end in the table of a sweep that runs here."""

import dataclasses
import importlib
import pickle
import signal
import sys
import threading
import types
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt import sweeps
from lossopt.sweeps import _host, _sending, _watch, _worker
from tests.sweeps import runs
from tests.sweeps.runs import KEY, RUN, TASK, TRIALS, X, Y, same, sweep
from tests.sweeps.test_suggest import Search

ALONE = {"mode": "sequential"}
WAYS = {"alone": ALONE, "threes": ALONE | {"chunk": 3}, "beside": {"mode": "vmap", "chunk": 4}}
RUNS = {"run": RUN, "task": TASK}


class Post(Executor):
    """Makes calls at once, of which all that goes to and fro travels as bytes."""

    def __init__(self):
        self.sent, self.came = [], []

    def submit(self, work, /, *given):
        future = Future()
        self.sent.append(pickle.loads(pickle.dumps(given)))
        self.came.append(pickle.loads(pickle.dumps(work(*self.sent[-1]))))
        future.set_result(self.came[-1])
        return future


class One(Post):
    """Says that it is one worker."""

    num_workers = 1


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture(scope="module")
def here():
    """Tables of sweeps that run here."""
    return {name: sweep(run, **ALONE) for name, run in RUNS.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_workers_give_the_table_of_a_sweep_here(name, way, here, pool):
    want = here[name] if "chunk" not in WAYS[way] or way == "threes" else None
    want = want or sweep(RUNS[name], **WAYS[way])
    for executor in (pool, Post()):
        same(sweep(RUNS[name], executor=executor, **WAYS[way]), want)


def test_a_function_that_makes_an_executor(here):
    made = []

    def make():
        made.append(ThreadPoolExecutor(1))
        return made[-1]

    same(sweep(executor=make, **ALONE), here["task"])
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[0].submit(str)
    assert len(made) == 1


@pytest.mark.parametrize("way", [ALONE, {"mode": "vmap", "chunk": 4}, ALONE | {"chunk": 2}])
@pytest.mark.parametrize("count", [1, 2])
def test_rungs(way, count, pool):
    plan, trials = sweeps.halving(13, 12, 3), TRIALS.repeat(count)
    want = sweep(trials=trials, rungs=plan, **way)
    rows, options = [], {"trials": trials, "rungs": plan, **way}
    same(got := sweep(executor=pool, on_row=rows.append, **options), want)
    assert got.work == want.work
    last = {row["id"]: row["status"] for row in rows}
    assert [last[id] for id in want["id"]] == want["status"].tolist()


def test_several_brackets(pool):
    plan = sweeps.hyperband(12, 2, least=2)
    rows = (np.arange(plan.settings) + 8) % 13  # some diverge where their bracket has no rung
    trials = {name: x[rows] for name, x in TRIALS.values.items()}
    options = {"trials": trials, "rungs": plan, **ALONE}
    for executor in (pool, Post()):
        same(sweep(executor=executor, chunk=5, **options), sweep(**options))


def test_how_much_comes_here_at_a_rung_is_said_before(capfd):
    options = {"rungs": sweeps.halving(13, 12, 3), "executor": Post(), **ALONE}
    sweep(progress=False, **options)
    assert not capfd.readouterr().err
    sweep(progress="auto", **options)
    told = capfd.readouterr().err
    # w of three numbers, the key of two, a count, and of the trial rate, decay and a mask of 8
    size = 4 * 3 + 4 * 2 + 4 + 4 + 4 + 8
    sizes = f"{size} bytes each, {4 * size} bytes together"
    assert told == f"States of 4 trials come here at a rung: {sizes}.\n"
    sweep(trials=TRIALS.repeat(2), progress="auto", **options)
    assert capfd.readouterr().err.startswith("States of 8 trials come here")


def test_only_states_that_may_be_the_best_travel(here):
    post = Post()
    same(sweep(executor=post, chunk=5, **ALONE), here["task"])
    assert [len(came.states) for came in post.came] == [1, 1, 1]
    post, trials = Post(), TRIALS.repeat(2)
    want = sweep(trials=trials, **ALONE)
    same(sweep(trials=trials, executor=post, chunk=6, **ALONE), want)
    finite = np.isfinite(want["loss"].reshape(13, 2)).any(1)
    assert sum(len(came.states) for came in post.came) == finite.sum()
    post = Post()
    sweep(executor=post, rungs=sweeps.Rungs([[(13, 2), (3, 12)]]), chunk=13, **ALONE)
    assert [len(came.states) for came in post.came] == [3, 1]


@pytest.mark.parametrize("rungs", [None, sweeps.Rungs([[(13, 2), (5, 12)]])])
def test_the_highest_may_be_the_best_and_the_lowest_id_of_equals(rungs, pool):
    options = {"score": "near", "maximize": True, "rungs": rungs, "trials": TRIALS[::-1], **ALONE}
    same(sweep(executor=pool, chunk=4, **options), sweep(**options))


@pytest.mark.parametrize(
    ("run", "seconds", "sizes"),
    [(RUN, 0.5, [1, 1, 4, 4, 2, 1]), (RUN, 9.0, [1] * 13), (TASK, 0.5, [1, 1, 4, 4, 2, 1])],
)
def test_chunks_take_some_seconds_and_leave_some_for_others(run, seconds, sizes):
    post = One()
    with runs.taking(seconds):
        sweep(run, executor=post, **ALONE)
    assert [len(given[-1].ids) for given in post.sent] == sizes


def test_of_equal_repetitions_the_state_of_the_lowest_id_travels():
    stay = lambda state, steps: state
    run = sweeps.Task(lambda x, key: x["x"], stay, lambda state: 0.0 * state, steps=1)
    trials = sweeps.Trials({"x": np.arange(4.0)}, np.arange(4), np.array([0, 0, 2, 2]))
    trials = trials[np.array([3, 1, 2, 0])]
    same(
        table := sweep(run, trials, executor=Post(), chunk=4, **ALONE), sweep(run, trials, **ALONE)
    )
    assert table.best_state == 0


def test_groups_options_keys_and_missing_names():
    rates = sweeps.Log(0.01, 0.1)
    some = sweeps.random({"rate": rates, "of": sweeps.Static((jnp.tanh, lambda x: x))}, 5, KEY)
    more = sweeps.random({"rate": rates, "drop": sweeps.Linear(0, 1)}, 3, KEY)
    seeds = jax.random.split(jax.random.key(1), 8)
    trials = sweeps.join(some, more)
    trials = sweeps.Trials(
        {**trials.values, "seed": seeds}, trials.id, None, trials.present, trials.options
    )

    def run(numbers, key):
        drawn = jax.random.normal(key) + jax.random.normal(numbers["seed"])
        return numbers["rate"] * numbers.get("of", jnp.sin)(drawn) + numbers.get("drop", 0)

    want = sweep(run, trials, **ALONE)
    same(sweep(run, trials, executor=Post(), **ALONE), want)


def test_a_training_run_travels_with_its_data():
    def objective(w, batch, hyperparameters, key):
        noise = hyperparameters["noise"] * jax.random.normal(key, w.shape)
        return {"fit": lo.mean((batch["x"] @ (w + noise) - batch["y"]) ** 2)}

    task = lo.sweeps.task(
        objective,
        lambda key: jax.random.normal(key, (3,)),
        {"x": X, "y": Y},
        lambda numbers: optax.adam(numbers["rate"]),
        steps=3,
        batch_size=4,
        check=False,
    )
    trials = {"rate": np.array([0.1, 0.2], np.float32), "noise": np.array([0.0, 1.0], np.float32)}
    same(sweep(task, trials, executor=Post(), **ALONE), sweep(task, trials, **ALONE))


def test_mode_and_chunk_are_settled_on_a_worker(monkeypatch):
    post, seen, settled = Post(), [], _worker.settled
    want = sweep(RUN, **ALONE)
    monkeypatch.setattr(_host, "settled", None)

    def told(wanted, trial, values, count, timed):
        seen.append((wanted, count))
        return settled(wanted, trial, values, count, timed)

    monkeypatch.setattr(_worker, "settled", told)
    table = sweep(RUN, executor=post)
    assert post.came[0][0] in ("vmap", "sequential")
    assert [count for _, count in seen] == [2]  # of 13 on eight workers
    np.testing.assert_allclose(table["loss"], want["loss"], rtol=1e-4)


@pytest.mark.parametrize("form", [{}, {"mode": "vmap", "chunk": 2}])
def test_what_does_not_fit_is_refused_as_here(form):
    with pytest.raises(ValueError, match=r"Expected memory to hold a call, got 1 bytes"):
        sweep(lambda numbers, key: numbers["rate"], executor=Post(), memory=1, **form)


def test_a_program_is_read_and_compiled_once(monkeypatch):
    read, loads = [], pickle.loads
    monkeypatch.setattr(_worker.pickle, "loads", lambda data: read.append(1) or loads(data))
    scale = jnp.float32(np.random.default_rng().random())
    run = lambda numbers, key: numbers["rate"] * scale
    post = Post()
    sweep(run, executor=post, **ALONE)
    sweep(run, executor=post, **ALONE)
    programs = {given[0].digest for given in post.sent}
    assert len(programs) == 1
    assert len(post.sent) > 2
    others = 2 * len(post.sent) + 2  # Post reads each call and answer, the caller what it sends
    assert len(read) - others == 1


def test_a_program_is_told_of_each_key():
    run, values = lambda numbers, key: jax.random.uniform(key) + numbers, np.zeros(2)
    kinds = [(5, "threefry2x32"), (6, "threefry2x32"), (5, "rbg"), (5, "unsafe_rbg")]
    found = []
    for seed, impl in kinds:
        key = jax.random.key(seed, impl=impl)
        found.append(sweep(run, values, key, executor=Post(), **ALONE))
        same(found[-1], sweep(run, values, key, **ALONE))
    assert len({tuple(table["loss"]) for table in found}) == 4


def test_suggested_trials(tmp_path, pool):
    one, other, made = Search(), Search(), []
    want = sweep(TASK, one.trials(), **ALONE)

    def make():
        made.append(Post())
        return made[-1]

    options = {"checkpoint": tmp_path, "executor": make, **ALONE}
    same(sweep(TASK, other.trials(), **options), want)
    assert other.told == one.told
    assert len(made) == 1


def test_options_that_are_suggested_later():
    def run(numbers, key):
        return numbers["rate"] * (2.0 if numbers["of"] == "b" else 1.0)

    post, options = Post(), iter("aabbab")
    space = {"rate": sweeps.Linear(0, 1), "of": sweeps.Static(("a", "b"))}
    ask = lambda count: [{"rate": 0.5, "of": next(options)} for _ in range(count)]
    trials = sweeps.suggest(space, ask, lambda rows: None, 6, chunk=2)
    table = sweep(run, trials, executor=post)
    assert table["loss"].tolist() == [0.5, 0.5, 1.0, 1.0, 0.5, 1.0]
    assert len({given[0].digest for given in post.sent}) == 2
    assert sum(isinstance(came, tuple) and len(came) == 2 for came in post.came) == 2  # settled


def test_a_form_is_settled_for_a_share_of_a_chunk(monkeypatch):
    counts, settled, options = [], _worker.settled, iter("aaab")
    told = lambda *given: counts.append(given[3]) or settled(*given)
    monkeypatch.setattr(_worker, "settled", told)
    space = {"rate": sweeps.Linear(0, 1), "of": sweeps.Static(("a", "b"))}
    ask = lambda count: [{"rate": 0.5, "of": next(options)} for _ in range(count)]
    trials = sweeps.suggest(space, ask, lambda rows: None, 4, chunk=4)
    sweep(lambda numbers, key: numbers["rate"], trials, executor=One())
    assert counts == [3, 2]  # of the second option more may come


def test_settings_of_jax_travel(pool):
    values = {"x": np.linspace(0, 1, 3)}

    def run(numbers, key):
        typed = jnp.ndim(jax.random.PRNGKey(0)) == 0  # as enable_custom_prng says
        return jnp.sin(numbers["x"]) + jax.random.uniform(key) + typed

    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.enable_custom_prng(True):
        want = sweep(run, values, **ALONE)
        got = sweep(run, values, executor=pool, **ALONE)
    assert got["loss"].dtype == np.float64
    same(got, want)
    assert (got["loss"] != sweep(run, values, executor=pool, **ALONE)["loss"]).all()


def test_workers_on_which_transfers_are_forbidden(here, pool):
    jax.config.update("jax_transfer_guard", "disallow")  # in all threads
    try:
        same(sweep(executor=pool, **ALONE), here["task"])
    finally:
        jax.config.update("jax_transfer_guard", None)


def test_a_function_that_was_loaded_again(tmp_path, monkeypatch):
    module = tmp_path / "edited_between_sweeps.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    make = lambda: ThreadPoolExecutor(1)
    for number in (1, 20):  # another size of the file, too
        module.write_text(f"def run(numbers, key):\n    return numbers['rate'] + {number}\n")
        importlib.invalidate_caches()
        found = importlib.import_module(module.stem)
        found = importlib.reload(found)
        got = sweep(found.run, {"rate": np.zeros(2)}, executor=make, **ALONE)
        assert (got["loss"] == number).all()
    del sys.modules[module.stem]


def test_what_a_worker_imported_before_an_edit_is_refused(monkeypatch):
    module = types.ModuleType("edited_under_workers")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    edit = lambda number: exec(f"def run(x, key):\n    return x['rate'] + {number}", vars(module))

    class Old(Post):
        def submit(self, work, /, *given):
            edit(1)
            return super().submit(work, *given)

    edit(2)
    values = {"rate": np.zeros(2)}
    with pytest.raises(
        RuntimeError, match=r"(?s)A worker refused trials 0.*got another on this worker"
    ):
        sweep(module.run, values, executor=Old(), **ALONE)
    monkeypatch.setattr(_worker, "traced", lambda: "8 devices of an accelerator")
    table = sweep(module.run, values, executor=Old(), **ALONE)  # programs may be others there
    assert (table["loss"] == 1).all()


def test_where_arrays_and_keys_lie_makes_no_other_program(pool, tmp_path):
    lie = lambda x: jax.device_put(x, jax.devices()[0])
    run = lambda x: lambda numbers, key: numbers["rate"] * x.sum() + jax.random.normal(key)
    values, plain = {"rate": np.ones(2, np.float32)}, jnp.arange(3.0)
    want = sweep(run(plain), values, checkpoint=tmp_path, **ALONE)
    same(sweep(run(lie(plain)), values, lie(KEY), executor=pool, **ALONE), want)
    same(sweep(run(lie(plain)), values, checkpoint=tmp_path, **ALONE), want)


def test_an_exit_of_the_run_is_its_own(pool):
    def run(numbers, key):
        if threading.current_thread() is not threading.main_thread():
            raise SystemExit(3)
        return numbers["rate"]

    with pytest.raises(RuntimeError, match="run failed on a worker") as caught:
        sweep(run, executor=pool, **ALONE)
    assert isinstance(caught.value.__cause__, SystemExit)


def of_the_worker():
    """What is traced here, and cannot be there, where a closure is another function."""

    def run(numbers, key):
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("of the run")
        return numbers["rate"]

    return run


def test_an_exception_of_the_run():
    make = lambda: ThreadPoolExecutor(1)
    with pytest.raises(RuntimeError) as caught:
        sweep(of_the_worker(), executor=make, chunk=2, **ALONE)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "run failed on a worker, with trials" in (said := str(caught.value))
    assert "0, 1 (0: rate 1e9, decay 0; 1: rate 0.001, decay 0.04167)" in said
    assert 'in run\n    raise KeyError("of the run")' in said


def test_an_exception_where_mode_and_chunk_are_settled(pool):
    said = r"with trials 0, 1, .*, 12 \(0: rate 1e9, .*; 7: rate 0.05318, .*; and 5 more\)"
    with pytest.raises(RuntimeError, match=said):
        sweep(of_the_worker(), executor=pool)


def test_an_exception_that_does_not_travel(pool):
    class OwnError(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def run(numbers, key):
        if threading.current_thread() is not threading.main_thread():
            raise OwnError("a", "b")
        return numbers["rate"]

    with pytest.raises(RuntimeError, match="run failed on a worker") as caught:
        sweep(run, executor=pool, **ALONE)
    assert "OwnError: a" in str(caught.value.__cause__)


class Unread:
    """Bytes that are read once, by the caller, and by no worker."""

    def __reduce__(self):
        return _unread, ()


def _unread(read=[]):  # noqa: B006 -- it counts
    read.append(None)
    if len(read) > 1:
        raise ModuleNotFoundError("no module of mine")


def test_a_program_that_workers_cannot_read():
    held = Unread()
    run = lambda numbers, key: numbers["rate"] if held else 0.0
    with pytest.raises(RuntimeError, match=r"could not read the program") as caught:
        sweep(run, executor=Post(), **ALONE)
    assert str(caught.value.__cause__) == "no module of mine"
    assert "in _unread" in str(caught.value)


def test_other_versions(monkeypatch):
    monkeypatch.setattr(_worker, "versions", lambda: "jax 0.0.1")
    with pytest.raises(RuntimeError, match=r"versions of who calls, jax .*, got jax 0\.0\.1"):
        sweep(RUN, executor=Post(), **ALONE)


def test_what_was_finished_is_kept(tmp_path, here):
    class Dying(Post):
        def submit(self, work, /, *given):
            if len(self.sent) == 3:
                future = Future()
                future.set_exception(OSError("of the scheduler"))
                return future
            return super().submit(work, *given)

    common = {"checkpoint": tmp_path, "chunk": 3, **ALONE}
    with pytest.raises(RuntimeError, match=r"lost trials 9, 10, 11 .*of the scheduler"):
        sweep(executor=Dying(), **common)
    post = Post()
    same(sweep(executor=post, **common), here["task"])
    assert [given[-1].ids.tolist() for given in post.sent] == [[9, 10, 11], [12]]


def test_each_chunk_is_saved(tmp_path):
    with runs.always():
        sweep(RUN, executor=Post(), checkpoint=tmp_path, chunk=3, **ALONE)
    latest = lo.checkpoint.Checkpoints(tmp_path).latest()
    assert latest is not None
    assert latest.step == 5


def test_control_c_that_ends_workers_too(here):
    presses = iter([signal.SIGINT])

    class Ended(Future):
        def exception(self, timeout=None):
            for press in presses:
                signal.raise_signal(press)
            return OSError("it has ended")

    class Dying(Post):
        def submit(self, work, /, *given):
            if len(self.sent) < 3:
                return super().submit(work, *given)
            future = Ended()
            future.set_result(None)
            return future

    table = sweep(executor=Dying(), chunk=3, **ALONE)
    ran = table["status"] != "waiting"
    assert ran.tolist() == [True] * 9 + [False] * 4
    assert table["loss"][ran].tobytes() == here["task"]["loss"][ran].tobytes()


def test_an_executor_is_not_waited_for_where_calls_are_under_way():
    ended, left, process = [], [], mock.Mock()

    class Slow(Post):
        _processes = {1: process}  # noqa: RUF012 -- as pools have it

        def submit(self, work, /, *given):
            if len(self.sent) < 3:
                return super().submit(work, *given)
            signal.raise_signal(signal.SIGINT)
            left.append(Future())
            return left[-1]

        def shutdown(self, wait=True, **options):
            ended.append(wait)

    for chunk in (5, 3):  # three chunks, and more
        assert not process.terminate.called
        table = sweep(executor=Slow, chunk=chunk, **ALONE)
        assert ("waiting" in table["status"]) == (chunk == 3)
    assert ended == [True, False]
    assert process.terminate.called
    assert left[0].cancelled()


def test_what_looks_at_the_first_trials_stays_here(here):
    look = lambda numbers, key, lock=threading.Lock(): None  # noqa: B008 -- what cannot be sent
    run = dataclasses.replace(TASK, check=look)
    same(sweep(run, executor=Post(), **ALONE), here["task"])


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_sweep_goes_on_elsewhere(first, tmp_path, here, pool):
    common = {"checkpoint": tmp_path, "chunk": 1, **ALONE}  # few are under way at a time
    stop = lambda row: signal.raise_signal(signal.SIGINT) if row["id"] == 4 else None
    there = {"executor": pool}
    half = sweep(on_row=stop, **common, **(there if first == "there" else {}))
    assert (half["status"] == "waiting").any()
    assert half["status"][4] != "waiting"
    seen = []
    told = lambda row: seen.append(row["id"])
    same(sweep(on_row=told, **common, **(there if first == "here" else {})), here["task"])
    assert sorted(seen) == half["id"][half["status"] == "waiting"].tolist()


def test_after_the_time_no_chunk_begins(monkeypatch):
    post = Post()
    monkeypatch.setattr(_watch.Watch, "over", property(lambda self: len(post.sent) >= 2))
    table = sweep(RUN, executor=post, chunk=3, **ALONE)
    assert (table["status"] != "waiting").tolist() == [True] * 6 + [False] * 7


def test_large_programs_are_said_once(monkeypatch):
    monkeypatch.setattr(_sending, "LARGE", 1e5)
    held = jnp.zeros(30_000)
    run = lambda numbers, key: numbers["rate"] + held[0]
    with pytest.warns(UserWarning, match=r"closes over are 11\d\.\d KiB.*Load the data") as told:
        sweep(run, executor=Post(), **ALONE)
    assert [warning.filename for warning in told] == [runs.__file__]  # where it is called


def _of_custom_vjp():
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, slope: (2 * x * slope,))
    return lambda numbers, key: square(numbers["rate"])


REFUSED = {
    "a mesh": (ValueError, r"either mesh.* or executor", {"mesh": lo.parallel.mesh()}),
    "a population": (
        ValueError,
        r"rungs of halving or hyperband with executor.*got a population",
        {"rungs": sweeps.population(4, {"rate": sweeps.Log(1e-3, 0.2)})},
    ),
    "a number": (TypeError, r"Expected executor as an Executor.*got 3", {"executor": 3}),
    "a custom_vjp": (
        TypeError,
        r"a run that workers can read.*custom_vjp.*put them into one",
        {"run": _of_custom_vjp()},
    ),
    "a lock": (
        TypeError,
        r"a run that can be sent to workers.*_thread.lock",
        {"run": lambda numbers, key, lock=threading.Lock(): numbers["rate"]},  # noqa: B008
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    error, said, options = REFUSED[case]
    post = Post()
    with pytest.raises(error, match=f"(?s){said}"):
        sweep(**{"executor": post, "checkpoint": tmp_path / "run"} | options)
    assert not (tmp_path / "run").exists()
    assert not post.sent
