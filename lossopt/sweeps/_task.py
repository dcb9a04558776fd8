"""What a sweep runs in parts: a trial that is begun, moved on by steps, and scored."""

import dataclasses
from collections.abc import Callable

from lossopt import _checks
from lossopt._typing import Array, Key, Number, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Task:
    """A trial in three pure functions, so that a sweep can cut it and keep its state.

    All three are traced under `vmap`, as `inherit` is. Any cut of the steps gives the same state:
    what a step depends on is in the state, its own count of steps too. `sweeps.task` makes one of a
    training run.

    Attributes:
      init: maps hyperparameters and a typed PRNG key to the state before the first step, a tree of
        arrays.
      advance: maps a state and a number of further steps to the state after them, of equal shapes
        and dtypes; the number is one int32 for all trials of a chunk, at least 0 and traced.
      score: maps a state to a tree of scalars; it may be called after any step.
      steps: how many a trial takes, at least 1.
      check: receives hyperparameters and key of one trial outside of any trace, and raises where
        something does not fit; None checks nothing.
      inherit: for `population`, maps the state of a trial, that of another after as many steps, and
        hyperparameters to the state in which the first takes the place of the other: with these
        hyperparameters, and a key of its own. None has none.

    Raises:
      TypeError: where a function cannot be called, or `steps` is no whole number.
      ValueError: where `steps` is below 1.

    Examples:
      >>> init = lambda numbers, key: (numbers["rate"], jnp.float32(1.0))
      >>> move = lambda state: (state[0], state[1] * (1 - state[0]))
      >>> advance = lambda state, steps: jax.lax.fori_loop(0, steps, lambda _, s: move(s), state)
      >>> lo.sweeps.Task(init, advance, lambda state: state[1], steps=10).steps
      10
    """

    init: Callable[[PyTree, Key[Array, ""]], PyTree]
    advance: Callable[[PyTree, Number], PyTree]
    score: Callable[[PyTree], PyTree]
    steps: int = dataclasses.field(kw_only=True)
    check: Callable[[PyTree, Key[Array, ""]], None] | None = dataclasses.field(
        default=None, kw_only=True
    )
    inherit: Callable[[PyTree, PyTree, PyTree], PyTree] | None = dataclasses.field(
        default=None, kw_only=True
    )

    def __repr__(self) -> str:
        return f"Task of {self.steps} steps"  # the functions may hold all data

    def __post_init__(self):
        needed = {"init": self.init, "advance": self.advance, "score": self.score}
        for name, function in needed.items():
            if not callable(function):
                raise TypeError(
                    f"Expected {name} as a function, got {function!r}. Pass what is to be called."
                )
        _checks.functions(check=self.check, inherit=self.inherit)
        object.__setattr__(self, "steps", _checks.count("steps", self.steps, 1))
