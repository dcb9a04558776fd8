"""The vocabulary of signatures: shaped arrays and trees, each spelled once."""

from collections.abc import Hashable
from typing import Any, TypeAlias, TypeVar

from jaxtyping import Array as Array
from jaxtyping import ArrayLike as ArrayLike
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Int as Int
from jaxtyping import Key as Key
from jaxtyping import Num as Num
from jaxtyping import PyTree as PyTree
from jaxtyping import Scalar as Scalar

Params = TypeVar("Params")  # any tree of arrays; functions return the tree they were given
Batch: TypeAlias = Any  # any tree of arrays that share a leading axis
Means: TypeAlias = PyTree  # any tree whose leaves are `Mean`
Axis: TypeAlias = Hashable | tuple[Hashable, ...] | None  # names of axes of an enclosing map
Number: TypeAlias = ArrayLike  # one number, perhaps traced
StepSize: TypeAlias = ArrayLike | PyTree  # one number, or a tree of one per coordinate
