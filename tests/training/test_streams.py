"""Batches of an iterable: the run of the same batches in memory, wherever it is cut."""

import collections
import gc
import signal
import sys
import time
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt.training import _feed, _pile, _reader, _stream
from lossopt.training._packed import packed, unpacked
from lossopt.training._source import source

pytestmark = pytest.mark.usefixtures("optimized")
ROWS, SIZE, EPOCHS = 19, 4, 3  # 4 full batches and one of 3 rows
STEPS = 5 * EPOCHS
KEY, OPTIMIZER = jax.random.key(3), optax.adam(0.1)
Stopped = lo.training.Stopped


def _data(rows, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.uniform(0.1, 1, size=shape).astype(np.float32)
    return {"x": draw(rows, 3), "y": draw(rows), "weight": draw(rows)}


TRAIN, VALIDATION = _data(ROWS, 0), _data(9, 1)


def _objective(params, batch, key, model_state):
    x = batch["x"]
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.8, x.shape)
    errors = x @ params - batch["y"]
    metrics = {"absolute": lo.mean(jnp.abs(errors))}
    aux = {"metrics": metrics, "model_state": model_state + jnp.mean(x, axis=0)}
    return {"fit": lo.mean(errors**2, batch["weight"])}, aux


GIVEN = {"key": KEY, "validation": VALIDATION, "microbatches": 4, "progress": False}
GIVEN |= {"has_aux": True, "model_state": jnp.zeros(3), "stop": lo.training.Patience(50)}


def _fit(train, **options):
    options = GIVEN | ({} if "steps" in options else {"epochs": EPOCHS}) | options
    return lo.fit(_objective, jnp.zeros(3), train, OPTIMIZER, **options)


@pytest.fixture(scope="module")
def order():
    """The batches of each epoch in memory."""
    rows = source(TRAIN, SIZE, False)

    def epoch(number):
        key = jax.random.split(jax.random.fold_in(KEY, number))[0]
        full = [rows.batch(TRAIN, key, i) for i in range(rows.full)]
        return jax.device_get([*full, rows.last(TRAIN, key)])

    return [epoch(number) for number in range(EPOCHS)]


@pytest.fixture(scope="module")
def memory():
    return _fit(TRAIN, batch_size=SIZE)


