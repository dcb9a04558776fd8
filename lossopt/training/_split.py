"""Rows of a data set that are set apart to validate."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _checks, _jax
from lossopt._pieces import rows
from lossopt._place import Parted, parted
from lossopt._typing import Array, Batch, Int, Key, PyTree
from lossopt.training._arrays import on_device
from lossopt.training._source import Rows

APART = 2**32 - 1  # no epoch has this number


def split(
    data: Batch, share: float, key: Key[Array, ""], *, shards: int | None = None
) -> tuple[Batch, Batch]:
    """Splits rows at random into those that train and those that validate.

    It is what `fit(validation=0.2)` does with its key. Each row is in one of them. Rows that belong
    together, such as those of one patient or one day, must not be torn apart, and rare classes may
    be missing in a small part: split such data yourself.

    Args:
      data: tree of arrays that share a leading axis of rows.
      share: of the rows that validate, between 0 and 1, a Python number. They are
        `round(share * rows)`, of each shard `round(share * rows / shards)`. The last rows, which
        shards do not divide, train.
      key: typed PRNG key; it decides which rows.
      shards: as in `fit`: each gives its share, so that devices keep the rows they hold.

    Returns:
      `(train, validation)`, trees like `data`, in an order of their own.

    Raises:
      ValueError: if `share` is out of range or leaves nothing on one side, or if leaves of `data`
        differ in rows.
      TypeError: if `key` is not typed.

    Examples:
      >>> train, validation = lo.training.split(jnp.arange(10), 0.2, jax.random.key(0))
      >>> print(len(train), len(validation), jnp.sort(jnp.concatenate([train, validation])))
      8 2 [0 1 2 3 4 5 6 7 8 9]
    """
    _checks.given_key(key)
    (data,) = on_device(data=data)
    return _apart(_held(data, shards, share=share), data, key)[:2]


def held_out(
    train: Batch,
    validation: Batch,
    key: Key[Array, ""],
    shards: int | None,
    into: Callable[..., list[PyTree]] = on_device,
) -> tuple[Batch, Batch, Int[Array, "rows"] | None]:
    """Training and validation data, and the rows that validate where a share was split off.

    Args:
      train: the rows.
      validation: others, or a share.
      key: typed PRNG key.
      shards: as in `split`.
      into: `on_device`, or `on_host`, where rows of numpy stay.
    """
    if not isinstance(validation, int | float | np.number):
        return train, validation, None
    _checks.given_key(key)
    (data,) = into(train=train)
    return _apart(_held(data, shards, validation=validation), data, key)


def _held(data, shards, **named):
    """How many rows, of how many, validate, and in which shards."""
    ((name, share),) = named.items()
    total = rows(data)
    parts = _jax.shards(data) if shards is None else _checks.count("shards", shards, 1)
    _checks.above(0, **named)
    _checks.below(1, **named)
    each = round(float(share) * total / parts)
    if not 0 < each < total // parts:
        raise ValueError(
            f"Expected {name} as a share that leaves rows to train and to validate, as many in "
            f"each shard; got {share} of {total} rows in {parts} shards, {each} of each. Choose "
            "another share, or split the data yourself."
        )
    return Rows(total, each * parts, False, parts)


def _apart(source, data, key):
    if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(data)):  # stays on the host
        places = jax.device_get(_taken(source, np.arange(source.rows), key))
        train, validation = (jax.tree.map(lambda x, i=i: x[i], data) for i in places[:2])
        return train, validation, jnp.asarray(places[2])
    with _jax.on_mesh(data):
        return _taken(source, data, key)


@partial(jax.jit, static_argnums=0)
def _taken(source, data, key):
    key = jax.random.fold_in(key, APART)
    numbered = parted((data, jnp.arange(source.rows)), source.shards)
    held, (even,) = source.batch_size, numbered.even
    train = source.take(even, key, 1, source.rows - source.left - held)
    return Parted((train,), numbered.rest).joined()[0], *source.take(even, key, 0, held)
