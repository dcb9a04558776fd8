"""NaN in a regularizer: what depends on it must not come out as a number."""

import jax
import jax.numpy as jnp
import numpy as np

PARTS = "a number", "params", "step_size"
OTHERS = (  # what else may stand where x stands, in each part
    lambda x: (x, 0, x / 2, 2 * x, x + 0.5),
    lambda x: (x, 0, x + 1, 30 * x + 30, -30 * x - 30),
    lambda x: (x, 0, x / 10, x / 2, 10 * x),
)
MOST = 16  # places of a leaf


def nan_stays_nan(regularizer, params, step_size):
    """NaN in a coordinate, its step or a number makes NaN of all that depends on it."""
    steps = jax.tree.map(lambda x: np.full(jnp.shape(x), step_size, np.float32), params)
    try:
        jax.eval_shape(lambda t: regularizer.prox(params, t), steps)
    except ValueError:
        steps = np.float32(step_size)
    leaves, structure = jax.tree.flatten((regularizer, params, steps))
    part = np.repeat(range(3), [len(jax.tree.leaves(x)) for x in (regularizer, params, steps)])
    leaves = [np.asarray(leaf) for leaf in leaves]
    places = [(i, j) for i, leaf in enumerate(leaves) for j in _places(leaf)]
    tables = [np.tile(leaf, (len(places), 6, *[1] * leaf.ndim)) for leaf in leaves]
    for row, (i, j) in enumerate(places):
        x = leaves[i].flat[j]
        tables[i][row].reshape(6, -1)[:, j] = [np.nan, *OTHERS[part[i]](x)]
    look = jax.vmap(jax.vmap(lambda r, x, t: (r(x), r.prox(x, t))))
    for got in jax.tree.leaves(jax.jit(look)(*structure.unflatten(tables))):
        got = np.asarray(got, np.float32).reshape(len(places), 6, -1)
        depends = (got[:, 1:] != got[:, 1:2]).any(axis=1)
        for row in np.flatnonzero((depends & ~np.isnan(got[:, 0])).any(axis=1)):
            i, j = places[row]
            raise AssertionError(
                f"NaN must stay NaN: where {PARTS[part[i]]} has NaN at place {j} of shape "
                f"{leaves[i].shape}, a result that depends on it is a number"
            )


def _places(leaf):
    some = leaf.size and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return np.unique(np.linspace(0, leaf.size - 1, MOST).astype(int)) if some else ()
