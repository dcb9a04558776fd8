"""One training step on a batch, wherever the batch comes from and wherever it lies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossopt import _checks
from lossopt._grad import measure, value_and_grad
from lossopt._jaxprs import canonical
from lossopt._objective import adapt, names
from lossopt._typing import Array, Axis, Batch, Key, Means, PyTree
from lossopt.training._evaluation import on_device
from lossopt.training._inputs import trainable
from lossopt.training._rules import judged, moved, started
from lossopt.training._weights import uncut

Optimizer = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]


class Recipe(NamedTuple):
    """What a step is made for; all else is data."""

    objective: Callable
    optimizer: Optimizer
    microbatches: int = 1
    axis_name: Axis = ()
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


def train_step(
    objective: Callable,
    optimizer: Optimizer,
    *,
    microbatches: int = 1,
    axis_name: Axis = (),
    has_aux: bool = False,
    check: bool = True,
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
      check: whether an optimizer with a regularizer is refused beside an objective that does not
        hold its value, `constant(R(params), gradient=False)`.

    Returns:
      `init(params, model_state=None, *, hyperparameters=None)`, which gives a `training.State` of
      copies, and `step(state, batch, *, key=None, hyperparameters=None)`, which gives the next one
      and a `training.Measured`. Compile the step with `jax.jit(step, donate_argnums=0)`.

    Raises:
      TypeError: if the objective names `key` and is stepped without one, or the optimizer is a
        function and there are no hyperparameters.
      ValueError: if hyperparameters are given that nobody takes, a model state of another form is
        returned, or the optimizer needs more than the gradient of a batch, or gathers several.

    Examples:
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> init, step = lo.train_step(objective, optax.sgd(0.25))
      >>> state, measured = jax.jit(step)(init(0.0), jnp.array([1.0, 3.0]))
      >>> print(state.params, measured.value, state.count)
      1.0 5.0 1
    """
    recipe = Recipe(objective, optimizer, microbatches, axis_name, has_aux)

    def init(params, model_state=None, *, hyperparameters=None):
        return begin(recipe, params, model_state, hyperparameters)

    def step(state, batch, *, key=None, hyperparameters=None):
        taken = take_step(recipe, state, batch, key, hyperparameters)
        if check:
            judge(recipe, state, batch, key, hyperparameters)
        return taken[:2]

    return init, step


def begin(
    recipe: Recipe, params: PyTree, model_state: PyTree, hyperparameters: PyTree = None
) -> State:
    """The state before the first step: copies of strong types, as those that steps return."""
    own = lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True)
    given = on_device(params=params, model_state=model_state)
    params, model_state = jax.tree.map(own, given)
    trainable(params)
    with _rule(recipe, hyperparameters) as rule:
        opt_state = started(rule, params)
    return State(params, model_state, jax.tree.map(own, opt_state), jnp.zeros((), jnp.int32))


def judge(
    recipe: Recipe, state: State, batch: Batch, key: Key[Array, ""] | None, hyperparameters: PyTree
) -> None:
    """Refuses an optimizer with a regularizer whose value the objective does not hold."""
    given = {"key": key, "model_state": state.model_state, "hyperparameters": hyperparameters}
    call = adapt(recipe.objective, recipe.has_aux)
    judged(call, state.opt_state, state.params, batch, **given)


def take_step(
    recipe: Recipe, state: State, batch: Batch, key: Key[Array, ""] | None, hyperparameters: PyTree
) -> tuple[State, Measured, PyTree]:
    """The one training step, and its gradient; on a CPU its convolutions are fast in loops, too."""
    return canonical(partial(_taken, recipe))(state, batch, key, hyperparameters)


def _taken(recipe, state, batch, key, hyperparameters):
    if key is None and names(recipe.objective, "key"):
        raise TypeError(
            "The objective names key, and the step has none: dropout would be off. Pass key=..., "
            "another one in each step."
        )
    given = {"key": key, "model_state": state.model_state, "hyperparameters": hyperparameters}
    call = _checked(recipe, state, hyperparameters)
    inputs = state.params, batch, given
    options = {"microbatches": recipe.microbatches, "axis_name": recipe.axis_name, "has_aux": True}
    differentiate = value_and_grad(call, **options)
    (now, means, aux), grads = differentiate(state.params, batch, **given)

    remeasure = measure(jax.checkpoint(call), **options)  # its gradient needs a piece's memory, too

    def value_fn(params):
        return remeasure(params, batch, **given)[0]

    if _checks.axes(recipe.axis_name):  # where the gradient of a sum over devices is too large
        value_fn = _with_gradient(value_fn, lambda params: differentiate(params, batch, **given)[1])
    extra = {"value": now, "grad": grads, "value_fn": value_fn}
    with _rule(recipe, hyperparameters) as rule:
        updates, opt_state = moved(rule, grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
    state = State(params, aux.get("model_state"), opt_state, state.count + 1)
    measured = means, aux.get("metrics")
    if recipe.microbatches > 1:
        measured = uncut(measured, _checks.axes(recipe.axis_name), _measurer(call), *inputs)
    return state, Measured(now, *measured), grads


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
def _rule(recipe: Recipe, hyperparameters: PyTree) -> Iterator[Any]:
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
