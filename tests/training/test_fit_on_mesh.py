"""Whole runs on 8 devices end as those of 8 shards on one, and as plain loops of numpy."""

import collections
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _jax, _programs
from lossopt.training import Stopped
from lossopt.training._laid import laid_all, laid_batch, laid_rows
from lossopt.training._layout import layout_of
from lossopt.training._loop import advance
from lossopt.training._plan import Plan
from lossopt.training._saves import Saves
from lossopt.training._source import Rows
from tests import placed
from tests.training import resumed
from tests.training.test_shards import _close

pytestmark = pytest.mark.usefixtures("uncached")
DEVICES, KEY = placed.DEVICES, jax.random.key(0)


def mesh(devices=DEVICES):
    """The first devices along one axis."""
    auto = (AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), auto, devices=jax.devices()[:devices])


MESH = mesh()


@pytest.fixture
def counted():
    """Programs that were compiled."""
    seen = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def orders(rows, batch_size, epoch, shards=DEVICES, drop_last=False):
    """Which rows each batch of an epoch has."""
    source = Rows(rows, batch_size, drop_last, shards)
    shuffle, _ = jax.random.split(jax.random.fold_in(KEY, epoch))
    data = source.ready(jnp.arange(rows))
    batches = [source.batch(data, shuffle, number) for number in range(source.full)]
    batches += [source.last(data, shuffle)] if source.rest else []
    return [jnp.concatenate(jax.tree.leaves(batch)) for batch in batches]


# Two terms of weighted rows, two leaves that devices divide; neither rows nor masks divide

TRAIN, VALIDATION = placed.batch("last", 37), placed.batch("first", 13)
ADAM, RATE = optax.adam(1e-2), 1e-2
WAYS = [("data", "explicit", 1), ("zero1", "auto", 3), ("fsdp", "explicit", 3)]


def fit(**options):
    """All rows at once, because orders take long to compile."""
    given = {"epochs": 3, "key": KEY, "validation": VALIDATION, "best": ("validation/value", max)}
    given |= {"progress": False, **options}
    return lo.fit(placed.objective, placed.params(), TRAIN, ADAM, **given)


def numbers(run):
    history = {name: x for name, x in run.history.items() if name != "seconds"}
    return run.params, run.best_params, run.opt_state, run.best_epoch, history


@pytest.fixture(scope="module")
def alone():
    return fit(shards=DEVICES, microbatches=3)


@pytest.fixture(scope="module")
def by_hand():
    """Adam in float64: the parameters after each epoch."""
    params, ends = placed.params(np.float64), []
    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step in (1, 2, 3):
        _, grads = placed.reference(params, TRAIN)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)
        unbiased = 1 - 0.9**step, 1 - 0.999**step
        move = lambda p, m, v, a=unbiased: p - RATE * (m / a[0]) / (np.sqrt(v / a[1]) + 1e-8)
        params = jax.tree.map(move, params, first, second)
        ends.append(params)
    return ends


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(map(str, way)))
def placed_run(request):
    partition, kind, pieces = request.param
    return partition, fit(mesh=placed.mesh(kind), partition=partition, microbatches=pieces)


class TestRuns:
    """Every partition, kind of mesh and number of pieces."""

    def test_is_the_run_of_as_many_shards_on_one_device(self, placed_run, alone):
        _close(numbers(placed_run[1]), numbers(alone))

    def test_is_the_plain_loop(self, placed_run, by_hand):
        close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
        jax.tree.map(close, placed_run[1].params, by_hand[-1])
        values = [placed.reference(params, VALIDATION)[0] for params in by_hand]
        close(placed_run[1].history["validation/value"], values)
        jax.tree.map(close, placed_run[1].best_params, by_hand[np.argmax(values)])

    def test_what_devices_share_lies_in_parts(self, placed_run):
        partition, run = placed_run
        params, small = run.params, 4 * placed.WIDTH
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        parts = (size - small) // DEVICES + small
        moments = 2 * (parts if partition != "data" else size) + 4
        for device in jax.devices():
            for tree in (params, run.best_params):
                assert placed.bytes_on(device, tree) == (parts if partition == "fsdp" else size)
            assert placed.bytes_on(device, run.opt_state) == moments


# Least squares of one leaf, by hand

RNG = np.random.default_rng(0)
LINES = {"x": RNG.normal(size=(45, 4)), "y": RNG.normal(size=45), "mask": RNG.uniform(size=45)}
LINES = jax.tree.map(np.float32, LINES)
START = np.array([1, -1, 0.5, 2], np.float32)


def squares(w, batch):
    """And a penalty, which each batch counts once."""
    fit = lo.mean((batch["x"] @ w - batch["y"]) ** 2, batch["mask"])
    return {"fit": fit, "penalty": lo.constant(0.05 * jnp.sum(w**2))}


