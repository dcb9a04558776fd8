"""Data that lies on several devices: the same run, each device with its own rows."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt._place import joined
from lossopt.training._source import Rows, source

ROWS, WIDTH, SHARDS = 72, 64, 8
GIVEN = {"batch_size": 32, "epochs": 1, "key": jax.random.key(0)}  # and 8 rows left over
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "exp"])


def _data(rows, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.uniform(0.1, 1, size=shape).astype(np.float32)
    return {"x": draw(rows, 8), "y": draw(rows), "weight": draw(rows)}


TRAIN, VALIDATION = _data(ROWS, 0), _data(40, 1)
PARAMS = np.random.default_rng(2).normal(size=(8, WIDTH)).astype(np.float32) / 8
OPTIMIZER = optax.sgd(0.1, momentum=0.5)


def _objective(params, batch):
    errors = jnp.sum(jnp.tanh(batch["x"] @ params), axis=-1) - batch["y"]
    return {"fit": lo.mean(errors**2, batch["weight"])}


def _run(params, train, validation, **options):
    run = lo.training.run(
        _objective, params, train, OPTIMIZER, validation=validation, **GIVEN | options
    )
    return run.params, run.history


def _fit(params, train, validation, **options):
    options = GIVEN | {"validation": validation, "progress": False} | options
    run = lo.fit(_objective, params, train, OPTIMIZER, **options)
    return run.params, {name: x for name, x in run.history.items() if name != "seconds"}


@pytest.fixture(scope="module")
def on_one_device():
    return jax.jit(lambda *args: _run(*args, shards=SHARDS))(PARAMS, TRAIN, VALIDATION)


def _placed(kind):
    mesh = jax.make_mesh((SHARDS,), ("rows",), axis_types=(kind,))
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    return mesh, (put(PARAMS, P()), put(TRAIN, P("rows")), put(VALIDATION, P("rows")))


def _close(got, want, rtol=2e-6):
    """Norms of gradients, sums that cancel where a run has come near its end, lose a digit more."""

    def close(path, x, y):
        norm = "gradient_norm" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=(10 if norm else 1) * rtol, atol=1e-6)

    jax.tree.map_with_path(close, got, want)


def _collectives(program):
    """What devices exchange: the shapes, by the kind of exchange."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program)


class TestRows:
    """Each part draws its own rows."""

    def _epoch(self, rows):
        """The batches of an epoch."""
        key, data = jax.random.key(0), rows.ready(jnp.arange(rows.rows))

        @jax.jit
        def epoch():
            full = jax.lax.map(lambda number: rows.batch(data, key, number), jnp.arange(rows.full))
            return full, joined(rows.last(data, key)) if rows.rest else None

        full, last = jax.device_get(epoch())
        return [*full, last] if rows.rest else list(full)

    @pytest.mark.parametrize("shards", [1, 8])
    def test_an_epoch_is_all_rows_and_a_batch_has_its_share_of_each_part(self, shards):
        batches = self._epoch(Rows(ROWS, 32, False, shards))
        assert [len(batch) for batch in batches] == [32, 32, 8]
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(ROWS))
        for batch in batches:
            parts = batch.reshape(shards, -1) // (ROWS // shards)
            np.testing.assert_array_equal(parts, np.indices(parts.shape)[0])

    def test_parts_are_shuffled_by_bijections_of_their_own(self):
        """Of two random orders of 500 rows about one place is equal."""
        order = np.concatenate(
            [batch.reshape(8, -1) for batch in self._epoch(Rows(4000, 400, False, 8))], axis=1
        )
        local = order - 500 * np.arange(8)[:, None]
        equal = [np.sum(local[i] == local[j]) for i in range(8) for j in range(i)]
        assert np.mean(equal) < 3
        assert max(equal) < 9

    def test_the_last_batch_has_what_shards_do_not_divide(self):
        rows = Rows(100, 40, False, 8)
        (*full, last), data = self._epoch(rows), rows.ready(jnp.arange(100))
        assert [rows.steps, *map(len, full), len(last)] == [3, 40, 40, 20]
        np.testing.assert_array_equal(np.sort(np.concatenate([*full, last])), np.arange(100))
        np.testing.assert_array_equal(last[16:], [96, 97, 98, 99])
        for batch in (*full, last[:16]):
            parts = batch.reshape(8, -1) // 12
            np.testing.assert_array_equal(parts, np.indices(parts.shape)[0])
        assert rows._replace(drop_last=True).steps == 2
        alone = Rows(4, 4, False, 8)
        assert (alone.steps, alone.rest) == (1, 0)
        assert alone.batch(data, jax.random.key(0), 0) is data

    def test_batches_that_shards_do_not_divide_are_refused(self):
        with pytest.raises(
            ValueError, match=r"Each of 8 shards .* got batch_size=36\. Take a mult"
        ):
            source(np.arange(96), 36, False, 8)


