"""One trial, as a program has it, and the programs of a group of trials."""

import dataclasses
from collections.abc import Callable
from functools import partial
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
    _known: dict[str, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def steps(self) -> int:
        """How many it takes; 0 where it cannot be cut."""
        return self.run.steps if isinstance(self.run, Task) else 0

    def begin(self, form: Form, values: PyTree, ids: PyTree) -> PyTree:
        """The states of the trials of a call; of a function what it will be called with."""
        if not self.steps:
            return values, ids
        args = values, ids, form.place(self.key, True)
        return _programs.call(_begun, self._plan(form), *args)

    def advance(self, form: Form, state: PyTree, steps: int) -> PyTree:
        """The states after further steps."""
        count = form.place(np.int32(steps), True)
        return _programs.call(_advanced, self._plan(form), state, count)

    def score(self, form: Form, state: PyTree) -> dict[str, Array]:
        """A column for each score."""
        if not self.steps:
            return _programs.call(_run, self._plan(form), *state, form.place(self.key, True))
        return _programs.call(_scored, self._plan(form), state)

    def shapes(self, values: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """State and scores of one trial, as `jax.eval_shape` says; refuses what are no scores."""
        asked = str(jax.tree.map(_shape, values))
        if asked not in self._known:
            self._known[asked] = self._traced(values)
        return self._known[asked]

    def programs(self, form: Form, values: PyTree) -> list[tuple[_programs.Program, tuple]]:
        """The programs of a call and the shapes they are for; the last but one, or only, steps."""
        plan, key = self._plan(form), form.place(self.key, True)
        one = jax.tree.map(_shape, (values, np.int32(0)))
        begins = (*form.like(one), key)
        if not self.steps:
            return [(_programs.made(_run, plan, *begins), begins)]
        state = form.like(self.shapes(values)[0])
        moves = state, form.place(np.int32(0), True)
        calls = (_begun, begins), (_advanced, moves), (_scored, (state,))
        return [(_programs.made(fn, plan, *args), args) for fn, args in calls]

    def _traced(self, values):
        plan, id = self._plan(Form("sequential", 1)), np.int32(0)
        if not self.steps:
            return None, jax.eval_shape(partial(_run, *plan), values, id, self.key)
        state = jax.eval_shape(partial(_begun, *plan), values, id, self.key)
        after = jax.eval_shape(partial(_advanced, *plan), state, np.int32(0))
        _same_form(state, after)
        return state, jax.eval_shape(partial(_scored, *plan), state)

    def _plan(self, form):
        return self.run, self.statics, form


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


def _given(statics, values):
    """Hyperparameters as the user's function receives them."""
    return values | dict(statics) if isinstance(values, dict) else values


def _run(run, statics, form, values, ids, key):
    def one(values, id, key):
        return scores_of(run(_given(statics, values), jax.random.fold_in(key, id)))

    return form.over(one, 1)(values, ids, key)


def _begun(task, statics, form, values, ids, key):
    def one(values, id, key):
        return _strong(task.init(_given(statics, values), jax.random.fold_in(key, id)))

    return form.over(one, 1)(values, ids, key)


def _advanced(task, statics, form, state, steps):
    return form.over(lambda state, steps: _strong(task.advance(state, steps)), 1)(state, steps)


def _scored(task, statics, form, state):
    return form.over(lambda state: scores_of(task.score(state)))(state)


def _strong(tree):
    """Arrays of dtypes of their own, so that a state after steps is one like before."""
    keep = lambda x: isinstance(x, jax.Array) and not x.weak_type
    return jax.tree.map(lambda x: x if keep(x) else jnp.asarray(x, jnp.result_type(x)), tree)


def _shape(x):
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))


def _same_form(before, after):
    """Refuses an `advance` that changes the shapes of a state."""
    told = lambda tree: [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)]
    same = jax.tree.structure(before) == jax.tree.structure(after)
    if same and told(before) == told(after):
        return
    if not same:
        raise ValueError(
            f"Expected advance to return a state like that of init, {jax.tree.structure(before)}, "
            f"got {jax.tree.structure(after)}."
        )
    changed = [
        f"{path or 'the state'} from {old} to {new}"
        for path, old, new in zip(paths(before), told(before), told(after))
        if old != new
    ]
    raise ValueError(
        f"Expected advance to keep the shapes and dtypes of the state of init; it changes "
        f"{', '.join(changed)}."
    )