class Column:
    """As a column of pandas: no array of numpy, and it can be iterated."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __iter__(self):
        return iter(self.values)


class Plain:
    """An epoch with each pass, and no state."""

    def __init__(self, order, told=lambda number: None):
        self.order, self.told, self.passes, self.read = order, told, 0, 0

    def __iter__(self):
        epoch, self.passes = self.order[self.passes % EPOCHS], self.passes + 1
        for batch in epoch:
            self.told(self.read)
            self.read += 1
            yield batch
        self.told(self.read - 0.5)


class Sized(Plain):
    """It says how many batches it has, perhaps wrongly."""

    def __init__(self, order, size=5):
        super().__init__(order)
        self.size = size

    def __len__(self):
        return self.size


class Ours(Plain):
    """`state` and `restore`, which the next pass obeys; the state is an object that changes."""

    def __init__(self, order, told=lambda number: None):
        super().__init__(order, told)
        self.place = {"epoch": 0, "at": 0}

    def state(self):
        return self.place

    def restore(self, state):
        self.place = dict(state)

    def __iter__(self):
        epoch = self.order[self.place["epoch"] % EPOCHS]
        while self.place["at"] < len(epoch):
            self.told(5 * self.place["epoch"] + self.place["at"])
            self.place["at"] += 1
            yield epoch[self.place["at"] - 1]
        self.told(5 * self.place["epoch"] + 4.5)
        self.place |= {"epoch": self.place["epoch"] + 1, "at": 0}


class Grain(Plain):
    """As grain: its iterators have `get_state`, which gives bytes, and `set_state`."""

    def __iter__(self):
        self.passes += 1
        return self.Iterator(self, self.passes - 1)

    class Iterator:
        def __init__(self, stream, epoch):
            self.stream, self.epoch, self.at = stream, epoch, 0

        def __iter__(self):
            return self

        def __next__(self):
            epoch = self.stream.order[self.epoch % EPOCHS]
            if self.at == len(epoch):
                self.stream.told(5 * self.epoch + 4.5)
                raise StopIteration
            self.stream.told(5 * self.epoch + self.at)
            self.at += 1
            return epoch[self.at - 1]

        def get_state(self):
            return bytes([self.epoch, self.at, 255])

        def set_state(self, state):
            self.epoch, self.at, _ = state
            self.stream.passes = self.epoch + 1


class Torch(Ours):
    """As torchdata: `state_dict` and `load_state_dict`, with numbers that JSON does not have."""

    state = restore = None

    def state_dict(self):
        place = self.place
        return {0: (np.int64(place["epoch"]),), "packed": np.array([place["at"]]), "none": None}

    def load_state_dict(self, state):
        self.place = {"epoch": int(state[0][0]), "at": int(state["packed"][0])}


def _same(got, want, *, stopped=True):
    """All bits but seconds."""
    fields = "params model_state opt_state best_params best_model_state best_epoch steps unfinished"
    assert not stopped or got.stopped is want.stopped
    assert set(got.history) == set(want.history)
    pick = lambda run: (
        [getattr(run, name) for name in fields.split()]
        + [{name: x for name, x in run.history.items() if name != "seconds"}]
    )
    jax.tree.map(np.testing.assert_array_equal, pick(got), pick(want))


class TestStreamedIsInMemory:
    """The bits of the same batches in memory."""

    CUTS = (
        {},
        {"MOST": 2},
        {"MOST": 1},
        {"PATIENCE": -1.0},
        {"BYTES": 2 * 4 * SIZE * 5},
    )

    @pytest.mark.parametrize("cuts", CUTS, ids=str)
    def test_however_stacks_are_cut(self, cuts, order, memory, monkeypatch):
        for name, x in cuts.items():
            monkeypatch.setattr(_feed if name == "PATIENCE" else _pile, name, x)
        _same(_fit(Sized(order)), memory)

    @pytest.mark.parametrize("size", [1, 2, 50])
    def test_whatever_length_it_says(self, size, order, memory, monkeypatch):
        monkeypatch.setattr(_pile, "MOST", 5)
        _same(_fit(Sized(order, size)), memory)

    def test_of_no_length_and_with_rows_after_some_steps(self, order, monkeypatch):
        monkeypatch.setattr(_pile, "MOST", 5)
        for options in ({"steps": 13, "evaluate_every": 3}, {"steps": 12}):
            want = _fit(TRAIN, batch_size=SIZE, **options)
            got = _fit(Plain(order), **options)
            _same(got, want)
        assert list(got.history["step"]) == [5, 10, 12]

    def test_memory_that_the_loader_writes_again(self, order, memory):
        """Each batch is read before the loader makes the next one."""

        class Reused(Plain):
            def __iter__(self):
                batch, full = {}, {name: x.copy() for name, x in order[0][0].items()}
                for given in super().__iter__():
                    batch |= {name: full[name][: len(x)] for name, x in given.items()}
                    for name, x in given.items():
                        batch[name][...] = x
                    yield batch
                    for x in full.values():
                        x[...] = np.nan

        for most in (1, 5):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_pile, "MOST", most)
                _same(_fit(Reused(order)), memory)
        once = {"objective": _objective, "params": jnp.zeros(3), "has_aux": True}
        once |= {"model_state": jnp.zeros(3)}
        want = lo.training.evaluate(data=Plain(order), **once)
        assert lo.training.evaluate(data=Reused(order), **once) == want

    def test_a_generator_for_one_epoch(self, order):
        want = _fit(TRAIN, batch_size=SIZE, epochs=1)
        _same(_fit((batch for batch in order[0]), epochs=1), want)
        _same(_fit(collections.deque(order[0]), epochs=1), want)


def _interrupted(number):
    """Ctrl-C while a batch is read, the first time."""
    asked = []

    def told(read):
        if read == number and not asked:
            asked.append(signal.raise_signal(signal.SIGINT))

    return told


class TestResume:
    """A run that is cut goes on to the bits of one that is not."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(_reader, "CAPTURE", 3)
        monkeypatch.setattr(_pile, "MOST", 1)

    @pytest.mark.parametrize("kind", [Ours, Grain, Torch, Plain])
    def test_cut_at_every_step(self, kind, order, memory):
        """The batch is read while the device is at work on the one before."""
        reached = []
        for number in [2, 3, 4, 4.5, 5, 7, 8, 9, 9.5, 10, 12, 13, 14, 14.5]:
            begun = _fit(kind(order, _interrupted(number)))
            assert begun.stopped is Stopped.INTERRUPTED
            reached.append(int(begun.steps))
            stream = kind(order)
            if kind is Plain:
                with pytest.warns(UserWarning, match=rf"its first {begun.steps} batches are read"):
                    _same(_fit(stream, start=begun), memory)
                assert stream.read == STEPS
            else:
                _same(_fit(stream, start=begun), memory)
        assert reached == list(range(1, STEPS))

    @pytest.mark.parametrize("kind", [Ours, Grain, Torch])
    def test_from_a_checkpoint_and_not_read_again(self, kind, order, memory, tmp_path):
        """States go through JSON; batches of before are not read but for the last ones."""
        begun = _fit(kind(order, _interrupted(14.5)), checkpoint=tmp_path)
        assert begun.stopped is Stopped.INTERRUPTED
        numbers = []
        _same(_fit(kind(order, numbers.append), checkpoint=tmp_path), memory)
        assert numbers[0] == 0  # the first batch, for the shapes
        assert min(numbers[1:]) >= 13

    def test_a_stream_that_tells_states_may_begin_anywhere(self, order, memory):
        """Such as the same loader once more, which shuffles by itself."""
        stream = Ours(order)
        begun = _fit(stream, epochs=1)
        _same(_fit(stream, start=begun), memory)

    @pytest.mark.parametrize("kind", [Ours, Torch])
    def test_the_same_loader_again_in_one_process(self, kind, order, memory):
        """`fit` leaves it where it stood, wherever a run is cut."""
        for number in (2, 4, 4.5, 8, 14):
            stream = kind(order, _interrupted(number))
            begun = _fit(stream)
            assert stream.place == {"epoch": 0, "at": 0}
            _same(_fit(stream, start=begun), memory)

    def test_one_that_does_not_has_to_begin_as_it_did(self, order):
        stream = Plain(order)
        begun = _fit(stream, epochs=1)
        match = r"train/x: was float32\[4, 3\], (.|\n)*A loader that shuffles has to begin alike"
        with pytest.raises(ValueError, match=match):
            _fit(stream, start=begun)

    def test_a_length_that_is_too_small_ends_nothing(self, order, memory):
        stream = Sized(order, 2)
        stream.told = _interrupted(14)
        begun = _fit(stream)
        with pytest.warns(UserWarning, match="are read again"):
            _same(_fit(Sized(order, 2), start=begun), memory)

    def test_a_run_that_is_over_comes_back(self, order, memory, tmp_path):
        _fit(Ours(order), checkpoint=tmp_path)
        stream = Ours(order)
        again = _fit(stream, checkpoint=tmp_path)
        _same(again, memory)
        assert stream.place == {"epoch": 0, "at": 0}

    def test_fewer_epochs_than_a_run_has_that_does_not_tell_them(self, order, memory):
        begun = jax.tree.map(lambda x: x, memory)
        assert begun.origin is None
        with pytest.warns(UserWarning, match="are read again"):
            _same(_fit(Plain(order), epochs=2, start=begun), memory)

    def test_more_epochs(self, order, memory):
        begun = _fit(Torch(order), epochs=2)
        _same(_fit(Torch(order), start=begun), memory)