def some(rows):
    return jax.tree.map(lambda x: x[:rows], LINES)


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def lines(train, where: Any = MESH, optimizer: Any = momentum, **options):
    given = {"epochs": 1, "batch_size": 16, "key": KEY, "hyperparameters": 0.1, "check": False}
    given |= options
    return lo.fit(squares, START, train, optimizer, mesh=where, progress=False, **given)


def stepped(batches, rate=0.1):
    w, trace = START.astype(float), 0.0
    for batch in batches:
        x, y, mask = (batch[name].astype(float) for name in ("x", "y", "mask"))
        trace = 0.9 * trace + 2 * (mask * (x @ w - y)) @ x / mask.sum() + 0.1 * w
        w = w - rate * trace
    return w


def error(w, *batches):
    """Of all rows of some batches."""
    x, y, mask = (np.concatenate([x[name] for x in batches]) for name in ("x", "y", "mask"))
    return mask @ (x @ np.asarray(w, float) - y) ** 2 / mask.sum()


def drawn(data, *args, **options):
    order = jax.device_get(orders(*args, **options))
    return [jax.tree.map(lambda x, at=at: x[at], data) for at in order]


close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


class TestRowsThatDoNotDivide:
    """The last batch, or the only one."""

    @pytest.mark.parametrize(("rows", "pieces"), [(13, 13), (5, 1)])
    def test_all_at_once(self, rows, pieces):
        """Also in more pieces than there are rows that divide."""
        data = some(rows)
        run = lines(data, batch_size=None, epochs=2, microbatches=pieces)
        close(run.params, stepped([data, data]))

    def test_a_share_validates(self):
        run = lines(LINES, batch_size=None, validation=0.2)
        train, held = lo.training.split(LINES, 0.2, key=KEY, shards=DEVICES)
        assert (len(train["y"]), len(held["y"])) == (37, 8)
        np.testing.assert_array_equal(LINES["y"][run.validation_rows], held["y"])
        close(run.params, stepped([train]))
        close(run.history["validation/fit"], error(run.params, held))

    def test_run_in_jit(self):
        given = {"epochs": 2, "key": KEY, "shards": DEVICES, "validation": some(13)}
        run = jax.jit(lambda data: lo.training.run(squares, START, data, momentum(0.1), **given))
        got = run(LINES)
        close(got.params, stepped([LINES, LINES]))
        close(got.history["validation/fit"][-1], error(got.params, some(13)))


# Dropout, a running mean, a metric, an average that is judged, a rule that stops it


def states(**options):
    return resumed.fit(watch="w", **options)


def _saved(run, directory):
    """A directory that holds a run, as `fit` would have left it."""
    saves = Saves(directory, 60.0)
    saves.now(lambda: run)
    saves.wait()
    return directory


@pytest.fixture(scope="module")
def whole():
    return states(mesh=MESH)


@pytest.fixture(scope="module")
def cut():
    with resumed.interrupted(13):
        return states(mesh=MESH)


class TestStates:
    """Pieces are cut within shards, so that all that depends on them is the same."""

    def test_noise_and_statistics_are_those_of_one_device(self, whole):
        alone = states(shards=DEVICES)
        assert whole.stopped is Stopped.PATIENCE
        assert 0 < whole.best_epoch < len(whole.history["step"])
        got, want = map(resumed.leaves, (whole, alone))
        assert got.keys() == want.keys()
        _close(got, want)

    def test_other_epochs_compile_nothing(self, whole, counted):
        rows = []

        def told(row, state):
            rows.append((row["step"], state.params["w"].sharding.mesh.size))
            return lo.training.STOP if row["step"] == 8 else None

        run = states(mesh=MESH, epochs=9, on_epoch=told)
        assert counted == []
        assert (run.stopped, run.steps) == (Stopped.ASKED, 8)
        assert rows == [(4, DEVICES), (8, DEVICES)]
        columns = whole.history["train/value"]
        np.testing.assert_array_equal(run.history["train/value"], columns[:2])

    @pytest.mark.parametrize("devices", [8, 4, None])
    def test_goes_on_where_there_are_other_devices(self, devices, whole, cut, tmp_path):
        """Also where there is no mesh."""
        assert (cut.stopped, cut.steps) == (Stopped.INTERRUPTED, 13)
        run = states(checkpoint=_saved(cut, tmp_path), mesh=devices and mesh(devices))
        assert run.params["w"].sharding.num_devices == (devices or 1)
        got, want = map(resumed.leaves, (run, whole))
        if devices == DEVICES:
            resumed.same(got, want)
            resumed.same(resumed.leaves(states(start=cut, mesh=MESH)), want)
        else:
            _close(got, want, rtol=1e-5)

    @pytest.mark.parametrize("devices", [8, None])
    def test_other_shards_are_refused(self, devices, cut, tmp_path):
        for given in ({"checkpoint": _saved(cut, tmp_path)}, {"start": cut}):
            with pytest.raises(ValueError, match=r"shards: was 8, is 2\nGive shards=8, which"):
                states(mesh=devices and MESH, shards=2, check=False, **given)

    def test_another_structure_is_refused(self, cut, tmp_path):
        place = _saved(cut, tmp_path)
        with pytest.raises(ValueError, match=r"opt_state/.*wanted nothing"):
            states(mesh=MESH, optimizer=optax.adam(0.1), evaluate_at=None, checkpoint=place)
        train = jax.tree.map(lambda x: x[:21], resumed.TRAIN)
        with pytest.raises(ValueError, match=r"train/x: was float32\[22, 3\].*float32\[21, 3\]"):
            states(mesh=MESH, train=train, check=False, checkpoint=place)


