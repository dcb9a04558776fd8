"""What a step on a mesh does not take, said before anything is compiled, with the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import lossopt as lo

PARAMS = {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)}
BATCH = np.ones((16, 4), np.float32)


def objective(params, batch):
    return {"fit": lo.mean(jnp.square(batch @ params["kernel"] + params["bias"][None]))}


def made(rule=None, **options):
    """`init` and `step` on all devices."""
    options = {"mesh": lo.parallel.mesh()} | options
    return lo.train_step(objective, rule or optax.adam(1e-2), **options)


def model_mesh():
    return jax.make_mesh((1, 8), ("data", "model"), (AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"partition": "fsdp"}, ValueError, r"an axis fsdp.*parallel.mesh\(data=1, fsdp=-1\)"),
        ({"partition": "zero3"}, ValueError, "partition as one of 'data', 'zero1', 'fsdp'"),
        ({"lowering": "pjit"}, ValueError, "lowering as one of 'auto', 'shard_map'"),
        ({"partition": "zero1", "mesh": model_mesh()}, ValueError, "rows lie over several devices"),
        ({"partition": "fsdp", "mesh": model_mesh()}, ValueError, "axis fsdp for partition='fsdp'"),
        ({"mesh": jax.devices()}, TypeError, "mesh as a jax.sharding.Mesh"),
        ({"mesh": AbstractMesh((64,), ("data",))}, TypeError, "Mesh of devices.*parallel.plan"),
        ({"axes": {"data": "rows"}}, ValueError, "got 'rows'. Correct axes="),
        ({"axis_name": "i"}, ValueError, "mesh or axis_name, got both, axis_name='i'"),
        ({"gather": None}, TypeError, "True, False or one pattern, got None"),
        ({"gather": ["kernel"]}, TypeError, "Name several leaves by 'attention|mlp'"),
        ({"mesh": None, "partition": "zero1"}, ValueError, r"partition=, got none.*mesh=lossopt"),
        ({"mesh": None, "lowering": "shard_map"}, ValueError, "a mesh beside lowering="),
        ({"mesh": None, "axes": {"data": "i"}}, ValueError, "a mesh beside axes="),
        ({"mesh": None, "rules": [("bias", P())]}, ValueError, "a mesh beside rules="),
        ({"mesh": None, "gather": False}, ValueError, "a mesh beside gather="),
    ],
)
def test_at_once(options, error, match):
    with pytest.raises(error, match=match):
        made(**options)


@pytest.mark.parametrize(
    ("options", "params", "error", "match"),
    [
        ({"rules": [("head", P())]}, PARAMS, ValueError, "'head' takes no leaf of"),
        ({"rules": [("bias", P("data"))]}, PARAMS, ValueError, "'bias' for 'bias', of shape .2,."),
        ({"rules": [("bias", P("model"))]}, PARAMS, ValueError, "got 'model'. Correct the rule"),
        ({"gather": "layers"}, PARAMS, ValueError, "'layers' takes no leaf of"),
        ({}, {"kernel": np.ones((4, 2), int)}, TypeError, r"floating params, got int.*'kernel'"),
        ({}, {"kernel": "text"}, TypeError, r"numbers in params\['kernel'\]"),
    ],
)
def test_by_init(options, params, error, match):
    init, _ = made(**options)
    with pytest.raises(error, match=match):
        init(params)
    if all(hasattr(x, "shape") for x in jax.tree.leaves(params)):
        with pytest.raises(error, match=match):
            init(lambda: jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"x": BATCH, "y": np.ones(8)}, r"batch\['x'\] .16, 4., batch\['y'\] .8,.. Stack them"),
        (BATCH[:0], "share a leading axis of rows"),
        (np.float32(1), "share a leading axis of rows"),
    ],
)
def test_batches(batch, match):
    init, step = made()
    with pytest.raises(ValueError, match=match):
        step(init(PARAMS), batch)


def test_more_microbatches_than_rows():
    init, step = made(microbatches=4)
    with pytest.raises(ValueError, match="microbatches <= 3, got 4"):
        step(init(PARAMS), BATCH[:3])


@pytest.mark.parametrize("options", [{}, {"mesh": None}])
def test_what_is_no_state(options):
    _, step = made(**options)
    with pytest.raises(TypeError, match=r"as init of train_step gives it, got dict. Begin with"):
        step(PARAMS, BATCH)


@pytest.mark.parametrize("options", [{}, {"mesh": None}])
def test_the_state_of_others_is_noted(options):
    init, step = made(**options)
    others, _ = made(optax.sgd(1e-2, momentum=0.9), **options)
    for state in (others(PARAMS), init(PARAMS)._replace(params=PARAMS | {"new": np.ones(3)})):
        with pytest.raises((AttributeError, ValueError)) as error:
            step(state, BATCH)
        (note,) = [x for x in error.value.__notes__ if "begins with for these parameters" in x]
        assert note.endswith("Begin with init(params) of the same train_step.")


def test_a_state_of_its_own_is_not_accused():
    """The optimizer fails by itself."""

    def update(updates, state, params=None):
        raise RuntimeError("of its own")

    init, step = made(optax.GradientTransformation(optax.adam(1.0).init, update))
    with pytest.raises(RuntimeError, match="of its own") as error:
        step(init(PARAMS), BATCH)
    assert not any("begins with" in x for x in error.value.__notes__)


def test_what_a_function_makes_lies_by_the_rules():
    """Nothing is known of it before it is traced."""
    init, _ = made(mesh=lo.parallel.mesh(2, 4), rules=[("kernel", P("fsdp"))])
    state = init(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert state.params["kernel"].sharding.spec == P("fsdp")
    assert state.opt_state[0].mu["kernel"].sharding.spec == P("fsdp")