class TestStates:
    """What a stream tells, in words of JSON."""

    STATE = types.MappingProxyType(
        {
            "plain": [1, 2.5, None, True, "text"],
            "bytes": b"\x00\xff",
            "tuple": (1, (2, b"")),
            "number": np.float32(0.1),
            "array": np.arange(6, dtype=np.uint8).reshape(2, 3),
            3: {"packed": "tuple", (1, 2): np.int64(2**60)},
        }
    )

    def test_there_and_back(self):
        import json

        back = unpacked(json.loads(json.dumps(packed(dict(self.STATE)))))
        kinds = lambda x: (type(x), getattr(x, "dtype", None), getattr(x, "shape", None))
        assert back.keys() == self.STATE.keys()
        for name, want in self.STATE.items():
            assert kinds(back[name]) == kinds(want)
            np.testing.assert_equal(back[name], want)
        assert back["tuple"] == self.STATE["tuple"]
        assert np.isnan(unpacked(json.loads(json.dumps(packed(np.nan), allow_nan=False))))
        assert back[3] == self.STATE[3]
        back["array"][0] = 7  # its own memory

    def test_tensors(self, monkeypatch):
        class Tensor:
            __module__ = "torch"

            def __init__(self, array):
                self.array = array

            def __array__(self, dtype=None, copy=None):
                return self.array

        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_numpy=Tensor))
        back = unpacked(packed([Tensor(np.arange(3, dtype=np.uint8))]))[0]
        assert isinstance(back, Tensor)
        np.testing.assert_array_equal(back.array, [0, 1, 2])

    @pytest.mark.parametrize(
        ("state", "error", "match"),
        [
            (
                {"rng": [object()]},
                TypeError,
                r"state\(\)\[0\]\['rng'\]\[0\] is object",
            ),
            (np.array([None]), TypeError, r"state\(\)\[0\] is ndarray"),
            ("x" * 40_000, ValueError, "takes 40027 bytes of JSON, of at most 32768"),
        ],
    )
    def test_what_cannot_be_saved_is_refused_where_it_is_to_be(
        self, state, error, match, order, memory, tmp_path
    ):
        class Odd(Ours):
            def state(self):
                return [state, dict(self.place)]

        stream = Odd(order)
        with pytest.raises(error, match=match):
            _fit(stream, checkpoint=tmp_path)
        assert stream.place["at"] == 1
        assert not list(tmp_path.glob("*"))
        _same(_fit(Odd(order)), memory)

    def test_one_that_can_be_saved_no_more_ends_nothing(self, order, memory, tmp_path, monkeypatch):
        class Grows(Ours):
            def state(self):
                return self.place | ({"open": object()} if self.place["epoch"] else {})

        monkeypatch.setattr(_reader, "CAPTURE", 3)
        with pytest.warns(UserWarning, match=r"is object, .*\nThe run itself goes on"):
            _same(_fit(Grows(order), checkpoint=tmp_path), memory)


