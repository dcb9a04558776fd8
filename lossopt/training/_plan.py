"""What a run is made for, what it reads and what it changes."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
from jax.sharding import PartitionSpec as P

from lossopt import _jax, _mesh, _programs
from lossopt._place import Parted
from lossopt._typing import Array, Batch, Key, Means, PyTree
from lossopt.training._best import Best, Goal
from lossopt.training._layout import Layout, place_of, within
from lossopt.training._pool import Pool
from lossopt.training._step import Optimizer, Recipe, State, take_step
from lossopt.training._stop import StopRule


class Source(Protocol):
    """Where batches come from; a step is counted from the beginning of the run.

    Attributes:
      batch_size: rows of a full batch.
      rest: rows of the ragged last batch of an epoch; 0 if there is none.
      full: full batches of an epoch.
      steps: batches of an epoch, at most.
      shards: equal parts of consecutive rows, of which a batch has as many.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def shards(self) -> int: ...

    @property
    def rest(self) -> int: ...

    @property
    def full(self) -> int: ...

    @property
    def steps(self) -> int: ...

    def place(self, data: Batch, step: Any) -> tuple[Any, Any, Any]:
        """The epoch of a step, its number within that, and how many steps are left there."""
        ...

    def batch(self, data: Batch, key: Key[Array, ""], number: Any) -> Batch:
        """A full batch."""
        ...

    def last(self, data: Batch, key: Key[Array, ""]) -> Batch:
        """The ragged last batch."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


class Plan(NamedTuple):
    """What a program is made for; all else is data.

    Attributes:
      best: what decides after each row what is best; None keeps nothing.
      guard: what a number that is not finite does: `"stop"` ends the loop, `"keep"` also keeps what
        there was before it; None does nothing.
      window: rows of history that are held at a time.
      watch: regular expression on the paths of leaves that have columns of their own.
      evaluate_at: gives the parameters that are judged, from the optimizer's state and the
        parameters; None takes these.
      layout: how it lies on a mesh, of Auto axes; or None.
    """

    objective: Callable
    optimizer: Optimizer
    source: Source
    microbatches: int
    has_aux: bool
    best: Goal | None
    guard: Literal["stop", "keep"] | None
    window: int
    watch: str | None = None
    evaluate_at: Callable[[PyTree, PyTree], PyTree] | None = None
    layout: Layout | None = None

    @property
    def measures_training(self) -> bool:
        """Whether the training set is measured with each row of history."""
        return self.best is not None and self.best.column.startswith("trained/")

    @property
    def recipe(self) -> Recipe:
        """What a step is made for."""
        return Recipe(self.objective, self.optimizer, self.microbatches, self.has_aux)

    @property
    def measure(self) -> tuple:
        """What a measurement is made for, see `_evaluation.measured`."""
        source = self.source
        return self.objective, self.has_aux, source.batch_size, source.shards, self.layout

    def measured(self, fn: Callable, *args: PyTree) -> PyTree:
        """`fn(*plan.measure, *args)`, likewise."""
        with within(self.layout):
            return _programs.call(fn, self.measure, *args)

    def laid(self, progress: "Progress") -> "Progress":
        """Progress that lies as it is to lie; the same without a mesh."""
        if self.layout is None:
            return progress
        specs = jax.tree.map(lambda _: P(), progress)
        specs = specs._replace(state=self.layout.of_state(progress.state))
        if progress.best is not None:
            rest = self.layout.of_params(progress.best.params).rest
            params = jax.tree.structure(progress.best.params).unflatten(rest)
            specs = specs._replace(best=specs.best._replace(params=params))
        lie = jax.lax.with_sharding_constraint if _jax.traced() else _mesh.put
        return jax.tree.map(lie, progress, _mesh.placed(self.layout.mesh, specs))

    def step(self, data: "Data", state: State, batch: Batch | Parted, key: Key[Array, ""]) -> tuple:
        """The one training step."""
        place = place_of(self.layout, state.params, self.source.shards)
        taken = take_step(self.recipe, place, state, batch, key, data.hyperparameters)
        return taken if self.layout is None else (self.layout.laid(taken[0]), *taken[1:])

    def call(self, fn: Callable, *args: PyTree) -> PyTree:
        """`fn(plan, *args)`, compiled, on the mesh if there is one."""
        with within(self.layout):
            return _programs.call(fn, (self,), *args)

    def of_rows(self, rows: int) -> "Plan":
        """The plan for a batch of so many rows, whose microbatches are no larger."""
        size = -(-self.source.batch_size // self.microbatches)
        return self._replace(microbatches=-(-rows // size))

    def judged(self, state: State) -> PyTree:
        """The parameters that are judged."""
        if self.evaluate_at is None:
            return state.params
        return self.evaluate_at(state.opt_state, state.params)


class Pooled(NamedTuple):
    """A validation set that was measured elsewhere: its means and metrics."""

    means: Means
    metrics: Means


class Data(NamedTuple):
    """What a run reads and never changes."""

    train: Batch | Parted
    validation: Batch | Parted | Pooled
    key: Key[Array, ""]
    hyperparameters: PyTree
    stop: StopRule | None


class Progress(NamedTuple):
    """What the loop changes.

    Attributes:
      trail: gradient and parameters of the last step, between the steps of a stretch alone.
    """

    state: State
    best: Best | None
    waiting: PyTree
    status: Array
    pool: Pool
    norms: dict[str, Array]
    rows: Array
    window: dict[str, Array]
    trail: PyTree = None
