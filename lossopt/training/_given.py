"""What `fit` was given to read: rows in memory, or streams whose first batch stands for them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt import _checks, _jax, _pieces
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.training._evaluation import on_device
from lossopt.training._feed import Horizon
from lossopt.training._pile import Stacks
from lossopt.training._plan import Source
from lossopt.training._source import source
from lossopt.training._split import parted
from lossopt.training._stream import NEVER, Reader, is_once, is_stream, own_batches


class Given(NamedTuple):
    """Training and validation data.

    Attributes:
      train: the rows, or the first batch of a stream.
      validation: likewise; or None.
      held: the rows that validate, where they were split off.
      source: how batches are made of `train`.
      reader: of the stream that trains; or None.
      validating: the stream that validates; or None.
    """

    train: Batch
    validation: Batch
    held: Array | None
    source: Source
    reader: Reader | None
    validating: Iterable | None

    def facts(self) -> dict[str, PyTree]:
        """What tells these data from others.

        A stream that is told where it was, or that validates, may begin with another batch.
        """
        shapes = lambda tree: jax.eval_shape(lambda: tree)
        stateful = self.reader is not None and self.reader.stateful
        return {
            "train": shapes(self.train) if stateful else self.train,
            "validation": shapes(self.validation) if self.validating else self.validation,
        }

    @contextmanager
    def lent(self) -> Iterator[None]:
        """At the end a stream that tells its state stands where it stood, for a call like this."""
        try:
            yield
        finally:
            if self.reader is not None:
                with suppress(Exception):  # a loader that has failed: its error is raised
                    self.reader.put_back()


def given(
    train: Any, validation: Any, key: Key[Array, ""], until: Horizon, batch_size: Any, **cut: Any
) -> Given:
    """What there is to read; refuses what cannot be read so often, or cut so."""
    reader, held = None, None
    if is_stream(train):
        own_batches(train=train, batch_size=batch_size, **cut)
        if isinstance(validation, int | float | np.number):
            raise ValueError(
                f"validation={validation} is a share of rows, and train is an iterable, whose rows "
                "nobody has counted. Give arrays or another iterable to validate."
            )
        if until.unit == "epochs" and until.number > 1 and is_once(train):
            raise ValueError(
                f"epochs={until.number} reads train again, and it can be iterated only once, as a "
                "generator is. Give an object whose __iter__ begins anew, or steps=."
            )
        reader = Reader(train, "train")
        train = reader.first
    else:
        train, validation, held = parted(train, validation, key, cut["shards"])
    validating = validation if is_stream(validation) else None
    if validating is not None:
        if is_once(validating):
            raise ValueError(
                "validation is read at each row of history, and it can be iterated only once, as a "
                "generator is. Give an object whose __iter__ begins anew."
            )
        validation = Reader(validating, "validation").first
    train, validation = on_device(train=train, validation=validation)
    if validation is not None:
        _pieces.rows(validation, "validation")
    if reader is not None:
        rows = Stacks(_pieces.rows(train, "train"), _jax.shards(train))
    else:
        rows = source(train, batch_size, **cut)
        each = rows.steps if until.unit == "epochs" else 1
        _checks.at_most(NEVER // each, **{until.unit: until.number})
    return Given(train, validation, held, rows, reader, validating)