class TestRefused:
    """What does not fit, said before or where it is read."""

    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            ({"x": np.zeros((4, 2), np.float32)}, r"x is float32\[4, 2\].*first.* float32\[4, 3\]"),
            ({"x": np.zeros((4, 3))}, r"x is float64\[4, 3\], in the first it is float32\[4, 3\]"),
            ({"y": np.zeros(3, np.float32)}, r"y is float32\[3\], in the first .*\[4\]\. Batches"),
            ({"y": np.array(["a"] * 4)}, r"y is <U1\[4\], in the first it is float32\[4\]"),
            ({"y": np.float32(1)}, r"y is float32\[\], in the first it is float32\[4\]"),
            ({"z": np.zeros(4, np.float32)}, r"z is float32\[4\], in the first it is nothing"),
            ("no y", r"y is nothing, in the first it is float32\[4\]"),
            ("list", r"0 is .*in the first it is nothing"),
            ("empty", r"x is float32\[0, 3\]"),
            ("scalars", r"x is float32\[\]"),
        ],
        ids=str,
    )
    def test_a_batch_unlike_the_first(self, bad, match, order):
        batch = order[1][1]
        made = {
            "no y": {name: batch[name] for name in ("x", "weight")},
            "list": list(batch.values()),
            "empty": {name: x[:0] for name, x in batch.items()},
            "scalars": {name: np.float32(0) for name in batch},
        }
        batch = made[bad] if isinstance(bad, str) else batch | bad
        broken = [order[0], [order[1][0], batch, *order[1][2:]]]
        stream = Plain(broken)
        with pytest.raises(ValueError, match="train, batch 1 of pass 1: .*" + match):
            _fit(stream, epochs=2)

    def test_the_first_is_remembered_as_it_was(self, order):
        def stream():
            batch = dict(order[0][0])
            yield batch
            batch["y"] = batch["y"][:, None]
            yield batch

        with pytest.raises(ValueError, match=r"y is float32\[4, 1\], .* is float32\[4\]"):
            _fit(stream(), epochs=1)

    def test_what_was_reached_before_is_saved(self, order, memory, tmp_path):
        broken = [order[0], [order[1][0], order[2], *order[1][2:]]]
        with pytest.raises(ValueError, match="batch 1 of pass 1"):
            _fit(Plain(broken), epochs=2, checkpoint=tmp_path)
        with pytest.warns(UserWarning, match="its first 4 batches are read again"):
            _same(_fit(Plain(order), checkpoint=tmp_path), memory)

    def test_an_error_of_the_loader(self, order, memory, tmp_path):
        def fails(number):
            if number == 7:
                raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            _fit(Ours(order, fails), checkpoint=tmp_path)
        _same(_fit(Ours(order), checkpoint=tmp_path), memory)

    @pytest.mark.parametrize("answer", [OSError, KeyboardInterrupt])
    def test_an_error_of_the_loader_in_the_first_stack(self, answer, order, memory, tmp_path):
        """The reader is then further than the run, which has not taken a step."""

        def fails(number):
            if number == 8:
                if answer is KeyboardInterrupt:
                    signal.raise_signal(signal.SIGINT)
                raise OSError("the disk is gone")

        begun = _fit(Ours(order), steps=6)
        given = {"start": begun, "checkpoint": tmp_path}
        if answer is OSError:
            with pytest.raises(OSError, match="the disk is gone"):
                _fit(Ours(order, fails), **given)
        else:
            with pytest.warns(UserWarning, match="then came OSError"):
                stopped = _fit(Ours(order, fails), **given)
            assert (stopped.stopped, stopped.steps) == (Stopped.INTERRUPTED, 6)
            assert stopped.origin["place"][:2] == [1, 1]
        run = _fit(Ours(order), checkpoint=tmp_path)
        np.testing.assert_array_equal(run.params, memory.params)

    def test_none_ends_no_pass(self, order):
        """As where a function that collates leaves out what is broken."""
        stream = Plain([[order[0][0], None, *order[0][1:]]])
        with pytest.raises(TypeError, match="train, batch 1 of pass 0 is None"):
            _fit(stream, epochs=1)

    @pytest.mark.parametrize(
        ("batch", "error", "match"),
        [
            (
                {"x": np.zeros((4, 3)), "y": np.array(["a"] * 4)},
                TypeError,
                r"in train\['y'",
            ),
            ({"x": np.zeros((4, 3)), "y": np.zeros(3)}, ValueError, r"train\['y'\] \(3,\)"),
            ({}, ValueError, "got no arrays"),
            ({"x": [1.0, 2.0]}, TypeError, r"numbers of Python in train\['x'\]"),
        ],
    )
    def test_a_first_batch(self, batch, error, match):
        with pytest.raises(error, match=match):
            _fit(collections.deque([batch]))

    def test_whole_numbers_beyond_those_of_jax(self, order):
        labels = [{"n": np.array([0, x])} for x in (1, 2, 2**40)]
        objective = lambda w, batch: {"fit": lo.mean((w - batch["n"]) ** 2)}
        with pytest.raises(ValueError, match=r"train, batches from 0 of pass 0: .*\['n'\].*109951"):
            lo.fit(objective, 0.0, collections.deque(labels), OPTIMIZER, epochs=1, key=KEY)

    @pytest.mark.parametrize(
        ("train", "options", "error", "match"),
        [
            (lambda b: iter(b), {}, ValueError, r"epochs=3 reads train again.*__iter__ begins"),
            (lambda b: iter([]), {"steps": 3}, ValueError, "gives none. It may have been read"),
            (collections.deque, {"batch_size": 4}, ValueError, "and batch_size says how"),
            (collections.deque, {"batch_size": 0}, ValueError, "and batch_size says how"),
            (
                collections.deque,
                {"shards": 1, "drop_last": True},
                ValueError,
                "shards and drop_last",
            ),
            (collections.deque, {"best": "train"}, ValueError, "best measures the training set"),
            (collections.deque, {"best": ("trained/fit", min)}, ValueError, "best measures the"),
            (collections.deque, {"validation": 0.2}, ValueError, "validation=0.2 is a share"),
            (collections.deque, {"validation": 1}, ValueError, "validation=1 is a share"),
            (
                collections.deque,
                {"validation": np.float32(0.5)},
                ValueError,
                "validation=0.5 is a share",
            ),
            (
                collections.deque,
                {"validation": iter([0])},
                ValueError,
                "read at each",
            ),
            (collections.deque, {"validation": {1, 2}}, TypeError, "numbers of Python in validat"),
            (list, {}, ValueError, r"train\[4\]\['weight'\] \(3,\).*collections\.deque\(batches\)"),
            (lambda b: dict(enumerate(b)).keys(), {}, TypeError, "numbers of Python in train"),
        ],
    )
    def test_before_it_begins(self, train, options, error, match, order):
        with pytest.raises(error, match=match):
            _fit(train(order[0]), **options)

    @pytest.mark.parametrize(
        "call",
        [
            lambda x: lo.training.run(_objective, 0.0, x, OPTIMIZER, epochs=1, key=KEY),
            lambda x: lo.training.run(
                _objective, 0.0, TRAIN, OPTIMIZER, epochs=1, key=KEY, validation=x
            ),
            lambda x: lo.training.predict(lambda w, b: b["y"], 0.0, x),
            lambda x: lo.training.split(x, 0.2, KEY),
        ],
    )
    def test_where_no_streams_are_read(self, call, order):
        with pytest.raises(TypeError, match=r"got an iterable, deque: fit and"):
            call(collections.deque(order[0]))

    def test_a_dataset_is_put_into_a_loader(self):
        """It gives items by number without an end, which numpy would read for ever."""

        class Dataset:
            __len__ = lambda self: 3
            __getitem__ = lambda self, number: {"x": np.zeros(3)}

        with pytest.raises(TypeError, match=r"got objects, .*Dataset, .* put a loader"):
            _fit(Dataset(), batch_size=1)

    def test_what_is_no_stream(self):
        data = [{"x": 1}, [1], (1,), None, 1.0, np.zeros(3), jnp.zeros(3), Column([1]), "text"]
        data += [b"bytes", types.MappingProxyType({"x": [1]})]
        assert [x for x in data if _stream.is_stream(x)] == []
        streams = [iter([]), {1}, collections.deque(), range(3), {}.values(), Plain([])]
        assert all(map(_stream.is_stream, streams))