class TestOrders:
    """What each batch of an epoch holds, by hand."""

    def test_of_eight_shards(self):
        batches = drawn(LINES, 45, 16, 0)
        assert [len(x["y"]) for x in batches] == [16, 16, 13]
        run = lines(LINES)
        close(run.params, stepped(batches))
        penalties = [0.05 * np.sum(stepped(batches[:step]) ** 2) for step in range(3)]
        close(run.history["train/penalty"], np.mean(penalties))

    def test_of_one_that_began_without_a_mesh(self, tmp_path):
        given = {"drop_last": True, "checkpoint": tmp_path}
        lines(LINES, where=None, **given)
        run = lines(LINES, epochs=2, **given)
        assert run.params.sharding.num_devices == DEVICES
        first, second = (drawn(LINES, 45, 16, epoch, 1, True) for epoch in (0, 1))
        assert [len(x["y"]) for x in second] == [16, 16]
        close(run.params, stepped(first + second))


CUTS = itertools.pairwise((0, 16, 32, 45))
BATCHES = [jax.tree.map(lambda x, at=slice(*ends): x[at], LINES) for ends in CUTS]
HELD = collections.deque([some(8), some(5)])


def streamed(train, **options):
    return lines(train, batch_size=None, validation=HELD, **options)


class Loader:
    """Batches that tell where they are; devices do not divide the last."""

    at = 0

    def state(self):
        return self.at

    def restore(self, state):
        self.at = state

    def __iter__(self):
        while self.at < len(BATCHES):
            self.at += 1
            yield BATCHES[self.at - 1]
        self.at = 0


class TestStreams:
    """Batches as they come, cut over the devices."""

    def test_is_the_plain_loop(self):
        run = streamed(collections.deque(BATCHES), epochs=2)
        wanted = stepped(BATCHES * 2)
        close(run.params, wanted)
        close(run.history["validation/fit"][-1], error(wanted, *HELD))

    def test_goes_on_where_it_was(self, tmp_path):
        """After a batch of the second pass."""
        for steps in (4, 6):
            run = streamed(Loader(), epochs=None, steps=steps, checkpoint=tmp_path)
        close(run.params, stepped(BATCHES * 2))


class TestGather:
    """Layers that the objective gathers one by one."""

    @staticmethod
    def objective(params, batch):
        @jax.checkpoint
        def block(x, layer):
            return x + jnp.tanh(x @ lo.parallel.gathered(layer)), None

        x, _ = jax.lax.scan(block, batch["x"], params["layers"])
        return {"fit": lo.mean(jnp.sum((x @ params["head"] - batch["y"]) ** 2, axis=1))}

    def test_is_the_same_run_in_less_memory(self, monkeypatch):
        draw = lambda *shape: RNG.normal(size=shape).astype(np.float32) / 8
        params = {"layers": draw(8, 64, 64), "head": draw(64, 3)}
        data = {"x": draw(16, 64), "y": draw(16, 3)}
        made = lambda: jax.tree.map(jnp.asarray, params)
        temporaries, runs = [], []

        def called(plan, fn, *args, call=Plan.call):
            if fn is not advance:
                return call(plan, fn, *args)
            with _jax.within(plan.layout.mesh):
                program = _programs.made(fn, (plan,), *args)
                compiled = program.run.lower(program.arrays, *args).compile()
                temporaries.append(placed.temporary(compiled))
                return compiled(program.arrays, *args)

        monkeypatch.setattr(Plan, "call", called)
        given = {"epochs": 1, "key": KEY, "mesh": placed.mesh(), "partition": "fsdp"}
        for begin, gather in ((params, True), (made, "^layers")):
            run = lo.fit(
                self.objective,
                begin,
                data,
                ADAM,
                gather=gather,
                progress=False,
                check=False,
                **given,
            )
            runs.append(numbers(run))
        jax.tree.map(np.testing.assert_array_equal, *runs)
        assert temporaries[1] < 0.4 * temporaries[0]


