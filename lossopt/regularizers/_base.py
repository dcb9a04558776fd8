"""What a regularizer is."""

from typing import Protocol, runtime_checkable

from lossopt._typing import Params, PyTree, Scalar, Step


@runtime_checkable
class Regularizer(Protocol):
    """A function of the parameters that also knows its own proximal step."""

    def __call__(self, params: PyTree) -> Scalar:
        """The penalty, shape `()`, in float32 or wider."""
        ...

    def prox(self, params: Params, step: Step) -> Params:
        r"""The proximal point $\arg\min_z \tfrac12 \|z - \theta\|^2 / \text{step} + R(z)$.

        Args:
          params: $\theta$, any tree of floating arrays.
          step: one number, or a tree like `params` of one number per coordinate, at least 0.

        Returns:
          A tree like `params`, with its dtypes.
        """
        ...
