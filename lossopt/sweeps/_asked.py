"""The host of a sweep that a sampler suggests: it asks, runs, tells, and asks again."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from lossopt._keys import is_key
from lossopt._typing import PyTree
from lossopt.checkpoint import Checkpoints
from lossopt.sweeps._draws import made
from lossopt.sweeps._host import Engine, Host
from lossopt.sweeps._identity import option_text, same_facts
from lossopt.sweeps._parts import Parts, checked, programs
from lossopt.sweeps._saves import asked_like, told_of
from lossopt.sweeps._spaces import Choice, Static
from lossopt.sweeps._suggest import Suggest
from lossopt.sweeps._task import Task
from lossopt.sweeps._trials import Trials
from lossopt.sweeps._watch import Watch
from lossopt.training._saves import opened

FEW = 32  # options that are told one by one

Place = str | os.PathLike[str] | Checkpoints | None


def asked_of(trials: Trials | Suggest | PyTree, rungs: Any, place: Place) -> "Asked | None":
    """What a sampler suggests, from an earlier call or as the first chunk; None where none does."""
    if not isinstance(trials, Suggest):
        return None
    if rungs is not None:
        raise ValueError(
            f"Expected trials that are drawn beforehand with rungs, got {trials!r}: a rung ranks "
            "all settings of a bracket, which have to be there. Leave rungs out, or draw trials, "
            "as by lossopt.sweeps.random."
        )
    return Asked(trials, place)


class Asked:
    """The trials that have been suggested so far.

    Args:
      suggest: the sampler and its space.
      place: of the checkpoint, or None.

    Attributes:
      values: what was suggested, by name, `[trials]`; of what has options, the places of these.
      facts: what makes it the same sweep, by name.
      count: how many trials there are to be.
    """

    def __init__(self, suggest: Suggest, place: Place):
        self._suggest, self.count = suggest, suggest.n
        texts = [f"{name} {_text(x)}" for name, x in suggest.space.items()]
        chunks = f"suggested, {suggest.chunk} at a time"
        self.facts = {"trials": chunks, "space": ", ".join(texts)}
        self.values = self._before(place)
        self._told, self._new = np.zeros(len(self), bool), False
        if not len(self):
            self._ask()

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def trials(self) -> Trials:
        """All of them, with ids from 0 on."""
        return made(self._suggest.space, self._suggest.values(self.values))

    def runs(self, parts: Parts, engine: Engine) -> Callable[[Host, Watch], None]:
        """What `hosted` runs: chunk after chunk, until all ran or somebody asks to end."""
        return partial(self._runs, parts, engine)

    def _runs(self, parts, engine, host, watch):
        options = [len(x.options) for x in self._suggest.space.values() if isinstance(x, Static)]
        share = -(-self._suggest.chunk // math.prod(options))  # of a group, if options are as many
        host = dataclasses.replace(host, least=share)
        self._tell(host.ledger)
        while True:
            if self._new:
                self._keep(engine, host, watch)
            if not engine.stretched(host, watch):
                return
            self._tell(host.ledger)
            if len(self) == self.count or watch.over:
                return
            host = self._next(parts, host)

    def _next(self, parts, host):
        """The next chunk in place of the one before."""
        start = len(self)
        self._ask()
        trials = self.trials
        found, ledger, facts = parts.of(trials, start), host.ledger, host.saves.facts
        ledger.grow(trials, parts.dtypes)
        if facts:
            facts |= programs(parts.new)
        trial = host.parts[0].trial
        if isinstance(trial.run, Task):
            checked(trial.run, parts.new, trials, trial.key)
        return dataclasses.replace(host, parts=found)

    def _ask(self):
        count = min(self._suggest.chunk, self.count - len(self))
        found = self._suggest.asked(count, len(self))
        for name, x in found.items():
            self.values[name] = np.concatenate([self.values[name], x])
        self._told, self._new = np.concatenate([self._told, np.zeros(count, bool)]), True

    def _keep(self, engine, host, watch):
        """Settles how the chunk runs, and saves all of it before it runs."""
        for part in host.parts:
            if not watch.over:
                engine.form_of(host, part, part.rows, watch)
        watch.save()
        host.saves.wait()

    def _tell(self, ledger):
        """Tells the rows that have run and were not told."""
        rows = np.flatnonzero(ledger.ran & ~self._told)
        if rows.size:
            self._suggest.tell([ledger.row(row) for row in rows])
            self._told[rows] = True

    def _before(self, place):
        """What an earlier call was suggested; refuses that of another sweep."""
        checkpoints, own = opened(place)
        if checkpoints is None:
            return self._suggest.nothing
        try:
            if checkpoints.latest() is None:
                return self._suggest.nothing
            where = f"The checkpoint in {checkpoints.directory}"
            like = partial(self._like, where)
            found = checkpoints.restore(like, only="^asked/").state["asked"]
        finally:
            if own:
                checkpoints.close()
        return {name: found[name] for name in self._suggest.space}

    def _like(self, where, note):
        told = told_of(note, where)
        had = {"trials": "drawn before the sweep began"} | told["facts"]
        same_facts({name: x for name, x in had.items() if name in self.facts}, self.facts, where)
        asked = asked_like(told)
        if (count := max(map(len, asked.values()))) > self._suggest.n:
            raise ValueError(
                f"{where} holds {count} trials that were suggested: expected n of at least as "
                f"many, got {self._suggest.n}. Nothing was overwritten."
            )
        return {"asked": asked}


def _text(dimension):
    """A range or choice in words."""
    if isinstance(dimension, Static):
        return f"Static({', '.join(map(option_text, dimension.options))})"
    if not isinstance(dimension, Choice):
        return repr(dimension)
    options = dimension.options
    data = np.asarray(jax.random.key_data(options) if is_key(options) else options)
    if data.size <= FEW:
        return f"Choice({data.tolist()})"
    return f"Choice of {len(data)} options {hashlib.sha256(data.tobytes()).hexdigest()[:16]}"
