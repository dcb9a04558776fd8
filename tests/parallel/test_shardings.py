"""Which axis of a leaf lies over which devices: the user's rules, and the general one."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo
from lossopt import _shardings

pytestmark = pytest.mark.usefixtures("uncached")

MESH = AbstractMesh((2, 4, 3), ("data", "fsdp", "model"))
PARAMS = {
    "emb": np.zeros((256, 96), np.float32),
    "kernel": np.zeros((96, 384), np.float32),
    "x": {"bias": np.zeros(384, np.float32), "kernel": np.zeros((96, 384), np.float32)},
    "scale": np.float32(1),
}
RULES = [("^x/kernel", P(None, "model")), ("^kernel", P("fsdp")), ("emb", P(("data", "fsdp")))]


def specs(tree, rules=(), mesh=MESH, **options):
    lie = lo.parallel.shardings(tree, mesh, rules, **options)
    return jax.tree.map(lambda x: tuple(x.spec), lie)


class TestGeneral:
    @pytest.mark.parametrize(
        ("shape", "spec"),
        [
            ((64, 512), (None, "fsdp")),
            ((512, 64), ("fsdp",)),
            ((64, 64), ("fsdp",)),  # the first of equal ones
            ((64, 511), ("fsdp",)),  # the largest that divides
            ((63, 511), ()),
            ((1024,), ("fsdp",)),
            ((1020,), ()),  # small
            ((), ()),
            ((0, 4096), ()),
        ],
    )
    def test_is_the_largest_axis_that_divides(self, shape, spec):
        assert specs(np.zeros(shape, np.float32)) == spec

    def test_takes_whatever_has_a_shape(self):
        shaped = jax.ShapeDtypeStruct((64, 512), jnp.bfloat16)
        keys = jax.random.split(jax.random.key(0), (4, 512))
        tree = {"a": shaped, "keys": keys, "number": 2.0, "none": None, "few": keys[0, 0]}
        assert specs(tree) == {
            "a": (None, "fsdp"),
            "keys": (None, "fsdp"),
            "number": (),
            "none": None,
            "few": (),
        }

    def test_lies_over_what_the_caller_says(self):
        assert specs(np.zeros((64, 510)), axes={"fsdp": "model"}) == (None, "model")
        assert specs(np.zeros((64, 516)), axes={"fsdp": ("model", "fsdp")}) == (
            None,
            ("fsdp", "model"),
        )
        assert specs(np.zeros((64, 512)), mesh=AbstractMesh((8,), ("i",))) == (None, "i")
        assert specs(np.zeros((64, 512)), mesh=AbstractMesh((8,), ("i",)), axes={"data": "i"}) == ()

    @given(
        shape=st.lists(st.integers(0, 40), max_size=4),
        sizes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
        taken=st.lists(st.sampled_from([None, "model"]), max_size=4),
    )
    def test_divides_names_no_axis_twice_and_shares_all_it_can(self, shape, sizes, taken):
        mesh = AbstractMesh(sizes, ("data", "fsdp", "model"))
        over = [name for name in ("data", "fsdp") if mesh.shape[name] > 1]
        taken = [x for x, length in zip(taken, shape) if length % sizes[2] == 0 or not x]
        taken = P(*taken) if taken.count("model") < 2 else P()
        if any(length % sizes[2] for length, x in zip(shape, taken) if x):
            taken = P()
        spec = _shardings.spread(np.zeros(shape), mesh, over, taken)
        named = _shardings.names(spec)
        assert len(set(named)) == len(named)
        each = [math.prod(mesh.shape[x] for x in _shardings.names(P(entry))) for entry in spec]
        assert all(length % n == 0 for length, n in zip(shape, each))
        devices = math.prod(mesh.shape[x] for x in over)
        free = [x for x, *own in zip(shape, [*taken, *[None] * 4]) if own == [None]]
        can = math.prod(shape) >= 1024 and any(x % devices == 0 for x in free)
        shared = devices if can else 1
        assert math.prod(each) == shared * math.prod(sizes[2] for x in taken if x)
        lie = jax.NamedSharding(mesh, spec)
        assert lie.shard_shape(tuple(shape)) == tuple(
            length // n for length, n in zip(shape, [*each, *[1] * len(shape)])
        )


class TestRules:
    def test_come_first_and_the_first_wins(self):
        assert specs(PARAMS, RULES) == {
            "emb": (("data", "fsdp"),),
            "kernel": ("fsdp",),
            "x": {"bias": (), "kernel": (None, "model")},
            "scale": (),
        }
        assert specs(PARAMS, [("emb", P()), ("x/", P("model")), (".", P())])["x"] == {
            "bias": ("model",),
            "kernel": ("model",),
        }

    @pytest.mark.parametrize(
        ("rules", "error", "match"),
        [
            ([("head", P())], ValueError, "The pattern 'head' takes no leaf of"),
            ([("kernel", P()), ("x/kernel", P())], ValueError, "'x/kernel' takes no leaf"),
            ([("emb", P("rows"))], ValueError, "in the rule 'emb' for 'emb', got 'rows'. Correct"),
            (
                [("emb", P("model"))],
                ValueError,
                r"rule 'emb' for 'emb', of shape .256, 96., to",
            ),
            ([("emb", P(("data", "model"), None))], ValueError, "axis 0 is not a multiple of 6"),
            ([("bias", P(None, "fsdp"))], ValueError, "at most 1 entries in the rule 'bias'"),
            ([("scale", P("fsdp"))], ValueError, "at most 0 entries"),
            ([("emb", P("fsdp", "fsdp"))], ValueError, "name an axis once"),
            ([("emb", P(P.UNCONSTRAINED))], ValueError, "axes or None in the rule 'emb'"),
            ([("emb", P()), ("emb", P())], ValueError, "got 'emb' twice"),
            ([("*emb", P())], ValueError, r"a regular expression, got '\*emb': nothing to repeat"),
            ([("emb", "fsdp")], TypeError, r"got \('emb', 'fsdp'\). Write rules=\["),
            (("emb", P()), TypeError, "got 'emb'. Write rules="),
            ({"emb": P()}, TypeError, "got 'emb'. Write rules="),
        ],
    )
    def test_that_do_not_fit_are_refused_by_name(self, rules, error, match):
        with pytest.raises(error, match=match):
            specs(PARAMS, rules)

    def test_paths_matter_to_rules_alone(self):
        tree = {"a": {"b": np.zeros((4, 512))}, "a/b": np.zeros(3)}
        assert specs(tree) == {"a": {"b": (None, "fsdp")}, "a/b": ()}
        with pytest.raises(ValueError, match="Two leaves have one path"):
            specs(tree, [("a", P())])


def moments(state):
    """The leaves of a state whose shape is that of `x/kernel` and `kernel`, by name."""
    own = _shardings.by_rules(PARAMS, MESH, [*RULES, (".", P())])
    state = jax.eval_shape(state)
    found = _shardings.like_params(state, PARAMS, own, MESH, ("fsdp",))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path): (x.shape, s) for (path, x), s in zip(leaves, found)}
    assert len(named) == len(leaves)
    return named


LABELS = {"emb": "a", "kernel": "b", "x": {"bias": "a", "kernel": "a"}, "scale": "b"}
LIKE = {  # by the optimizer, how many moments there are of `x/kernel`, and of `kernel`
    "adam": (optax.adam(1e-3), 2, 2),
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.adam(1.0)), 3, 3),
    "masked": (
        optax.masked(optax.adam(1e-3), {**LABELS, "kernel": False}),
        2,
        0,
    ),
    "partition": (optax.partition({"a": optax.adam(1.0), "b": optax.sgd(1.0, 0.9)}, LABELS), 2, 1),
    "inject": (optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), 2, 2),
    "kahan": (lo.transforms.kahan(optax.adam(1e-3)), 2, 2),
    "average": (lo.transforms.average(optax.adam(1e-3), decay=0.9), 3, 3),
    "quantized": (lo.transforms.quantized(lo.transforms.adam(1e-3)), 0, 0),
    "adafactor": (optax.adafactor(1e-3, min_dim_size_to_factor=64), 0, 0),
}


class TestOptimizers:
    @pytest.mark.parametrize("name", LIKE)
    def test_leaves_like_a_parameter_lie_as_it_does(self, name):
        rule, *counts = LIKE[name]
        named = moments(lambda: rule.init(jax.tree.map(jnp.asarray, PARAMS)))
        like = {"['x']['kernel']": P(None, "model"), "['kernel']": P("fsdp")}
        seen = dict.fromkeys(like, 0)
        for path, (shape, spec) in named.items():
            end = next((end for end in like if path.endswith(end)), None)
            if end and shape == (96, 384):
                assert spec == like[end], path
                seen[end] += 1
            elif math.prod(shape) < 1024:
                assert spec == P(), path
        assert [*seen.values()] == counts
        if name == "quantized":  # codes lie by the general rule
            codes = {spec for path, (_, spec) in named.items() if path.endswith("kernel'].codes")}
            assert codes == {P(None, "fsdp")}

    def test_a_tree_of_one_leaf(self):
        params, spec = np.zeros((8, 512), np.float32), P("model")
        state = jax.eval_shape(optax.adam(1e-3).init, params)
        assert _shardings.like_params(state, params, [spec], MESH, ()) == [P(), spec, spec]


class TestTensorParallel:
    """Rules name an axis of the model's: the numbers are those of one device."""

    @pytest.mark.parametrize(
        ("names", "kind", "partition", "kernel"),
        [
            (("data", "model"), AxisType.Auto, "data", P(None, "model")),
            (("data", "model"), AxisType.Explicit, "zero1", P(None, "model")),
            (("fsdp", "model"), AxisType.Auto, "fsdp", P("fsdp", "model")),
        ],
    )
    def test_equals_one_device(self, names, kind, partition, kernel):
        mesh = jax.make_mesh((2, 4), names, (kind,) * 2)
        rules = [("in/kernel", kernel), ("in/bias", P("model")), ("out", P("model"))]
        options = {"mesh": mesh, "partition": partition, "rules": rules}
        state, values = _three_steps(**options)
        alone, wanted = _alone()
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, state.params, alone.params)
        assert state.params["in"]["kernel"].sharding.spec == kernel
        assert state.opt_state[0].mu["out"].sharding.spec[0] == "model"

    def test_is_refused_beside_shard_map(self):
        mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
        with pytest.raises(ValueError, match=r"\['model'\] beside. Use lowering='auto'"):
            lo.train_step(_objective, optax.sgd(1.0), mesh=mesh, lowering="shard_map")

    @pytest.mark.parametrize(("partition", "lowering"), [("zero1", "auto"), ("data", "shard_map")])
    def test_a_rule_may_name_the_axes_of_rows(self, partition, lowering):
        """Then these parameters are shared at rest, and gathered for the objective."""
        rules = [("in/kernel", P(None, "data"))]
        options = {"partition": partition, "lowering": lowering, "rules": rules}
        mesh = lo.parallel.mesh()
        state, values = _three_steps(mesh=mesh, **options)
        np.testing.assert_allclose(values, _alone()[1], rtol=1e-5)
        assert state.params["in"]["kernel"].addressable_shards[0].data.shape == (16, 8)
        assert state.opt_state[0].nu["in"]["kernel"].sharding.spec == P(None, "data")


def _objective(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"][None])
    error = jnp.square(hidden @ params["out"] - batch["y"])
    penalty = lo.constant(1e-3 * jnp.sum(params["out"] ** 2))
    return {"fit": lo.mean(error, batch["mask"]), "penalty": penalty}


def _case():
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    params = {"in": {"kernel": normal(16, 64), "bias": normal(64)}, "out": normal(64, 4)}
    mask = (random.uniform(size=16) < 0.4).astype(np.float32)
    return params, {"x": normal(16, 16), "y": normal(16, 4), "mask": mask}


@cache
def _alone():
    return _three_steps()


def _three_steps(**options):
    params, batch = _case()
    init, step = lo.train_step(_objective, optax.adamw(1e-2), **options)
    step, state, values = step if options else jax.jit(step), init(params), []
    for _ in range(3):
        state, measured = step(state, batch)
        values.append(float(measured.value))
    return state, values
