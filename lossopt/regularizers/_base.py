"""What a regularizer is."""

from typing import Protocol, runtime_checkable

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
