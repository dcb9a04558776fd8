"""The step of `fit`, for loops of one's own: on one device, in maps, on meshes."""

from collections.abc import Callable, Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh

from lossopt import _checks
from lossopt._place import Here
from lossopt._shardings import Rules
from lossopt._typing import Axis
from lossopt.training._layout import Lowering, Partition, alone, layout, nowhere
from lossopt.training._placed import placed
from lossopt.training._step import (
    Measured,
    Optimizer,
    Recipe,
    State,
    begin,
    begun,
    judge,
    take_step,
)


def train_step(
    objective: Callable,
    optimizer: Optimizer,
    *,
    microbatches: int = 1,
    axis_name: Axis = (),
    has_aux: bool = False,
    check: bool = True,
    mesh: Mesh | None = None,
    partition: Partition = "data",
    lowering: Lowering = "auto",
    axes: Mapping[str, str | Sequence[str]] | None = None,
    rules: Rules = (),
    gather: bool | str = True,
) -> tuple[Callable[..., State], Callable[..., tuple[State, Measured]]]:
    """The step of `fit`, for a loop of one's own: two pure functions.

    Args:
      objective: maps `(params, batch)` to a tree of `Mean`. It also receives those of the keywords
        `key`, `model_state` and `hyperparameters` that its signature names.
      optimizer: any `optax.GradientTransformation`, which is offered `value`, `grad` and
        `value_fn`; or a function from the hyperparameters to one.
      microbatches: pieces a batch is cut into, see `value_and_grad`.
      axis_name: axes of an enclosing `pmap`, `shard_map` or `vmap` over which the batch is split.
      has_aux: whether the objective returns `(means, aux)`, where the dict `aux` may hold
        `"metrics"`, a tree of `Mean`, and `"model_state"`.
      mesh: the devices, from `parallel.mesh` or of your own, with Auto or Explicit axes. The rows
        of a batch lie over its axes `data` and `fsdp`; those that do not divide are computed alike
        on all devices, and the step is exact.
      partition: what devices share beside the batch: `"data"` nothing, `"zero1"` the state of the
        optimizer, over all these axes, `"fsdp"` the parameters too, over `fsdp`. Parameters are
        gathered at the start of the objective.
      lowering: `"auto"`, one program of the whole batch that the compiler cuts, with the random
        numbers of one device; or `"shard_map"`, one of each device's rows, which scatters gradients
        on every backend and, where leaves are shared, takes optimizers that go element by element
        alone, see `parallel.elementwise`.
      axes: which axes of the mesh are `"data"` and `"fsdp"`, where they have other names; the only
        axis of a mesh is both.
      rules: as in `parallel.shardings`, for parameters that are to lie in a way of their own.
      gather: False, or a pattern that names the parameters which the model gathers layer by layer,
        see `parallel.gathered`.
      check: whether an optimizer with a regularizer is refused beside an objective that does not
        hold its value, `constant(R(params), gradient=False)`.

    Returns:
      `init(params, model_state=None, *, hyperparameters=None)`, which gives a `training.State` of
      copies, and `step(state, batch, *, key=None, hyperparameters=None)`, which gives the next one
      and a `training.Measured`. Parameters and model state may each be a function without arguments
      that makes them. Without a mesh compile the step with `jax.jit(step, donate_argnums=0)`; with
      one both are compiled, a step takes its state's memory, and what `init` makes of a function
      is never in one place.

    Raises:
      TypeError: if the objective names `key` and is stepped without one, the optimizer is a
        function and there are no hyperparameters, or a step is given no `training.State`.
      ValueError: if hyperparameters are given that nobody takes, a model state of another form is
        returned, or the optimizer needs more than the gradient of a batch, or gathers several; if
        the mesh has no axis for the partition, a rule takes no leaf or does not fit it, or there
        is no mesh for what needs one; or, with `lowering="shard_map"`, if the optimizer would see
        slices of leaves that it may read as wholes.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> init, step = lo.train_step(objective, optax.sgd(0.25))
      >>> state, measured = jax.jit(step)(init(0.0), jnp.array([1.0, 3.0]))
      >>> print(state.params, measured.value, state.count)
      1.0 5.0 1
    """
    recipe = Recipe(objective, optimizer, microbatches, has_aux)
    if isinstance(mesh, AbstractMesh):
        raise TypeError(
            f"Expected mesh as a jax.sharding.Mesh of devices, got {mesh!r}. Make one with "
            "lossopt.parallel.mesh(); what a step would take on an abstract one, "
            "lossopt.parallel.plan says."
        )
    if mesh is not None:
        alone(axis_name)
        where = layout(mesh, partition, lowering, axes, rules, gather)
        return placed(recipe, where, check)[:2]
    nowhere(
        partition=partition != "data",
        lowering=lowering != "auto",
        axes=axes is not None,
        rules=bool(rules),
        gather=gather is not True,
    )

    def init(params, model_state=None, *, hyperparameters=None):
        return begin(recipe, params, model_state, hyperparameters)

    def step(state, batch, *, key=None, hyperparameters=None):
        begun(state)
        place = Here(_checks.axes(axis_name))
        taken = take_step(recipe, place, state, batch, key, hyperparameters)
        if check:
            judge(recipe, state, batch, key, hyperparameters)
        return taken[:2]

    return init, step
