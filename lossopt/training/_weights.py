"""Terms that weigh the same however many pieces a step was cut into."""

from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
from jax.extend import core

from lossopt import _jax
from lossopt._jaxprs import prune
from lossopt._mean import Mean, is_mean
from lossopt._typing import Means, PyTree


def uncut(
    measured: Means, axes: tuple[Hashable, ...], objective: Callable[..., Means], *args: PyTree
) -> Means:
    """What pieces measured, with the weights of the whole where no number of it decides them.

    Each piece counts a constant term once, and so does the whole batch. Means over rows weigh as
    much in pieces as together, and stay what they are, to the bit.

    Args:
      measured: a tree of `Mean`, pooled over pieces and devices.
      axes: names of the axes over which it was pooled.
      objective: measures the whole batch of this device; all but its weights is deleted.
      *args: trees of arrays that the objective takes.
    """

    def weigh(*args):
        return [mean.weight for mean in jax.tree.leaves(objective(*args), is_leaf=is_mean)]

    traced, inputs = jax.make_jaxpr(weigh)(*args), jax.tree.leaves(args)

    def whole(number, mean):
        weight, used = prune(lambda *inputs: core.jaxpr_as_fun(traced)(*inputs)[number], *inputs)
        if any(used):
            return mean
        weight = jax.lax.psum(_jax.varying(weight(), axes), axes)
        share = weight / jnp.where(mean.weight == 0, 1, mean.weight)
        return Mean(share * mean.total, weight)

    leaves, structure = jax.tree.flatten(measured, is_leaf=is_mean)
    return structure.unflatten([whole(*numbered) for numbered in enumerate(leaves)])
