"""A regression with two terms and its gradient by hand, and what a step on a mesh compiles to."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import lossopt as lo
from lossopt import _jax
from lossopt._place import parted
from lossopt.training._layout import layout
from lossopt.training._placed import placed
from lossopt.training._step import Recipe

DEVICES, ROWS, FEATURES, WIDTH, OUTPUTS = 8, 64, 16, 64, 24
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def mesh(kind="auto", sizes=(1, DEVICES)):
    return jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(KINDS[kind],) * 2)


def params(dtype=np.float32):
    """Two leaves that 8 devices divide, and one that is too small to be spread."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(dtype) / 4
    hidden = {"kernel": draw(FEATURES, WIDTH), "bias": draw(WIDTH)}
    return {"hidden": hidden, "head": {"kernel": draw(WIDTH, OUTPUTS)}}


def batch(mask="first", rows=ROWS, dtype=np.float32):
    """Of masks that leave some devices without weight."""
    random = np.random.default_rng(1)
    draw = lambda *shape: random.normal(size=shape)
    weights = {
        "all": np.ones(rows),
        "first": np.arange(rows) < 3,
        "last": (np.arange(rows) > rows // 2) * random.uniform(size=rows),
        "none": np.zeros(rows),
    }
    data = {"x": draw(rows, FEATURES), "y": draw(rows, OUTPUTS), "mask": weights[mask]}
    data["heavy"] = random.uniform(0.1, 1, rows)
    return jax.tree.map(lambda x: x.astype(dtype), data)


def objective(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    errors = jnp.sum(jnp.square(hidden @ params["head"]["kernel"] - batch["y"]), 1)
    auxiliary = jnp.sum(jnp.square(hidden), 1)
    return {"fit": lo.mean(errors, batch["mask"]), "aux": 0.3 * lo.mean(auxiliary, batch["heavy"])}


def reference(params, batch):
    """Value and gradient by hand in numpy float64."""
    params, batch = jax.tree.map(np.float64, (params, batch))
    kernel, head = params["hidden"]["kernel"], params["head"]["kernel"]
    fit, heavy = [batch[name] / (batch[name].sum() or 1) for name in ("mask", "heavy")]
    hidden = np.tanh(batch["x"] @ kernel + params["hidden"]["bias"])
    errors = hidden @ head - batch["y"]
    value = fit @ (errors**2).sum(1) + 0.3 * heavy @ (hidden**2).sum(1)
    slope = 2 * fit[:, None] * errors
    below = (slope @ head.T + 0.6 * heavy[:, None] * hidden) * (1 - hidden**2)
    first = {"kernel": batch["x"].T @ below, "bias": below.sum(0)}
    return value, {"hidden": first, "head": {"kernel": hidden.T @ slope}}


def program(objective, optimizer, params, batch, mesh, microbatches=1, **options):
    """The state a step starts from, its batch as it is cut, and the step's compiled program."""
    given = {"partition": "data", "lowering": "auto", "axes": None, "rules": (), "gather": True}
    where = layout(mesh, **given | options)
    made = placed(Recipe(objective, optimizer, microbatches), where, True)
    state, cut = made.init(params), parted(batch, mesh.size)
    with _jax.within(mesh):
        return state, cut, made.program(state).lower(state, cut, None, None).compile()


def moved(text):
    """How often each array but scalars is an operand of a collective, by kind and sorted shape.

    Axes of length 1 are left out.
    """
    found = Counter()
    for shapes, kind in _COLLECTIVE.findall(text):
        for shape in re.findall(r"\w\[([\d,]+)\]", re.sub(r"[fsu]\d+\[", "x[", shapes)):
            found[kind, tuple(sorted(n for n in map(int, shape.split(",")) if n > 1))] += 1
    return found


def bytes_on(device, tree):
    """What of a tree lies on one device."""
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == device)