def test_convolutions():
    """Which are rewritten on a CPU."""

    def errors(params, batch):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            batch["x"], params["kernel"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return (jnp.tanh(x).mean(axis=(1, 2)) @ params["head"] - batch["y"]) ** 2

    draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
    params = {"kernel": draw(3, 3, 2, 4) / 4, "head": draw(4)}
    data = {"x": draw(19, 5, 5, 2), "y": draw(19)}
    run = lo.fit(
        lambda params, batch: {"fit": lo.mean(errors(params, batch))},
        params,
        data,
        optax.sgd(0.1),
        epochs=1,
        key=KEY,
        mesh=MESH,
        check=False,
        progress=False,
    )
    grads = jax.grad(lambda params: jnp.mean(errors(params, data)))(params)
    jax.tree.map(close, run.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


class TestRowsAreLaid:
    """On the devices of a run, from wherever they are."""

    @pytest.mark.parametrize("devices", [1, DEVICES])
    def test_what_the_user_writes_later_is_not_read(self, devices):
        room = np.zeros(16 * 64 + 64, np.uint8)
        rows = room[-room.ctypes.data % 64 :][: 16 * 64].view(np.float32).reshape(16, 16)
        [laid] = laid_all(layout_of(mesh(devices)), rows=rows)
        rows[:] = 1
        assert not np.any(laid)

    @pytest.mark.parametrize("lay", [laid_rows, laid_batch])
    def test_explicit_axes_of_other_devices(self, lay):
        """Which the rows of the mesh, 15 and 1, do not follow, whatever mesh the caller has set."""
        explicit = jax.make_mesh((DEVICES,), ("data",), (AxisType.Explicit,))
        rows = jax.device_put(np.arange(16.0), jax.NamedSharding(explicit, P("data")))
        with jax.set_mesh(explicit):
            laid = lay(layout_of(mesh(5)), rows)
        np.testing.assert_array_equal(laid.joined(), np.arange(16))

    def test_numbers_of_python_do_not_widen_others(self):
        """As on one device: hyperparameters beside parameters of 16 bits."""
        halves = jnp.ones(2, jnp.bfloat16)
        for layout in (None, layout_of(MESH)):
            [rate] = laid_all(layout, hyperparameters=0.3)
            assert (rate * halves).dtype == jnp.bfloat16


class TestNumbersThatAreNotFinite:
    """Told as on one device."""

    def test_the_run_ends_with_the_last_finite_parameters(self):
        run = lines(LINES, hyperparameters=1e25)
        assert (run.stopped, run.stopped_at) == (Stopped.NONFINITE_LOSS, (0, 1, "fit"))
        first = drawn(LINES, 45, 16, 0)[0]
        close(run.params, stepped([first], rate=1e25))

    @pytest.mark.parametrize("row", [17, 44])
    def test_rows_are_found(self, row):
        """Also among those that are on all devices."""
        data = jax.tree.map(np.copy, LINES)
        data["x"][row, 2] = np.nan
        with pytest.raises(ValueError, match=f"train: row {row} holds NaN or infinite numbers"):
            lines(data, check=True)

    def test_labels_are_found(self):
        data = {"x": LINES["x"], "y": np.where(np.arange(45) == 44, 7, 1)}
        objective = lambda w, batch: {
            "fit": lo.mean(lo.losses.softmax_cross_entropy(batch["x"] @ w, batch["y"]))
        }
        messages = []
        for where in (MESH, None):
            with pytest.raises(ValueError, match="expected labels from 0 to 2") as error:
                lo.fit(objective, np.eye(4, 3), data, ADAM, epochs=1, key=KEY, mesh=where)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


REFUSED = {
    "partition": ({"mesh": None, "partition": "zero1"}, ValueError, "a mesh beside partition="),
    "no devices": ({"mesh": MESH.abstract_mesh}, TypeError, "mesh as a jax.sharding.Mesh"),
    "rules": ({"rules": [("nope", P("data"))]}, ValueError, "'nope' takes no leaf"),
    "names": ({"axes": {"data": "nope"}}, ValueError, r"among those of mesh, \('data',"),
    "batches": ({"batch_size": 12}, ValueError, "Each of 8 shards .* batch_size=12"),
    "terms": ({"check": ["other"]}, ValueError, r"got \['other'\]; the terms are fit, penalty"),
}


@pytest.mark.parametrize(("given", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(given, kind, message):
    options = {"epochs": 1, "batch_size": 16, "key": KEY, "mesh": MESH} | given
    with pytest.raises(kind, match=message):
        lo.fit(squares, START, LINES, optax.sgd(0.1), **options)
