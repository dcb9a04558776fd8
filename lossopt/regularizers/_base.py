"""What a regularizer is, and what it may say about its sums with others."""

from typing import Literal, Protocol, runtime_checkable

from lossopt._typing import Params, PyTree, Scalar, StepSize


@runtime_checkable
class Regularizer(Protocol):
    """A function of the parameters that also knows its own proximal step."""

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`, in float32 or wider."""
        ...

    def prox(self, params: Params, step_size: StepSize) -> Params:
        r"""The proximal point $\arg\min_z \tfrac12 \|z - \theta\|^2 / t + R(z)$.

        Args:
          params: $\theta$, any tree of floating arrays.
          step_size: $t \ge 0$, one number, or a tree like `params` of one per coordinate.

        Returns:
          A tree like `params`, with its dtypes.
        """
        ...


@runtime_checkable
class Summand(Regularizer, Protocol):
    """A regularizer that knows others to which it may be added."""

    def stands(self, other: Regularizer) -> Literal["before", "after"] | None:
        """Where its prox stands if that of the sum is one prox after the other.

        Args:
          other: a regularizer that is no sum itself.

        Returns:
          Whether its prox is taken before or after that of `other`. None where the prox of their
          sum is another one, or not known.
        """
        ...


@runtime_checkable
class Quadratic(Regularizer, Protocol):
    """A regularizer that may be added to every other, as it only moves the point and the step."""

    def absorb(self, params: Params, step_size: PyTree) -> tuple[Params, PyTree]:
        """Where the prox of any R alone is that of R and this one together.

        Args:
          params: a tree of floating arrays, in float32 or wider.
          step_size: a tree of one for each leaf, or of one for each coordinate.

        Returns:
          The point and the step size, as trees like those that came.
        """
        ...
