"""What `fit` was given to read: rows in memory, or streams whose first batch stands for them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt import _checks, _jax, _pieces
from lossopt._place import Parted
from lossopt._typing import Array, Batch, Key, PyTree
from lossopt.training._arrays import on_device, on_host
from lossopt.training._facts import of_all, same_rows
from lossopt.training._feed import Horizon
from lossopt.training._laid import laid_batch, laid_rows
from lossopt.training._layout import Layout, joint
from lossopt.training._pile import Stacks
from lossopt.training._plan import Source
from lossopt.training._reader import Reader, reading
from lossopt.training._source import source
from lossopt.training._split import held_out
from lossopt.training._stream import NEVER, is_once, is_stream, own_batches


class Given(NamedTuple):
    """Training and validation data.

    Attributes:
      train: the rows, or the first batch of a stream.
      validation: likewise; or None.
      told: both, as they were given.
      held: the rows that validate, where they were split off.
      source: how batches are made of `train`.
      reader: of the stream that trains; or None.
      validating: the stream that validates; or None.
      joint: whether each process reads its own part of streams.
    """

    train: Batch | Parted
    validation: Batch | Parted
    told: tuple[Batch, Batch]
    held: Array | None
    source: Source
    reader: Reader | None
    validating: Iterable | None
    joint: bool

    def joined(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Facts of this process as those of all, where each reads a part of its own."""
        parted = self.joint and (self.reader is not None or self.validating is not None)
        return of_all(facts) if parted else facts

    def facts(self) -> dict[str, PyTree]:
        """What tells these data from others.

        A stream that is told where it was, or that validates, may begin with another batch.
        """
        shapes = lambda tree: jax.eval_shape(lambda: tree)
        stateful = self.reader is not None and self.reader.stateful
        train, validation = self.told
        return {
            "train": shapes(train) if stateful else train,
            "validation": shapes(validation) if self.validating else validation,
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
    train: Any,
    validation: Any,
    key: Key[Array, ""],
    until: Horizon,
    layout: Layout | None,
    before: int | None,
    batch_size: Any,
    **cut: Any,
) -> Given:
    """What there is to read; refuses what cannot be read so often, or cut so.

    Args:
      train: as `fit` has it.
      validation: likewise.
      key: of the run.
      until: how far it goes.
      layout: on a mesh, or None.
      before: the shards of a run that goes on, or None.
      batch_size: as `fit` has it.
      **cut: `shards` and `drop_last`, likewise.
    """
    reader, held = None, None
    together, into = joint(layout), on_device if layout is None else on_host
    if is_stream(train):
        own_batches(train=train, batch_size=batch_size, **cut)
        _readable(train, validation, until)
        reader = reading(layout, train, "train")
        train = reader.first
    else:
        if cut["shards"] is None:
            cut["shards"] = before or (layout and layout.devices)
        train, validation, held = held_out(train, validation, key, cut["shards"], into)
    validating = validation if is_stream(validation) else None
    if validating is not None:
        _readable_again(validating)
        validation = reading(layout, validating, "validation").first
    train, validation = into(train=train, validation=validation)
    if validation is not None:
        _pieces.rows(validation, "validation")
    if reader is not None:
        rows = Stacks(reader.rows, _jax.shards(train) if layout is None else 1)
    else:
        rows = source(train, batch_size, **cut)
        each = rows.steps if until.unit == "epochs" else 1
        _checks.at_most(NEVER // each, **{until.unit: until.number})
    streamed = reader is not None, validating is not None
    if together:
        same_rows(streamed[0], train=train)
        same_rows(streamed[1], validation=validation)
    laid = _laid(layout, rows, streamed, train, validation)
    return Given(*laid, (train, validation), held, rows, reader, validating, together)


def _laid(layout, rows, streamed, train, validation):
    """Both on the devices of the mesh, if there is one."""
    if layout is None:
        return train if streamed[0] else rows.ready(train), validation
    shards = {} if streamed[0] else {"shards": rows.shards}
    lay = [laid_batch if alone else laid_rows for alone in streamed]
    train = lay[0](layout, train, **shards)
    return train, None if validation is None else lay[1](layout, validation)


def _readable(train, validation, until):
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


def _readable_again(validating):
    if is_once(validating):
        raise ValueError(
            "validation is read at each row of history, and it can be iterated only once, as a "
            "generator is. Give an object whose __iter__ begins anew."
        )