class TestMeshes:
    """Sharded rows and replicated parameters."""

    @pytest.mark.parametrize(
        ("kind", "named"), [(AxisType.Auto, True), (AxisType.Explicit, False)], ids=["auto", "exp"]
    )
    def test_fit_is_the_run_of_as_many_shards_on_one_device(self, kind, named, on_one_device):
        mesh, args = _placed(kind)
        with jax.set_mesh(mesh) if named else contextlib.nullcontext():
            _close(_fit(*args), on_one_device)

    @KINDS
    def test_run_within_jit(self, kind, on_one_device):
        """Nothing is exchanged but sums: of gradients once a step."""
        seen = {} if kind is AxisType.Explicit else {"shards": SHARDS}
        _, args = _placed(kind)
        program = jax.jit(lambda *args: _run(*args, **seen)).lower(*args).compile()
        _close(program(*args), on_one_device)
        exchanged = _collectives(program.as_text())
        assert {kind for _, kind in exchanged} == {"all-reduce"}
        assert not any("pred" in shapes for shapes, _ in exchanged)  # nobody asks who still draws
        arrays = [re.findall(r"\w+\[[^\]]+\]", shapes) for shapes, _ in exchanged]
        gradients = [found for found in arrays if found]
        assert len(gradients) == 2  # of the loop's body, and of the smaller last step
        assert {x for found in gradients for x in found} <= {
            f"f32[8,{WIDTH}]",
            f"f32[{WIDTH},8]",
        }

    @KINDS
    def test_evaluation_and_one_step(self, kind):
        _, (params, train, _) = _placed(kind)
        want = lo.training.evaluate(_objective, PARAMS, TRAIN)
        got = lo.training.evaluate(_objective, params, train, batch_size=16)
        _close(got, want)
        init, step = lo.train_step(_objective, OPTIMIZER)
        one, _ = step(init(PARAMS), TRAIN)
        many, measured = jax.jit(step)(init(params), train)
        _close((many.params, measured.value), (one.params, want["value"]))

    def test_work_of_a_device(self):
        """An eighth of the model, and the places of a batch, which each device computes itself."""
        _, (_, *data) = _placed(AxisType.Auto)
        wide = jnp.ones((8, 1024))
        drop = {"batch_size": 64, "drop_last": True}
        work = lambda shards, *args: (
            jax.jit(lambda *args: _run(*args, shards=shards, **drop))
            .lower(*args)
            .compile()
            .cost_analysis()["flops"]
        )
        whole = work(1, wide, TRAIN, VALIDATION)
        assert work(SHARDS, wide, *data) < 0.2 * whole
        assert work(1, wide, *data) > 0.75 * whole  # drawn from all rows, whoever holds them

    def test_evaluation_reads_the_rows_where_they_are(self):
        _, (params, train, _) = _placed(AxisType.Auto)
        measure = lambda shards: jax.jit(
            lambda *args: lo.training.evaluate(_objective, *args, batch_size=16, shards=shards)
        )
        local, alone = (
            measure(n).lower(*args).compile()
            for n, args in ((SHARDS, (params, train)), (1, (PARAMS, TRAIN)))
        )
        assert {kind for _, kind in _collectives(local.as_text())} == {"all-reduce"}
        assert local.cost_analysis()["flops"] < 0.2 * alone.cost_analysis()["flops"]


HALVES = jax.tree.map(lambda x: x.reshape(2, ROWS // 2, *x.shape[1:]), TRAIN)
alone = partial(_run, PARAMS, validation=VALIDATION, batch_size=16)


@pytest.fixture(scope="module")
def halves():
    return jax.jit(jax.vmap(alone))(HALVES)


@pytest.mark.parametrize("check", [True, False])
def test_run_within_a_shard_map_is_a_run_of_each_device(check, halves):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    stacked = lambda train: jax.tree.map(lambda x: x[None], alone(train))
    rows = P("rows")
    mapped = jax.shard_map(stacked, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check)
    _close(jax.jit(mapped)(TRAIN), halves)


def test_run_within_pmap_is_a_run_of_each_device(halves):
    _close(jax.pmap(alone)(HALVES), halves)
