"""The step on a mesh for arrays that need not exist."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt import _checks, _jax, _mesh
from lossopt._objective import names
from lossopt._pieces import rows
from lossopt._place import Parted, parted
from lossopt._typing import Batch, PyTree
from lossopt.training._layout import Layout
from lossopt.training._placed import placed
from lossopt.training._step import Recipe, State, begin, maker


class Lowered(NamedTuple):
    """A step for shapes, each with its sharding.

    Attributes:
      program: not compiled yet.
      state: what it changes.
      batch: what it reads.
    """

    program: jax.stages.Lowered
    state: State
    batch: Parted


def lowered(
    recipe: Recipe,
    layout: Layout,
    check: bool,
    params: PyTree,
    batch: Batch,
    model_state: PyTree,
    hyperparameters: PyTree,
) -> Lowered:
    """What `train_step` compiles on this layout for arrays of such shapes.

    Each of `params`, `model_state` and `batch` may be a function that makes it.
    """
    makers = [maker(x) for x in (params, model_state, batch)]
    given = jax.tree.map(_shape, [None if maker(x) else x for x in (params, model_state, batch)])
    cut = partial(parted, devices=_mesh.size(layout.mesh, layout.axes.rows))

    def build(given, hyperparameters):
        params, model_state, batch = (make() if make else x for make, x in zip(makers, given))
        if jax.tree.leaves(batch):
            _checks.at_most(rows(batch), microbatches=recipe.microbatches)
        return begin(recipe, params, model_state, hyperparameters), cut(batch)

    over = lambda *axes: partial(_lying, layout.mesh, P(*axes))
    with _jax.within(layout.mesh):
        state, batch = jax.eval_shape(build, given, hyperparameters)
        state = jax.tree.map(partial(_lying, layout.mesh), layout.of_state(state), state)
        even = jax.tree.map(over(*_mesh.spec(layout.axes.rows)), batch.even)
        batch = Parted(even, jax.tree.map(over(), batch.rest))
        key = jax.eval_shape(jax.random.key, 0) if names(recipe.objective, "key") else None
        others = jax.tree.map(over(), (key, hyperparameters))
        program = placed(recipe, layout, check).program(state)
        return Lowered(program.lower(state, batch, *others), state, batch)


def _shape(x):
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _lying(mesh, spec, x):
    """Numbers of Python stay what they are."""
    if not hasattr(x, "shape"):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
