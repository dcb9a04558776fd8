"""The one step on the devices of a mesh, compiled."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lossopt import _checks, _jax, _mesh
from lossopt._elementwise import only_elementwise
from lossopt._on_mesh import Manual
from lossopt._pieces import rows
from lossopt._place import Parted, parted
from lossopt.training._arrays import usable
from lossopt.training._layout import Layout
from lossopt.training._rules import moved
from lossopt.training._step import (
    Measured,
    Recipe,
    State,
    begin,
    begun,
    counted,
    judge,
    maker,
    rule_of,
    step_in_place,
    take_step,
)

_PROGRAMS = 16


class Placed(NamedTuple):
    """A step on a mesh.

    Attributes:
      init: as `train_step` gives it.
      step: likewise.
      program: `program(state)` is what `step` compiles for a state of such shapes: a function of a
        state, a `Parted` batch, a key and hyperparameters.
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, Measured]]
    program: Callable[[State], Any]


def placed(recipe: Recipe, layout: Layout, check: bool) -> Placed:
    """The step of a recipe, laid out on a mesh."""
    step, program = _stepping(recipe, layout, check)
    return Placed(_starting(recipe, layout), step, program)


def _starting(recipe, layout):
    @lru_cache(maxsize=_PROGRAMS)
    def program(makers, structure, avals):
        def build(params, model_state, hyperparameters):
            made = [make or x for x, make in zip((params, model_state), makers)]
            return begin(recipe, made[0], made[1], hyperparameters)

        shapes = jax.eval_shape(build, *structure.unflatten(avals))
        return jax.jit(build, out_shardings=_mesh.placed(layout.mesh, layout.of_state(shapes)))

    def init(params, model_state=None, *, hyperparameters=None):
        makers = tuple(map(maker, (params, model_state)))
        params, model_state = (None if maker(x) else x for x in (params, model_state))
        usable(params=params, model_state=model_state)
        if makers[0] is None:
            rest = jax.tree.structure(params).unflatten(layout.of_params(params).rest)
            params = _put(params, _mesh.placed(layout.mesh, rest))
        others = _put_all((model_state, hyperparameters), layout.mesh, P())
        with _jax.within(layout.mesh):
            structure, avals = _outline((params, *others))
            return program(makers, structure, avals)(params, *others)

    return init


def _stepping(recipe, layout, check):
    mesh, over = layout.mesh, _mesh.spec(layout.axes.rows)

    def run(*inputs):
        out = layout.of_state(inputs[0]), P()
        return _jax.on_auto_axes(partial(_run, recipe, layout, check), mesh, out)(*inputs)

    @lru_cache(maxsize=_PROGRAMS)
    def made(structure, shapes):
        state = structure.unflatten([jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes])
        lie = _mesh.placed(mesh, layout.of_state(state))
        out = lie, NamedSharding(mesh, P())
        return lie, jax.jit(run, donate_argnums=0, out_shardings=out)

    def step(state, batch, *, key=None, hyperparameters=None):
        begun(state)
        if jax.tree.leaves(batch):
            _checks.at_most(rows(batch), microbatches=recipe.microbatches)
        batch = parted(batch, _mesh.size(mesh, layout.axes.rows))
        with _jax.within(mesh):
            if not _jax.compiles():
                return run(state, batch, key, hyperparameters)
            _kept(state)
            lie, program = made(*_shapes(state))
            batch = Parted(_put_all(batch.even, mesh, over), _put_all(batch.rest, mesh, P()))
            others = _put_all((key, hyperparameters), mesh, P())
            return program(_put(state, lie), batch, *others)

    return step, lambda state: made(*_shapes(state))[1]


def _kept(state):
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
        raise ValueError(
            "Expected a state that no step has taken, got one whose memory the next state has. Go "
            "on with what the step gave back; to keep a state, give the step a copy, "
            "jax.tree.map(jax.numpy.copy, state)."
        )


def _run(recipe, layout, check, state, batch, key, hyperparameters):
    """One step; the mesh has Auto axes alone."""
    layout = layout._replace(mesh=_jax.all_auto(layout.mesh))
    inputs = state, batch, key, hyperparameters
    whole = state, batch.joined(), key, hyperparameters
    mapped = layout.lowering == "shard_map"
    with _jax.axes_of_one(layout.mesh.axis_names if mapped else ()):
        if check:
            judge(recipe, *whole)
        if not mapped:
            return take_step(recipe, layout.place(state.params), *inputs)[:2]
    after, measured = _in_shard_map(recipe, layout, *inputs)
    with _jax.axes_of_one(layout.mesh.axis_names):
        return after, counted(recipe, (), measured, *whole)


def _in_shard_map(recipe, layout, state, batch, key, hyperparameters):
    """In a program for each device."""
    specs = layout.of_params(state.params)
    with rule_of(recipe, hyperparameters) as rule:
        only_elementwise(partial(moved, rule), *_as_updated(layout, specs, state))

    def body(*inputs):
        place = Manual(layout.axes.rows, layout.mesh, specs)
        return step_in_place(recipe, place, *inputs)[:2]

    lie = layout.of_state(state)
    over = jax.tree.map(lambda _: _mesh.spec(layout.axes.rows), batch.even)
    alike = jax.tree.map(lambda _: P(), batch.rest)
    options = {
        "in_specs": (lie, Parted(over, alike), P(), P()),
        "out_specs": (lie, P()),
        "check_vma": False,
    }
    mapped = jax.shard_map(body, mesh=layout.mesh, **options)
    return mapped(state, batch, key, hyperparameters)


def _as_updated(layout, specs, state):
    """Shapes of parameters and of the optimizer's state, as they lie while these are updated."""
    own = jax.tree.structure(state.params).unflatten(specs.own)
    shaped = lambda x, spec: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(layout.mesh, spec)
    )
    opt = layout.of_state(state).opt_state
    return jax.tree.map(shaped, state.params, own), jax.tree.map(shaped, state.opt_state, opt)


def _outline(tree):
    """What a program is made for, hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)


def _shapes(tree):
    """What decides where a tree lies, hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(jnp.shape, leaves))


def _put(tree, shardings):
    return jax.tree.map(_moved, tree, shardings)


def _put_all(tree, mesh, spec):
    return jax.tree.map(lambda x: _moved(x, NamedSharding(mesh, spec)), tree)


def _moved(x, sharding):
    """On its devices; what is there already, and numbers of Python, stay what they are."""
    if not hasattr(x, "shape") or getattr(x, "sharding", None) == sharding:
        return x
    return _mesh.put(x, sharding)
