"""One training step on a batch, wherever the batch comes from and wherever it lies."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt._grad import in_pieces
from lossopt._jaxprs import canonical
from lossopt._objective import adapt, names
from lossopt._place import Parted, Place, joined, parted
from lossopt._typing import Array, Batch, Key, Means, PyTree
from lossopt.training._arrays import on_device
from lossopt.training._inputs import trainable
from lossopt.training._rules import judged, moved, started
from lossopt.training._weights import uncut

Optimizer = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]


class Recipe(NamedTuple):
    """What a step is made for; all else is data."""

    objective: Callable
    optimizer: Optimizer
    microbatches: int = 1
    has_aux: bool = False


class State(NamedTuple):
    """What a step changes.

    Attributes:
      params: the parameters.
      model_state: what the objective passes on, such as batch statistics; or None.
      opt_state: of the optimizer.
      count: steps taken, shape `()`, int32.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    count: Array


class Measured(NamedTuple):
    """What a step measured, at the parameters it started from.

    Attributes:
      value: the objective, shape `()`.
      terms: its tree of `Mean`; pool them to average over steps.
      metrics: a tree of `Mean`, or None.
    """

    value: Array
    terms: Means
    metrics: Means


def maker(x: PyTree) -> Callable[[], PyTree] | None:
    """The function that makes a tree; None for a tree, such as a module that can be called."""
    return x if callable(x) and jax.tree.leaves(x) == [x] else None


def begin(
    recipe: Recipe, params: PyTree, model_state: PyTree, hyperparameters: PyTree = None
) -> State:
    """The state before the first step: copies of strong types, as those that steps return."""
    own = lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True)
    made = [x if maker(x) is None else x() for x in (params, model_state)]
    given = on_device(params=made[0], model_state=made[1])
    params, model_state = jax.tree.map(own, given)
    trainable(params)
    with rule_of(recipe, hyperparameters) as rule:
        opt_state = started(rule, params)
    return State(params, model_state, jax.tree.map(own, opt_state), jnp.zeros((), jnp.int32))


def begun(state: State) -> None:
    """Raises where a step is given another thing than what `init` or a step gave."""
    if not isinstance(state, State):
        raise TypeError(
            f"Expected state as init of train_step gives it, got {type(state).__name__}. Begin "
            "with state = init(params); then state, measured = step(state, batch)."
        )


def judge(
    recipe: Recipe, state: State, batch: Batch, key: Key[Array, ""] | None, hyperparameters: PyTree
) -> None:
    """Refuses an optimizer with a regularizer whose value the objective does not hold."""
    given = {"key": key, "model_state": state.model_state, "hyperparameters": hyperparameters}
    call = adapt(recipe.objective, recipe.has_aux)
    judged(call, state.opt_state, state.params, batch, **given)


def take_step(
    recipe: Recipe,
    place: Place,
    state: State,
    batch: Batch | Parted,
    key: Key[Array, ""] | None,
    hyperparameters: PyTree,
) -> tuple[State, Measured, PyTree]:
    """The one training step, and its gradient."""
    given = key, hyperparameters
    after, measured, grads = step_in_place(recipe, place, state, batch, *given)
    if recipe.microbatches > 1 or _uneven(place, batch):
        measured = counted(recipe, place.axes, measured, state, joined(batch), *given)
    return after, measured, grads


def step_in_place(recipe: Recipe, place: Place, *inputs: PyTree) -> tuple[State, Measured, PyTree]:
    """A step with the measures of its pieces; on a CPU convolutions are fast in loops, too."""
    return canonical(partial(_taken, recipe, place))(*inputs)


def counted(
    recipe: Recipe,
    axes: tuple[Hashable, ...],
    measured: Measured,
    state: State,
    batch: Batch,
    key: Key[Array, ""] | None,
    hyperparameters: PyTree,
) -> Measured:
    """What was measured in pieces, with constant terms that weigh as much as in one."""
    given = {"key": key, "model_state": state.model_state, "hyperparameters": hyperparameters}
    whole = _measurer(_checked(recipe, state, hyperparameters))
    pair = uncut((measured.terms, measured.metrics), axes, whole, state.params, batch, given)
    return Measured(measured.value, *pair)


