"""One trial, as a program has it, and the programs of a group of trials."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _programs
from lossopt._paths import paths
from lossopt._typing import Array, Key, PyTree
from lossopt.sweeps._form import Form
from lossopt.sweeps._task import Task

Statics = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the trials of a group have in common.

    Attributes:
      run: a function of hyperparameters and key, or a `Task`.
      statics: names and options of the hyperparameters that the program is made for.
      key: of the sweep.
    """

    run: Callable | Task
    statics: Statics
    key: Key[Array, ""]
    _made: dict[Any, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def steps(self) -> int:
        """How many it takes; 0 where it cannot be cut."""
        return self.run.steps if isinstance(self.run, Task) else 0

    def bound(self, form: Form) -> "Bound":
        """Its programs for the trials of a call."""
        return Bound(self, form)

    def shapes(self, values: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """State and scores of one trial, as `jax.eval_shape` says; refuses what are no scores."""
        plan, id = self.plan(Form("sequential", 1)), np.int32(0)
        if not self.steps:
            return None, _programs.outlined(_run, plan, values, id, self.key)
        state = _programs.outlined(_begun, plan, values, id, self.key)
        after = _programs.outlined(_advanced, plan, state, np.int32(0))
        same_form(state, after, "advance")
        return state, _programs.outlined(_scored, plan, state)

    def programs(self, form: Form, values: PyTree) -> list[tuple[_programs.Program, tuple]]:
        """The programs of a call and the shapes they are for; the last but one, or only, steps."""
        plan, of = self.plan(form), (form, *((x.shape, x.dtype) for x in jax.tree.leaves(values)))
        if of not in self._made:
            calls = self._calls(form, values)
            self._made[of] = [(_programs.made(fn, plan, *x), x) for fn, x in calls]
        return self._made[of]

    def ready(self, form: Form, values: PyTree) -> bool:
        """Whether the programs of a call have been made before."""
        plan = self.plan(form)
        return all(_programs.held(fn, plan, *x) for fn, x in self._calls(form, values))

    def plan(self, form: Form) -> tuple:
        """What its programs are made for."""
        return self.run, self.statics, form

    def _calls(self, form, values):
        """The functions of a call and the shapes they are called with."""
        key = form.place(self.key, True)
        one = jax.tree.map(_shape, (values, np.int32(0)))
        begins = (*form.like(one), key)
        if not self.steps:
            return [(_run, begins)]
        state = form.like(self.shapes(values)[0])
        moves = state, form.place(np.int32(0), True)
        return [(_begun, begins), (_advanced, moves), (_scored, (state,))]


class Bound:
    """The programs of a trial in a form, each looked up once.

    Args:
      trial: what the trials of a group have in common.
      form: of a call.
    """

    def __init__(self, trial: Trial, form: Form):
        self._form, self._steps = form, trial.steps
        self._key = form.place(trial.key, True)
        made = [_programs.again(fn, trial.plan(form)) for fn in (_begun, _advanced, _scored, _run)]
        self._begun, self._advanced, self._scored, self._run = made

    def begin(self, values: PyTree, ids: PyTree) -> PyTree:
        """The states of the trials of a call; of a function what it will be called with."""
        return self._begun(values, ids, self._key) if self._steps else (values, ids)

    def advance(self, state: PyTree, steps: int) -> PyTree:
        """The states after further steps."""
        return self._advanced(state, self._form.place(np.int32(steps), True))

    def score(self, state: PyTree) -> dict[str, Array]:
        """A column for each score."""
        return self._scored(state) if self._steps else self._run(*state, self._key)


def scores_of(tree: PyTree) -> dict[str, Array]:
    """The scalars of a tree by path; one without a name is the loss."""
    named = dict(zip(paths(tree), map(jnp.asarray, jax.tree.leaves(tree))))
    for name, x in named.items():
        real = (jnp.issubdtype(x.dtype, jnp.number) and not jnp.iscomplexobj(x)) or x.dtype == bool
        if x.shape or not real:
            raise ValueError(
                f"Expected run to return real scalars, got {name or 'the result'} of dtype "
                f"{x.dtype} and shape {x.shape}. Return numbers that rank or describe a trial, "
                "such as jnp.mean(losses)."
            )
    if not named:
        raise ValueError("Expected run to return at least one scalar, got none. Return a loss.")
    return {name or "loss": x for name, x in named.items()}


def given(statics: Statics, values: PyTree) -> PyTree:
    """Hyperparameters as the user's function receives them."""
    return values | dict(statics) if isinstance(values, dict) else values


def _run(run, statics, form, values, ids, key):
    def one(values, id, key):
        return scores_of(run(given(statics, values), jax.random.fold_in(key, id)))

    return form.over(one, 1)(values, ids, key)


def _begun(task, statics, form, values, ids, key):
    def one(values, id, key):
        return strong(task.init(given(statics, values), jax.random.fold_in(key, id)))

    return form.over(one, 1)(values, ids, key)


def _advanced(task, statics, form, state, steps):
    return form.over(lambda state, steps: strong(task.advance(state, steps)), 1)(state, steps)


def _scored(task, statics, form, state):
    return form.over(lambda state: scores_of(task.score(state)))(state)


def strong(tree: PyTree) -> PyTree:
    """Arrays of dtypes of their own, so that a state after steps is one like before."""
    keep = lambda x: isinstance(x, jax.Array) and not x.weak_type
    return jax.tree.map(lambda x: x if keep(x) else jnp.asarray(x, jnp.result_type(x)), tree)


def _shape(x):
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))


def same_form(before: PyTree, after: PyTree, name: str) -> None:
    """Refuses an `advance` or `inherit` that changes the shapes of a state."""
    told = lambda tree: [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)]
    same = jax.tree.structure(before) == jax.tree.structure(after)
    if same and told(before) == told(after):
        return
    if not same:
        raise ValueError(
            f"Expected {name} to return a state like that of init, {jax.tree.structure(before)}, "
            f"got {jax.tree.structure(after)}."
        )
    changed = [
        f"{path or 'the state'} from {old} to {new}"
        for path, old, new in zip(paths(before), told(before), told(after))
        if old != new
    ]
    raise ValueError(
        f"Expected {name} to keep the shapes and dtypes of the state of init; it changes "
        f"{', '.join(changed)}."
    )