class TestEnds:
    """Batches that run out, and shapes that are many."""

    def test_an_iterator_that_runs_out(self, order):
        """Its last steps have a row, too."""
        run = _fit(iter(order[0]), steps=12, evaluate_every=2)
        assert run.stopped is Stopped.EXHAUSTED
        assert list(run.history["step"]) == [2, 4, 5]
        _same(run, _fit(Sized(order), steps=5, evaluate_every=2), stopped=False)

    def test_a_second_pass_without_batches(self, order):
        class Once:
            def __init__(self):
                self.batches = iter(order[0])

            def __iter__(self):
                return self.batches

        with pytest.warns(UserWarning, match="train gave no batch in pass 1, counted from 0"):
            run = _fit(Once())
        assert run.stopped is Stopped.EXHAUSTED
        assert run.steps == 5

    def test_a_first_batch_of_another_size_slows_nothing(self, order, monkeypatch):
        """Batches of any size go to the device many at once."""
        piles, real = [], _pile.Pile.laid

        def laid(pile, layout):
            piles.append(pile.count)
            return real(pile, layout)

        monkeypatch.setattr(_pile.Pile, "laid", laid)
        batches = collections.deque([order[0][4], *order[0][:4] * 2])
        _fit(batches, epochs=1, validation=None, stop=None, microbatches=1)
        assert piles == [1, 8]

    def test_many_shapes_are_said_once(self):
        batches = [np.ones(n, np.float32) for n in (2, 1, 3, 1, 3, 4, 2)]
        objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = lambda n: lo.fit(
                objective, 0.0, collections.deque(batches[:n]), OPTIMIZER, epochs=1, key=KEY
            )
            fit(2)
            assert not caught
            run = fit(7)
        assert [str(x.message).partition(":")[0] for x in caught] == [
            "train has batches of [1, 2, 3] rows"
        ]
        assert run.steps == 7

    def test_a_loader_is_begun_as_often_as_it_is_read(self, order):
        """Beginning a pass may start processes, and draws from the loader's own generator."""
        stream = Plain(order)
        _fit(stream)
        assert stream.passes == EPOCHS
        assert stream.read == STEPS