def _uneven(place, batch):
    """Whether the rows of a batch are two pieces because shards do not divide them."""
    parts = parted(batch, place.parts)
    return place.parts > 1 and len(parts.even) + len(parts.rest) > 1


def _taken(recipe, place, state, batch, key, hyperparameters):
    if key is None and names(recipe.objective, "key"):
        raise TypeError(
            "The objective names key, and the step has none: dropout would be off. Pass key=..., "
            "another one in each step."
        )
    given = {"key": key, "model_state": state.model_state, "hyperparameters": hyperparameters}
    call = _checked(recipe, state, hyperparameters)
    walked = in_pieces(call, recipe.microbatches, place, True)
    (now, means, aux), grads = walked.value_and_grad(state.params, batch, **given)

    again = in_pieces(jax.checkpoint(call), recipe.microbatches, place, True)  # in as much memory

    def value_fn(params):
        return again.measure(place.moved(params, "own", "rest"), batch, **given)[0]

    if place.axes:  # where the gradient of a sum over devices is too large
        value_fn = _with_gradient(
            value_fn,
            lambda params: walked.value_and_grad(
                place.moved(params, "own", "rest"), batch, **given
            )[1],
        )
    extra = {"value": now, "grad": grads, "value_fn": value_fn}
    params = place.moved(state.params, "rest", "own")
    with rule_of(recipe, hyperparameters) as rule:
        updates, opt_state = moved(rule, grads, state.opt_state, params, **extra)
        params = optax.apply_updates(params, updates)
    params = place.moved(params, "own", "rest")
    state = State(params, aux.get("model_state"), opt_state, state.count + 1)
    return state, Measured(now, means, aux.get("metrics")), grads


def _measurer(call):
    """Means and metrics alone, a function of arrays."""

    def measured(params, batch, given):
        means, aux = call(params, batch, **given)
        return means, aux.get("metrics")

    return measured


def _with_gradient(fn, gradient):
    """`fn(params)`, whose derivative is taken from `gradient(params)`."""
    fn = jax.custom_jvp(fn)

    @fn.defjvp
    def _(primals, tangents):
        value = fn(*primals)
        dot = partial(jnp.vdot, preferred_element_type=value.dtype)
        slopes = jax.tree.leaves(jax.tree.map(dot, gradient(*primals), *tangents))
        return value, sum(slopes, start=jnp.zeros_like(value))

    return fn


@contextmanager
def rule_of(recipe: Recipe, hyperparameters: PyTree) -> Iterator[Any]:
    """Gives the gradient transformation; an error says what to write for a function."""
    optimizer: Any = recipe.optimizer
    given = _is_function(optimizer) and hyperparameters is not None
    try:
        rule = optimizer(hyperparameters) if given else optimizer
        if not hasattr(rule, "init"):
            raise TypeError(
                f"Expected optimizer as an optax.GradientTransformation, got {rule!r}. Call it, as "
                "in optax.adam(1e-3); or give hyperparameters, for a function of them."
            )
        yield rule
    except Exception as error:
        if given:
            error.add_note(
                f"optimizer={optimizer!r} was called with the hyperparameters, all of them. Write "
                "lambda numbers: optax.adam(numbers['learning_rate']), or call it, as in "
                "optax.adam(1e-3)."
            )
        raise


def _is_function(optimizer):
    return callable(optimizer) and not hasattr(optimizer, "init")


def _checked(recipe, state, hyperparameters):
    """The objective, which takes all that is given and keeps the form of its model state."""
    given = {"model_state": state.model_state}
    if not _is_function(recipe.optimizer):
        given |= {"hyperparameters": hyperparameters}
    call = adapt(recipe.objective, recipe.has_aux, **given)

    def checked(params, batch, **given):
        means, aux = call(params, batch, **given)
        before = given["model_state"]
        like, got = map(_outline, (before, aux.get("model_state", before)))
        if like != got:
            raise ValueError(f"Expected a model_state like the first one, {like}, got {got}.")
        return means, aux

    return checked


def _outline(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), str(jnp.result_type(x))) for x in leaves]
