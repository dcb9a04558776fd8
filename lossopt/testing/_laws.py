"""How a law is stated. `python -O` turns assertions off, and so there are none."""

import jax
import jax.numpy as jnp
import numpy as np

from lossopt._typing import ArrayLike, PyTree


def require(holds: ArrayLike, message: str) -> None:
    """Raises unless it holds."""
    if not holds:
        raise AssertionError(message)


def finite(law: str, tree: PyTree) -> None:
    """Raises unless all numbers are finite."""
    for x in jax.tree.leaves(tree):
        require(jnp.isfinite(x).all(), f"{law}; got {x}, which is not finite")


def close(law: str, got: PyTree, want: PyTree, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Raises unless the leaves agree."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=law)