Pair = collections.namedtuple("Pair", ["x", "y"])


class TestLeaves:
    """Whatever holds numbers."""

    LINES = staticmethod(lambda w, b: {"fit": lo.mean((b[0] * w - b[1]) ** 2)})

    @pytest.mark.parametrize(
        "made",
        [
            lambda x, y: [x, y],
            lambda x, y: Pair(x.astype(np.float64), y),
            lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
            lambda x, y: (jnp.asarray(x), y),
            lambda x, y: [Column(x), y],
            lambda x, y: (x.astype(np.int64), y.astype(np.uint8)),
            lambda x, y: (np.broadcast_to(x[:1], x.shape), np.asfortranarray(y)),
        ],
        ids=["list", "namedtuple64", "jax", "mixed", "column", "integers", "views"],
    )
    def test_as_in_memory(self, made):
        x, y = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32)[::-1]
        batches = [made(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
        whole = jax.tree.map(lambda *xs: np.concatenate([*map(np.asarray, xs)]), *batches)
        given = {"epochs": 2, "key": KEY, "progress": False}
        got = lo.fit(self.LINES, 0.0, collections.deque(batches), OPTIMIZER, **given)
        stacks = jax.tree.map(lambda x: np.asarray(x).reshape(3, 2), whole)
        init, step = lo.train_step(self.LINES, OPTIMIZER)
        state, step = init(0.0), jax.jit(step)
        for i in (0, 1, 2, 0, 1, 2):
            state, _ = step(state, jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), stacks))
        np.testing.assert_allclose(got.params, state.params, rtol=1e-6)
        assert got.params != 0

    def test_first_of_numpy_then_of_jax(self, order, memory):
        mixed = [order[0], *([*map(jax.device_put, epoch)] for epoch in order[1:])]
        _same(_fit(Sized(mixed)), memory)

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "exp"])
    def test_batches_on_several_devices(self, kind):
        """They stay there; the run is that of one device, but for the order of sums."""
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
        put = lambda x: jax.device_put(x, NamedSharding(mesh, P("rows")))
        rng = np.random.default_rng(0)
        batches = [tuple(rng.normal(size=(2, n)).astype(np.float32)) for n in (16, 16, 8)]
        given = {"epochs": 2, "key": KEY, "check": False, "progress": False}
        fit = lambda data: lo.fit(self.LINES, 0.0, collections.deque(data), OPTIMIZER, **given)
        got, want = fit([tuple(map(put, batch)) for batch in batches]), fit(batches)
        for name in ("params", "opt_state"):
            pair = getattr(got, name), getattr(want, name)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *pair)
        pile = _pile.Pile(_pile.capacity(placed := [*map(put, batches[0])], None))
        pile.put(placed)
        assert [x.sharding.shard_shape(x.shape) for x in pile.laid(None)] == [(1, 2), (1, 2)]


@pytest.fixture(scope="module")
def parts():
    """Batches that validate."""
    cut = lambda i: {name: x[i : i + 4] for name, x in VALIDATION.items()}
    return collections.deque(map(cut, (0, 4, 8)))


class TestValidation:
    """A stream that validates."""

    def test_is_arrays_but_for_rounding(self, parts, order, memory):
        for train, options in ((TRAIN, {"batch_size": SIZE}), (Sized(order), {})):
            run = _fit(train, validation=parts, **options)
            np.testing.assert_array_equal(run.params, memory.params)
            assert run.history.keys() == memory.history.keys()
            for name in ("value", "fit", "absolute"):
                column = f"validation/{name}"
                np.testing.assert_allclose(run.history[column], memory.history[column], rtol=1e-6)
            assert run.best_epoch == memory.best_epoch
            np.testing.assert_array_equal(run.best_params, memory.best_params)

    def test_resumes(self, parts, order):
        begun = _fit(Torch(order, _interrupted(8)), validation=parts)
        assert begun.stopped is Stopped.INTERRUPTED
        _same(
            _fit(Torch(order), validation=parts, start=begun), _fit(Plain(order), validation=parts)
        )

    def test_evaluate(self, parts):
        given = {"has_aux": True, "model_state": jnp.zeros(3)}
        measure = lambda data: lo.training.evaluate(_objective, jnp.ones(3), data, **given)
        got, want = measure(parts), measure(VALIDATION)
        assert got.keys() == want.keys()
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-6)
        errors = VALIDATION["x"].astype(np.float64).sum(axis=1) - VALIDATION["y"]
        by_hand = np.average(errors**2, weights=VALIDATION["weight"].astype(np.float64))
        np.testing.assert_allclose(got["fit"], by_hand, rtol=1e-5)
        assert measure(iter(parts)).keys() == want.keys()
        with pytest.raises(ValueError, match=r"data is an iterable.*and batch_size says"):
            lo.training.evaluate(_objective, jnp.ones(3), parts, batch_size=3, **given)

    def test_a_batch_unlike_the_first(self, parts, order):
        broken = collections.deque([*parts, {"x": np.zeros((1, 3), np.float32)}])
        with pytest.raises(ValueError, match=r"validation, batch 3 of pass 0: .*; y is nothing"):
            _fit(Sized(order), validation=broken)


def _bytes():
    return sum(x.nbytes for x in jax.live_arrays())


class TestMemoryAndTime:
    """What is on the device, and what goes on at the same time."""

    def test_two_stacks_at_most(self, monkeypatch):
        most, size = 4, 2**16
        monkeypatch.setattr(_pile, "MOST", most)
        objective = lambda w, x: {"fit": lo.mean((w - jnp.mean(x, axis=1)) ** 2)}
        gc.collect()
        seen, before = [], _bytes()

        class Stream:
            def __iter__(self):
                for i in range(8 * most):
                    seen.append(_bytes() - before)
                    yield np.full((2, size // 8), i, np.float32)

        lo.fit(objective, 0.0, Stream(), OPTIMIZER, steps=9 * most, key=KEY, progress=False)
        assert len(seen) > 8 * most
        stacks = max(seen) / (most * size)
        assert 1 < stacks < 2.6  # two, and the first batch, which stands for all
        seen.clear()
        lo.training.evaluate(objective, 0.0, Stream())
        assert max(seen) / size < 6  # batches

    def test_reading_and_training_overlap(self, monkeypatch):
        """While the loader waits, the device is at work: the times are not added."""
        monkeypatch.setattr(_pile, "MOST", 1)
        count, pause = 8, 0.04

        def objective(w, x):
            matrix = jnp.full((400, 400), 1e-3) + x[0]
            heavy = jax.lax.fori_loop(0, 80, lambda _, y: y @ matrix, matrix)
            return {"fit": lo.mean((w - x) ** 2 + jax.lax.stop_gradient(1e-9 * heavy[0, 0]))}

        def stream(wait):
            for i in range(count):
                time.sleep(wait)
                yield np.full(2, i / count, np.float32)

        def seconds(wait):
            begun = time.perf_counter()
            given = {"steps": count, "key": KEY, "progress": False, "check": False}
            lo.fit(objective, 0.0, stream(wait), OPTIMIZER, **given)
            return time.perf_counter() - begun

        seconds(0)
        alone, both = np.min([(seconds(0), seconds(pause)) for _ in range(3)], axis=0)
        assert alone > 0.3 * count * pause
        assert both < alone + 0.6 * count * pause
